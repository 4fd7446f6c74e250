"""Between Gymnasium's spaces and a team's: what agents see is written into rows, what they do is read from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim, flatten, flatten_space

from martes.data import Action, Continuous, Discrete, Image, MultiDiscrete, Observation, TeamSpec, Vector
from martes.envs.single import Row
from martes.errors import ConfigError, EnvError

Reader = Callable[[object], np.ndarray]
"""Finds one part of an observation, of the shape that it must have; raises where it has not."""
View = Callable[[np.ndarray], np.ndarray]
"""Where a part is written [... feature ...], seen with the axes in the order of what is written."""
MANY = 16
"""So many agents of equal spaces are worth being written at once."""
CHANNELS = (1, 3, 4)
"""An image with so many planes in front, fewer than rows and columns, and not at the end, has its channels first."""


def _as_it_is(place: np.ndarray) -> np.ndarray:
    return place


class Part(NamedTuple):
    """One part of what an agent sees: where it stands in a row, what it is, and how it is written."""

    field: str
    space: Vector | Image
    read: Reader
    view: View = _as_it_is
    shape: tuple[int, ...] | None = None
    """An array of this shape is written as it is, without being read first: most observations are."""

    def place(self, row: Row) -> np.ndarray:
        """Where this part of all agents is written, [agent ...]; the padding of unequal teams is left out."""
        place = row[self.field]
        return place[:, : self.space.size] if isinstance(self.space, Vector) else self.view(place)


def observed(space: spaces.Space, agent: str) -> tuple[Part, ...]:
    """The parts of an observation: one vector `obs`, or pictures and vectors `obs/<part>`.

    A Box of three axes (or of two, of bytes) is a picture; all else is a vector, choices one-hot. A Dict or Tuple
    without pictures is one vector. Raises ConfigError for what has no fixed size.
    """
    if not isinstance(space, spaces.Dict | spaces.Tuple) or not _has_picture(space):
        return (_part("obs", space, agent),)
    parts: list[Part] = []
    branches = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    for key, branch in branches:
        for part in observed(branch, agent):
            rest = part.field.removeprefix("obs").replace("/", ".")
            parts.append(part._replace(field=f"obs/{key}{rest}", read=_within(key, part.read), shape=None))
    return tuple(parts)


def acted(space: spaces.Space, agent: str) -> Action:
    """What an agent does. Raises ConfigError for actions of mixed kinds and for real numbers without bounds."""
    match space:
        case spaces.Discrete():
            return Discrete(int(space.n))
        case spaces.MultiDiscrete():
            return MultiDiscrete(tuple(int(n) for n in space.nvec.ravel()))
        case spaces.MultiBinary():
            return MultiDiscrete((2,) * flatdim(space))
        case spaces.Box():
            return _box(space, agent)
        case spaces.Tuple() if all(isinstance(each, spaces.Discrete) for each in space.spaces):
            return MultiDiscrete(tuple(int(each.n) for each in space.spaces if isinstance(each, spaces.Discrete)))
        case _:
            raise ConfigError(
                f"agent {agent!r} acts in {space}: martes takes Discrete, MultiDiscrete, MultiBinary, a Tuple of "
                "Discrete, and Box. Wrap the environment so that its actions are one of these"
            )


def native(space: spaces.Space) -> Callable[[np.ndarray], object]:
    """From an agent's part of the action array, padding included, to what its environment takes."""
    match space:
        case spaces.Discrete():
            start = int(space.start)
            return lambda action: int(action) + start
        case spaces.MultiDiscrete():
            return lambda action: (action[: space.nvec.size].reshape(space.shape) + space.start).astype(space.dtype)
        case spaces.Tuple():
            starts = [int(each.start) for each in space.spaces if isinstance(each, spaces.Discrete)]
            return lambda action: tuple(int(choice) + start for choice, start in zip(action, starts, strict=False))
        case _:
            size = flatdim(space)
            return lambda action: action[:size].reshape(space.shape).astype(space.dtype)


