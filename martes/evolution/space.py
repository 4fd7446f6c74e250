"""What evolution may change of an algorithm's numbers, between which bounds; read from the fields of its own config."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import NamedTuple, TypeVar, get_args, get_type_hints

import torch

from martes.algorithms.learner import Algorithm
from martes.conversion import changed, nested
from martes.data.limits import Number, Range
from martes.errors import ConfigError, nearest

SECTION = "algorithm"
"""Every path begins with it: `algorithm.lr`."""
Config = TypeVar("Config", bound=Algorithm)
Space = Mapping[str, Range]
"""Path -> where it may lie."""


class Numeric(NamedTuple):
    """A number of a config."""

    value: Number | None
    is_whole: bool
    bounds: Range | None
    """Between which its field declares that it may be searched; None: it declares nothing."""


def numbers_of(config: object, path: str = SECTION) -> Iterator[tuple[str, Numeric]]:
    """Every field of a config that holds a number, at any depth, by its path."""
    assert is_dataclass(config)
    kinds = _kinds(type(config))
    for each in fields(config):
        value, kind = getattr(config, each.name), kinds[each.name]
        if is_dataclass(value):
            yield from numbers_of(value, f"{path}.{each.name}")
        elif (int in kind.types or float in kind.types) and not isinstance(value, bool | str | tuple):
            yield f"{path}.{each.name}", Numeric(value, float not in kind.types, kind.bounds)


class _Kind(NamedTuple):
    """What a field's annotation says."""

    types: tuple[object, ...]
    bounds: Range | None


@cache
def _kinds(config: type) -> dict[str, _Kind]:
    """Of every field of a dataclass: `Annotated[float, Range(1e-5, 1e-2)]`, or that or none, declares bounds."""
    plain, full = get_type_hints(config), get_type_hints(config, include_extras=True)
    return {name: _Kind((kind, *get_args(kind)), next(_declared(full[name]), None)) for name, kind in plain.items()}


def _declared(kind: object) -> Iterator[Range]:
    for each in get_args(kind):  # of Annotated: the type, then what is said of it
        if isinstance(each, Range):
            yield each
        else:
            yield from _declared(each)


def space_of(algorithm: Algorithm, given: Mapping[str, tuple[float, ...]] | None = None) -> dict[str, Range]:
    """The space to search: the bounds that are `given` by path, else every declared one that this algorithm has.

    A path with () takes its declared bounds, or a tenth of its value to ten times that. Raises ConfigError for a path
    that is unknown or holds no number, and for a value outside of its bounds.
    """
    numbers = dict(numbers_of(algorithm))
    if not given:
        space = {path: each.bounds for path, each in numbers.items() if each.bounds is not None and each.value}
    else:
        space = {path: _bounds(path, listed, numbers) for path, listed in given.items()}
    for path, bounds in space.items():
        value = numbers[path].value
        if value is None or value not in bounds:
            raise ConfigError(
                f"{path} is {'none' if value is None else value}, outside of its bounds {bounds.low:g} to "
                f"{bounds.high:g}: start within them, or say evolution.space.{path}=<low>,<high>"
            )
    return space


def _bounds(path: str, listed: tuple[float, ...], numbers: Mapping[str, Numeric]) -> Range:
    if path not in numbers:
        raise ConfigError(f"evolution.space: {path!r} is no number of this algorithm{nearest(path, numbers)}")
    if len(listed) not in (0, 2, 4):
        raise ConfigError(f"evolution.space.{path} is {list(listed)}: give low,high or low,high,grow,shrink")
    try:
        if listed:
            return Range(*listed)
        value, _, declared = numbers[path]
        return declared or Range(*((1, 2) if not value else (value / 10, value * 10)))
    except ConfigError as error:
        raise ConfigError(f"evolution.space.{path}: {error}") from error


def number_at(algorithm: Algorithm, path: str) -> Number:
    """The number at a path of a config."""
    value = dict(numbers_of(algorithm))[path].value
    assert value is not None
    return value


def moved(algorithm: Algorithm, path: str, bounds: Range, factor: float) -> Number:
    """The number at a path of a config times the factor, within the bounds; whole where its field takes no other."""
    return bounds.moved(number_at(algorithm, path), factor, dict(numbers_of(algorithm))[path].is_whole)


def with_numbers(algorithm: Config, numbers: Mapping[str, Number]) -> Config:
    """The config with the numbers at these paths. Raises ConfigError where it refuses one."""
    own = ((path.removeprefix(f"{SECTION}."), value) for path, value in numbers.items())
    return changed(algorithm, nested(own), SECTION)


def drawn(algorithm: Config, space: Space, generator: torch.Generator) -> Config:
    """The config with every number of the space drawn between its bounds. Raises ConfigError where it refuses them."""
    numbers = dict(numbers_of(algorithm))
    found = {path: bounds.drawn(numbers[path].is_whole, generator) for path, bounds in space.items()}
    return with_numbers(algorithm, found)
