"""Between an agent's spaces of Gymnasium and ours: what it sees is an array or several, and so is what it does."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim, flatten, flatten_space

from martes.data import Action, Continuous, Discrete, Image, MultiDiscrete, Vector
from martes.envs.single import Row
from martes.errors import ConfigError

Reader = Callable[[object], np.ndarray]
"""Finds one part of an observation, of the shape that it must have; raises where it has not."""
View = Callable[[np.ndarray], np.ndarray]
"""Where a part is written [... feature ...], seen with the axes in the order of what is written."""
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
        case spaces.Box():
            return _real(space)
        case _:
            size = flatdim(space)
            return lambda action: action[:size].reshape(space.shape).astype(space.dtype)


def _real(space: spaces.Box) -> Callable[[np.ndarray], object]:
    """`native` of a Box: its ends can be reached, and none be passed."""
    size, shape, kind, low, high = flatdim(space), space.shape, space.dtype, space.low, space.high
    if np.issubdtype(kind, np.integer):
        return lambda action: np.rint(action[:size]).reshape(shape).astype(kind)
    if all(np.array_equal(end, end.astype(np.float32)) for end in (low, high)):
        return lambda action: action[:size].reshape(shape).astype(kind)
    # The nearest float32 of an end may lie beyond it.
    return lambda action: action[:size].reshape(shape).astype(kind).clip(low, high)


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


def paddable(given: Mapping[str, spaces.Space]) -> Mapping[str, spaces.Space]:
    """The spaces that can share one field: vectors of any size, or pictures of one shape."""
    pictures = [space for space in given.values() if _is_picture(space)]
    if all(isinstance(space, spaces.Box) for space in given.values()) and pictures:
        kinds = {_picture("obs", space).space for space in pictures if isinstance(space, spaces.Box)}
        if len(kinds) > 1 or len(pictures) < len(given):
            return {agent: flatten_space(space) for agent, space in given.items()}
    return given


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
