"""PyMARL's MultiAgentEnv: a battle in its API, with deaths, masks and a limit, and the packages that speak it."""

import sys
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest

from martes.data import Discrete, Vector
from martes.envs.adapters.pymarl import PymarlTeam, smac, smaclite, smacv2
from martes.errors import ConfigError, EnvError
from tests.envs.adapters.played import Played, Shown, check_single, legal

NOTHING, STOP, HIT = 0, 1, 2


class Battle:
    """Three soldiers against a tower: it answers each step by wounding one of them, each of whom has three lives.

    As in SMAC, the dead may only do nothing and nobody else may; the tower can be hit from the second step on.
    """

    n_agents, n_actions = 3, 3

    def __init__(self, episode_limit: int = 6, continuing_episode: bool = True, lives: int = 7, rage: int = 1) -> None:
        self.episode_limit, self.continuing_episode = episode_limit, continuing_episode
        self.lives, self.rage = lives, rage
        self._seed, self.force_restarts, self.battles_won, self.saved = 0, 0, 0, 0
        self.crashes = False
        self.stream = None

    def reset(self):
        if self.stream is None or self._seed is not None:  # as SMAC reads its seed when it launches the game
            self.stream, self._seed = np.random.default_rng(self._seed), None
        self.t, self.tower, self.health = 0, self.lives, np.full(3, 3)
        return self.get_obs(), self.get_state()

    def step(self, actions):
        for soldier, action in enumerate(actions):
            assert type(action) is int
            assert self.get_avail_agent_actions(soldier)[action], f"soldier {soldier} cannot do {action}"
        if self.crashes:
            self.force_restarts += 1
            return 0, True, {}
        self.t += 1
        hits = actions.count(HIT)
        self.tower -= hits
        for _ in range(self.rage):
            self.health[self.stream.choice(np.flatnonzero(self.health) if self.health.any() else [0])] -= 1
        self.health = self.health.clip(0)
        info, terminated = {"battle_won": False, "dead_allies": int((self.health == 0).sum())}, False
        if self.tower <= 0 or not self.health.any():
            terminated, info["battle_won"] = True, self.tower <= 0
            self.battles_won += self.tower <= 0
        elif self.t >= self.episode_limit:
            terminated = True
            if self.continuing_episode:
                info["episode_limit"] = True
        return hits / 2, terminated, info

    def get_obs(self):
        return [self.get_obs_agent(soldier) for soldier in range(3)]

    def get_obs_agent(self, soldier):
        alive = self.health[soldier] > 0
        return np.array([self.health[soldier], self.tower, self.t, 1], np.float32) * alive

    def get_avail_actions(self):
        return [self.get_avail_agent_actions(soldier) for soldier in range(3)]

    def get_avail_agent_actions(self, soldier):
        return [0, 1, int(self.t > 0)] if self.health[soldier] > 0 else [1, 0, 0]

    def get_state(self):
        return np.append(self.health, [self.tower, self.t])

    def get_env_info(self):
        told = {"n_agents": 3, "n_actions": 3, "obs_shape": 4, "state_shape": 5}
        return {**told, "episode_limit": self.episode_limit}

    def get_stats(self):
        return {"battles_won": self.battles_won, "restarts": self.force_restarts}

    def seed(self):
        return self._seed

    def save_replay(self):
        self.saved += 1

    def close(self):
        pass


class Wrapped:
    """The same as EPyMARL wraps it: five answers, a reward for each, a seed at reset."""

    def __init__(self, **options) -> None:
        self.battle = Battle(**options)
        self.n_agents, self.episode_limit = 3, self.battle.episode_limit
        self.get_obs, self.get_state = self.battle.get_obs, self.battle.get_state
        self.get_avail_actions = self.battle.get_avail_actions

    def get_obs_size(self):
        return (2, 2)

    def get_state_size(self):
        return 5

    def get_total_actions(self):
        return 3

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.battle._seed = seed
        self.battle.reset()
        return self.get_obs(), {}

    def step(self, actions):
        reward, terminated, info = self.battle.step(actions)
        truncated = bool(info.pop("episode_limit", False))
        return self.get_obs(), [reward, 0, 1], terminated and not truncated, truncated, info


