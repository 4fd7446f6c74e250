"""The record of a population: who lived when, from whom, with which hyperparameters, and what it earned."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from math import isfinite
from pathlib import Path

from martes.algorithms.learner import Algorithm
from martes.conversion import branches, plain
from martes.errors import CheckpointError
from martes.evolution.generation import Outcome
from martes.evolution.member import UNCHANGED
from martes.evolution.population import score
from martes.evolution.space import SECTION, Space
from martes.training.run import write_text


@dataclass(frozen=True)
class Life:
    """One member in one generation."""

    generation: int
    place: int
    """Its place in the population."""
    id: int
    parent: int | None
    steps: int
    """Environment steps that its line has learned from."""
    fitness: float | None
    """What its evaluation came to; None where learning diverged."""
    score: float | None
    """What decided: the mean of its line's newest evaluations."""
    change: Mapping[str, object]
    """What was changed of it before this generation: kind, what, before, after, note."""
    values: Mapping[str, object]
    """Path -> value of what is searched, and of what else has changed since the first generation."""


def lives(outcomes: Sequence[Outcome], generation: int, window: int, searched: Space, start: Algorithm) -> list[Life]:
    """What is recorded of a generation."""
    found = list[Life]()
    for place, each in enumerate(outcomes):
        member, is_new = each.member, each.member.id // len(outcomes) == generation
        found.append(
            Life(
                generation,
                place,
                member.id,
                member.parent,
                member.steps,
                finite(member.fitness[-1]),
                finite(score(member, window)),
                {name: plain(value) for name, value in (member.change if is_new else UNCHANGED)._asdict().items()},
                values_of(member.algorithm, searched, start),
            )
        )
    return found


def finite(number: float) -> float | None:
    """The number, or None where it is none that JSON knows."""
    return number if isfinite(number) else None


def values_of(algorithm: Algorithm, searched: Space, start: Algorithm) -> dict[str, object]:
    """The values of the searched paths, and of every other in which this config differs from `start`."""
    own, first = dict(_flat(branches(algorithm), SECTION)), dict(_flat(branches(start), SECTION))
    return {path: value for path, value in own.items() if path in searched or value != first.get(path, value)}


def _flat(tree: Mapping[str, object], path: str) -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat({str(key): each for key, each in value.items()}, f"{path}.{name}")
        else:
            yield f"{path}.{name}", value


def read_lives(path: Path) -> list[Life]:
    """The lives of a lineage.jsonl. Raises CheckpointError where it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [Life(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is no record of a population: {error}") from error


def write_lives(found: Sequence[Life], record: Path, table: Path) -> None:
    """Writes the lives as JSON lines, and as a table with a column for each value."""
    rows = [asdict(life) for life in found]
    write_text(record, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    names = dict.fromkeys(name for life in found for name in life.values)
    text = StringIO()
    heads = ("generation", "place", "id", "parent", "steps", "fitness", "score", "kind", "what", "before", "after")
    writer = csv.DictWriter(text, [*heads, "note", *names], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for life, row in zip(found, rows, strict=True):
        writer.writerow({**row, **life.change, **life.values})
    write_text(table, text.getvalue())
