"""Gymnasium's environments as teams of one, and those that speak in tuples."""

import sys
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from martes.data import Continuous, Discrete, Image, MultiDiscrete, Vector
from martes.envs.adapters.gymnasium import TeamOfOne, TeamOfTuples, gymnasium, lbforaging, rware
from martes.envs.single import SingleEnv
from martes.errors import ConfigError, EnvError
from tests.envs.adapters.played import Played, check_single, legal, played_through

SMALL = "Foraging-5x5-2p-1f-v3"


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "Taxi-v4"])
def test_a_team_of_one_keeps_the_contract(task: str):
    check_single(lambda: gymnasium(task), draws=True)


@pytest.mark.parametrize("task", ["Foraging-8x8-2p-2f-coop-v3", "Foraging-2s-8x8-2p-2f-coop-v3", SMALL])
def test_foraging_keeps_the_contract(task: str):
    check_single(lambda: lbforaging(task))


@pytest.mark.extras
@pytest.mark.parametrize("task", ["rware-tiny-2ag-v2", "rware-imgdict-tiny-3ag-easy-v2"])
def test_the_warehouse_keeps_the_contract(task: str):
    check_single(lambda: rware(task))


ACTIONS: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3, start=5),
    "multi": spaces.MultiDiscrete([2, 4]),
    "binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1, 1, (2, 2), np.float32),
}


class Odd(gym.Env):
    """Every kind of space, and a mask."""

    observation_space = spaces.Dict(
        {
            "view": spaces.Box(0, 255, (4, 5, 3), np.uint8),
            "odds": spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2))),
            "far": spaces.Box(-1, 1, (2, 2), np.float32),
        }
    )

    def __init__(self, kind: str = "discrete", masked: bool = False) -> None:
        self.action_space = ACTIONS[kind]
        self.masked = masked

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), self.info()

    def step(self, action):
        assert self.action_space.contains(action), action
        self.told = action
        return self.observation_space.sample(), 1, False, False, self.info()

    def info(self):
        return {"action_mask": np.array([1, 0, 1], np.int8)} if self.masked else {}


def test_every_space_goes_both_ways():
    cases = {
        "discrete": (Discrete(3), [2], 7),
        "multi": (MultiDiscrete((2, 4)), [[1, 3]], [1, 3]),
        "binary": (MultiDiscrete((2, 2, 2)), [[1, 0, 1]], [1, 0, 1]),
        "box": (Continuous((-1.0,) * 4, (1.0,) * 4), [[0.5, -0.5, 1.0, 0.0]], [[0.5, -0.5], [1.0, 0.0]]),
    }
    for kind, (space, action, told) in cases.items():
        raw = Odd(kind)
        played = Played(TeamOfOne(raw))
        assert played.env.team.action["agent"] == space
        assert played.env.team.observation["agent"] == {"view": Image((3, 4, 5)), "odds": Vector(5), "far": Vector(4)}
        first = played.reset(0)
        assert first["obs/odds"].sum() <= 3
        played.step(action)
        assert np.asarray(raw.told).tolist() == told
    masked = Played(TeamOfOne(Odd(masked=True)))
    assert masked.env.team.masks_actions
    assert masked.reset(0)["action_mask"].tolist() == [[True, False, True]]


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1"])
def test_a_team_of_one_is_the_environment_itself_number_for_number(task: str):
    raw = gym.make(task)
    raw.action_space.seed(1)
    actions = [raw.action_space.sample() for _ in range(230)]
    shown = played_through(gymnasium(task), [np.asarray(each)[None] for each in actions], seed=4)
    seen, _ = raw.reset(seed=4)
    assert np.array_equal(shown[0]["obs"][0], np.float32(seen))
    ended = 0
    for one, action in zip(shown[1:], actions, strict=True):
        seen, reward, terminated, truncated, _ = raw.step(action)
        assert np.array_equal(one["obs"][0], np.float32(seen))
        assert one["reward"][0] == np.float32(reward)
        assert one["discount"][0] == 1 - terminated
        assert one.is_cut == (terminated or truncated)
        ended += one.is_cut
        if one.is_cut:
            raw.reset()
    assert ended or task == "Acrobot-v1"


