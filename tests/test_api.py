"""The Python face: what training returns is what lies in the folder, and what `load` acts with."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import martes
from martes import api
from martes.algorithms.ppo import PPO
from martes.envs.batched.engine import BatchedEnv
from martes.envs.settings import Environment
from martes.errors import CheckpointError, ConfigError
from martes.experiment import Experiment
from martes.networks import Network
from martes.training.settings import Evaluation, Logging, Training
from tests.worlds import World

TINY = {"env.copies": 4, "algorithm.rollout": 5, "evaluation.episodes": 4, "logging.progress": "none"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    return martes.train("mappo/climbing", run_dir=tmp_path_factory.mktemp("api") / "run", steps=100, seed=5, **TINY)


def test_train_gives_the_run(run):
    assert run.result is not None
    assert run.result.is_finished
    assert run.experiment.training == Training(steps=100, seed=5, save_every=25_000)
    assert Experiment.from_yaml(run.folder.config.read_text()) == run.experiment
    rows = run.metrics()
    assert rows[0]["step"] == 0
    assert rows[-1]["step"] == 100
    assert run.folder.learning_curve.exists()
    assert run.folder.replay.exists()


def test_runs_are_read_as_one_frame(run):
    frame = martes.read_runs(run.folder.path)
    assert set(frame["seed"]) == {5}
    assert (frame["name"] == "evaluation/return").sum() == sum(row["kind"] == "evaluation" for row in run.metrics())


def test_load_acts_as_the_newest_checkpoint(run):
    policy = martes.load(run.folder.path)
    newest = martes.load(run.folder.newest_checkpoint())
    width = policy.team.parts["obs"].size
    obs = torch.randn(20, policy.team.size, width)
    assert torch.equal(policy.act(obs), newest.act(obs))
    assert torch.equal(policy.act(obs), run.policy().act(obs))


def test_evaluate_repeats_itself_and_counts_every_episode(run):
    first, again = (api.evaluate(run.folder.path, episodes=9, greedy=False) for _ in range(2))
    assert first.returns.shape == (9,)
    assert torch.equal(first.returns, again.returns)
    other = api.evaluate(run.folder.path, episodes=9, greedy=False, seed=1)
    assert not torch.equal(first.returns, other.returns)


def test_an_experiment_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = Experiment(
        Environment("two-step", copies=4),
        PPO(network=Network(hidden=(8,)), rollout=5),
        Training(steps=40),
        Evaluation(episodes=4),
        Logging(progress="none"),
    )
    run = martes.train(experiment, **{"algorithm.lr": 1e-3})
    assert run.experiment.algorithm == PPO(network=Network(hidden=(8,)), rollout=5, lr=1e-3)
    assert run.folder.path.parent == Path("runs")
    assert run.folder.path.name.startswith("mappo-two-step-s0-")


def vector_env(copies, device="cpu", ends=0.1):
    """A function that makes a vector environment."""
    return BatchedEnv(World(ends=ends), copies, device)


@dataclass(frozen=True)
class Undrawn(World):
    """A game that cannot draw itself."""

    def frame(self, state):
        raise RuntimeError("no crayons")


@pytest.mark.parametrize(
    ("factory", "options"),
    [("tests.worlds:World", {"env.ends": 0.3}), ("tests.test_api:vector_env", {"env.ends": 0.2})],
)
def test_an_environment_of_ones_own(factory, options, tmp_path):
    values = {"env.factory": factory, **options, **TINY}
    run = martes.train("ippo/two-step", run_dir=tmp_path / "run", steps=60, **values)
    assert run.experiment.env.options == {"ends": options["env.ends"]}
    policy = martes.load(tmp_path / "run")
    assert policy.act(np.zeros((3, 6))).shape == (3,)
    with pytest.raises(ConfigError, match="did you mean 'ends'"):
        martes.train("ippo/two-step", run_dir=tmp_path / "x", **values | {"env.endss": 1})


def test_a_picture_that_fails_spoils_no_run(tmp_path, capsys):
    values = TINY | {"logging.progress": "plain", "env.factory": f"{__name__}:Undrawn"}
    run = martes.train("ippo/two-step", run_dir=tmp_path / "run", steps=60, **values)
    assert run.result is not None
    assert run.result.is_finished
    assert not run.folder.replay.exists()
    assert run.folder.learning_curve.exists()
    assert "replay was not drawn: no crayons" in capsys.readouterr().out


def test_resume_ends_as_the_run_that_was_not_stopped(tmp_path):
    whole = martes.train("ippo-gru/two-step", run_dir=tmp_path / "whole", steps=120, **TINY)
    martes.train("ippo-gru/two-step", run_dir=tmp_path / "parts", steps=60, **TINY)
    parts = martes.train(resume=tmp_path / "parts", steps=120)
    obs = torch.randn(10, 2, whole.policy().team.parts["obs"].size)
    assert torch.equal(whole.policy().act(obs), parts.policy().act(obs))
    with pytest.raises(ConfigError, match=r"training.seed decides what a run learns"):
        martes.train(resume=tmp_path / "parts", seed=1)


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a task in plain Python."""
    path = tmp_path_factory.mktemp("hosted")
    values = TINY | {"env.factory": "tests.envs.singles:Ramble", "env.length": 5, "algorithm.network.hidden": (8,)}
    martes.train("ippo/two-step", run_dir=path, steps=20, **values)
    return path