def ours(space: spaces.Space, action: object) -> np.ndarray:
    """The inverse of `native`, without padding: what the environment says was done, in the action array's terms."""
    match space:
        case spaces.Discrete():
            return np.array(np.asarray(action).reshape(()) - space.start)
        case spaces.Tuple():
            return np.array([ours(each, one) for each, one in zip(space.spaces, _sequence(action), strict=True)])
        case spaces.MultiDiscrete():
            return (np.reshape(np.asarray(action), space.shape) - space.start).ravel()
        case _:
            return np.reshape(np.asarray(action), space.shape or ()).ravel()


class _Block(NamedTuple):
    """One part of what agents of equal spaces see."""

    part: Part
    seats: tuple[tuple[str, int], ...]
    """Each agent, and its place in a row."""

    def fill(self, row: Row, seen: Mapping[str, object]) -> None:
        """Writes what each of those who are there observed."""
        part, agent = self.part, ""
        place, read, shape = part.place(row), part.read, part.shape
        try:
            for agent, index in self.seats:
                if agent in seen:
                    value = seen[agent]
                    is_fit = isinstance(value, np.ndarray) and value.shape == shape
                    place[index] = value if is_fit else read(value)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise EnvError(
                f"agent {agent!r} observed {_described(seen[agent])}, which does not fit its observation space "
                f"{part.field} = {part.space}: {error}. Mend what reset() and step() return, or the space"
            ) from error

    def filled(self, row: Row, seen: Mapping[str, object]) -> bool:
        """Writes all of them at once, the absent as zeros, if they sit side by side and everything is as declared."""
        shape, first, last = self.part.shape, self.seats[0][1], self.seats[-1][1] + 1
        if shape is None or last - first != len(self.seats):
            return False
        blank = np.zeros(shape, np.float32)
        values = [seen.get(agent, blank) for agent, _ in self.seats]
        arrays = [value for value in values if isinstance(value, np.ndarray) and value.shape == shape]
        if len(arrays) < len(values):
            return False
        self.part.place(row)[first:last] = np.concatenate(arrays).reshape(-1, *shape)
        return True


class Seats:
    """Each agent's place in the rows of its team: how its observation is written there, and its action read."""

    def __init__(
        self, team: TeamSpec, observation: Mapping[str, spaces.Space], action: Mapping[str, spaces.Space]
    ) -> None:
        self.team = team
        self.index = {agent: index for index, agent in enumerate(team.agents)}
        self._spaces = action
        self._blocks = [
            _Block(part, tuple((agent, self.index[agent]) for agent in alike))
            for space, alike in _alike(_paddable(observation))
            for part in observed(space, alike[0])
        ]
        self._native = {agent: native(space) for agent, space in action.items()}
        self._are_plain = all(isinstance(each, spaces.Discrete) and each.start == 0 for each in action.values())
        self._choices = [(legal, np.count_nonzero(legal)) for legal in team.legal_actions.numpy()]

    def show(self, row: Row, seen: Mapping[str, object]) -> None:
        """Writes the observations of those who are there; the others are absent, and see zeros.

        Raises EnvError where an observation does not fit its space, or is of an agent that the team does not have.
        """
        if not seen.keys() <= self.index.keys():
            strange = sorted(seen.keys() - self.index.keys())
            raise EnvError(f"observations of {strange}, who are not in the team {list(self.team.agents)}")
        self._take_seats(row, seen)
        for block in self._blocks:
            if len(block.seats) < MANY or not block.filled(row, seen):
                block.fill(row, seen)

    def _take_seats(self, row: Row, seen: Mapping[str, object]) -> None:
        there = row["agent_mask"]
        if len(seen) == len(self.index):
            there.fill(True)
            return
        before = there.copy()
        there.fill(False)
        for agent in seen:
            there[self.index[agent]] = True
        gone = np.flatnonzero(before & ~there)
        if gone.size:
            for name in self.team.parts:
                row[name][gone] = 0

    def allow(self, row: Row, agent: str, mask: object = None, is_over: bool = False) -> None:
        """Writes which actions are legal for an agent; None, or none at all when it `is_over` for it, allows all.

        Raises EnvError for a mask of another size, and where an agent that plays on has no legal action.
        """
        index = self.index[agent]
        place, (exists, count) = row["action_mask"][index], self._choices[index]
        if mask is None:
            place[...] = exists
            return
        parts = mask if isinstance(mask, tuple | list) else (mask,)  # one a choice, where there are several
        flat = np.concatenate([np.ravel(np.asarray(part, dtype=bool)) for part in parts])
        if flat.size != count:
            raise EnvError(
                f"the mask of legal actions of agent {agent!r} has {flat.size} entries, it has {count} "
                "actions: give one entry an action"
            )
        if not flat.any():
            if is_over:
                place[...] = exists
                return
            raise EnvError(f"agent {agent!r} has no legal action: an environment must leave it one, if only to wait")
        place[...] = False
        place[exists] = flat

    def force(self, row: Row, agent: str, action: object) -> None:
        """Writes what the environment will do in an agent's place; None leaves the choice to it.

        Raises EnvError where that is no action of the agent's.
        """
        index, place = self.index[agent], row["forced_action"]
        row["forced"][index], place[index] = action is not None, 0
        if action is None:
            return
        sizes = self.team.action_sizes[index]
        try:
            value = ours(self._spaces[agent], action)
        except (TypeError, ValueError, AssertionError):
            value = np.array(())
        counted = self.team.action_kind is not Continuous  # choices, not real numbers
        if value.size != len(sizes) or (counted and not np.logical_and(value >= 0, value < sizes).all()):
            raise EnvError(f"the action {action!r} forced upon agent {agent!r} is not in {self._spaces[agent]}")
        place[(index, slice(value.size)) if place.ndim > 1 else index] = value

    def actions(self, action: np.ndarray, agents: Sequence[str]) -> dict[str, object]:
        """What the environment takes: agent -> its action, in its own space."""
        if self._are_plain:
            chosen = dict(zip(self.team.agents, action.tolist(), strict=True))
            return chosen if len(agents) == len(chosen) else {agent: chosen[agent] for agent in agents}
        return {agent: self._native[agent](action[self.index[agent]]) for agent in agents}