def test_a_time_limit_cuts_a_team_of_one_and_is_not_terminal():
    team = gymnasium("Pendulum-v1", max_episode_steps=3)
    assert team.team.episode_limit == 3
    shown = played_through(team, [[[0.0]]] * 3)
    assert [one.is_cut for one in shown] == [False, False, False, True]
    assert shown[-1]["discount"].tolist() == [1]


def same_as_raw(env: SingleEnv, raw: gym.Env, limit: int, steps: int) -> dict[str, int]:
    """Plays both by one row of actions and compares them; counts how episodes ended."""
    played, draw = Played(env), np.random.default_rng(0)
    shown = played.reset(3)
    seen, _ = raw.reset(seed=3)
    counts = {"over": 0, "by time": 0, "rewards": 0}
    elapsed = 0
    for _ in range(steps):
        assert np.array_equal(shown["obs"], np.float32(seen))
        if shown.is_cut:
            shown, (seen, _), elapsed = played.reset(), raw.reset(), 0
            continue
        elapsed += 1
        masked = "action_mask" in shown.row
        action = legal(shown, draw) if masked else draw.integers(env.team.action_sizes[0][0], size=env.team.size)
        seen, reward, terminated, truncated, _ = raw.step(tuple(action.tolist()))
        shown = played.step(action)
        assert isinstance(reward, list)  # one number an agent, from both packages
        assert np.array_equal(shown["reward"], np.float32(reward))
        assert not truncated  # both packages call their time limits termination
        assert shown.is_cut == terminated
        over = terminated and is_over(raw)
        assert shown["discount"].tolist() == [float(not over)] * env.team.size
        assert over or not terminated or elapsed == limit
        counts["over"] += over
        counts["by time"] += terminated and not over
        counts["rewards"] += sum(reward) > 0
    return counts


def is_over(raw: gym.Env) -> bool:
    """Has all food been eaten? A warehouse is never done."""
    return not vars(raw.unwrapped)["field"].any() if "field" in vars(raw.unwrapped) else False


def test_foraging_is_the_package_s_number_for_number_but_for_the_meaning_of_its_limit():
    import lbforaging as package  # registers its tasks

    raw = gym.make(SMALL, disable_env_checker=True)
    counts = same_as_raw(lbforaging(SMALL), raw, 50, 800)
    assert min(counts.values()) >= 2, counts
    sighted = "Foraging-2s-8x8-2p-2f-coop-v3"
    counts = same_as_raw(lbforaging(sighted), gym.make(sighted, disable_env_checker=True), 50, 200)
    assert counts["by time"] >= 2
    assert package


@pytest.mark.extras
def test_the_warehouse_is_the_package_s_number_for_number_but_for_the_meaning_of_its_limit():
    import rware as package

    task = "rware-tiny-2ag-v2"
    counts = same_as_raw(rware(task), gym.make(task, disable_env_checker=True), 500, 1100)
    assert counts["by time"] == 2
    assert package


def test_equal_seeds_give_equal_foraging_whatever_was_played_before():
    env = Played(lbforaging("Foraging-5x5-3p-1f-v3"))
    first = env.reset(8)["obs"]
    for _ in range(20):
        env.step([1, 2, 3])
        env.reset()
    assert np.array_equal(env.reset(8)["obs"], first)


FORAGING = ["Foraging-8x8-2p-3f-v3", "Foraging-2s-10x10-3p-3f-coop-v3", "Foraging-15x15-4p-3f-v3", SMALL]


@pytest.mark.parametrize("task", FORAGING)
def test_foraging_s_names_mean_what_the_package_means(task: str):
    raw = vars(gym.make(task, disable_env_checker=True).unwrapped)
    ours = inside(lbforaging(task))
    for name in ("sight", "force_coop", "penalty", "max_num_food", "max_food_level", "n_agents", "_normalize_reward"):
        assert ours[name] == raw[name], name
    for name in ("field", "min_food_level", "min_player_level", "max_player_level"):
        assert ours[name].shape == raw[name].shape
        assert name == "field" or (ours[name] == raw[name]).all()
    assert lbforaging(task).team.episode_limit == raw["_max_episode_steps"]


