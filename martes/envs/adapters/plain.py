"""A team's environment written as a plain class, as one writes it without having heard of any library."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from gymnasium import spaces
from jaxtyping import UInt8

from martes.data import Vector
from martes.envs.adapters.episodes import (
    Attendance,
    Chance,
    Flags,
    by_time,
    counted,
    method,
    per_agent,
    picture,
    seeder,
    takes,
)
from martes.envs.adapters.seats import Seats, team_of
from martes.envs.single import Result, Row
from martes.errors import EnvError

CHOICES = ("n_actions", "num_actions", "action_dim")
"""Members that say among how many actions an agent chooses; or a list, one number an agent."""
LIMITS = ("episode_limit", "max_episode_steps", "max_steps")
"""Members that say after how many steps an episode is cut."""
ROWS = "return [n_agents, obs_dim], one row an agent"
STEP = "return (observations, rewards, dones, info), or (observations, rewards, terminated, truncated, info)"


@runtime_checkable
class Plain(Protocol):
    """The least that a plain class has."""

    reset: Callable[..., object]
    step: Callable[..., object]


class _Seen(NamedTuple):
    """What the class shows, as it gives it."""

    observations: object
    masks: object
    state: object


class _Told(NamedTuple):
    """What `step` answered, beside observations."""

    reward: np.ndarray
    terminated: Flags
    truncated: Flags
    info: Mapping[str, object]


class PlainTeam:
    """A plain class as a team: `agent_0`, `agent_1`, ...

    It has `reset()`, which returns observations `[n_agents, obs_dim]` or `(observations, info)`, and `step(actions)`,
    which returns `(observations, rewards, dones, info)` or `(observations, rewards, terminated, truncated, info)`.
    Rewards and dones are one for all or one an agent; an agent that is done alone is absent from then on. It says what
    an agent can do by `n_actions` (also `num_actions`, `action_dim`), by `action_low` and `action_high` for real
    numbers, or by a Gymnasium `action_space` for all, or a list of one an agent.

    Optional: `get_legal_actions() -> [n_agents, n_actions]`; `get_state() -> [state_dim]`; `observation_space`;
    `reset(seed=...)` or `seed(n)`; `render()`, a picture; `close()`; `episode_limit` (also `max_episode_steps`,
    `max_steps`): steps after which the episode is cut. An episode that ends by `dones` at exactly this step was cut by
    time, and is not terminal, unless `info["truncated"]` denies it; that entry, or `info["TimeLimit.truncated"]`, says
    of any other end that it was by time. Numbers in the last info are what the environment counts of an episode.

    What it draws from NumPy's or Python's global stream comes from streams of this copy's own, seeded with it.
    """

    def __init__(self, env: Plain) -> None:
        self._env = env
        self._name = type(env).__name__
        self._chance = Chance()
        self._legal = method(env, "get_legal_actions")
        self._state = method(env, "get_state")
        self._limit = _step_limit(env)
        self._takes_seed, self._seed = takes(env.reset, "seed"), seeder(env)
        seen = self._opened(None)
        first = self._rows(seen.observations, "reset", _said_agents(env))
        masks = self._masks(seen.masks, len(first)) if self._legal else None
        state = self._numbers(seen.state) if self._state else None
        self._agents = tuple(f"agent_{index}" for index in range(len(first)))
        sees = dict(zip(self._agents, self._observation_spaces(first), strict=True))
        does = dict(zip(self._agents, self._action_spaces(len(first), masks), strict=True))
        self.team = team_of(
            sees,
            does,
            state=None if state is None else Vector(state.size),
            episode_limit=self._limit,
            masks_actions=masks is not None,
        )
        self._is_uniform = all(space == does["agent_0"] for space in does.values())
        self._seats = Seats(self.team, sees, does)
        self._attendance = Attendance(len(first))
        self._elapsed = 0

    def reset(self, seed: int | None, row: Row) -> None:
        """Opens an episode and writes what is seen first."""
        if seed is not None:
            self._chance.seed(seed)
        self._elapsed = 0
        self._attendance.reopen()
        self._show(row, self._opened(seed), "reset")

    def step(self, action: np.ndarray, row: Row) -> Result:
        """The result of `action` [agent ...]."""
        self._elapsed += 1
        natives = list(self._seats.actions(action, self._agents).values())
        actions = np.array(natives) if self._is_uniform else natives
        with self._chance:  # nothing but the class's own code draws here
            answer = self._env.step(actions)
            masks = self._legal() if self._legal else None
            state = self._state() if self._state else None
        observations, told = self._read(answer)
        row["reward"][...] = told.reward * self._attendance.here
        is_over = self._attendance.is_over(told.terminated, told.truncated, row)
        self._show(row, _Seen(observations, masks, state), "step", is_over)
        cut = is_over or self._elapsed == self._limit
        return Result(cut, counted(told.info) if cut else {})

    def render(self) -> UInt8[np.ndarray, "height width 3"]:
        """A picture. Raises EnvError where the class draws none."""
        return picture(self._env, "give it render(), which returns bytes [height, width, 3]")

    def close(self) -> None:
        """Calls the class's `close`, if it has one."""
        close = method(self._env, "close")
        if close is not None:
            close()

    def _opened(self, seed: int | None) -> _Seen:
        """What an episode opens with."""
        with self._chance:
            if seed is not None and self._takes_seed:
                made = self._env.reset(seed=seed)
            else:
                if seed is not None and self._seed:
                    self._seed(seed)
                made = self._env.reset()
            masks = self._legal() if self._legal else None
            state = self._state() if self._state else None
        if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping):
            made = made if isinstance(made[0], Mapping) else made[0]  # two agents that see dicts, or with an info
        return _Seen(made, masks, state)

    def _rows(self, observations: object, where: str, agents: int | None) -> Sequence[object]:
        """One observation an agent, of `agents` if that is known."""
        told = f"{self._name}.{where}() returned"
        rows = _rows_of(observations)
        if rows is None:
            hint = ""
            if isinstance(observations, Mapping):
                hint = "; a class that speaks in dicts by agent is a PettingZoo ParallelEnv: give it possible_agents"
            elif np.ndim(np.asarray(observations, dtype=object)) == 1:
                hint = ", also where there is one agent (obs[None]) or one number (obs[:, None])"
            raise EnvError(f"{told} {_described(observations)} as observations: {ROWS}{hint}")
        if agents is not None and len(rows) != agents:
            raise EnvError(
                f"{told} {_described(observations)} as observations of {len(rows)} agents, this team has {agents}: "
                f"{ROWS}, zeros for who is gone"
            )
        return rows

    def _show(self, row: Row, seen: _Seen, where: str, is_over: bool = False) -> None:
        rows, here = self._rows(seen.observations, where, len(self._agents)), self._attendance.here
        self._seats.show(row, {agent: rows[index] for index, agent in enumerate(self._agents) if here[index]})
        if self.team.masks_actions:
            for agent, mask, is_here in zip(self._agents, self._masks(seen.masks, len(here)), here, strict=True):
                self._seats.allow(row, agent, mask, is_over or not is_here)
        if self._state is not None:
            row["state"][...] = self._numbers(seen.state, row["state"].size)

    def _read(self, answer: object) -> tuple[object, _Told]:
        """The observations, and the rest, of what `step` answered."""
        step = f"{self._name}.step()"
        if not isinstance(answer, tuple | list) or len(answer) not in (4, 5):
            count = f"{len(answer)} things" if isinstance(answer, tuple | list) else type(answer).__name__
            raise EnvError(f"{step} returned {count}: {STEP}")
        observations, reward, *ends, info = answer
        info, agents = self._info(info), len(self._agents)
        reward = per_agent(reward, agents, step, "rewards")
        names = ("dones",) if len(ends) == 1 else ("terminated", "truncated")
        flags = [per_agent(end, agents, step, name) != 0 for name, end in zip(names, ends, strict=True)]
        cut = by_time(info)
        if len(flags) == 2:
            return observations, _Told(reward, flags[0], flags[1] | bool(cut), info)
        if cut is None:
            cut = self._elapsed == self._limit and bool(flags[0].all())
        return observations, _Told(reward, flags[0] & (not cut), np.bool_(cut), info)

    def _info(self, info: object) -> Mapping[str, object]:
        """The info as one mapping; where there is one an agent, what they say of time limits."""
        if info is None:
            return {}
        if isinstance(info, Mapping):
            return info
        if isinstance(info, list | tuple) and all(isinstance(each, Mapping) for each in info):
            told = [by_time(each) for each in info]
            return {} if set(told) <= {None} else {"truncated": any(told)}
        raise EnvError(f"{self._name}.step() returned {type(info).__name__} as info: return a dict, {{}} will do")

    def _masks(self, masks: object, agents: int) -> Sequence[object]:
        told, cure = f"{self._name}.get_legal_actions() returned", f"return [{agents}, n_actions], true where one may"
        rows = _rows_of(masks)
        if rows is None or len(rows) != agents:
            raise EnvError(f"{told} {_described(masks)}: {cure}")
        for index, mask in enumerate(np.asarray(row) for row in rows):
            if mask.dtype.kind not in "biuf" or ((mask != 0) & (mask != 1)).any():
                raise EnvError(f"{told} {mask.tolist()} for agent_{index}: {cure}, not the numbers of actions")
        return rows

    def _numbers(self, value: object, size: int | None = None) -> np.ndarray:
        state = np.asarray(value)
        if state.dtype.kind not in "biuf" or (size is not None and state.size != size):
            raise EnvError(
                f"{self._name}.get_state() returned {_described(state)}: return "
                f"{'numbers' if size is None else f'{size} numbers, as at first'}"
            )
        return state.ravel()

    def _observation_spaces(self, first: Sequence[object]) -> list[spaces.Space]:
        said = _each(getattr(self._env, "observation_space", None), len(first))
        told = f"{self._name}.reset() returned as the observation of agent_"
        return said or [_space_of(each, f"{told}{index}") for index, each in enumerate(first)]

    def _action_spaces(self, agents: int, masks: Sequence[object] | None) -> list[spaces.Space]:
        said = _each(getattr(self._env, "action_space", None), agents)
        low, high = (getattr(self._env, f"action_{end}", None) for end in ("low", "high"))
        if said is not None:
            return said
        if low is not None and high is not None:
            return [_box(np.asarray(low), np.asarray(high), getattr(self._env, "action_dim", None))] * agents
        numbers = [getattr(self._env, name) for name in CHOICES if hasattr(self._env, name)]
        if not numbers and masks is None:
            raise EnvError(
                f"{self._name} does not say what an agent can do: give it n_actions = 5 (so many choices), action_low "
                "and action_high (real numbers), or action_space (a space of Gymnasium's)"
            )
        number = numbers[0] if numbers else [np.asarray(mask).size for mask in masks or ()]
        counts = list(number) if isinstance(number, Sequence | np.ndarray) else [number] * agents
        if len(counts) != agents or not all(isinstance(n, int | np.integer) and n > 0 for n in counts):
            raise EnvError(
                f"{self._name} says that its number of actions is {number!r}: give one whole number, or a list of "
                f"{agents}, one an agent"
            )
        return [spaces.Discrete(int(n)) for n in counts]


