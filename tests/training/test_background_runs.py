"""Runs that are evaluated in the background: the same numbers, nothing lost on the way, no process left."""

import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from martes.algorithms.ppo import PPO
from martes.data import TimeStep
from martes.envs.batched.engine import BatchedEnv
from martes.errors import ConfigError, EnvError
from martes.evolving import evolve
from martes.training import checkpoint
from martes.training.rows import Row, TensorBoard, read_rows
from martes.training.run import RunFolder
from tests.envs.leftovers import nothing_left, soon
from tests.training.walks import Run, Walk, a_run, trained, with_env

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


class Leisurely(BatchedEnv):
    """Takes its time, but only where tests are played in the background."""

    def step(self, action: torch.Tensor) -> TimeStep:
        if multiprocessing.parent_process() is not None:
            time.sleep(0.02)
        return super().step(action)


def leisurely(copies: int) -> Leisurely:
    return Leisurely(Walk(), copies)


class Patient(BatchedEnv):
    """Waits where tests are played in the background, until rows of training are told; not for ever."""

    def __init__(self, copies: int, metrics: str) -> None:
        super().__init__(Walk(), copies)
        self.metrics = Path(metrics)

    def step(self, action: torch.Tensor) -> TimeStep:
        if multiprocessing.parent_process() is not None:
            soon(lambda: self.metrics.exists() and '"kind": "train"' in self.metrics.read_text())
        return super().step(action)


def patient(copies: int, metrics: str) -> Patient:
    return Patient(copies, metrics)


class Failing(BatchedEnv):
    """Raises where tests are played in the background."""

    def reset(self, seed: int) -> TimeStep:
        if multiprocessing.parent_process() is not None:
            raise ZeroDivisionError("not here")
        return super().reset(seed)


def failing(copies: int) -> Failing:
    return Failing(Walk(), copies)


def in_background(run: Run, factory: str = "leisurely") -> Run:
    run = with_env(run, factory=f"tests.training.test_background_runs:{factory}", start_method="forkserver")
    return replace(run, evaluation=replace(run.evaluation, background=True))


def rows(path: Path) -> list[Row]:
    """Rows in the order in which they were written, without what the clock decides."""
    read = read_rows(path / "metrics.jsonl")
    return [{name: row[name] for name in row if not name.startswith(("time", "speed/"))} for row in read]


def by_step(path: Path) -> list[Row]:
    return sorted(rows(path), key=lambda row: (row["step"], row["kind"]))


def saved(path: Path) -> dict:
    """The newest checkpoint."""
    return checkpoint.load(RunFolder(path).newest_checkpoint())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that is evaluated on the way, and that nothing disturbs."""
    path = tmp_path_factory.mktemp("whole")
    trained(a_run(), path)
    return path


def assert_same(path: Path, whole: Path) -> None:
    assert by_step(path) == by_step(whole)
    ours, theirs = (saved(each)["learner"]["policy"] for each in (path, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_its_numbers_are_those_of_a_run_that_waits(whole, tmp_path, unchecked):
    result = trained(in_background(a_run()), tmp_path)
    assert_same(tmp_path, whole)
    assert result.is_finished and result.scores is not None
    last = next(row for row in reversed(rows(tmp_path)) if row["kind"] == "evaluation")
    assert last["step"] == 160 and last["evaluation/return"] == float(result.scores.returns.mean())
    assert not saved(tmp_path)["owes_evaluation"]


def test_with_memory_and_drawn_actions_too(tmp_path, unchecked):
    run = a_run("gru", steps=64)
    run = replace(run, evaluation=replace(run.evaluation, greedy=False))
    trained(run, tmp_path / "waits")
    trained(in_background(run), tmp_path / "beside")
    assert_same(tmp_path / "beside", tmp_path / "waits")


def test_training_goes_on_meanwhile(tmp_path, unchecked):
    trained(with_env(in_background(a_run(), "patient"), options={"metrics": f"{tmp_path}/metrics.jsonl"}), tmp_path)
    at = [(row["kind"], row["step"]) for row in rows(tmp_path)]
    assert at.index(("train", 32)) < at.index(("evaluation", 0))


@dataclass(frozen=True)
class Signalled(PPO):
    """Sends this process Ctrl-C while its n-th update is at work."""

    at: int = 4
    times: int = 1

    def learner(self, team, generator):
        learner = super().learner(team, generator)
        update = learner.update

        def signalling(batch):
            if learner.env_steps == 16 * (self.at - 1):
                for _ in range(self.times):
                    signal.raise_signal(signal.SIGINT)
            return update(batch)

        learner.update = signalling
        return learner


def interrupted(at: int, times: int = 1) -> Run:
    run = in_background(a_run())
    return replace(run, algorithm=Signalled(**vars(run.algorithm), at=at, times=times))


@pytest.mark.parametrize(("at", "owes"), [(3, True), (4, False)], ids=["as a test begins", "as a test is played"])
def test_ctrl_c_loses_nothing(whole, tmp_path, unchecked, at, owes):
    result = trained(interrupted(at), tmp_path)
    assert (result.is_finished, result.steps) == (False, 16 * at)
    assert saved(tmp_path)["owes_evaluation"] is owes
    assert [row["step"] for row in rows(tmp_path) if row["kind"] == "evaluation"] == ([0] if owes else [0, 48])
    assert trained(in_background(a_run()), tmp_path).is_finished
    assert_same(tmp_path, whole)


def test_who_goes_on_may_evaluate_as_he_likes(whole, tmp_path, unchecked):
    trained(interrupted(3), tmp_path)
    assert trained(a_run(), tmp_path).is_finished
    assert_same(tmp_path, whole)


def test_a_second_ctrl_c_aborts_and_leaves_nothing(whole, tmp_path, unchecked):
    with pytest.raises(KeyboardInterrupt):
        trained(interrupted(4, times=2), tmp_path)
    assert saved(tmp_path)["steps"] == 48 and saved(tmp_path)["owes_evaluation"]
    trained(in_background(a_run()), tmp_path)
    assert_same(tmp_path, whole)


def test_what_fails_there_ends_the_run_here(tmp_path, unchecked):
    with pytest.raises(EnvError, match=r"(?s)ZeroDivisionError: not here.*Traceback.*in reset"):
        trained(in_background(a_run(), "failing"), tmp_path)


def test_a_generation_is_not_scored_later(tmp_path):
    with pytest.raises(ConfigError, match=r"evaluation\.background"):
        evolve("ippo/climbing", run_dir=tmp_path, **{"evaluation.background": True})


def test_tensorboard_keeps_rows_that_came_before_a_late_one(tmp_path):
    event_file = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    kept: list[Row] = [
        {"step": step, "time": 0.0, "kind": kind, f"{kind}/return": float(step)}
        for kind, step in (("train", 32), ("train", 64), ("evaluation", 48))
    ]
    for each in ([], kept):  # a run, and the one that goes on with it
        board = TensorBoard(tmp_path, each)
        for row in kept[len(each) :]:
            board.write(row)
        board.close()
    found = event_file.EventAccumulator(str(tmp_path)).Reload()
    assert [each.step for each in found.Scalars("train/return")] == [32, 64]
    assert [each.step for each in found.Scalars("evaluation/return")] == [48]