@pytest.mark.parametrize(
    "changes",
    [{"env.workers": 2, "env.timeout": 33.0, "env.start_method": "forkserver"}, {"env.workers": 0}],
)
def test_who_steps_the_copies_may_change_on_the_way(hosted, changes):
    steps = martes.read_runs(hosted)["step"].max() + 40
    run = martes.train(resume=hosted, steps=int(steps), **changes)
    assert run.result is not None
    assert run.result.steps == steps
    assert {name: getattr(run.experiment.env, name.removeprefix("env.")) for name in changes} == changes
    assert Experiment.from_yaml((hosted / "config.yaml").read_text()) == run.experiment


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("env.copies", 8),
        ("env.name", "climbing"),
        ("env.factory", "tests.worlds:World"),
        ("env.length", 6),
        ("env.workers_too", 1),
        ("env.wrap.agent_id", True),
        ("env.wrap.against", "random"),
        ("algorithm.lr", 0.1),
        ("training.seed", 6),
        ("seed", 6),
    ],
)
def test_nothing_else_of_a_task_may_change_on_the_way(hosted, path, value):
    before = (hosted / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=f"{path} decides what a run learns and cannot change on the way"):
        martes.train(resume=hosted, steps=1000, **{path: value})
    assert (hosted / "config.yaml").read_text() == before


def test_a_change_that_cannot_be_leaves_the_run_as_it_was(tmp_path):
    martes.train("ippo/two-step", run_dir=tmp_path, steps=20, **TINY)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"env\.workers is 2, and .* steps all its copies at once"):
        martes.train(resume=tmp_path, steps=40, **{"env.workers": 2})
    assert (tmp_path / "config.yaml").read_text() == before
    assert len(martes.load(tmp_path).act(np.zeros((2, 3)))) == 2


def test_a_refused_resume_changes_no_config(run):
    before = run.folder.config.read_text()
    with run.folder.claimed(), pytest.raises(CheckpointError, match="another process is training"):
        martes.train(resume=run.folder.path, steps=999)
    assert run.folder.config.read_text() == before


def test_whatever_fails_before_anything_is_saved_leaves_the_config(run, monkeypatch):
    before = run.folder.config.read_text()

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("martes.api.loop.train", broken)
    with pytest.raises(KeyboardInterrupt):
        martes.train(resume=run.folder.path, steps=888)
    assert run.folder.config.read_text() == before


def test_a_folder_that_holds_no_run_yet_is_taken(tmp_path):
    (tmp_path / "config.yaml").write_text("left by a run that never began\n")
    assert martes.train("ippo/two-step", run_dir=tmp_path, steps=20, **TINY).result is not None
    with pytest.raises(ConfigError, match="holds a run"):
        martes.train("ippo/two-step", run_dir=tmp_path, **TINY)


def test_what_is_not_there_is_told(tmp_path, run):
    with pytest.raises(CheckpointError, match=r"no run in .*nothing: there is no config.yaml"):
        martes.load(tmp_path / "nothing")
    (tmp_path / "config.yaml").write_text(run.folder.config.read_text())
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        martes.load(tmp_path)
    (tmp_path / "config.yaml").write_text("algorithm: {name: ppo, lrr: 1}")
    with pytest.raises(ConfigError, match=r"config\.yaml: unknown key 'algorithm.lrr'"):
        martes.load(tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"training\.device is 'cuda', and there is none"):
            martes.train("ippo/two-step", run_dir=tmp_path / "x", **{"training.device": "cuda"}, **TINY)