def _said_agents(env: object) -> int | None:
    found = getattr(env, "n_agents", None)
    return found if isinstance(found, int) else None


def _step_limit(env: object) -> int | None:
    found = (getattr(env, name, None) for name in LIMITS)
    return next((int(each) for each in found if isinstance(each, int | np.integer) and each > 0), None)


def _rows_of(value: object) -> Sequence[object] | None:
    """One row an agent: an array or a mapping each; None where the value is nothing of the kind."""
    if not isinstance(value, list | tuple):
        array = np.asarray(value)
        return list(array) if array.ndim > 1 and len(array) else None
    rows = [each if isinstance(each, Mapping) else np.asarray(each) for each in value]
    return rows if rows and all(isinstance(each, Mapping) or each.ndim for each in rows) else None


def _described(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a dict with the keys {sorted(map(str, value))}"
    if isinstance(value, list | tuple):
        shapes = [list(np.asarray(each).shape) for each in value]
        same = all(each == shapes[0] for each in shapes)
        return f"shape {[len(shapes), *shapes[0]]}" if shapes and same else f"rows of the shapes {shapes}"
    array = np.asarray(value)
    return type(value).__name__ if array.dtype == object else f"shape {list(array.shape)} of {array.dtype}"


def _each(space: object, agents: int) -> list[spaces.Space] | None:
    """One space an agent: those of a list or Tuple of so many, or the one that all share."""
    listed = space.spaces if isinstance(space, spaces.Tuple) else space
    if isinstance(listed, list | tuple) and len(listed) == agents:
        return [each for each in listed if isinstance(each, spaces.Space)]
    return [space] * agents if isinstance(space, spaces.Space) else None


def _box(low: np.ndarray, high: np.ndarray, size: object) -> spaces.Box:
    shape = np.broadcast_shapes(low.shape, high.shape, (size,) if isinstance(size, int) else (1,))
    bounds = [np.broadcast_to(end.astype(np.float32), shape) for end in (low, high)]
    return spaces.Box(bounds[0], bounds[1], dtype=np.float32)


def _space_of(value: object, told: str) -> spaces.Space:
    """What such an observation lies in: bytes of two or three axes are a picture."""
    if isinstance(value, Mapping):
        return spaces.Dict({str(name): _space_of(each, told) for name, each in value.items()})
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise EnvError(f"{told} {array.tolist()!r}: an observation holds numbers")
    if array.dtype == np.uint8 and array.ndim > 1:
        return spaces.Box(0, 255, array.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, array.shape, np.float32)
