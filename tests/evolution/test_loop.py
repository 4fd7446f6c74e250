"""The loop of evolution: what goes on, what is kept, how it stops and how it goes on again."""

import csv
import json
import os
import signal
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest
import torch

from martes.data import TeamSpec
from martes.data.limits import Range
from martes.errors import CheckpointError, ConfigError, NonFiniteError
from martes.evolution.fitness import team_return
from martes.evolution.folder import PopulationFolder, Saved, save, save_run
from martes.evolution.generation import Site, outcome
from martes.evolution.lineage import read_lives
from martes.evolution.loop import Result
from martes.evolution.member import Member
from martes.evolution.population import breeding_of, first_generation, next_generation
from martes.evolution.settings import Chances, Evolution
from martes.training import checkpoint
from martes.training.evaluate import Scores
from tests.evolution.populations import EVOLUTION, TEAM, a_plan, evolved, members, q_plan, same, states, work


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Result:
    """Three generations that nothing disturbed."""
    return evolved(a_plan(), tmp_path_factory.mktemp("whole"))


def rows(path: Path) -> list[dict]:
    read = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if not name.startswith(("time", "speed/"))} for row in read]


# ------------------------------------------------------------------------------------------------- the next generation
def scored(fitness: list[float]) -> list[Member]:
    plan = a_plan()
    lived = outcome(members(plan, 1)[0], work(plan), Site()).member
    return [replace(each, id=nth, fitness=(fitness[nth],)) for nth, each in enumerate([lived] * len(fitness))]


def test_the_elite_goes_on_untouched_and_copies_are_mutated():
    breeding = breeding_of(EVOLUTION, a_plan().algorithm, TEAM)
    old = scored([1.0, 4.0, 2.0, 3.0])
    new = next_generation(old, breeding, seed=0, generation=1)
    assert new[0] is old[1]
    assert [each.id for each in new[1:]] == [5, 6, 7]
    for each in new[1:]:
        parent = old[each.parent]
        assert each.change.kind in ("hyperparameter", "parameters")
        assert (each.algorithm != parent.algorithm) == (each.change.kind == "hyperparameter")
        storages = [{tensor.untyped_storage().data_ptr() for tensor in states(m).values()} for m in (each, parent)]
        assert not storages[0] & storages[1]


def test_one_seed_gives_one_next_generation_and_another_seed_another():
    breeding, old = breeding_of(EVOLUTION, a_plan().algorithm, TEAM), scored([1.0, 4.0, 2.0, 3.0])
    one, two, other = (next_generation(old, breeding, seed, 1) for seed in (0, 0, 1))
    assert all(same(a, b) for a, b in zip(one, two, strict=True))
    assert not all(same(a, b) for a, b in zip(one, other, strict=True))


def test_the_mean_of_the_window_decides():
    old = [
        replace(each, fitness=(first, each.fitness[0]))
        for each, first in zip(scored([5.0, 1.0]), (0.0, 10.0), strict=True)
    ]
    for window, elite in ((1, 0), (2, 1)):
        breeding = breeding_of(replace(EVOLUTION, population=2, window=window), a_plan().algorithm, TEAM)
        assert next_generation(old, breeding, 0, 1)[0] is old[elite]


def test_who_diverged_is_replaced():
    breeding = breeding_of(replace(EVOLUTION, population=2, selection="truncation"), a_plan().algorithm, TEAM)
    old = scored([-inf, -3.0])
    assert next_generation(old, breeding, 0, 1)[0].parent == 1


def test_members_that_cannot_be_compared_are_refused():
    breeding = breeding_of(EVOLUTION, a_plan().algorithm, TEAM)
    old = scored([1.0, 2.0, 3.0, 4.0])
    with pytest.raises(ConfigError, match="member 2 has no fitness yet"):
        next_generation([*old[:2], replace(old[2], fitness=()), old[3]], breeding, 0, 1)
    with pytest.raises(ConfigError, match="the fitness of member 1 is not a number"):
        next_generation([old[0], replace(old[1], fitness=(nan,)), *old[2:]], breeding, 0, 1)
    with pytest.raises(ConfigError, match="members 0 and 3 are of different teams"):
        next_generation([*old[:3], replace(old[3], team=replace(TEAM, episode_limit=9))], breeding, 0, 1)


def test_the_first_generation_is_as_configured_with_weights_of_its_own():
    plan = a_plan()
    first = first_generation(plan.algorithm, TEAM, 3, 0, breeding_of(EVOLUTION, plan.algorithm, TEAM))
    assert all(each.algorithm == plan.algorithm and each.change.kind == "none" for each in first)
    name = next(name for name in states(first[0]) if name.endswith("layers.0.weight"))
    weights = [states(each)[name] for each in first]
    assert not torch.equal(weights[0], weights[1])
    mutated = first_generation(
        plan.algorithm, TEAM, 3, 0, breeding_of(replace(EVOLUTION, mutates_first=True), plan.algorithm, TEAM)
    )
    assert {each.change.kind for each in mutated} <= {"hyperparameter", "parameters"}