def inside(team: SingleEnv) -> dict[str, object]:
    return vars(vars(team)["_env"].unwrapped)


@pytest.mark.skipif(sys.platform != "linux", reason="screens have other names elsewhere")
def test_a_viewer_without_a_screen_is_told_where_to_get_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    one = lbforaging("Foraging-8x8-2p-2f-coop-v3")
    Played(one).reset(0)
    with pytest.raises(EnvError, match=r"ForagingEnv draws on a screen, and there is none: .*`xvfb-run -a`"):
        one.render()


def test_foraging_of_sizes_that_the_package_does_not_register():
    for task, agents in (("Foraging-15x15-3p-5f-v3", 3), ("Foraging-15x15-4p-5f-v3", 4), ("Foraging-4x4-2p-1f-v3", 2)):
        env = lbforaging(task)
        assert env.team.size == agents
        assert Played(env).reset(0)["agent_mask"].all()
    env = lbforaging(SMALL, max_episode_steps=4, sight=1)
    assert env.team.episode_limit == 4
    assert inside(env)["sight"] == 1


WAREHOUSES = [
    "rware-tiny-2ag-v2",
    "rware-small-4ag-hard-v2",
    "rware-large-11ag-easy-v2",
    "rware-img-medium-3ag-v2",
    "rware-imgdict-Nd-tiny-1ag-easy-v2",
]


@pytest.mark.extras
def test_the_warehouse_s_names_mean_what_the_package_means():
    import rware as package

    package.image_registration()
    simple = ("n_agents", "msg_bits", "sensor_range", "request_queue_size", "max_inactivity_steps", "reward_type")
    for task in WAREHOUSES:
        raw, ours = vars(gym.make(task, disable_env_checker=True).unwrapped), inside(rware(task))
        for name in (*simple, "grid_size", "fast_obs", "image_obs", "image_dict_obs"):
            assert ours[name] == raw[name], (task, name)
        assert ours.get("image_observation_directional") == raw.get("image_observation_directional")
        assert rware(task).team.episode_limit == raw["max_steps"] == 500
    odd = inside(rware("rware-2s-2x3-4h-5ag-3req-global-v2", max_steps=7))
    assert (odd["n_agents"], odd["sensor_range"], odd["request_queue_size"]) == (5, 2, 3)
    assert odd["reward_type"] == package.RewardType.GLOBAL
    assert rware("rware:rware-tiny-2ag-v2", max_steps=None).team.episode_limit is None
    assert rware("rware-tiny-2ag-v2", msg_bits=2).team.action["agent"] == MultiDiscrete((5, 2, 2))
    with pytest.raises(ConfigError, match="no task 'rware-tny-2ag-v2' of rware; did you mean 'rware-tiny-2ag-v2'"):
        rware("rware-tny-2ag-v2")
    with pytest.raises(ConfigError, match=r"'env\.sensor_rang'; did you mean 'sensor_range'"):
        rware("rware-tiny-2ag-v2", sensor_rang=3)


class Pair(gym.Env):
    """Two agents in tuples; what `step` answers can be set."""

    observation_space = spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (3,))])
    action_space = spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)])
    seen = np.ones(2), np.ones(3)

    def __init__(self, *answers: tuple[object, ...], mask: object = None) -> None:
        self.answers: Iterator[tuple[object, ...]] = iter(answers)
        self.mask = {} if mask is None else {"action_mask": mask}

    def reset(self, *, seed=None, options=None):
        return self.seen, self.mask

    def step(self, action):
        return *next(self.answers), self.mask


def test_tuples_of_unequal_agents_of_whom_one_ends_alone():
    seen = Pair.seen
    raw = Pair(
        (seen, [1, 2], [True, False], False), (seen, 3.0, False, False), (seen, 1, [False, True], [False, False])
    )
    played = Played(TeamOfTuples(raw))
    assert list(played.env.team.groups) == ["agent_0", "agent_1"]
    assert played.reset(0)["obs"].tolist() == [[1, 1, 0], [1, 1, 1]]
    alone, then, last = (played.step([1, 2]) for _ in range(3))
    assert (alone["reward"].tolist(), alone["discount"].tolist()) == ([1, 2], [0, 1])
    assert alone["agent_mask"].tolist() == [False, True]
    assert not alone["obs"][0].any()
    assert (then["reward"].tolist(), then["discount"].tolist(), then.is_cut) == ([0, 3], [1, 1], False)
    assert (last["discount"].tolist(), last.is_cut) == ([0, 0], True)


