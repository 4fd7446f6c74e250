"""What evolution may change of an algorithm's numbers, between which bounds; read from the fields of its own config."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from math import exp, floor, log
from typing import NamedTuple, TypeVar, get_args, get_type_hints

import torch

from martes.algorithms.learner import Algorithm
from martes.conversion import changed, nested
from martes.errors import ConfigError, nearest

SECTION = "algorithm"
"""Every path begins with it: `algorithm.lr`."""
Number = int | float
Config = TypeVar("Config", bound=Algorithm)


@dataclass(frozen=True)
class Range:
    """Bounds of a number, and by how much it moves. Raises ConfigError for bounds and factors that cannot be."""

    low: float
    high: float
    grow: float = 1.2
    """Factor of a step up."""
    shrink: float = 0.8
    """Factor of a step down."""

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ConfigError(f"bounds are {self.low} and {self.high}: give a lower one above 0, then a higher one")
        if not 0 < self.shrink < 1 < self.grow:
            raise ConfigError(f"factors are {self.grow} and {self.shrink}: grow must be above 1, shrink below")

    def __contains__(self, value: Number) -> bool:
        return self.low <= value <= self.high

    def moved(self, value: Number, factor: float, is_whole: bool) -> Number:
        """The value times the factor, within the bounds; whole numbers move by at least 1, so that none gets stuck."""
        if is_whole:
            step = max(value + 1, floor(value * factor)) if factor > 1 else min(value - 1, floor(value * factor))
            return min(max(step, -floor(-self.low)), floor(self.high))
        return float(min(max(value * factor, self.low), self.high))

    def drawn(self, is_whole: bool, generator: torch.Generator) -> Number:
        """A value between the bounds, of evenly distributed logarithm."""
        share = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64).item()
        value = exp(log(self.low) + share * (log(self.high) - log(self.low)))
        value = min(max(value, self.low), self.high)  # exp(log(x)) need not be x
        return min(max(round(value), -floor(-self.low)), floor(self.high)) if is_whole else value


Space = Mapping[str, Range]
"""Path -> where it may lie."""

# Bounds by the last part of a path: what is searched where nothing else is said.
DECLARED: Space = {
    "lr": Range(1e-5, 1e-2),
    "entropy": Range(1e-4, 0.1),
    "batch": Range(8, 512),
    "epochs": Range(1, 16),
    "ratio": Range(1e-3, 4.0),
}


class Numeric(NamedTuple):
    """A number of a config."""

    value: Number | None
    is_whole: bool


def numbers_of(config: object, path: str = SECTION) -> Iterator[tuple[str, Numeric]]:
    """Every field of a config that holds a number, at any depth, by its path."""
    assert is_dataclass(config)
    kinds = get_type_hints(type(config))
    for each in fields(config):
        value, kind = getattr(config, each.name), kinds[each.name]
        if is_dataclass(value):
            yield from numbers_of(value, f"{path}.{each.name}")
        elif {int, float} & {kind, *get_args(kind)} and not isinstance(value, bool | str | tuple):
            yield f"{path}.{each.name}", Numeric(value, float not in (kind, *get_args(kind)))


def space_of(algorithm: Algorithm, given: Mapping[str, tuple[float, ...]] | None = None) -> dict[str, Range]:
    """The space to search: the bounds that are `given` by path, else every declared one that this algorithm has.

    A path with () takes its declared bounds, or a tenth of its value to ten times that. Raises ConfigError for a path
    that is unknown or holds no number, and for a value outside of its bounds.
    """
    numbers = dict(numbers_of(algorithm))
    if not given:
        declared = {path: _declared(path) for path in numbers}
        space = {path: bounds for path, bounds in declared.items() if bounds is not None and numbers[path].value}
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


def _declared(path: str) -> Range | None:
    name = path.rpartition(".")[2]
    return DECLARED.get("lr" if name.endswith("_lr") else name.removeprefix("critic_"))


def _bounds(path: str, listed: tuple[float, ...], numbers: Mapping[str, Numeric]) -> Range:
    if path not in numbers:
        raise ConfigError(f"evolution.space: {path!r} is no number of this algorithm{nearest(path, numbers)}")
    if len(listed) not in (0, 2, 4):
        raise ConfigError(f"evolution.space.{path} is {list(listed)}: give low,high or low,high,grow,shrink")
    try:
        if listed:
            return Range(*listed)
        value = numbers[path].value
        return _declared(path) or Range(*((1, 2) if not value else (value / 10, value * 10)))
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
