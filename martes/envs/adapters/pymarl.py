"""PyMARL's MultiAgentEnv, which SMAC, SMACv2, SMAClite and many others speak.

Sources: Samvelyan et al. (2019), "The StarCraft Multi-Agent Challenge"; https://github.com/oxwhirl/pymarl,
https://github.com/uoe-agents/epymarl.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from jaxtyping import Bool, UInt8

from martes.data import Discrete, TeamSpec, Vector
from martes.envs.adapters.episodes import Chance, by_time, counted, method, per_agent, picture, seeder, takes
from martes.envs.single import Result, Row, SingleEnv
from martes.errors import ConfigError, EnvError, nearest


@runtime_checkable
class MultiAgentEnv(Protocol):
    """What every environment of this family has."""

    reset: Callable[..., object]
    step: Callable[..., object]
    get_avail_actions: Callable[[], object]


FACTS: Mapping[str, tuple[str, ...]] = {
    "n_agents": ("n_agents",),
    "n_actions": ("get_total_actions", "n_actions"),
    "obs_shape": ("get_obs_size", "obs_size"),
    "state_shape": ("get_state_size", "state_size"),
    "episode_limit": ("episode_limit",),
}
"""Entries of `get_env_info()`, and the members that tell the same where there is none."""


class _Seen(NamedTuple):
    """What the environment shows, as it gives it."""

    observations: object
    legal: object
    state: object


class _Told(NamedTuple):
    """What `step` answered, beside observations."""

    reward: np.ndarray
    is_over: bool
    is_cut: bool
    info: Mapping[str, object]


class PymarlTeam:
    """A MultiAgentEnv as a team: `agent_0`, `agent_1`, ...; its reward goes to everybody, or one to each.

    An agent is dead where its only legal action is action 0 and it sees zeros alone: it is absent while the team plays
    on, and what it is said to do is action 0. An end is by time, and not terminal, where the info says so
    (`episode_limit`), or `truncated` does; where an episode ends at its last step without a word on it, unless the
    battle was won (`battle_won`) or everybody is dead; and where the game had to be restarted (`force_restarts`).
    Numbers in the last info, such as `battle_won`, are what it counts of an episode.

    A seed goes to `reset(seed=...)`, to `seed(n)`, or to `_seed`, which SMAC reads when it launches the game; what is
    drawn from NumPy's or Python's global stream comes from streams of this copy's own. `limit` cuts episodes after so
    many steps.
    """

    def __init__(self, env: MultiAgentEnv, limit: int | None = None) -> None:
        self._env = env
        self._name = type(env).__name__
        self._chance = Chance()
        agents, actions, width, state, its_limit = (self._fact(name) for name in FACTS)
        if not (agents and actions and width):
            lacking = [name for name, fact in zip(FACTS, (agents, actions, width), strict=False) if not fact]
            raise EnvError(f"{self._name}.get_env_info() lacks {', '.join(lacking)}: add them, as PyMARL reads them")
        self._limit = min((each for each in (its_limit, limit) if each), default=None)
        self._its_limit = its_limit
        self._takes_seed, self._seed = takes(env.reset, "seed"), seeder(env)
        self._observe, self._state = method(env, "get_obs"), method(env, "get_state")
        names = [f"agent_{index}" for index in range(agents)]
        self.team = TeamSpec.of_agents(
            dict.fromkeys(names, Vector(width)),
            dict.fromkeys(names, Discrete(actions)),
            state=Vector(state) if state and self._state else None,
            episode_limit=self._limit,
            masks_actions=True,
        )
        self._alive: Bool[np.ndarray, "agent"] = np.ones(agents, dtype=bool)
        self._elapsed = 0

    def _fact(self, name: str) -> int | None:
        """One of `FACTS` as a number; shapes are multiplied out."""
        told = method(self._env, "get_env_info")
        info = told() if told else None
        found = info.get(name) if isinstance(info, Mapping) else None
        for member in FACTS[name]:
            if found is None:
                found = getattr(self._env, member, None)
                found = found() if callable(found) else found
        return None if found is None else int(np.prod(np.asarray(found)))

    def reset(self, seed: int | None, row: Row) -> None:
        """Opens an episode and writes what is seen first."""
        if seed is not None:
            self._chance.seed(seed)
        self._elapsed = 0
        with self._chance:
            answer = self._opened(seed)
            seen = self._seen(answer[0] if isinstance(answer, tuple) and len(answer) == 2 else answer)
        self._show(row, seen)
        if not self._alive.any():  # nobody is dead before the first step
            self._alive[...] = row["agent_mask"][...] = True

    def _opened(self, seed: int | None) -> object:
        if seed is not None and self._takes_seed:
            return self._env.reset(seed=seed)
        if seed is not None and self._seed:
            self._seed(seed)
        elif seed is not None and hasattr(self._env, "_seed"):
            vars(getattr(self._env, "env", self._env))["_seed"] = seed
        return self._env.reset()

    def _seen(self, returned: object) -> _Seen:
        """What is to be seen now; `returned` is what `step` or `reset` gave, where there is no `get_obs`."""
        observations = self._observe() if self._observe else returned
        return _Seen(observations, self._env.get_avail_actions(), self._state() if self._state else None)

    def step(self, action: np.ndarray, row: Row) -> Result:
        """The result of `action` [agent]."""
        self._elapsed += 1
        restarts = getattr(self._env, "force_restarts", 0)
        actions = np.where(self._alive, action, 0).tolist()
        with self._chance:  # nothing but the environment's own code draws here
            answer = self._env.step(actions)
            seen = self._seen(answer[0] if isinstance(answer, tuple | list) and len(answer) > 3 else None)
        told = self._read(answer)
        self._show(row, seen, told.is_over or told.is_cut)
        row["reward"][...] = told.reward
        is_terminal = told.is_over and not self._is_by_time(told.info)
        if is_terminal and getattr(self._env, "force_restarts", 0) == restarts:
            row["discount"].fill(0)
        cut = told.is_over or told.is_cut or self._elapsed == self._limit
        return Result(cut, counted(told.info) if cut else {})

    def _is_by_time(self, info: Mapping[str, object]) -> bool:
        told = by_time(info)
        if told is None:
            return self._elapsed == self._its_limit and not info.get("battle_won") and bool(self._alive.any())
        return told

    def _read(self, answer: object) -> _Told:
        if not isinstance(answer, tuple | list) or len(answer) not in (3, 4, 5):
            told = f"{len(answer)} things" if isinstance(answer, tuple | list) else type(answer).__name__
            raise EnvError(
                f"{self._name}.step() returned {told}: return (reward, terminated, info), or "
                "(observations, reward, terminated, truncated, info)"
            )
        reward, *ends, info = answer if len(answer) == 3 else answer[1:]
        if not isinstance(info, Mapping):
            raise EnvError(f"{self._name}.step() returned {type(info).__name__} as info: return a dict, {{}} will do")
        rewards = reward[0] if isinstance(reward, Sequence | np.ndarray) and np.shape(reward) == (1,) else reward
        rewards = per_agent(rewards, self.team.size, f"{self._name}.step()", "reward")
        flags = [bool(np.all(end)) for end in ends]
        return _Told(rewards, flags[0], flags[-1] and len(flags) == 2, info)

    def _show(self, row: Row, seen: _Seen, is_over: bool = False) -> None:
        obs = self._rows(seen.observations, "get_obs", row["obs"].shape, "one observation an agent")
        legal = self._rows(seen.legal, "get_avail_actions", row["action_mask"].shape, "one an agent")
        legal = legal != 0
        legal |= is_over & ~legal.any(1, keepdims=True)  # what is legal after the end does not matter
        without = np.flatnonzero(~legal.any(1))
        if without.size:
            raise EnvError(
                f"agent_{without[0]} has no legal action in {self._name}.get_avail_actions(): leave it one, "
                "action 0 if it is dead"
            )
        self._alive = legal[:, 1:].any(1) | obs.any(1) | ~legal[:, 0]
        row["obs"][...], row["action_mask"][...], row["agent_mask"][...] = obs, legal, self._alive
        if self.team.state is not None:
            state = np.asarray(seen.state).ravel()
            if state.shape != row["state"].shape:
                raise EnvError(
                    f"{self._name}.get_state() returned {state.size} numbers, its state_shape is "
                    f"{self.team.state.size}: make them equal"
                )
            row["state"][...] = state

    def _rows(self, value: object, member: str, shape: tuple[int, ...], cure: str) -> np.ndarray:
        """The value as an array [agent number]; shapes of one agent are flattened."""
        rows = [np.asarray(each).ravel() for each in value] if isinstance(value, Sequence | np.ndarray) else []
        if len(rows) != shape[0]:
            told = f"{len(rows)} rows" if isinstance(value, Sequence | np.ndarray) else type(value).__name__
            raise EnvError(f"{self._name}.{member}() returned {told} for {shape[0]} agents: return {cure}")
        for index, each in enumerate(rows):
            if each.shape != shape[1:]:
                raise EnvError(
                    f"{self._name}.{member}() returned {each.size} numbers for agent_{index}, get_env_info() says "
                    f"{shape[1]}: make them equal"
                )
        return np.stack(rows)

    def is_recording(self) -> bool:
        """Does the game itself record its episodes?"""
        return method(self._env, "save_replay") is not None

    def save_replay(self) -> None:
        """Saves what the game itself records. Raises EnvError where it records nothing."""
        save = method(self._env, "save_replay")
        if save is None:
            raise EnvError(f"{self._name} records no replay: it has no save_replay(); martes play draws a GIF")
        save()

    def statistics(self) -> Mapping[str, float]:
        """What the environment counts over all its episodes (`get_stats`): `battles_won`, `win_rate`, `restarts`."""
        told = method(self._env, "get_stats")
        found = told() if told else {}
        return counted(found) if isinstance(found, Mapping) else {}

    def render(self) -> UInt8[np.ndarray, "height width 3"]:
        """A picture. Raises EnvError where the environment draws none, or only into a window of its own."""
        draw = method(self._env, "render")
        if draw is None or not takes(draw, "mode"):
            raise EnvError(f"{self._name} has no render(mode='rgb_array'): watch its own replay instead (save_replay)")
        return picture(self._env, "watch its own replay instead (save_replay)")

    def close(self) -> None:
        """Closes the environment."""
        close = method(self._env, "close")
        if close is not None:
            close()


def smac(task: str, map: str | None = None, **options: object) -> SingleEnv:
    """A battle of the StarCraft Multi-Agent Challenge. Its time limit is told apart from defeat.

    Args:
        task: a map: 3m, 2s3z, MMM2
        map: another map, in place of the one that the task's name says; `map_name` is the same
        options: what `smac.env.StarCraft2Env` takes
    """
    package = _package("smac.env", "oxwhirl/smac", "PyPI's `smac` is another project, a tuner: uninstall it. ")
    task = map or task
    try:
        return PymarlTeam(package.StarCraft2Env(**{"map_name": task, "continuing_episode": True, **options}))
    except KeyError as error:
        maps = import_module("smac.env.starcraft2.maps.smac_maps").get_smac_map_registry()
        if task in maps:
            raise
        raise ConfigError(f"no task {task!r} of smac{nearest(task, maps)}") from error


_TEAMS: Mapping[str, Mapping[str, object]] = {
    "terran": {
        "unit_types": ["marine", "marauder", "medivac"],
        "weights": [0.45, 0.45, 0.1],
        "exception_unit_types": ["medivac"],
    },
    "protoss": {"unit_types": ["stalker", "zealot", "colossus"], "weights": [0.45, 0.45, 0.1]},
    "zerg": {
        "unit_types": ["zergling", "baneling", "hydralisk"],
        "weights": [0.45, 0.1, 0.45],
        "exception_unit_types": ["baneling"],
    },
}
"""Who fights, how often, and who cannot be a whole team (Ellis et al. 2023, SMACv2)."""


def smacv2(task: str, **options: object) -> SingleEnv:
    """A battle of SMACv2, whose teams and positions are drawn anew in each episode; from a stream nobody can seed.

    Args:
        task: `<terran|protoss|zerg>_<agents>_vs_<enemies>`
        options: what `smacv2`'s `StarCraft2Env` takes
    """
    match = re.fullmatch(r"(terran|protoss|zerg)_(\d+)_vs_(\d+)", task)
    if match is None:
        raise ConfigError(f"no task {task!r} of smacv2{nearest(task, (f'{race}_5_vs_5' for race in _TEAMS))}")
    package = _package("smacv2.env.starcraft2.wrapper", "oxwhirl/smacv2")
    race, agents, enemies = match[1], int(match[2]), int(match[3])
    drawn = {
        "n_units": agents,
        "n_enemies": enemies,
        "team_gen": {"dist_type": "weighted_teams", "observe": True, **_TEAMS[race]},
        "start_positions": {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32},
    }
    given = {
        "map_name": f"10gen_{race}",
        "capability_config": drawn,
        "continuing_episode": True,
        "conic_fov": False,
        "obs_own_pos": True,
        "use_unit_ranges": True,
        "min_attack_range": 2,
        "num_fov_actions": 12,
    }
    return PymarlTeam(package.StarCraftCapabilityEnvWrapper(**{**given, **options}))


def smaclite(task: str, episode_limit: int = 150, **options: object) -> SingleEnv:
    """A battle of SMAClite, SMAC's game written in Python.

    Args:
        task: a map: 2s3z, MMM2
        episode_limit: steps after which it is cut
        options: what its environment takes
    """
    _package("smaclite", "uoe-agents/smaclite", "It needs Rtree >= 1.4, whatever version it asks for. ")
    maps = [name.removeprefix("smaclite/").removesuffix("-v0") for name in gym.registry if name.startswith("smaclite/")]
    if task not in maps:
        raise ConfigError(f"no task {task!r} of smaclite{nearest(task, maps)}")
    made = gym.make(f"smaclite/{task}-v0", **{"disable_env_checker": True, **options}).unwrapped
    if not isinstance(made, MultiAgentEnv):
        raise EnvError(f"smaclite made {made}, which has no get_avail_actions(): install a newer version of it")
    return PymarlTeam(made, episode_limit)


def _package(module: str, repository: str, hint: str = "") -> ModuleType:
    """The imported module of a package that no registry has. Raises EnvError, with the cure, where it is missing."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # something that the package needs
        name = module.partition(".")[0]
        raise EnvError(
            f"{name} is not installed. {hint}It is on no package registry: "
            f"pip install git+https://github.com/{repository}.git, and do what its README asks for"
            + ("; martes check starcraft says what is still missing" if name != "smaclite" else "")
        ) from None