class Returns(Battle):
    """Observations only where they are returned, chance from NumPy's global stream."""

    get_obs = None

    def reset(self):
        self.t, self.tower, self.health, self.stream = 0, self.lives, np.full(3, 3), np.random
        return self.first()

    def first(self):
        return [Battle.get_obs_agent(self, soldier) for soldier in range(3)]

    def step(self, actions):
        reward, terminated, info = super().step(actions)
        return self.first(), reward, terminated, info


@pytest.mark.parametrize("make", [Battle, Wrapped, Returns])
def test_the_contract_is_kept(make: type):
    check_single(lambda: PymarlTeam(make()))


def test_the_facts_are_read():
    team = PymarlTeam(Battle()).team
    assert team.agents == ("agent_0", "agent_1", "agent_2")
    assert (team.observation["agent"], team.action["agent"], team.state) == (Vector(4), Discrete(3), Vector(5))
    assert (team.episode_limit, team.masks_actions) == (6, True)
    assert PymarlTeam(Wrapped()).team == team
    assert PymarlTeam(Battle(), limit=4).team.episode_limit == 4
    assert PymarlTeam(Battle(), limit=40).team.episode_limit == 6


def test_it_is_the_battle_itself_number_for_number():
    played, raw, draw = Played(PymarlTeam(Battle())), Battle(), np.random.default_rng(0)
    raw._seed = 3
    shown = played.reset(3)
    raw.reset()
    seen = {"deaths": 0, "won": 0, "lost": 0, "by time": 0}
    for _ in range(300):
        assert np.array_equal(shown["obs"], raw.get_obs())
        assert np.array_equal(shown["action_mask"], np.array(raw.get_avail_actions(), bool))
        assert np.array_equal(shown["state"], np.float32(raw.get_state()))
        assert shown["agent_mask"].tolist() == (raw.health > 0).tolist()
        action = legal(shown, draw)
        reward, terminated, info = raw.step(action.tolist())
        shown = played.step(action)
        over = terminated and "episode_limit" not in info
        assert shown["reward"].tolist() == [reward] * 3
        assert shown["discount"].tolist() == [float(not over)] * 3
        assert shown.is_cut == terminated
        assert ("battle_won" in shown.result.stats) == terminated
        seen["deaths"] += bool((raw.health == 0).any() and not terminated)
        seen["won"] += shown.result.stats.get("battle_won", 0) == 1
        seen["lost"] += not raw.health.any()
        seen["by time"] += terminated and not over
        if terminated:
            shown = played.reset()
            raw.reset()
    assert min(seen["deaths"], seen["won"], seen["by time"]) >= 3, seen


def test_the_dead_are_absent_at_discount_1_and_do_nothing_whatever_they_are_told():
    raw = Battle(episode_limit=20, lives=100)
    played = Played(PymarlTeam(raw))
    played.reset(0)
    shown = played.step([STOP] * 3)
    while shown["agent_mask"].all():
        shown = played.step([STOP] * 3)
    assert shown["agent_mask"].tolist() == (raw.health > 0).tolist()
    assert shown["discount"].tolist() == [1, 1, 1]
    dead = int(np.flatnonzero(~shown["agent_mask"])[0])
    assert shown["action_mask"][dead].tolist() == [True, False, False]
    assert not shown["obs"][dead].any()
    after = played.step([HIT] * 3)  # the battle asserts that nobody does what he cannot
    assert after["discount"].tolist() == [1, 1, 1]
    assert after["reward"].tolist() == [1.0] * 3  # two hits, and the dead man's share


def at_the_end(limit: int, raw: Battle) -> Shown:
    played = Played(PymarlTeam(raw))
    played.reset(0)
    *_, last = (played.step(np.where(raw.health > 0, HIT if t else STOP, NOTHING)) for t in range(limit))
    assert last.is_cut
    return last