def test_population_based_training_and_random_search_draw_the_first_generation():
    plan, space = a_plan(), {"algorithm.lr": (1e-4, 1e-2)}
    for selection in ("truncation", "random"):
        breeding = breeding_of(Evolution(selection=selection, space=space), plan.algorithm, TEAM)
        drawn = [each.algorithm.lr for each in first_generation(plan.algorithm, TEAM, 4, 0, breeding)]
        assert len(set(drawn)) == 4
        assert all(lr in Range(1e-4, 1e-2) for lr in drawn)


@pytest.mark.parametrize(
    ("evolution", "told"),
    [
        (Evolution(population=2, tournament=3), "evolution.tournament is 3: it must be 1 to evolution.population, 2"),
        (Evolution(space={"algorithm.lr": (1e-3, 1e-2)}), "algorithm.lr is 0.0005, outside of its bounds"),
        (Evolution(mutation=Chances(0, 0, 0)), "chances of mutations"),
        (Evolution(selection="truncation", share=0.7), "evolution.share is 0.7"),
    ],
)
def test_an_evolution_that_cannot_be_is_refused(evolution: Evolution, told: str):
    with pytest.raises(ConfigError, match=told):
        breeding_of(evolution, a_plan().algorithm, TEAM)


# ------------------------------------------------------------------------------------------------------------- the run
def test_a_run_tells_everything_of_everybody(whole):
    assert (whole.is_finished, whole.has_reached) == (True, False)
    assert [each.generation for each in whole.history] == [0] * 4 + [1] * 4 + [2] * 4
    last = whole.history[-4:]
    for life, member in zip(last, whole.members, strict=True):
        assert (life.id, life.parent, life.steps, life.fitness) == (
            member.id,
            member.parent,
            member.steps,
            member.fitness[-1],
        )
        assert life.values["algorithm.lr"] == member.algorithm.lr
    assert whole.elite.fitness[-1] == max(member.fitness[-1] for member in whole.members)
    known = {(life.generation, life.id): life for life in whole.history}
    for life in whole.history[4:]:
        assert (life.generation - 1, life.id) in known or (life.generation - 1, life.parent) in known
        if (life.generation - 1, life.id) in known:
            assert life.change["kind"] == "none", "it was not changed again"
    elites = [max(whole.history[4 * nth : 4 * nth + 4], key=lambda life: (life.fitness, -life.place)) for nth in (0, 1)]
    assert [whole.history[4].id, whole.history[8].id] == [each.id for each in elites]
    assert read_lives(whole.folder.lineage) == list(whole.history)
    table = list(csv.DictReader(whole.folder.table.open()))
    assert [float(row["algorithm.lr"]) for row in table] == [life.values["algorithm.lr"] for life in whole.history]
    evaluations = [row for row in rows(whole.folder.path) if row["kind"] == "evaluation"]
    assert [row["step"] for row in evaluations] == [48, 96, 144]
    for row, nth in zip(evaluations, range(3), strict=True):
        worth = [life.fitness for life in whole.history[4 * nth : 4 * nth + 4]]
        assert row["evaluation/fitness_best"] == max(worth) == pytest.approx(row["evaluation/return"])
        assert row["evaluation/fitness_mean"] == pytest.approx(sum(worth) / 4)


def test_the_elite_and_everybody_are_saved_as_runs(whole):
    for folder, member in [
        (whole.folder.elite, whole.elite),
        *((whole.folder.member(place), each) for place, each in enumerate(whole.members)),
    ]:
        saved = checkpoint.load(folder.newest_checkpoint())
        assert saved["steps"] == member.steps
        assert all(
            torch.equal(saved["learner"]["policy"][name], each) for name, each in member.learner["policy"].items()
        )
        assert folder.config.read_text() == repr(member.algorithm)


@pytest.mark.parametrize("plan", [a_plan, q_plan])
def test_a_resumed_evolution_is_the_one_that_was_never_stopped(plan, whole, tmp_path):
    """N + resume + N equals 2 N, bit for bit: members, experience, generators, lineage and metrics."""
    reference = whole if plan is a_plan else evolved(q_plan(), tmp_path / "whole")
    half = replace(plan(), training=replace(plan().training, steps=96))
    # Schedules go by the whole length: a run that is stopped half way knows it.
    part = evolved(half, tmp_path / "parts", replace(EVOLUTION))
    assert part.is_finished
    folder = PopulationFolder(tmp_path / "parts")
    rest = evolved(plan(), tmp_path / "parts", EVOLUTION, folder.run.newest_checkpoint())
    assert all(same(a, b) for a, b in zip(rest.members, reference.members, strict=True))
    assert rest.history == reference.history
    assert rows(rest.folder.path) == rows(reference.folder.path)