def team_of(
    observation: Mapping[str, spaces.Space],
    action: Mapping[str, spaces.Space],
    *,
    state: Vector | None = None,
    episode_limit: int | None = None,
    masks_actions: bool = False,
    forces_actions: bool = False,
) -> TeamSpec:
    """The team of agents with these spaces.

    Agents whose names agree up to the last underscore form a group (`speaker_0` -> `speaker`) if their spaces agree,
    too; where they do not, each kind is a group named after its first agent. Pictures of unequal shapes are taken as
    vectors.
    """
    sees = {agent: _observation(observed(space, agent)) for agent, space in _paddable(observation).items()}
    does = {agent: acted(action[agent], agent) for agent in observation}
    team = TeamSpec.of_agents(
        sees, does, _groups(sees, does), state=state, episode_limit=episode_limit, masks_actions=masks_actions
    )
    return replace(team, forces_actions=forces_actions)


def _groups(sees: Mapping[str, Observation], does: Mapping[str, Action]) -> dict[str, tuple[int, ...]]:
    kinds: dict[str, list[str]] = {}  # name up to the underscore -> the first agent of each kind
    members: dict[str, tuple[int, ...]] = {}  # first agent -> its group
    for index, agent in enumerate(sees):
        firsts = kinds.setdefault(agent.rpartition("_")[0] or agent, [])
        alike = [each for each in firsts if sees[each] == sees[agent] and does[each] == does[agent]]
        if not alike:
            firsts.append(agent)
        first = alike[0] if alike else agent
        members[first] = (*members.get(first, ()), index)
    return {name if len(firsts) == 1 else first: members[first] for name, firsts in kinds.items() for first in firsts}


def _observation(parts: tuple[Part, ...]) -> Observation:
    if parts[0].field == "obs":
        return parts[0].space
    return {part.field.removeprefix("obs/"): part.space for part in parts}


