"""The Laser Learning Environment, through its own interface and through PyMARL's."""

import numpy as np
import pytest

from martes.data import Discrete, Image, Vector
from martes.envs.adapters.adapted import adapted
from martes.envs.adapters.laser import LaserTeam, lle
from martes.errors import ConfigError, EnvError
from tests.envs.adapters.played import Played, check_single, legal

pytestmark = pytest.mark.extras
CORRIDOR = "S0 . G X\nS1 . . X"


@pytest.mark.parametrize("task", ["level3", "level6"])
def test_the_contract_is_kept(task: str):
    check_single(lambda: lle(task), draws=True)


def test_it_is_the_contract_s_with_vectors_extras_and_colours_drawn():
    check_single(lambda: lle("level6", "state", randomize_lasers=True, shaping=True), draws=True, steps=100)


def test_the_facts_are_read():
    team = lle("level6").team
    assert team.size == 4
    assert (team.observation["agent"], team.action["agent"]) == (Image((12, 12, 13), torch_float()), Discrete(5))
    assert (team.state, team.episode_limit, team.masks_actions) == (Vector(16), 78, True)
    assert lle("level3", "flattened", episode_limit=None).team.observation["agent"] == Vector(8 * 12 * 13)
    assert lle("level1", "rgb-image").team.observation["agent"] == Image((3, 385, 417))
    assert lle("level6", "partial5x5", shaping=True).team.observation["agent"] == {
        "map": Image((11, 5, 5), torch_float()),
        "extras": Vector(3),
    }


def torch_float():
    import torch

    return torch.float32


@pytest.mark.parametrize("level", [3, 6])
def test_it_is_the_package_s_number_for_number(level: int):
    import lle as package

    raw, played = package.level(level).build(), Played(lle(f"level{level}", episode_limit=None))
    draw, counts = np.random.default_rng(0), {"deaths": 0, "rewards": 0}
    seen, state = raw.reset(seed=2)
    shown = played.reset(2)
    for _ in range(600):
        assert np.array_equal(shown["obs"], seen.data)
        assert np.array_equal(shown["state"], state.data)
        assert np.array_equal(shown["action_mask"], seen.available_actions)
        if shown.is_cut:
            seen, state = raw.reset()
            shown = played.reset()
            continue
        action = legal(shown, draw)
        step = raw.step(action)
        shown = played.step(action)
        seen, state = step.obs, step.state
        assert shown["reward"].tolist() == [step.reward.item()] * raw.n_agents
        assert shown["discount"].tolist() == [float(not step.done)] * raw.n_agents
        assert shown.is_cut == step.done
        counts["deaths"] += step.done
        counts["rewards"] += step.reward.item() != 0
    assert min(counts.values()) > 0, counts


def test_all_leave_by_the_exits_and_what_is_counted():
    played = Played(lle(CORRIDOR, "layered"))
    played.reset(0)
    east, stay = 2, 4
    first, gem, last = (played.step([east, east]) for _ in range(3))
    assert [one["reward"].tolist() for one in (first, gem, last)] == [[0, 0], [1, 1], [3, 3]]
    assert (first.result.stats, last.is_cut, last["discount"].tolist()) == ({}, True, [0, 0])
    assert last.result.stats == {"gems_collected": 1, "exit_rate": 1, "joint_exit": 1}
    played.reset()
    for action in ([east, stay],) * 3:
        shown = played.step(action)
    assert shown["action_mask"][0].tolist() == [False, False, False, False, True]  # who has left can only stay
    assert shown["agent_mask"].all()


def test_a_limit_cuts_and_is_not_terminal():
    played = Played(lle("level1", episode_limit=2))
    played.reset(0)
    first, last = played.step([4]), played.step([4])
    assert (first.is_cut, last.is_cut, last["discount"].tolist()) == (False, True, [1])


def test_what_cannot_be_made_is_told():
    import lle as package

    with pytest.raises(ConfigError, match="no task 'levl6' of lle; did you mean 'level6'"):
        lle("levl6")
    with pytest.raises(ConfigError, match="no observation 'layerd' of lle; did you mean 'layered'"):
        lle("level1", "layerd")
    played = Played(LaserTeam(package.level(1).multi_objective().build()))
    played.reset(0)
    with pytest.raises(EnvError, match=r"a reward of 4 objectives: make the level without multi_objective"):
        played.step([4])


def test_through_pymarl_s_interface_too():
    import lle as package
    from marlenv.adapters.pymarl_adapter import PymarlAdapter

    def make():
        return adapted(PymarlAdapter(package.level(3).obs_type("flattened").build(), 20))

    check_single(make)
    played, ours = Played(make()), Played(lle("level3", "flattened", episode_limit=20))
    assert played.env.team == ours.env.team
    draw = np.random.default_rng(1)
    here, there = ours.reset(0), played.reset(0)
    for _ in range(100):
        assert {name: array.tolist() for name, array in here.row.items()} == {
            name: array.tolist() for name, array in there.row.items()
        }
        action = legal(here, draw)
        here, there = ours.step(action), played.step(action)
        assert here.is_cut == there.is_cut
        if here.is_cut:
            here, there = ours.reset(), played.reset()
