"""How measurements are made: sides of a ratio take turns in one process; medians and ranges of the repeats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

Side = Callable[[int], int]
"""Does n pieces of work and returns how many units (env-steps, passes) that were."""

SECONDS = 0.25
"""The least time of one timed piece of work."""


@dataclass(frozen=True)
class Measurement:
    """One line of the table."""

    name: str
    values: tuple[float, ...]
    """One a repeat; none where a package is missing."""
    target: float
    """What is to be reached at least."""
    is_ratio: bool = True
    """Times faster, or env-steps a second."""
    note: str = ""
    """Why nothing was measured."""

    @property
    def median(self) -> float | None:
        """The middle value; None where nothing was measured."""
        return median(self.values) if self.values else None

    @property
    def cells(self) -> tuple[str, ...]:
        """Name, median, range, target, and whether it is reached."""
        if self.median is None:
            return self.name, "-", "-", self._shown(self.target), self.note
        ends = f"{self._shown(min(self.values))} to {self._shown(max(self.values))}"
        reached = "yes" if self.median >= self.target else "no"
        return self.name, self._shown(self.median), ends, self._shown(self.target), reached

    def _shown(self, value: float) -> str:
        return f"{value:,.1f}x" if self.is_ratio else f"{value:,.0f}/s"


def rates(sides: Mapping[str, Side], repeats: int) -> dict[str, list[float]]:
    """Units a second of each side, one a repeat, the sides taking turns."""
    sizes = {name: _size(side) for name, side in sides.items()}
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            found[name].append(_rate(side, sizes[name])[0])
    return found


def afforded(side: Side, repeats: int, seconds: float) -> list[float]:
    """Units a second, one a repeat, at most `repeats` and as many as there is time for, but at least one.

    The first piece of work warms up, and counts only where there is no time for others.
    """
    rate, spent = _rate(side, 1)
    affordable = min(repeats, int(seconds / max(spent, SECONDS)) - 2)  # it is sized by doing it once more
    return rates({"": side}, affordable)[""] if affordable > 0 else [rate]


def _rate(side: Side, size: int) -> tuple[float, float]:
    began = perf_counter()
    units = side(size)
    spent = perf_counter() - began
    return units / spent, spent


def _size(side: Side) -> int:
    """How many pieces take long enough, once what is made at the first call is made: a compiled step, a pool."""
    side(1)
    size = 1
    while (spent := _rate(side, size)[1]) < SECONDS:
        size = max(2 * size, int(size * SECONDS / max(spent, 1e-6)))
    return size


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """How many times faster we are, one a repeat."""
    return tuple(our / their for our, their in zip(ours, theirs, strict=True))
