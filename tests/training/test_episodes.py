"""Returns and lengths are those of a slow count, however windows cut through episodes; what is NaN is not counted."""

from contextlib import closing
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from martes.algorithms.ppo import PPO
from martes.data import Discrete, Schema, TeamSpec, Vector, Workspace
from martes.envs.single import serial_env
from martes.errors import EnvError
from martes.networks import Network
from martes.training import checkpoint
from martes.training.collect import Collector
from martes.training.episodes import Episodes
from tests.envs.singles import Ramble

TEAM = TeamSpec(("a_0", "a_1"), {"a": (0, 1)}, {"a": Vector(1)}, {"a": Discrete(2)})


def windows(cut: torch.Tensor, reward: torch.Tensor, sizes: list[int]) -> list[Workspace]:
    """The same history [time env ...] in windows of these sizes."""
    made = []
    for size, cuts, rewards in zip(sizes, cut.split(sizes), reward.split(sizes), strict=True):
        window = Workspace(Schema.from_team(TEAM), time=size, envs=cut.shape[1])
        window["cut"], window["reward"] = cuts, rewards
        made.append(window)
    return made


def by_hand(cut: torch.Tensor, reward: torch.Tensor) -> list[tuple[float, int]]:
    """Return and length of every finished episode."""
    found = []
    for env in range(cut.shape[1]):
        earned, lived = 0.0, 0
        for t in range(len(cut)):
            earned, lived = earned + float(reward[t, env].sum()), lived + 1
            if cut[t, env]:
                found.append((earned, lived))
                earned, lived = 0.0, 0
    return sorted(found)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=1, max_size=6), st.sampled_from([0.05, 0.3, 0.9]))
def test_returns_are_those_of_a_slow_count(seed: int, sizes: list[int], ends: float):
    generator = torch.Generator().manual_seed(seed)
    cut = torch.rand(sum(sizes), 3, generator=generator) < ends
    reward = torch.randint(-5, 6, (sum(sizes), 3, 2), generator=generator).float()
    episodes, found = Episodes(3), []
    for window in windows(cut, reward, sizes):
        episodes.add(window)
        taken = episodes.taken()
        if taken:
            found += zip(taken["return"].tolist(), taken["length"].tolist(), strict=True)
    assert sorted(found) == by_hand(cut, reward)


def test_unfinished_episodes_go_through_a_checkpoint(tmp_path):
    cut, reward = torch.tensor([[False, True], [True, False]]), torch.ones(2, 2, 2)
    first, second = windows(cut, reward, [1, 1])
    episodes, twin = Episodes(2), Episodes(2)
    episodes.add(first)
    episodes.tell({"won": torch.tensor([1.0, torch.nan])})
    twin.load_state_dict(checkpoint.load(checkpoint.save(tmp_path, episodes.state_dict(), 1, keep=1)))
    twin.add(second)
    taken = twin.taken()
    assert {name: values.tolist() for name, values in taken.items()} == {
        "return": [2.0, 4.0],
        "length": [1.0, 2.0],
        "won": [1.0],
    }
    assert twin.taken() == {}


@pytest.mark.parametrize("ends", [[False, False, True], [False, False, False]])
def test_who_lies_about_the_longest_episode_is_named(ends: list[bool]):
    cut = torch.stack((torch.tensor([False, True, False]), torch.tensor(ends)), dim=1)
    first, second = windows(cut, torch.zeros(3, 2, 2), [2, 1])
    honest, episodes = Episodes(2, limit=3), Episodes(2, limit=2)
    honest.add(first), honest.add(second), episodes.add(first)
    with pytest.raises(EnvError, match=r"environment 1: an episode has lasted 3 steps, .* none is longer than 2.*Mend"):
        episodes.add(second)


def test_a_number_that_is_nan_is_not_counted():
    episodes = Episodes(3)
    episodes.tell({"won": torch.tensor([1.0, torch.nan, 0.0]), "never": torch.full((3,), torch.nan)})
    episodes.tell({"won": torch.tensor([torch.nan]), "kills": torch.tensor([3])})
    assert {name: values.tolist() for name, values in episodes.taken().items()} == {"won": [1.0, 0.0], "kills": [3.0]}


@pytest.mark.usefixtures("unchecked")
def test_what_only_some_episodes_tell_is_taken_from_them_alone():
    """A ramble tells its range where it ends by itself, and nothing where time ends it."""
    with closing(serial_env(partial(Ramble, stats=True, length=4), 4)) as env:
        learner = PPO(network=Network(hidden=(4,)), rollout=30).learner(env.team, torch.Generator().manual_seed(0))
        collector = Collector(env, learner, torch.Generator().manual_seed(1))
        collector.start(0)
        window = collector.collect()
        taken = collector.episodes.taken()
    over = int((window["discount"] == 0).all(-1).sum())
    assert 0 < len(taken["range"]) == over < len(taken["return"]) == int(window["cut"].sum())
    assert taken["range"].isfinite().all()
