"""Multi-agent MuJoCo: bodies whose joints are shared out."""

import numpy as np
import pytest
from pettingzoo.test import parallel_api_test

from martes.data import Continuous, Vector
from martes.envs.adapters.pettingzoo import mamujoco
from martes.errors import ConfigError
from tests.envs.adapters.played import Played, check_single

pytestmark = pytest.mark.extras


@pytest.mark.parametrize("task", ["HalfCheetah-2x3", "Humanoid-9|8"])
def test_the_contract_is_kept(task: str) -> None:
    check_single(lambda: mamujoco(task), draws=True, steps=60)


@pytest.mark.parametrize("task", ["HalfCheetah-2x3", "Humanoid-9|8"])
def test_what_is_adapted_keeps_pettingzoo_s_own_law(task: str) -> None:
    parallel_api_test(mamujoco(task)._env, 30)


def test_facts() -> None:
    cheetah = mamujoco("HalfCheetah-2x3").team
    assert dict(cheetah.groups) == {"agent": (0, 1)}
    assert cheetah.action["agent"] == Continuous((-1,) * 3, (1,) * 3)
    assert cheetah.state == Vector(17)
    assert cheetah.episode_limit == 1000
    human = mamujoco("Humanoid-9|8", state=False).team
    assert human.observation_sizes == (242, 170)
    assert [len(sizes) for sizes in human.action_sizes] == [9, 8]
    assert human.state is None


def test_number_for_number_as_the_body_itself() -> None:
    one = Played(mamujoco("Humanoid-9|8"))
    raw = mamujoco("Humanoid-9|8")._env
    raw.reset(seed=3)
    shown, draw, steps = one.reset(3), np.random.default_rng(0), 0
    while not shown.is_cut:
        action = draw.uniform(-0.4, 0.4, (2, 9)).astype(np.float32)
        seen, reward, ended, _, _ = raw.step({"agent_0": action[0], "agent_1": action[1, :8]})
        shown = one.step(action)
        assert np.array_equal(shown["obs"][1, :170], seen["agent_1"].astype(np.float32))
        assert np.array_equal(shown["state"], raw.state().astype(np.float32))
        assert shown["reward"].tolist() == [np.float32(reward["agent_0"])] * 2
        assert shown["discount"].tolist() == [not ended["agent_0"]] * 2
        steps += 1
    assert steps > 5
    assert not shown["discount"].any(), "it fell"
    assert "reward_survive" in shown.result.stats


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("HalfChetah-2x3", "no body 'HalfChetah' of multi-agent MuJoCo .*; did you mean 'HalfCheetah'"),
        ("HalfCheetah-5x5", "cannot share out HalfCheetah as '5x5': UNKNOWN partitioning"),
        ("HalfCheetah", "cannot share out HalfCheetah as ''"),
    ],
)
def test_bodies_that_are_none(task: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        mamujoco(task)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"HalfCheetah-2x3 cannot be made with \{'depth': 2\}"):
        mamujoco("HalfCheetah-2x3", depth=2)