def test_which_ends_are_terminal():
    told, silent = Battle(3, lives=99), Battle(3, continuing_episode=False, lives=99)
    assert at_the_end(3, told)["discount"].tolist() == [1, 1, 1]
    assert at_the_end(3, silent)["discount"].tolist() == [1, 1, 1]
    assert at_the_end(3, Battle(3, lives=5))["discount"].tolist() == [0, 0, 0]  # won at the last step
    assert at_the_end(3, Battle(3, continuing_episode=False, lives=5))["discount"].tolist() == [0, 0, 0]
    lost = at_the_end(3, Battle(3, continuing_episode=False, lives=99, rage=3))
    assert (lost["discount"].tolist(), lost["agent_mask"].any()) == ([0, 0, 0], False)
    assert at_the_end(2, Battle(9, lives=3))["discount"].tolist() == [0, 0, 0]


def test_a_restarted_game_is_cut_but_not_terminal():
    raw = Battle()
    played = Played(PymarlTeam(raw))
    played.reset(0)
    raw.crashes = True
    shown = played.step([STOP] * 3)
    assert (shown.is_cut, shown["discount"].tolist()) == (True, [1, 1, 1])


def test_truncated_is_told_from_terminated_and_rewards_may_be_each_agent_s():
    played = Played(PymarlTeam(Wrapped(episode_limit=2, lives=99)))
    played.reset(0)
    first, last = played.step([STOP] * 3), played.step([HIT] * 3)
    assert last["reward"].tolist() == [1.5, 0, 1]
    assert (first.is_cut, last.is_cut, last["discount"].tolist()) == (False, True, [1, 1, 1])


def test_replays_statistics_and_pictures():
    raw = Battle()
    team = PymarlTeam(raw)
    Played(team).reset(0)
    team.save_replay()
    assert raw.saved == 1
    assert team.is_recording() and not PymarlTeam(Wrapped()).is_recording()
    assert team.statistics() == {"battles_won": 0, "restarts": 0}
    with pytest.raises(EnvError, match=r"Battle has no render\(mode='rgb_array'\)"):
        team.render()
    with pytest.raises(EnvError, match="Wrapped records no replay"):
        PymarlTeam(Wrapped()).save_replay()

    class Drawn(Battle):
        def render(self, mode="human"):
            return np.zeros((2, 3, 3), np.uint8) if mode == "rgb_array" else None

    assert PymarlTeam(Drawn()).render().shape == (2, 3, 3)


WRONG = [
    ("get_obs", lambda: [np.ones(4), np.ones(5), np.ones(4)], r"5 numbers for agent_1, get_env_info\(\) says 4"),
    ("get_obs", lambda: [np.ones(4)], r"Battle.get_obs\(\) returned 1 rows for 3 agents"),
    ("get_obs", lambda: None, r"returned NoneType for 3 agents"),
    ("get_avail_actions", lambda: [[1, 1]] * 3, r"get_avail_actions\(\) returned 2 numbers for agent_0.*says 3"),
    ("get_avail_actions", lambda: [[1, 1, 1], [0, 0, 0], [1, 1, 1]], r"agent_1 has no legal action in Battle"),
    ("get_state", lambda: np.zeros(4), r"get_state\(\) returned 4 numbers, its state_shape is 5"),
    ("step", lambda _: (1, 2), r"Battle.step\(\) returned 2 things: return \(reward, terminated, info\)"),
    ("step", lambda _: (1, False, "x"), r"returned str as info: return a dict"),
    ("step", lambda _: ([1, 2], False, {}), r"returned as reward: shape \[2\].*one an agent, shape \[3\]"),
]


@pytest.mark.parametrize(("member", "value", "message"), WRONG)
def test_what_does_not_fit_is_told(member: str, value: object, message: str):
    raw = Battle()
    played = Played(PymarlTeam(raw))
    played.reset(0)
    vars(raw)[member] = value
    with pytest.raises(EnvError, match=message):
        Played(PymarlTeam(raw)).reset(0)
        played.step([STOP] * 3)


def test_missing_facts_are_told():
    class Vague(Battle):
        def get_env_info(self):
            return {"n_agents": 3}

    with pytest.raises(EnvError, match=r"Vague.get_env_info\(\) lacks obs_shape"):
        PymarlTeam(Vague())