def _part(field: str, space: spaces.Space, agent: str) -> Part:
    if _is_picture(space):
        assert isinstance(space, spaces.Box)
        return _picture(field, space)
    if not space.is_np_flattenable:
        raise ConfigError(f"agent {agent!r} observes {space}, which has no fixed size: wrap it into a Box")
    size = flatdim(space)
    if isinstance(space, spaces.Box):
        return Part(field, Vector(size), _of_size(size), shape=(size,))
    read = _of_size(size)
    return Part(field, Vector(size), lambda value: read(flatten(space, value)))


def _of_size(size: int) -> Reader:
    def read(value: object) -> np.ndarray:
        array = np.asarray(value)
        if array.size != size:  # a single number would be repeated in silence
            raise ValueError(f"{array.size} numbers where {size} belong")
        return array if array.ndim == 1 else array.ravel()

    return read


def _of_shape(shape: tuple[int, ...]) -> Reader:
    def read(value: object) -> np.ndarray:
        array = np.asarray(value)
        if array.shape != shape:
            raise ValueError(f"shape {list(array.shape)} where {list(shape)} belongs")
        return array

    return read


def _is_picture(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and (
        len(space.shape) == 3 or (len(space.shape) == 2 and space.dtype == np.uint8)
    )


def _has_picture(space: spaces.Space) -> bool:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        branches = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return any(_has_picture(each) for each in branches)
    return _is_picture(space)


def _picture(field: str, space: spaces.Box) -> Part:
    height, *rest = space.shape
    # Bytes are learned from as shares of 255: right for what goes up to 255, and not for small integers.
    are_bytes = not np.issubdtype(space.dtype, np.floating) and space.low.min() >= 0 and space.high.max() == 255
    dtype = torch.uint8 if are_bytes else torch.float32
    read = _of_shape(space.shape)
    if len(rest) == 1:
        return Part(field, Image((1, height, rest[0]), dtype), read, lambda place: place[..., 0, :, :], space.shape)
    width, depth = rest
    if height in CHANNELS and depth not in CHANNELS and height < min(rest):
        return Part(field, Image((height, width, depth), dtype), read, shape=space.shape)
    image = Image((depth, height, width), dtype)
    return Part(field, image, read, lambda place: np.moveaxis(place, -3, -1), space.shape)


def _within(key: str | int, read: Reader) -> Reader:
    def found(value: object) -> np.ndarray:
        if isinstance(value, Mapping):
            return read(value[key])
        if isinstance(value, Sequence) and isinstance(key, int):
            return read(value[key])
        raise TypeError(f"no part {key!r} in {type(value).__name__}")

    return found


def _paddable(given: Mapping[str, spaces.Space]) -> Mapping[str, spaces.Space]:
    """The spaces that can share one field: vectors of any size, or pictures of one shape."""
    pictures = [space for space in given.values() if _is_picture(space)]
    if all(isinstance(space, spaces.Box) for space in given.values()) and pictures:
        kinds = {_picture("obs", space).space for space in pictures if isinstance(space, spaces.Box)}
        if len(kinds) > 1 or len(pictures) < len(given):
            return {agent: flatten_space(space) for agent, space in given.items()}
    return given


def _alike(given: Mapping[str, spaces.Space]) -> list[tuple[spaces.Space, list[str]]]:
    """Each space, and the agents that have it or its equal."""
    kinds: list[tuple[spaces.Space, list[str]]] = []
    for agent, space in given.items():
        found = next((agents for known, agents in kinds if known is space or known == space), None)
        if found is None:
            kinds.append((space, [agent]))
        else:
            found.append(agent)
    return kinds


def _box(space: spaces.Box, agent: str) -> Continuous:
    if not space.is_bounded():
        raise ConfigError(
            f"agent {agent!r} acts in {space}, which has no bounds: give the Box finite ones, "
            "or wrap the environment in gymnasium's RescaleAction"
        )
    return Continuous(tuple(space.low.ravel().tolist()), tuple(space.high.ravel().tolist()))


def _sequence(value: object) -> Sequence[object]:
    assert isinstance(value, Sequence)
    return value


def _described(value: object) -> str:
    if isinstance(value, Mapping):
        return f"the keys {sorted(map(str, value))}"
    array = np.asarray(value)
    return f"shape {list(array.shape)} of {array.dtype}"
