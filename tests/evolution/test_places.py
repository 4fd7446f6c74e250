"""Members come out the same wherever they live, and a worker that dies costs its member's generation alone."""

import os
import signal
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from martes.data import TeamSpec
from martes.errors import ConfigError, MartesError
from martes.evolution.fitness import team_return
from martes.evolution.places import Here, OnRay, Place, Processes, place_named
from martes.training.evaluate import Scores
from tests.evolution.populations import EVOLUTION, a_plan, evolved, members, q_plan, same, work


class DiesOnce:
    """A fitness that kills the process of the first member that it meets, and leaves a mark each time it is asked."""

    def __init__(self, mark: Path, times: int = 1) -> None:
        self.mark, self.times = mark, times

    def __call__(self, scores: Scores, team: TeamSpec) -> float:
        with self.mark.open("a") as file:
            file.write(f"{os.getpid()}\n")
        for nth in range(self.times):
            with suppress(FileExistsError):
                self.mark.with_suffix(f".{nth}").touch(exist_ok=False)  # one succeeds, however many try at once
                os.kill(os.getpid(), signal.SIGKILL)
        return team_return(scores, team)


def of_no_use(scores: Scores, team: TeamSpec) -> float:
    raise ConfigError("no such count")


class Door(Exception):
    """An error that cannot be made again from its text."""

    def __init__(self, code: int, where: str) -> None:
        super().__init__(f"{code} at {where}")


def locked(scores: Scores, team: TeamSpec) -> float:
    raise Door(3, "the door")


def held(scores: Scores, team: TeamSpec) -> float:
    error = RuntimeError("lost the key")
    error.lock = threading.Lock()
    raise error


def refused(place: Place) -> None:
    plan = a_plan()
    with pytest.raises(ConfigError, match="no such count"):
        place.outcomes(work(plan, fitness=of_no_use), members(plan, 2))


@pytest.fixture(scope="module")
def processes():
    place = Processes(2)
    yield place
    place.close()


def test_worker_processes_give_the_same_members(processes):
    for plan in (a_plan(), q_plan()):
        here = Here().outcomes(work(plan), members(plan, 3))
        there = processes.outcomes(work(plan), members(plan, 3))
        assert all(same(a.member, b.member) for a, b in zip(here, there, strict=True))
        assert [float(each.metrics["loss"]) for each in here] == [float(each.metrics["loss"]) for each in there]


def test_a_killed_worker_costs_only_its_members_generation(processes, tmp_path):
    plan, mark = a_plan(), tmp_path / "mark"
    here = Here().outcomes(work(plan), members(plan, 3))
    there = processes.outcomes(work(plan, fitness=DiesOnce(mark)), members(plan, 3))
    assert all(same(a.member, b.member) for a, b in zip(here, there, strict=True))
    assert len(mark.read_text().splitlines()) == 4, "three members, one of them twice"


def test_a_member_that_kills_every_worker_is_given_up(tmp_path):
    place = Processes(1)
    try:
        with pytest.raises(MartesError, match=r"the process of member 0 died 3 times: .* was killed by SIGKILL"):
            place.outcomes(work(a_plan(), fitness=DiesOnce(tmp_path / "mark", 9)), members(a_plan(), 1))
    finally:
        place.close()


def test_an_error_of_a_worker_is_raised_here(processes):
    refused(processes)


def test_what_an_error_leaves_under_way_is_no_answer_to_what_is_asked_next(processes):
    plan = a_plan()
    refused(processes)  # by both members, of whom one is heard
    here = Here().outcomes(work(plan), members(plan, 3))
    there = processes.outcomes(work(plan), members(plan, 3))
    assert all(same(a.member, b.member) for a, b in zip(here, there, strict=True))


def test_an_error_that_cannot_travel_tells_its_cause():
    place = Processes(1)
    try:
        for fitness, told in ((locked, "Door: 3 at the door"), (held, "RuntimeError: lost the key")):
            with pytest.raises(MartesError, match=rf"(?s){told}.*in the generation 0 of member 0"):
                place.outcomes(work(a_plan(), fitness=fitness), members(a_plan(), 1))
    finally:
        place.close()


def test_workers_end_with_their_place():
    place = Processes(1)
    place.outcomes(work(a_plan()), members(a_plan(), 1))
    pid = place._idle[0].workers[0].pid
    os.kill(pid, 0)
    place.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_place_is_made_by_its_name():
    assert isinstance(place_named("here", 0, 4), Here)
    with pytest.raises(ConfigError, match=r"evolution\.workers is -1"):
        place_named("processes", -1, 4)


@pytest.mark.extras
def test_ray_gives_the_same_members_and_outlives_a_killed_worker(tmp_path):
    pytest.importorskip("ray")
    place = OnRay(2)
    try:
        for plan in (a_plan(), q_plan()):
            here = Here().outcomes(work(plan), members(plan, 3))
            there = place.outcomes(work(plan), members(plan, 3))
            assert all(same(a.member, b.member) for a, b in zip(here, there, strict=True))
        mark = tmp_path / "mark"
        plan = a_plan()
        here = Here().outcomes(work(plan), members(plan, 3))
        there = place.outcomes(work(plan, fitness=DiesOnce(mark)), members(plan, 3))
        assert all(same(a.member, b.member) for a, b in zip(here, there, strict=True))
        assert len(mark.read_text().splitlines()) == 4
        refused(place)
    finally:
        place.close()


@pytest.mark.extras
def test_an_evolution_on_ray_is_the_one_in_this_process(tmp_path):
    pytest.importorskip("ray")
    small = replace(EVOLUTION, population=2)
    here = evolved(a_plan(steps=96), tmp_path / "here", small)
    there = evolved(a_plan(steps=96), tmp_path / "ray", replace(small, place="ray", workers=2))
    assert all(same(a, b) for a, b in zip(here.members, there.members, strict=True))
    assert here.history == there.history