def test_packages_that_are_on_no_registry_say_where_they_are():
    with pytest.raises(EnvError, match=r"PyPI's `smac` is another project.*git\+https://github.com/oxwhirl/smac.git"):
        smac("3m")
    with pytest.raises(EnvError, match=r"smacv2 is not installed.*github.com/oxwhirl/smacv2.git"):
        smacv2("terran_5_vs_5")
    with pytest.raises(EnvError, match=r"smaclite is not installed.*Rtree.*github.com/uoe-agents/smaclite.git"):
        smaclite("2s3z")
    with pytest.raises(ConfigError, match="no task 'terran' of smacv2; did you mean 'terran_5_vs_5'"):
        smacv2("terran")


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> None:
    """A module where StarCraft's would be, which no registry has."""
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


def test_starcraft_s_makers_tell_time_limits_apart_and_name_the_nearest_map(monkeypatch: pytest.MonkeyPatch):
    maps = {"3m": 4, "2s3z": 5}
    made: list[dict[str, object]] = []

    def starcraft(map_name: str, **options: object) -> Battle:
        made.append(options)
        return Battle(maps[map_name], bool(options["continuing_episode"]))

    stand_in(monkeypatch, "smac.env", StarCraft2Env=starcraft)
    stand_in(monkeypatch, "smac.env.starcraft2.maps.smac_maps", get_smac_map_registry=lambda: maps)
    assert smac("3m", difficulty="9").team.episode_limit == 4
    assert made == [{"continuing_episode": True, "difficulty": "9"}]
    assert [smac("3m", **{option: "2s3z"}).team.episode_limit for option in ("map", "map_name")] == [5, 5]
    with pytest.raises(ConfigError, match="no task '2s3x' of smac; did you mean '2s3z'"):
        smac("3m", map="2s3x")
    second = "smacv2.env.starcraft2.wrapper"
    stand_in(monkeypatch, second, StarCraftCapabilityEnvWrapper=lambda **given: made.append(given) or Battle())
    assert smacv2("zerg_5_vs_6", obs_own_pos=False).team.size == 3
    drawn = made[-1]["capability_config"]
    assert isinstance(drawn, dict)
    assert (drawn["n_units"], drawn["n_enemies"], drawn["team_gen"]["weights"]) == (5, 6, [0.45, 0.1, 0.45])
    assert (made[-1]["map_name"], made[-1]["obs_own_pos"]) == ("10gen_zerg", False)


class Lite(gym.Env, Battle):
    """SMAClite's way: Gymnasium's, with PyMARL's members and without get_env_info."""

    obs_size, state_size = 4, 5
    get_env_info = None
    observation_space = gym.spaces.Tuple([gym.spaces.Box(-1, 1, (4,))] * 3)
    action_space = gym.spaces.Tuple([gym.spaces.Discrete(3)] * 3)

    def __init__(self) -> None:
        Battle.__init__(self, episode_limit=0, lives=99)
        self.episode_limit = None

    def reset(self, *, seed=None, options=None):
        self._seed = 0 if seed is None else seed
        return Battle.reset(self)[0], {}

    def step(self, actions):
        self.episode_limit = 1000
        reward, terminated, info = Battle.step(self, actions)
        self.episode_limit = None
        return self.get_obs(), reward, terminated, False, info


def test_smaclite_s_maker_reads_gymnasium_s_registry(monkeypatch: pytest.MonkeyPatch):
    stand_in(monkeypatch, "smaclite")
    gym.register("smaclite/2s3z-v0", entry_point=Lite)
    try:
        played = Played(smaclite("2s3z", episode_limit=2))
        assert played.env.team.episode_limit == 2
        played.reset(0)
        first, last = played.step([STOP] * 3), played.step([STOP] * 3)
        assert (first.is_cut, last.is_cut, last["discount"].tolist()) == (False, True, [1, 1, 1])
        with pytest.raises(ConfigError, match="no task '2s3x' of smaclite; did you mean '2s3z'"):
            smaclite("2s3x")
    finally:
        del gym.registry["smaclite/2s3z-v0"]
