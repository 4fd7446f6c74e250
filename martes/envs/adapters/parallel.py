"""An environment whose agents all act at once, as PettingZoo's ParallelEnv has it, as one copy of a task."""

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from gymnasium import spaces
from jaxtyping import UInt8
from pettingzoo.utils.env import ParallelEnv

from martes.data import Vector
from martes.envs.adapters.episodes import counted, picture
from martes.envs.adapters.seats import Seats, team_of
from martes.envs.single import Result, Row
from martes.errors import ConfigError, EnvError

MASK = "action_mask"
"""Where an info, or an observation, tells which actions are legal."""
FORCED = ("env_defined_action", "env_defined_actions")
"""Where an info tells what the environment will do at the coming step in its agent's place."""
Told = Mapping[str, Mapping[str, object]]
"""Agent -> its info."""


class Answer(NamedTuple):
    """What `step` of a ParallelEnv returns, each by agent."""

    seen: Mapping[str, object]
    reward: Mapping[str, object]
    terminated: Mapping[str, object]
    truncated: Mapping[str, object]
    told: Told


class ParallelTeam:
    """A ParallelEnv as one copy of a task; `possible_agents` are the agent axis, who is not in `agents` is absent.

    A mask of legal actions may lie in an agent's info or observation, under `action_mask`; an info's
    `env_defined_action` is executed in place of the agent's own. Numbers in the last infos are the episode's `stats`.
    The whole game is terminal if nobody was merely truncated.

    Raises ConfigError where it names no agents or has spaces that martes does not know.
    """

    def __init__(
        self,
        env: ParallelEnv,
        state: bool | Callable[[], object] = True,
        forces_actions: bool | None = None,
        episode_limit: int | None = None,
    ) -> None:
        """`state`: is `env.state()`, where it has one, shown to central critics? Or what to ask in its place.
        `forces_actions`: does it act in place of its agents? By default it does if its first infos say so.
        `episode_limit`: steps after which it truncates; by default its `max_cycles`."""
        self._env = env
        agents = _agents(env)
        sights = {agent: _sight(env.observation_space(agent)) for agent in agents}
        actions = {agent: env.action_space(agent) for agent in agents}
        self._nested = frozenset(agent for agent, sight in sights.items() if sight.is_nested)
        self._stream = np.random.default_rng()
        self._state = env.state if state is True else state or None
        self._here: list[str] = []
        self._forced: dict[str, object] = {}
        told = self._opened(0)[1]
        masks = any(sight.has_mask for sight in sights.values()) or _tell(told, (MASK,))
        self.team = team_of(
            {agent: sight.space for agent, sight in sights.items()},
            actions,
            state=self._state_size(),
            episode_limit=episode_limit or _limit(env),
            masks_actions=masks,
            forces_actions=_tell(told, FORCED) if forces_actions is None else forces_actions,
        )
        self._seats = Seats(self.team, {agent: sight.space for agent, sight in sights.items()}, actions)
        self._undeclared = (() if masks else (MASK,)) + (() if self.team.forces_actions else FORCED)

    def reset(self, seed: int | None, row: Row) -> None:
        """Opens an episode and writes what is seen first; seeds of later episodes are drawn from the first one's."""
        if seed is not None:
            self._stream = np.random.default_rng(seed)
        # Some environments forget their stream where they are given no seed.
        drawn = int(self._stream.integers(2**31)) if seed is None else seed
        seen, told = self._opened(drawn)
        self._show(row, seen, self._here, told)

    def step(self, action: np.ndarray, row: Row) -> Result:
        """The result of `action` [agent ...], forced actions in its place; writes what came of it."""
        env, here = self._env, self._here
        given = self._seats.actions(action, env.agents)
        if self._forced:
            given.update((agent, forced) for agent, forced in self._forced.items() if agent in given)
        answer = _answer(env.step(given))
        self._pay(row, answer.reward)
        last = self._ended(here, answer, row)
        self._show(row, answer.seen, self._here or last, answer.told, is_over=not self._here)
        return Result(not self._here, {} if self._here else _numbers(answer.told))

    def _ended(self, here: Sequence[str], answer: Answer, row: Row) -> list[str]:
        """Who of those `here` ended and was still observed; writes their discounts, keeps who plays on."""
        terminated, truncated = answer.terminated, answer.truncated
        if not any(terminated.values()) and not any(truncated.values()):
            self._here = list(self._env.agents)
            if not self._here:
                raise EnvError("the episode ended, but no agent is terminated or truncated: step() must say who is")
            return []
        self._here = [agent for agent in self._env.agents if not (terminated.get(agent) or truncated.get(agent))]
        dead = [agent for agent in here if terminated.get(agent)]
        merely = [agent for agent in here if truncated.get(agent) and not terminated.get(agent)]
        if self._here or merely:
            row["discount"][[self._seats.index[agent] for agent in dead]] = 0
        else:  # the whole game is over, for those too who died before
            row["discount"].fill(0)
        return merely + [agent for agent in dead if agent in answer.seen]

    def render(self) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of the copy as it stands. Raises EnvError where it draws none."""
        cure = "make it with render_mode='rgb_array', if it knows that"
        try:
            return picture(self._env, cure)
        except NotImplementedError:
            raise EnvError(f"{_name(self._env)} has no picture of itself: {cure}") from None

    def close(self) -> None:
        """Closes the environment."""
        with _drawing_goes_on():
            self._env.close()

    def _opened(self, seed: int) -> tuple[Mapping[str, object], Told]:
        found = self._env.reset(seed=seed)
        if not isinstance(found, tuple) or len(found) != 2 or not all(isinstance(each, Mapping) for each in found):
            raise EnvError(
                f"reset() of {_name(self._env)} returned {_described(found)}: a ParallelEnv returns two dictionaries "
                "by agent, (observations, infos)"
            )
        self._here = list(self._env.agents)
        if not self._here:
            raise EnvError(f"{_name(self._env)} opened an episode without agents: fill `agents` in reset()")
        return found

    def _show(
        self, row: Row, seen: Mapping[str, object], agents: Sequence[str], told: Told, is_over: bool = False
    ) -> None:
        if len(seen) != len(agents) or not seen.keys() >= set(agents):
            seen = self._only(seen, agents)
        self._seats.show(row, self._sights(seen) if self._nested else seen)
        if self.team.masks_actions:
            self._allow(row, seen, told, is_over)
        if self.team.forces_actions:
            self._force(row, agents, told)
        if self._undeclared and _tell(told, self._undeclared):
            raise EnvError(
                f"an info carries {' or '.join(self._undeclared)}, which no info did when the environment was made: "
                "let the first infos carry it, too (None where it does not apply)"
            )
        if self._state is not None:
            row["state"][...] = np.ravel(np.asarray(self._state()))

    def _sights(self, seen: Mapping[str, object]) -> dict[str, object]:
        return {agent: _inner(agent, each) if agent in self._nested else each for agent, each in seen.items()}

    def _only(self, seen: Mapping[str, object], agents: Sequence[str]) -> dict[str, object]:
        missing = [agent for agent in agents if agent not in seen]
        if missing:
            raise EnvError(
                f"no observation of {missing}, who are there (observed: {list(seen)}): reset() and step() must observe "
                "all of `agents`, and who was truncated just now"
            )
        return {agent: seen[agent] for agent in agents}

    def _allow(self, row: Row, seen: Mapping[str, object], told: Told, is_over: bool) -> None:
        for agent in self.team.agents:
            mask = _mask(seen[agent], told.get(agent, {})) if agent in seen else None
            self._seats.allow(row, agent, mask, is_over)

    def _force(self, row: Row, agents: Sequence[str], told: Told) -> None:
        found = {agent: _forced(told.get(agent, {})) for agent in agents}
        self._forced = {agent: action for agent, action in found.items() if action is not None}
        for agent in self.team.agents:
            self._seats.force(row, agent, found.get(agent))

    def _pay(self, row: Row, reward: Mapping[str, object]) -> None:
        if not reward.keys() <= self._seats.index.keys():
            strange = sorted(reward.keys() - self._seats.index.keys())
            raise EnvError(f"rewards of {strange}, who are not in the team {list(self.team.agents)}")
        try:
            row["reward"][...] = [reward.get(agent, 0) for agent in self.team.agents]
        except (TypeError, ValueError) as error:
            raise EnvError(f"the rewards {dict(reward)} are not one number an agent: {error}") from error

    def _state_size(self) -> Vector | None:
        if self._state is None or not callable(getattr(self._env.unwrapped, "state", None)):
            self._state = None  # rock-paper-scissors keeps something else under this name
            return None
        try:
            return Vector(np.asarray(self._state()).size)
        except NotImplementedError:
            self._state = None
            return None


def parallel_team(
    env: ParallelEnv, state: bool = True, forces_actions: bool | None = None, episode_limit: int | None = None
) -> ParallelTeam:
    """A ParallelEnv of yours as one copy of a task; the options are those of `ParallelTeam`."""
    return ParallelTeam(env, state, forces_actions, episode_limit)


@contextmanager
def _drawing_goes_on() -> Generator[None]:
    """Keeps what is closed from ending pygame for all others of the process: many of PettingZoo's tasks do."""
    pygame = sys.modules.get("pygame")
    if pygame is None:
        yield
        return
    ending = pygame.quit
    vars(pygame)["quit"] = lambda: None
    try:
        yield
    finally:
        vars(pygame)["quit"] = ending


