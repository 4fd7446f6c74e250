"""What numbers of a config may be, and between which bounds they are searched."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, exp, floor, log
from typing import Annotated, NamedTuple

import torch

from martes.errors import ConfigError

Number = int | float


class Limit(NamedTuple):
    """A condition, and how a message says it."""

    cure: str
    holds: Callable[[float], bool]


def _at_least_1(x: float) -> bool:
    return x >= 1


def _at_least_0(x: float) -> bool:
    return x >= 0


def _share(x: float) -> bool:
    return 0 <= x <= 1


def _above_0(x: float) -> bool:
    return x > 0


COUNT = Limit("an integer >= 1", _at_least_1)
NATURAL = Limit("0 or more", _at_least_0)
SHARE = Limit("between 0 and 1", _share)
POSITIVE = Limit("above 0", _above_0)


def refuse(name: str, value: object, is_wrong: bool, cure: str) -> None:
    """Raises ConfigError, naming value and cure, where it is wrong."""
    if is_wrong:
        raise ConfigError(f"{name} is {value}: it must be {cure}")


def refuse_beyond(config: object, limit: Limit, *names: str, path: str = "algorithm.", or_none: bool = False) -> None:
    """Raises ConfigError for the first of these fields that does not keep the limit; `or_none`: none is kept, too."""
    cure = f"{limit.cure}, or none" if or_none else limit.cure
    for name in names:
        value: float | None = getattr(config, name)
        holds = or_none if value is None else limit.holds(value)
        refuse(path + name, value, not holds, cure)


@dataclass(frozen=True)
class Range:
    """Bounds of a number, and by how much it moves: what a field says that may be searched, in its annotation.

    Raises ConfigError for bounds and factors that cannot be.
    """

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

    def ends(self, is_whole: bool) -> tuple[Number, Number]:
        """The lowest value and the highest."""
        return (ceil(self.low), floor(self.high)) if is_whole else (self.low, self.high)

    def moved(self, value: Number, factor: float, is_whole: bool) -> Number:
        """The value times the factor, within the bounds; whole numbers move by at least 1, so that none gets stuck."""
        low, high = self.ends(is_whole)
        if is_whole:
            step = max(value + 1, floor(value * factor)) if factor > 1 else min(value - 1, floor(value * factor))
            return min(max(step, low), high)
        return float(min(max(value * factor, low), high))

    def drawn(self, is_whole: bool, generator: torch.Generator) -> Number:
        """A value between the bounds, of evenly distributed logarithm."""
        share = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64).item()
        value = exp(log(self.low) + share * (log(self.high) - log(self.low)))
        low, high = self.ends(is_whole)
        return min(max(round(value) if is_whole else value, low), high)  # exp(log(x)) need not be x


# Numbers that several algorithms have, and between which bounds evolution searches them where nothing else is said.
StepSize = Annotated[float, Range(1e-5, 1e-2)]
"""Of an optimiser."""
EntropyWeight = Annotated[float, Range(1e-4, 0.1)]
"""Of an entropy bonus."""
BatchSize = Annotated[int, Range(8, 512)]
"""Of one update from replay."""
Passes = Annotated[int, Range(1, 16)]
"""Over a rollout."""
UpdateRatio = Annotated[float, Range(1e-3, 4.0)]
"""Updates for each environment step."""