def test_tuples_with_masks_in_their_infos():
    played = Played(TeamOfTuples(Pair(mask=([1, 0], [0, 1, 1]))))
    assert played.reset(0)["action_mask"].tolist() == [[True, False, False], [False, True, True]]


def test_who_has_left_needs_no_legal_action():
    raw = Pair((Pair.seen, 0, [True, False], False), (Pair.seen, 0, False, False), mask=([1, 0], [0, 1, 1]))
    played = Played(TeamOfTuples(raw))
    played.reset(0)
    raw.mask = {"action_mask": ([0, 0], [1, 0, 0])}
    for row in (played.step([0, 0]), played.step([0, 0])):
        assert row["agent_mask"].tolist() == [False, True]
        assert row["action_mask"].tolist() == [[True, True, False], [True, False, False]]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (((np.ones(2),), 0, False, False), r"Pair.* returned 1 observations for 2 agents: return one observation each"),
        (({"a": 1}, 0, False, False), r"returned dict for 2 agents"),
        (((np.ones(2), np.ones(4)), 0, False, False), r"agent 'agent_1' observed shape \[4\]"),
        ((Pair.seen, [1, 2, 3], False, False), r"returned as rewards: shape \[3\].*one number.*shape \[2\]"),
        ((Pair.seen, 0, [True] * 3, False), r"returned as terminated: shape \[3\]"),
    ],
)
def test_tuples_of_wrong_shapes_are_told(answer: tuple[object, ...], message: str):
    played = Played(TeamOfTuples(Pair(answer)))
    played.reset(0)
    with pytest.raises(EnvError, match=message):
        played.step([0, 0])


def test_masks_of_wrong_shapes_are_told():
    for mask, message in (
        (([1, 0],), "1 masks of legal actions for 2 agents"),
        (3, "give a list with one mask an agent"),
        (([1, 0], [1, 0]), "agent 'agent_1' has 2 entries, it has 3"),
        (([0, 0], [1, 0, 0]), "agent 'agent_0' has no legal action"),
    ):
        with pytest.raises(EnvError, match=message):
            Played(TeamOfTuples(Pair(mask=mask))).reset(0)


def test_what_cannot_be_made_is_told():
    with pytest.raises(ConfigError, match="no task 'CartPol-v1' of gymnasium; did you mean 'CartPole-v1'"):
        gymnasium("CartPol-v1")
    with pytest.raises(ConfigError, match=r"CartPole-v1 cannot be made with {'lenght': 3}.*lenght"):
        gymnasium("CartPole-v1", lenght=3)
    with pytest.raises(ConfigError, match="names no foraging task"):
        lbforaging("Foraging-8x8-2p-v3")
    with pytest.raises(ConfigError, match=r"'env\.sigth'; did you mean 'sight'"):
        lbforaging(SMALL, sigth=3)
    with pytest.raises(ConfigError, match=r"max_episode_steps is 'many': give a number of steps"):
        lbforaging(SMALL, max_episode_steps="many")
    with pytest.raises(ConfigError, match=r"cannot be made.*min_food_level must be"):
        lbforaging(SMALL, min_food_level=3, max_food_level=2)
    with pytest.raises(ConfigError, match="Foraging-4x9-2p-1f-v3: lbforaging plays on squares alone"):
        lbforaging("Foraging-4x9-2p-1f-v3")
    with pytest.raises(EnvError, match="is no team of tuples"):
        TeamOfTuples(gym.make("CartPole-v1"))
    with (
        pytest.warns(UserWarning, match="render_mode"),
        pytest.raises(EnvError, match="make it with render_mode='rgb_a"),
    ):
        TeamOfOne(gym.make("CartPole-v1")).render()
