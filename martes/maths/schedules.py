"""Hyperparameters that change with the number of steps taken: a schedule is called with it and returns the value."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    """The same value at every step. Raises ValueError if it is not finite."""

    value: float

    def __post_init__(self) -> None:
        _require(math.isfinite(self.value), "value", self.value, "finite")

    def __call__(self, step: int | float) -> float:
        """The value at `step`."""
        return float(self.value)


@dataclass(frozen=True)
class Linear:
    """From start to end in equal differences, start before step 0 and end from `steps` on.

    start + (end - start) step / steps. Raises ValueError if an end is not finite or steps is not positive.
    """

    start: float
    end: float
    steps: int | float

    def __post_init__(self) -> None:
        _require(math.isfinite(self.start), "start", self.start, "finite")
        _require(math.isfinite(self.end), "end", self.end, "finite")
        _require(0 < self.steps < math.inf, "steps", self.steps, "positive and finite")

    def __call__(self, step: int | float) -> float:
        """The value at `step`."""
        done = min(max(step / self.steps, 0.0), 1.0)
        return float(self.end if done == 1 else self.start + (self.end - self.start) * done)


@dataclass(frozen=True)
class Exponential:
    """From start to end in equal ratios, start before step 0 and end from `steps` on.

    start (end / start)^(step / steps). Raises ValueError if an end or steps is not positive and finite.
    """

    start: float
    end: float
    steps: int | float

    def __post_init__(self) -> None:
        for name in ("start", "end", "steps"):
            value = getattr(self, name)
            _require(0 < value < math.inf, name, value, "positive and finite")

    def __call__(self, step: int | float) -> float:
        """The value at `step`."""
        done = min(max(step / self.steps, 0.0), 1.0)
        return float(self.end if done == 1 else self.start * (self.end / self.start) ** done)


Schedule = Constant | Linear | Exponential


def _require(holds: bool, name: str, value: int | float, condition: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}; it must be {condition}")
