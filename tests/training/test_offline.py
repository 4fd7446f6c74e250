"""Learning from a data set alone, by the one loop: who may, who must, and that a run goes on as if never stopped."""

from pathlib import Path

import pytest
import torch

from martes.algorithms.decision_transformer import DecisionTransformer
from martes.algorithms.ppo import PPO
from martes.api import continued
from martes.envs.catalogue import make_env
from martes.errors import ConfigError, DataError
from martes.networks import Network, Policy
from martes.presets import PRESETS
from martes.training import checkpoint
from martes.training.data_sets import write_data
from martes.training.evaluate import evaluate
from martes.training.loaded import LoadedPolicy
from martes.training.log import Log
from martes.training.loop import Result, train
from martes.training.offline import Nobody
from martes.training.recorder import Recorder
from martes.training.rows import read_rows
from martes.training.run import RunFolder

SMALL = {
    "env.copies": 4,
    "evaluation.episodes": 4,
    "logging.tensorboard": False,
    "logging.progress": "none",
    "logging.csv": False,
    "algorithm.network.hidden": (8,),
    "algorithm.batch": 8,
    "algorithm.ratio": 0.05,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    recorder = Recorder(make_env("two-step", 4))
    policy = Policy(recorder.team, Network(hidden=(8,)), "shared", torch.Generator().manual_seed(0))
    evaluate(policy, recorder, 40, seed=1, greedy=False)
    write_data(recorder.data(40), tmp_path / "data.safetensors")
    return tmp_path / "data.safetensors"


def trained(preset: str, path: Path, steps: int, **values: object) -> Result:
    experiment = PRESETS[preset].changed(SMALL | {"training.steps": steps} | values)
    folder = RunFolder(path)
    with Log(folder.path, experiment.logging, steps, preset, True) as log:
        return train(experiment, folder, log)


def weights(result: Result) -> list[torch.Tensor]:
    state = checkpoint.load(result.folder.newest_checkpoint())["learner"]["policy"]
    return [each for each in state.values() if isinstance(each, torch.Tensor)]


@pytest.mark.parametrize("preset", ["bc/two-step", "dt/two-step", "dqn/two-step", "sac/two-step"])
def test_a_run_learns_from_data_alone(preset: str, data: Path, tmp_path: Path) -> None:
    more = {"algorithm.network.memory_size": 8} if preset.startswith("dt") else {}
    result = trained(preset, tmp_path / "run", 800, **{"training.data": str(data), **more})
    assert result.is_finished and result.steps >= 800
    assert result.scores is not None and len(result.scores.returns) == 4
    assert any("loss" in name for row in read_rows(result.folder.metrics) for name in row)


def test_a_resumed_run_is_the_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    values = {"training.data": str(data)}
    whole = trained("bc/two-step", tmp_path / "whole", 2000, **values)
    before = weights(trained("bc/two-step", tmp_path / "half", 1000, **values))
    rest = trained("bc/two-step", tmp_path / "half", 2000, **values)
    assert all(torch.equal(mine, its) for mine, its in zip(weights(whole), weights(rest), strict=True))
    assert not all(torch.equal(mine, its) for mine, its in zip(before, weights(rest), strict=True))


def test_what_cannot_be_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learns what others did: name a data set, training.data=FILE"):
        trained("bc/two-step", tmp_path / "none", 100)
    with pytest.raises(ConfigError, match="take an algorithm that learns from replay"):
        Nobody(PPO().learner(make_env("two-step", 1).team, torch.Generator()), str(data), make_env("two-step", 1).team)
    with pytest.raises(DataError, match="'obs' of the window is"):
        trained("bc/memory-cue", tmp_path / "other", 100, **{"training.data": str(data)})
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text(PRESETS["bc/two-step"].to_yaml())
    with pytest.raises(ConfigError, match=r"training\.data decides what a run learns"):
        continued(RunFolder(tmp_path / "begun"), {"training.data": "other.safetensors"})


def test_a_policy_that_aims_at_a_return_is_told_what_was_paid(data: Path, tmp_path: Path) -> None:
    team = make_env("two-step", 1).team
    config = DecisionTransformer(network=Network(hidden=(8,), memory_size=8))
    policy = LoadedPolicy(config.learner(team, torch.Generator().manual_seed(0)).policy, team)
    seen = torch.zeros(2, team.observation_sizes[0])
    with pytest.raises(DataError, match="tell it what was paid so far"):
        policy.act(seen)
    with pytest.raises(DataError, match=r"earned does not fit \[2\]"):
        policy.act(seen, earned=[1.0, 2.0, 3.0])
    assert len(policy.act(seen, earned=[0.0, 0.0])) == len(policy.act(seen, earned=torch.ones(2))) == 2
