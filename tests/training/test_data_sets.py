"""Data sets from play and from files: what was recorded is what was lived, in every format."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from martes.data import Continuous, Discrete, TeamSpec, Vector, Workspace
from martes.data.data_set import returns_of, steps_of
from martes.envs.batched.engine import BatchedEnv
from martes.errors import DataError, MissingExtra
from martes.networks import Network, Policy
from martes.training.data_sets import data_from, write_data
from martes.training.evaluate import evaluate
from martes.training.recorder import Recorder
from tests.worlds import WORLDS

ALONE = TeamSpec(("a",), {"a": (0,)}, {"a": Vector(2)}, {"a": Discrete(3)})


def recorded(world: str, episodes: int = 7) -> tuple[TeamSpec, Workspace, torch.Tensor]:
    recorder = Recorder(BatchedEnv(WORLDS[world], 3))
    policy = Policy(recorder.team, Network(hidden=(8,), channels=(4,)), "shared", torch.Generator().manual_seed(0))
    scores = evaluate(policy, recorder, episodes, seed=1, greedy=False)
    return recorder.team, recorder.data(episodes), scores.agent_returns


@pytest.mark.parametrize("world", WORLDS)
def test_the_episodes_of_an_evaluation_are_recorded(world: str) -> None:
    _, data, returns = recorded(world)
    assert torch.allclose(returns_of(data).sum(1).sort().values, returns.sum(1).float().sort().values, atol=1e-4)
    window, final = steps_of(data)
    assert len(final["agent_mask"]) == 7
    assert bool(window["start"][0, 0]) and torch.equal(window["start"][1:], window["cut"])


def test_rows_are_what_was_seen_done_and_paid() -> None:
    env, twin = Recorder(BatchedEnv(WORLDS["masked"], 2)), BatchedEnv(WORLDS["masked"], 2)
    generator, lived = torch.Generator().manual_seed(3), []
    step, shown = env.reset(5), twin.reset(5)
    for _ in range(12):
        action = torch.randint(0, 3, (2, 3), generator=generator)
        lived.append((shown.seen["obs"][0].clone(), action[0], twin.step(action)))
        shown = lived[-1][2]
        env.step(action)
        if bool(shown.cut[0]):
            break
    window, final = steps_of(env.data(2))
    for t, (obs, action, result) in enumerate(lived):
        assert torch.equal(window["obs"][t, 0], obs) and torch.equal(window["action"][t, 0], action)
        assert torch.equal(window["reward"][t, 0], result.reward[0])
    assert torch.equal(final["obs"][0], lived[-1][2].final["obs"][0])
    assert bool(step.start.all())


def test_a_missing_or_foreign_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no data set .*none.safetensors: record one with"):
        data_from(str(tmp_path / "none.safetensors"), ALONE)


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "data.h5").touch()
    with pytest.raises(MissingExtra, match=r"h5py is not installed: pip install 'martes\[offline\]'"):
        data_from(str(tmp_path / "data.h5"), ALONE)


@pytest.mark.extras
@pytest.mark.parametrize("world", ["unequal", "image", "continuous"])
def test_hdf5_keeps_everything(world: str, tmp_path: Path) -> None:
    team, data, _ = recorded(world)
    write_data(data, tmp_path / "data.h5")
    again = data_from(str(tmp_path / "data.h5"), team)
    assert dict(again.schema) == dict(data.schema) and torch.equal(again.mask, data.mask)
    assert all(torch.equal(again[name], data[name]) for name in data.names)
    with pytest.raises(DataError, match=r"is missing: this task has|of the data set is"):
        data_from(str(tmp_path / "data.h5"), recorded("masked")[0])


@pytest.mark.extras
@pytest.mark.parametrize("has_next", [False, True])
def test_the_flat_form_is_cut_at_ends_and_timeouts(has_next: bool, tmp_path: Path) -> None:
    import h5py

    seen = np.arange(14, dtype=np.float32).reshape(7, 2)
    ends = {"terminals": np.array([0, 0, 1, 0, 0, 0, 0]), "timeouts": np.array([0, 0, 0, 0, 0, 1, 0], bool)}
    with h5py.File(tmp_path / "flat.hdf5", "w") as file:
        arrays = {"observations": seen, "actions": np.arange(7) % 3, "rewards": np.arange(7.0), **ends}
        for name, array in (arrays | ({"next_observations": seen + 100} if has_next else {})).items():
            file[name] = array
    data = data_from(str(tmp_path / "flat.hdf5"), ALONE)
    window, final = steps_of(data)
    paid = [0, 1, 2, 3, 4, 5] if has_next else [0, 1, 2, 3, 4]  # else the step before a timeout shows what was seen
    assert window["reward"][:, 0, 0].tolist() == paid
    assert window["discount"][:, 0, 0].tolist() == [float(t != 2) for t in paid]
    assert final["obs"][-1, 0].tolist() == ([110.0, 111.0] if has_next else [10.0, 11.0])
    with pytest.raises(DataError, match="does not fit the task"):
        data_from(str(tmp_path / "flat.hdf5"), TeamSpec(("a",), {"a": (0,)}, {"a": Vector(3)}, {"a": Discrete(3)}))


@pytest.mark.extras
def test_minari_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    import minari
    from gymnasium import spaces
    from minari.data_collector.episode_buffer import EpisodeBuffer

    team = TeamSpec(("agent_0",), {"agent": (0,)}, {"agent": Vector(2)}, {"agent": Continuous((-2.0,), (2.0,))})
    buffers = [
        EpisodeBuffer(
            id=n,
            observations=np.full((steps + 1, 2), n, np.float32),
            actions=np.full((steps, 1), 0.5 * n, np.float32),
            rewards=[1.0] * steps,
            terminations=[False] * (steps - 1) + [n == 0],
            truncations=[False] * (steps - 1) + [n == 1],
            infos={},
        )
        for n, steps in enumerate((3, 2))
    ]
    box = spaces.Box(-2, 2, (1,), np.float32)
    seen = spaces.Box(-9, 9, (2,), np.float32)
    minari.create_dataset_from_buffers("toy/toy-v0", buffers, action_space=box, observation_space=seen)
    window, final = steps_of(data_from("minari:toy/toy-v0", team))
    assert window["action"].flatten().tolist() == [0, 0, 0, 0.5, 0.5]
    assert window["discount"].flatten().tolist() == [1, 1, 0, 1, 1]
    assert final["obs"][:, 0, 0].tolist() == [0, 1]
    with pytest.raises(DataError, match="no Minari data set toy/none-v0 here: `minari download toy/none-v0`"):
        data_from("minari:toy/none-v0", team)
