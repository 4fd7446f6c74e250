"""Gymnasium's environments: one agent as a team of one, teams that speak in tuples as teams."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from jaxtyping import UInt8

from martes.conversion import refuse_unknown
from martes.data.options import options_of
from martes.envs.adapters.episodes import Attendance, flags, per_agent, picture
from martes.envs.adapters.seats import Seats, team_of
from martes.envs.batched.foraging import foraging
from martes.envs.single import Result, Row, SingleEnv, limited
from martes.errors import ConfigError, EnvError, nearest, require

OVER, GOING_ON = Result(True), Result(False)
Masks = Callable[[np.ndarray], None]
"""Writes which actions are legal as things stand [agent action]."""


class TeamOfOne:
    """Any Gymnasium environment: its one agent is called `agent_0`.

    `info["action_mask"]` is read where `reset` gives one. A truncation cuts without being terminal.
    """

    def __init__(self, env: gym.Env) -> None:
        self._env = env
        _, info = env.reset(seed=0)
        sees, does = {"agent_0": env.observation_space}, {"agent_0": env.action_space}
        team = team_of(sees, does, masks_actions="action_mask" in info)
        self.team = limited(team, _limit(env))
        self._seats = Seats(self.team, sees, does)
        self._shape = _plain_shape(env.observation_space) if "action_mask" not in info else None
        self._is_plain = isinstance(env.action_space, spaces.Discrete) and env.action_space.start == 0

    def reset(self, seed: int | None, row: Row) -> None:
        """Opens an episode and writes what is seen first."""
        self._show(row, *self._env.reset(seed=seed))

    def step(self, action: np.ndarray, row: Row) -> Result:
        """The result of `action` [1 ...]."""
        chosen = action.item() if self._is_plain else self._seats.actions(action, ("agent_0",))["agent_0"]
        obs, reward, terminated, truncated, info = self._env.step(chosen)
        is_over = bool(terminated or truncated)
        if isinstance(obs, np.ndarray) and obs.shape == self._shape:  # the commonest case, in a third of the time
            row["obs"][0] = obs
        else:
            self._show(row, obs, info, is_over)
        row["reward"][0] = reward
        if terminated:
            row["discount"][0] = 0
        return OVER if is_over else GOING_ON

    def _show(self, row: Row, obs: object, info: Mapping[str, object], is_over: bool = False) -> None:
        self._seats.show(row, {"agent_0": obs})
        if self.team.masks_actions:
            self._seats.allow(row, "agent_0", _mask(info.get("action_mask")), is_over)

    def render(self) -> UInt8[np.ndarray, "height width 3"]:
        """A picture. Raises EnvError where the environment draws none."""
        return picture(self._env, "make it with render_mode='rgb_array'")

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


class TeamOfTuples:
    """A Gymnasium environment whose spaces are Tuples, one part an agent: `agent_0`, `agent_1`, ...

    Rewards and ends are one for all or one an agent; who ends alone is absent from then on. `info["action_mask"]`, one
    mask an agent, is read where `reset` gives it, unless there are `masks`. `limit` cuts episodes after so many steps.
    """

    def __init__(self, env: gym.Env, masks: Masks | None = None, limit: int | None = None) -> None:
        sees, does = env.observation_space, env.action_space
        if not isinstance(sees, spaces.Tuple) or not isinstance(does, spaces.Tuple) or len(sees) != len(does):
            raise EnvError(
                f"{env} is no team of tuples: its observation space is {sees}, its action space {does}. "
                "Make both a Tuple with one part an agent"
            )
        self._env, self._name = env, str(env)
        self._agents = tuple(f"agent_{index}" for index in range(len(does)))
        named_sees = dict(zip(self._agents, sees.spaces, strict=True))
        named_does = dict(zip(self._agents, does.spaces, strict=True))
        _, info = env.reset(seed=0)
        self._masks = masks
        masked = masks is not None or "action_mask" in info
        self.team = limited(limited(team_of(named_sees, named_does, masks_actions=masked), _limit(env)), limit)
        self._seats = Seats(self.team, named_sees, named_does)
        self._attendance = Attendance(len(self._agents))
        self._limit, self._elapsed = limit, 0

    def reset(self, seed: int | None, row: Row) -> None:
        """Opens an episode and writes what is seen first."""
        obs, info = self._env.reset(seed=seed)
        self._attendance.reopen()
        self._elapsed = 0
        self._show(row, obs, info)

    def step(self, action: np.ndarray, row: Row) -> Result:
        """The result of `action` [agent ...]."""
        self._elapsed += 1
        actions = tuple(self._seats.actions(action, self._agents).values())
        obs, reward, terminated, truncated, info = self._env.step(actions)
        agents, name = len(self._agents), self._name
        row["reward"][...] = per_agent(reward, agents, name, "rewards") * self._attendance.here
        ended, cut = flags(terminated, agents, name, "terminated"), flags(truncated, agents, name, "truncated")
        is_over = self._attendance.is_over(ended, cut, row)
        self._show(row, obs, info, is_over)
        return Result(is_over or self._elapsed == self._limit)

    def _show(self, row: Row, obs: object, info: Mapping[str, object], is_over: bool = False) -> None:
        if not isinstance(obs, tuple | list | np.ndarray) or len(obs) != len(self._agents):
            told = f"{len(obs)} observations" if isinstance(obs, tuple | list | np.ndarray) else type(obs).__name__
            raise EnvError(f"{self._name} returned {told} for {len(self._agents)} agents: return one observation each")
        here = self._attendance.here
        self._seats.show(row, {agent: obs[index] for index, agent in enumerate(self._agents) if here[index]})
        if self._masks is not None:
            self._masks(row["action_mask"])
        elif self.team.masks_actions:
            masks = _sequence(info.get("action_mask"), len(self._agents))
            for agent, mask, is_here in zip(self._agents, masks, here, strict=True):
                self._seats.allow(row, agent, _mask(mask), is_over or not is_here)

    def render(self) -> UInt8[np.ndarray, "height width 3"]:
        """A picture. Raises EnvError where the environment draws none."""
        return picture(self._env.unwrapped, "make it with render_mode='rgb_array'")

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


def _plain_shape(space: spaces.Space) -> tuple[int, ...] | None:
    """The shape of a space of plain vectors; None of any other."""
    return space.shape if isinstance(space, spaces.Box) and len(space.shape) == 1 else None


def _mask(mask: object) -> object:
    """The same, a list of numbers as an array; a tuple holds a mask for each of several choices."""
    return np.asarray(mask) if isinstance(mask, list) else mask


def _sequence(masks: object, agents: int) -> list[object]:
    if masks is None:
        return [None] * agents
    if not isinstance(masks, Iterable):
        raise EnvError(f"info['action_mask'] is {masks!r}: give a list with one mask an agent")
    found = list(masks)
    if len(found) != agents:
        raise EnvError(f"{len(found)} masks of legal actions for {agents} agents: give one an agent")
    return found


def _limit(env: gym.Env) -> int | None:
    return None if env.spec is None else env.spec.max_episode_steps


def gymnasium(task: str, **options: object) -> SingleEnv:
    """Gymnasium's environment `task` as a team of one, or as a team where its spaces are Tuples.

    Args:
        task: an id as `gymnasium.make` takes it: `CartPole-v1`, `my_package:MyEnv-v0`
        options: what `gymnasium.make` and the environment take
    """
    env = _made(task, options)
    return TeamOfTuples(env) if isinstance(env.action_space, spaces.Tuple) else TeamOfOne(env)


def _made(task: str, options: Mapping[str, object]) -> gym.Env:
    module, _, name = task.rpartition(":")
    try:
        if module:
            import_module(module)  # registers its environments
        drawing = {"render_mode": "rgb_array"} if "rgb_array" in _render_modes(name) else {}
        return gym.make(name, **{"disable_env_checker": True, **drawing, **options})
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv) as error:
        close = get_close_matches(name, gym.registry, n=6, cutoff=0.3)
        raise ConfigError(f"no task {task!r} of gymnasium{nearest(name, close)}") from error
    except gym.error.DependencyNotInstalled as error:
        raise EnvError(f"{task}: {error}") from error
    except TypeError as error:
        raise ConfigError(f"{task} cannot be made with {dict(options)}: {error}") from error


def _render_modes(name: str) -> Iterable[str]:
    place = gym.registry[name].entry_point if name in gym.registry else None
    creator = load_env_creator(place) if isinstance(place, str) else place
    return getattr(creator, "metadata", {}).get("render_modes", ())


def lbforaging(task: str, **options: object) -> SingleEnv:
    """Level-based foraging as the package lbforaging plays it: squares of any size, registered there or not.

    Its time limit cuts without being terminal, though the package calls it termination.

    Args:
        task: `Foraging[-<sight>s]-<size>x<size>-<agents>p-<food>f[-coop][-ind][-pen]-v3`
        options: what `lbforaging.foraging.ForagingEnv` takes
    """
    package = require("lbforaging.foraging", "lbf")
    game = foraging(task)
    if game.size[0] != game.size[1]:
        raise ConfigError(f"{task}: lbforaging plays on squares alone; martes' own lbf-... plays on any field")
    given: dict[str, object] = {
        "players": game.agents,
        "min_player_level": 1,
        "max_player_level": 2,
        "min_food_level": 1,
        "max_food_level": game.max_food_level,
        "field_size": game.size,
        "max_num_food": game.food,
        "sight": max(game.size) if game.sight is None else game.sight,
        "max_episode_steps": 50,
        "force_coop": game.coop,
        "penalty": game.penalty,
    }
    env, limit = _timed(package.ForagingEnv, task, {**given, **options}, "max_episode_steps", math.inf)
    return TeamOfTuples(_Forgetful(env), _foraging_masks(env), limit)


class _Forgetful(gym.Wrapper):
    """Foraging whose seed decides all: a game once played keeps its players off the cells where they ended."""

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> tuple[object, dict]:
        if seed is not None:
            for player in vars(self.env)["players"]:
                player.position = None
        return self.env.reset(seed=seed, options=options)


def _foraging_masks(env: gym.Env) -> Masks | None:
    """What the game itself takes for legal, all else being replaced by waiting; private in the package."""
    if not {"_valid_actions", "players"} <= vars(env).keys():
        return None

    inside = vars(env)

    def masks(place: np.ndarray) -> None:
        players, legal = inside["players"], inside["_valid_actions"]
        starts = range(0, place.size, place.shape[1])
        place.fill(False)
        place.put(
            [start + each._value_ for start, player in zip(starts, players, strict=True) for each in legal[player]],
            True,
        )

    return masks


def _timed(
    make: Callable[..., gym.Env], task: str, given: Mapping[str, object], clock: str, stopped: float | None
) -> tuple[gym.Env, int | None]:
    """The environment with its own clock stopped, which would call a time limit termination, and that limit."""
    refuse_unknown("env", given, options_of(make))
    limit = given[clock]
    if not (limit is None or isinstance(limit, int)):
        raise ConfigError(f"env.{clock} is {limit!r}: give a number of steps, or none")
    try:
        return make(**{**given, clock: stopped}), limit
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"{task} cannot be made with {dict(given)}: {error}") from error


_WAREHOUSE = re.compile(
    r"(?:rware:)?rware(?P<image>-img(?:dict)?)?(?P<fixed>-Nd)?(?:-(?P<sight>\d+)s)?"
    r"-(?:(?P<size>tiny|small|medium|large)|(?P<rows>\d+)x(?P<columns>\d+))(?:-(?P<height>\d+)h)?-(?P<agents>\d+)ag"
    r"(?:-(?P<level>easy|hard)|-(?P<requests>\d+)req(?:-(?P<reward>indiv|global|twostage))?)?(?:-v2)?"
)
_SHELVES = {"tiny": (1, 3), "small": (2, 3), "medium": (2, 5), "large": (3, 5)}
_REQUESTS = {"easy": 2.0, None: 1.0, "hard": 0.5}
_WAREHOUSES = ("rware-tiny-2ag-v2", "rware-tiny-4ag-v2", "rware-small-4ag-v2", "rware-tiny-2ag-hard-v2")


def rware(task: str, **options: object) -> SingleEnv:
    """The robotic warehouse as the package rware plays it; every name of its three registrations, and any size.

    Its time limit (`max_steps`) cuts without being terminal, though the package calls it termination.

    Args:
        task: `rware[-img|-imgdict][-Nd][-<sight>s]-<tiny|small|medium|large or rows>x<columns>[-<height>h]-<agents>ag`
            and then `[-easy|-hard]` or `[-<requests>req[-indiv|-global|-twostage]]`, and `-v2`
        options: what `rware.warehouse.Warehouse` takes
    """
    package = require("rware.warehouse", "rware")
    match = _WAREHOUSE.fullmatch(task)
    if match is None:
        raise ConfigError(f"no task {task!r} of rware{nearest(task, _WAREHOUSES)}, and other sizes by the same grammar")
    rows, columns = _SHELVES[match["size"]] if match["size"] else (int(match["rows"]), int(match["columns"]))
    agents = int(match["agents"])
    rewards = {"global": package.RewardType.GLOBAL, "twostage": package.RewardType.TWO_STAGE}
    kinds = {"-img": package.ObservationType.IMAGE, "-imgdict": package.ObservationType.IMAGE_DICT}
    given: dict[str, object] = {
        "column_height": int(match["height"] or 8),
        "shelf_rows": rows,
        "shelf_columns": columns,
        "n_agents": agents,
        "msg_bits": 0,
        "sensor_range": int(match["sight"] or 1),
        "request_queue_size": int(match["requests"] or agents * _REQUESTS[match["level"]]),
        "max_inactivity_steps": None,
        "max_steps": 500,
        "reward_type": rewards.get(match["reward"] or "indiv", package.RewardType.INDIVIDUAL),
        "observation_type": kinds.get(match["image"] or "", package.ObservationType.FLATTENED),
        "image_observation_directional": match["fixed"] is None,
    }
    env, limit = _timed(package.Warehouse, task, {**given, **options}, "max_steps", None)
    return TeamOfTuples(env, limit=limit)