def test_a_run_that_was_killed_goes_on_from_what_was_saved(whole, tmp_path, monkeypatch):
    """It was saved at step 48 and died in its third generation, after the record of the second was written."""
    from martes.evolution import loop

    lives, calls = loop.Run.live, []

    def dies(run: loop.Run) -> None:
        calls.append(run.generation)
        if len(calls) == 3:
            raise KeyboardInterrupt
        lives(run)

    monkeypatch.setattr(loop.Run, "live", dies)
    rare = replace(a_plan(), training=replace(a_plan().training, save_every=96))
    first = replace(rare, training=replace(rare.training, save_every=48))
    with pytest.raises(KeyboardInterrupt):
        evolved(first, tmp_path)
    monkeypatch.undo()
    folder = PopulationFolder(tmp_path)
    origin = sorted(folder.run.checkpoints.iterdir())[0]
    assert int(origin.name) == 48
    rest = evolved(first, tmp_path, EVOLUTION, origin)
    assert all(same(a, b) for a, b in zip(rest.members, whole.members, strict=True))
    assert rest.history == whole.history


class Interrupting:
    """A fitness that sends a Ctrl-C while the third member is scored."""

    calls = 0

    def __call__(self, scores: Scores, team: TeamSpec) -> float:
        self.calls += 1
        if self.calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return team_return(scores, team)


def test_a_ctrl_c_ends_it_after_the_generation_saved(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("martes.evolution.loop.fitness_named", lambda name, team: Interrupting())
    part = evolved(a_plan(), tmp_path)
    assert not part.is_finished
    assert part.history[-1].generation == 0
    monkeypatch.undo()
    rest = evolved(a_plan(), tmp_path, EVOLUTION, part.folder.run.newest_checkpoint())
    assert rest.history == whole.history
    assert all(same(a, b) for a, b in zip(rest.members, whole.members, strict=True))


def test_it_stops_at_the_first_generation_that_reaches_the_target(whole, tmp_path):
    best = [max(life.fitness for life in whole.history if life.generation == nth) for nth in range(3)]
    target = sorted(best)[1]
    first = next(nth for nth in range(3) if best[nth] >= target)
    result = evolved(a_plan(), tmp_path, replace(EVOLUTION, target=target))
    assert result.has_reached
    assert result.is_finished
    assert result.history[-1].generation == first


def test_a_target_that_was_not_reached_is_told(tmp_path, capsys):
    plan = a_plan(steps=48)
    told = replace(plan, logging=replace(plan.logging, progress="plain"))
    result = evolved(told, tmp_path, replace(EVOLUTION, population=2, target=200.0))
    assert not result.has_reached
    out = capsys.readouterr().out
    assert "the target 200 was not reached: the best came to" in out
    assert "generation 0\nmember  parent  steps  fitness  training" in out


def test_where_everybody_diverges_the_run_ends(tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise NonFiniteError("the loss is not finite")

    monkeypatch.setattr("martes.algorithms.ppo.PPOLearner.update", broken)
    with pytest.raises(NonFiniteError, match="every member of generation 0 diverged, the best so: the loss"):
        evolved(a_plan(steps=48), tmp_path, replace(EVOLUTION, population=2))


def test_the_checkpoint_of_a_run_is_no_population(whole, tmp_path):
    with pytest.raises(CheckpointError, match="holds no population"):
        evolved(a_plan(), tmp_path, EVOLUTION, whole.folder.elite.newest_checkpoint())


def test_a_ctrl_c_before_the_first_generation_ends_it_with_nobody_scored(tmp_path, monkeypatch):
    def slow(*values: object) -> list[Member]:
        os.kill(os.getpid(), signal.SIGINT)
        return first_generation(*values)

    monkeypatch.setattr("martes.evolution.loop.first_generation", slow)
    result = evolved(a_plan(), tmp_path, replace(EVOLUTION, population=2))
    assert (result.is_finished, result.has_reached, result.history) == (False, False, ())
    assert len(result.members) == 2


def test_a_run_that_cannot_be_written_stays_what_it_was(whole, tmp_path, monkeypatch):
    one, other = (replace(member, steps=48) for member in whole.members[:2])
    folder = PopulationFolder(tmp_path).elite
    save_run(folder, one, "of one", {})
    before = folder.newest_checkpoint()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_run(folder, replace(other, steps=96), "of the other", {})
    assert (folder.config.read_text(), folder.newest_checkpoint()) == ("of one", before)
    monkeypatch.undo()
    save_run(folder, replace(other, steps=96), "of the other", {})
    assert folder.config.read_text() == "of the other"
    assert {path.name for path in folder.path.iterdir()} == {"config.yaml", "checkpoints"}


def test_a_population_is_saved_under_the_steps_of_who_came_farthest(whole, tmp_path):
    stuck = replace(whole.members[0], steps=48)
    folder = PopulationFolder(tmp_path)
    save(folder, Saved(2, (stuck, *whole.members[1:]), {}), keep=2)
    assert int(folder.run.newest_checkpoint().name) == 144