class _Sight(NamedTuple):
    space: spaces.Space
    has_mask: bool = False
    is_nested: bool = False
    """Does what is seen lie under `observation`?"""


def _sight(space: spaces.Space) -> _Sight:
    if not isinstance(space, spaces.Dict) or MASK not in space.spaces:
        return _Sight(space)
    rest = {name: each for name, each in space.spaces.items() if name != MASK}
    if set(rest) == {"observation"}:
        return _Sight(rest["observation"], has_mask=True, is_nested=True)
    return _Sight(spaces.Dict(rest), has_mask=True)


def _inner(agent: str, value: object) -> object:
    if not isinstance(value, Mapping) or "observation" not in value:
        raise EnvError(f"agent {agent!r} observed {_described(value)} instead of its 'observation' and '{MASK}'")
    return value["observation"]


def _mask(seen: object, told: Mapping[str, object]) -> object:
    """An info comes before an observation."""
    if MASK in told:
        return told[MASK]
    return seen.get(MASK) if isinstance(seen, Mapping) else None


def _forced(told: Mapping[str, object]) -> object:
    action = next((told[name] for name in FORCED if name in told), None)
    return None if action is None or np.isnan(np.asarray(action, dtype=float)).any() else action


def _tell(told: Told, names: Sequence[str]) -> bool:
    return any(name in each for each in told.values() if each for name in names)


