"""The loop: what happens when, how it stops, how it goes on, and that evaluation changes nothing."""

import json
import re
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from martes.algorithms.imitation import BehaviourCloning
from martes.algorithms.ppo import PPO
from martes.data import Workspace
from martes.envs import process
from martes.envs.batched.engine import BatchedEnv
from martes.envs.wrappers import Wrap
from martes.errors import CheckpointError, ConfigError, EnvError, NonFiniteError
from martes.training import checkpoint
from martes.training.collect import Collector
from martes.training.log import Log
from martes.training.loop import averaged, is_due
from martes.training.run import RunFolder
from martes.training.seeding import generator_of, seed_of
from martes.training.session import Session
from tests.training.walks import Walk, a_run, trained, with_env


def state(path: Path) -> dict:
    """The newest checkpoint of a run."""
    return checkpoint.load(RunFolder(path).newest_checkpoint())


def policy(path: Path) -> dict:
    return state(path)["learner"]["policy"]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows(path: Path) -> list[dict]:
    """Rows of metrics without what the clock decides."""
    read = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if not name.startswith(("time", "speed/"))} for row in read]


def saved(path: Path) -> list[int]:
    return sorted(int(each.name) for each in (path / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    path = tmp_path_factory.mktemp("whole")
    assert trained(a_run(), path).is_finished
    return path


def test_each_thing_happens_at_its_steps(whole):
    at = {kind: [row["step"] for row in rows(whole) if row["kind"] == kind] for kind in ("train", "evaluation")}
    assert at == {"train": [32, 64, 96, 128, 160], "evaluation": [0, 48, 96, 144, 160]}
    assert saved(whole) == [144, 160]
    assert state(whole)["steps"] == 160


@pytest.mark.parametrize(
    ("every", "before", "now", "expected"),
    [(10, 0, 9, False), (10, 0, 10, True), (10, 10, 19, False), (10, 9, 40, True)],
)
def test_a_thing_is_due_once_its_multiple_is_reached(every, before, now, expected):
    assert is_due(every, before, now) is expected


def test_a_metric_is_averaged_over_the_updates_that_report_it():
    one, two = {"loss": torch.tensor(1.0)}, {"loss": torch.tensor(3.0), "delayed": torch.tensor(5)}
    assert {name: float(value) for name, value in averaged([one, two]).items()} == {"loss": 2.0, "delayed": 5.0}
    assert averaged([]) == {}


def test_the_loop_is_collect_and_update_and_evaluation_changes_nothing(whole, tmp_path):
    run = a_run()
    other = replace(run, evaluation=replace(run.evaluation, every=16, episodes=5, greedy=False))
    trained(other, tmp_path)
    assert same(policy(whole), policy(tmp_path))

    env = BatchedEnv(Walk(), 2)  # the same run by hand: no evaluation, no log, no checkpoint
    learner = run.algorithm.learner(env.team, generator_of(3, "learning"))
    collector = Collector(env, learner, generator_of(3, "acting"))
    collector.start(seed_of(3, "environment"))
    for _ in range(10):
        learner.update(collector.collect())
    assert same(policy(whole), learner.policy.state_dict())


def test_an_environment_is_closed_for_which_no_learner_can_be_made(tmp_path):
    closed = []

    class Closing(BatchedEnv):
        def close(self):
            closed.append(self)

    run = replace(a_run(), algorithm=BehaviourCloning())
    with Log(tmp_path, run.logging, 1, "walk", True) as log, pytest.raises(ConfigError, match="learns what others did"):
        Session(run, RunFolder(tmp_path), log, lambda task, copies, device: Closing(Walk(), copies))
    assert len(closed) == 1


def test_each_environment_is_closed_whatever_comes_of_the_others(tmp_path):
    closed = []

    class Stuck(BatchedEnv):
        def close(self):
            closed.append(self)
            raise EnvError("it does not close")

    run = a_run()
    with (
        Log(tmp_path, run.logging, 1, "walk", True) as log,
        pytest.raises(EnvError, match="it does not close"),
        Session(run, RunFolder(tmp_path), log, lambda task, copies, device: Stuck(Walk(), copies)) as session,
    ):
        session.begin()
        session.evaluate()
    assert len(closed) == 2


def test_no_global_randomness_is_used(tmp_path, global_randomness_unused):
    trained(a_run("gru", steps=32), tmp_path)


def test_a_finished_run_is_not_run_again_and_can_be_prolonged(whole, tmp_path):
    run = a_run()
    short = trained(replace(run, training=replace(run.training, steps=64)), tmp_path)
    before = rows(tmp_path)
    again = trained(replace(run, training=replace(run.training, steps=64)), tmp_path)
    assert again.is_finished
    assert torch.equal(again.scores.returns, short.scores.returns)
    assert rows(tmp_path) == before
    assert trained(run, tmp_path).steps == 160
    assert same(policy(whole), policy(tmp_path))


@dataclass(frozen=True)
class Signalled(PPO):
    """Sends this process signals while its n-th update is at work."""

    at: int = 4
    signals: tuple[int, ...] = (signal.SIGINT,)

    def learner(self, team, generator):
        learner = super().learner(team, generator)
        learner.update = self._update(learner, learner.update)
        return learner

    def _update(self, learner, update):
        def signalling(batch):
            if learner.env_steps == 16 * (self.at - 1):
                for each in self.signals:
                    signal.raise_signal(each)
            return update(batch)

        return signalling


def with_signals(run, *signals: int):
    return replace(run, algorithm=Signalled(**{**vars(run.algorithm), "signals": signals}))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_it_after_the_update_and_it_goes_on_as_if_nothing_was(whole, tmp_path, number):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    result = trained(with_signals(a_run(), number), tmp_path)
    assert (result.is_finished, result.steps) == (False, 64)
    assert saved(tmp_path) == [48, 64]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert trained(a_run(), tmp_path).is_finished
    assert same(policy(whole), policy(tmp_path))
    assert rows(whole) == rows(tmp_path)


def test_a_second_signal_aborts_and_loses_nothing(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(with_signals(a_run(), signal.SIGINT, signal.SIGINT), tmp_path)
    assert saved(tmp_path) == [48]
    trained(a_run(), tmp_path)
    assert same(policy(whole), policy(tmp_path))


@dataclass(frozen=True)
class Exploding(PPO):
    """Loses its mind at the fourth update."""

    def learner(self, team, generator):
        learner = super().learner(team, generator)
        descend = learner._descend

        def exploding(batch):
            if learner.env_steps == 48:
                learner.policy.actor.head.weight.data.fill_(torch.inf)
            return descend(batch)

        learner._descend = exploding
        return learner


def test_numbers_that_are_not_finite_stop_the_run_and_keep_the_batch(tmp_path):
    run = a_run()
    with pytest.raises(NonFiniteError) as stopped:
        trained(replace(run, algorithm=Exploding(**vars(run.algorithm))), tmp_path)
    file = tmp_path / "nonfinite-64.safetensors"
    assert str(file) in str(stopped.value)
    assert "advantage" in Workspace.load(file)
    assert saved(tmp_path) == [48]


def test_a_batch_that_cannot_be_kept_does_not_hide_the_error(tmp_path):
    run = a_run()
    (tmp_path / "nonfinite-64.safetensors").mkdir()
    with pytest.raises(NonFiniteError, match=r"is not finite.*cannot write"):
        trained(replace(run, algorithm=Exploding(**vars(run.algorithm))), tmp_path)


def test_an_environments_error_passes_and_what_was_saved_stays(tmp_path):
    run = with_env(a_run(), factory="tests.training.walks:breaking", options={"at": 30})
    with pytest.raises(EnvError, match="the environment gave nan in 'reward': environment 0"):
        trained(run, tmp_path)
    assert state(tmp_path)["steps"] == 48
    assert trained(a_run(), tmp_path).is_finished


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_an_environment_that_forgets_is_opened_anew_and_two_resumes_agree(tmp_path, memory):
    run = with_env(a_run(memory), factory="tests.training.walks:forgetful")
    half = replace(run, training=replace(run.training, steps=80))
    for name in ("a", "b"):
        trained(half, tmp_path / name)
        trained(run, tmp_path / name)
    assert same(policy(tmp_path / "a"), policy(tmp_path / "b"))
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_a_damaged_checkpoint_names_an_older_one_from_which_the_run_goes_on(whole, tmp_path):
    run = a_run()
    trained(replace(run, training=replace(run.training, steps=112)), tmp_path)
    assert saved(tmp_path) == [96, 112]
    (tmp_path / "checkpoints/000000000112/tree.json").write_text("{")
    older = tmp_path / "checkpoints/000000000096"
    with pytest.raises(CheckpointError, match=f"tree.json .* go on from it: {older}"):
        trained(run, tmp_path)
    trained(run, tmp_path, origin=older)
    assert same(policy(whole), policy(tmp_path))
    assert rows(whole) == rows(tmp_path)
    assert saved(tmp_path) == [144, 160]


def test_another_experiments_checkpoint_is_refused(tmp_path):
    trained(a_run(steps=32), tmp_path)
    with pytest.raises(CheckpointError, match=r"saved by another experiment .*gru.*config\.yaml"):
        trained(a_run("gru"), tmp_path)
    with pytest.raises(EnvError, match="2 copies, this one 4"):
        trained(with_env(a_run(), copies=4), tmp_path)


def test_one_process_trains_in_a_folder(tmp_path):
    with RunFolder(tmp_path).claimed(), pytest.raises(CheckpointError, match="another process is training in"):
        trained(a_run(), tmp_path)
    assert trained(a_run(steps=16), tmp_path).is_finished


def test_torch_has_its_threads_back(tmp_path):
    run = a_run(steps=16)
    before = torch.get_num_threads()
    trained(replace(run, training=replace(run.training, threads=before + 1)), tmp_path)
    assert torch.get_num_threads() == before
    assert json.loads((tmp_path / "versions.json").read_text())["threads"] == before + 1


@pytest.mark.parametrize("wrap", [Wrap(), Wrap(agent_id=True)], ids=["bare", "wrapped"])
def test_who_steps_the_copies_is_measured_and_told_once(tmp_path, capsys, monkeypatch, wrap):
    """`auto` measures at the start, and not again for the test episodes."""
    measured, medians = [], process.medians
    monkeypatch.setattr(process, "medians", lambda *envs: measured.append(envs) or medians(*envs))
    run = with_env(a_run(steps=32), factory="tests.envs.singles:Ramble", workers="auto", wrap=wrap)
    run = with_env(run, start_method="forkserver")
    trained(replace(run, logging=replace(run.logging, progress="plain")), tmp_path)
    told = capsys.readouterr().out
    rates = r"2 copies in (this process|2 worker processes): [\d,]+ steps/s in processes, [\d,]+ in series"
    alone = "2 copies in this process: 1 cores leave nothing to share"
    assert len(re.findall(f"{rates}|{alone}", told)) == 1
    assert told.count("copies in") == 1
    assert len(measured) <= 1
    assert [row["step"] for row in rows(tmp_path) if row["kind"] == "evaluation"] == [0, 32]


def test_nothing_is_told_of_who_steps_a_game_on_tensors(tmp_path, capsys):
    run = with_env(a_run(steps=32), workers="auto")
    trained(replace(run, logging=replace(run.logging, progress="plain")), tmp_path)
    assert "copies in" not in capsys.readouterr().out


def test_a_step_size_falls_over_the_run_that_was_asked_for(tmp_path):
    run = a_run()
    run = replace(run, algorithm=replace(run.algorithm, anneal=True, lr=1e-3))
    trained(run, tmp_path)
    sizes = [row["learn/lr"] for row in rows(tmp_path) if "learn/lr" in row]  # each row is the mean of two updates
    assert sizes == pytest.approx([9.5e-4, 7.5e-4, 5.5e-4, 3.5e-4, 1.5e-4])
