"""The folder of a population: its record, its state between two generations, and each member as a run of its own."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from martes.algorithms.learner import Algorithm
from martes.conversion import branches, changed
from martes.data import TeamSpec
from martes.errors import CheckpointError
from martes.evolution.member import Change, Member, State
from martes.evolution.space import SECTION
from martes.training import checkpoint
from martes.training.run import RunFolder, write_text

ELITE, MEMBERS = "elite", "members"
Described = Callable[[Algorithm], str]
"""The config.yaml of a run with this algorithm."""


class PopulationFolder:
    """The names of a population's files. Making one writes nothing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.run = RunFolder(path)
        """config.yaml, metrics, and checkpoints of the whole population."""
        self.lineage = self.path / "lineage.jsonl"
        self.table = self.path / "lineage.csv"
        self.picture = self.path / "lineage.png"
        self.elite = RunFolder(self.path / ELITE)
        """The best member of the newest generation, as a run."""

    def member(self, place: int) -> RunFolder:
        """The run of the member at this place, as it was when the population was last saved."""
        return RunFolder(self.path / MEMBERS / str(place))


@dataclass(frozen=True)
class Saved:
    """A population between two generations."""

    generation: int
    """Of the last evaluation."""
    members: tuple[Member, ...]
    log: State
    pool: State | None = None
    """What all have seen, where they share it."""


def save(folder: PopulationFolder, saved: Saved, keep: int) -> None:
    """Writes a checkpoint of the population, from which it goes on."""
    tree = {
        "generation": saved.generation,
        "members": [_tree(member) for member in saved.members],
        "log": saved.log,
        "pool": saved.pool,
    }
    steps = max(member.steps for member in saved.members)  # one that diverged stays behind
    checkpoint.save(folder.run.checkpoints, tree, steps, keep)


def _tree(member: Member) -> State:
    values = {each.name: getattr(member, each.name) for each in fields(member) if each.name != "team"}
    return {
        **values,
        "algorithm": branches(member.algorithm),
        "fitness": list(member.fitness),
        "change": list(member.change),
    }


def load(path: Path, algorithm: Algorithm, team: TeamSpec) -> Saved:
    """The population of a checkpoint, whose members have this kind of algorithm. Raises CheckpointError for another."""
    tree = checkpoint.load(path)
    try:
        match tree:
            case {
                "generation": int(generation),
                "members": [*members],
                "log": dict(log),
                "pool": dict() | None as pool,
            }:
                return Saved(generation, tuple(_member(each, algorithm, team) for each in members), log, pool)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} holds no population of this experiment: {error}") from error
    raise CheckpointError(f"{path} holds no population: it is the checkpoint of one run (martes train --resume)")


def _member(tree: object, algorithm: Algorithm, team: TeamSpec) -> Member:
    match tree:
        case {"algorithm": dict(values), "fitness": [*fitness], "change": [*change], **rest}:
            return Member(
                team=team,
                algorithm=changed(algorithm, values, SECTION),
                fitness=tuple(fitness),
                change=Change(*change),
                **rest,
            )
    raise KeyError("a member has no algorithm, fitness or change")


def save_run(folder: RunFolder, member: Member, config: str, log: Mapping[str, object]) -> None:
    """Writes a member as a run: `martes evaluate`, `play` and `train --resume` take it.

    Where it cannot be written, config and checkpoint stay those of the member before.
    """
    draft = folder.config.with_name(f".{folder.config.name}.next")
    write_text(draft, config)  # all that takes room comes before the first file that changes
    tree = {
        "steps": member.steps,
        "scored_at": -1,
        "scores": None,
        "learner": member.learner,
        "experience": member.experience,
        "collector": member.collector,
        "log": {**log, "rows": 0, "steps": member.steps, "row_steps": member.steps, "tallies": {}, "phases": {}},
    }
    try:
        checkpoint.save(folder.checkpoints, tree, member.steps, keep=1)
        draft.replace(folder.config)
    finally:
        draft.unlink(missing_ok=True)


def save_runs(folder: PopulationFolder, members: Sequence[Member], described: Described, log: State) -> None:
    """Writes every member as a run."""
    for place, member in enumerate(members):
        save_run(folder.member(place), member, described(member.algorithm), log)