def _numbers(told: Told) -> dict[str, float]:
    """The mean over agents of each number of their infos."""
    found: dict[str, list[float]] = {}
    for info in told.values():
        for name, value in counted(info).items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items() if name not in FORCED}


def _agents(env: ParallelEnv) -> list[str]:
    agents = getattr(env, "possible_agents", None)
    if not agents:
        raise ConfigError(f"{_name(env)} does not say who may ever take part: give it `possible_agents`")
    unnamed = [agent for agent in agents if not isinstance(agent, str)]
    if unnamed:
        raise ConfigError(f"{_name(env)} calls an agent {unnamed[0]!r}: name agents by strings")
    return list(agents)


def _limit(env: ParallelEnv) -> int | None:
    limit = getattr(env.unwrapped, "max_cycles", None)
    return limit if isinstance(limit, int) else None


def _answer(found: object) -> Answer:
    if not isinstance(found, tuple) or len(found) != 5 or not all(isinstance(each, Mapping) for each in found):
        raise EnvError(
            f"step() returned {_described(found)}: a ParallelEnv returns five dictionaries by agent, (observations, "
            "rewards, terminations, truncations, infos)"
        )
    return Answer(*found)


def _described(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"{len(value)} values ({', '.join(type(each).__name__ for each in value)})"
    if isinstance(value, Mapping):
        return f"the keys {list(value)}"
    return f"a {type(value).__name__}"


def _name(env: ParallelEnv) -> str:
    return str(getattr(env, "metadata", {}).get("name", type(env).__name__))
