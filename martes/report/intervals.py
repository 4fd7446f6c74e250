"""Means over seeds and tasks with their 95 % intervals, as tables and curves show them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from martes.maths.statistics import bootstrap_interval, interquartile_mean
from martes.report.records import RETURN, Record


class Interval(NamedTuple):
    """A mean, or an interquartile mean, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]" if self.low < self.high else f"{self.mean:.4g}"

    def is_above(self, other: "Interval") -> bool:
        """Does all of this interval lie above all of the other?"""
        return self.low > other.high


def interval(values: Sequence[float]) -> Interval:
    """The mean of the values, one a seed or an episode, and its percentile bootstrap interval.

    A single value is its own interval; equal values give equal intervals. Raises ValueError without values.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    return mean([values])


def mean(strata: Sequence[Sequence[float]]) -> Interval:
    """The mean of the values of all strata, and its percentile bootstrap interval, drawn inside each stratum."""
    return _pooled(strata, lambda numbers: numbers.mean(-1))


def interquartile(strata: Sequence[Sequence[float]]) -> Interval:
    """Likewise the mean of their middle half: a quarter of all values, rounded down, is left out at each end.

    Source: Agarwal et al. 2021, section 4.3.
    """
    return _pooled(strata, interquartile_mean)


def _pooled(strata: Sequence[Sequence[float]], statistic: Callable[[Tensor], Tensor]) -> Interval:
    numbers = [torch.tensor(values, dtype=torch.float64) for values in strata]
    low, high = bootstrap_interval(numbers, 0.95, torch.Generator().manual_seed(0), statistic=statistic)
    return Interval(float(statistic(torch.cat(numbers))), float(low), float(high))


def tenth(runs: Sequence[Record], which: int, metric: str = RETURN) -> Interval | None:
    """Over seeds, the mean of a metric in one tenth of its run: 0 is the first, 9 the last. None where nobody measured.

    The tenths are those of the steps that each run made; a measurement on a border counts on both sides.
    """
    means = means_in_tenth(runs, which, metric)
    return interval(means) if means else None


def means_in_tenth(runs: Sequence[Record], which: int, metric: str = RETURN) -> list[float]:
    """What `tenth` is about, one number for each run that measured there."""
    means: list[float] = []
    for run in runs:
        series = run.series(metric)
        end = max((step for step, _ in series), default=0)
        inside = [value for step, value in series if which * end <= 10 * step <= (which + 1) * end]
        if inside:
            means.append(sum(inside) / len(inside))
    return means


def last(runs: Sequence[Record], metric: str = RETURN) -> Interval | None:
    """Over seeds, the last measurement of a metric; None where nobody measured."""
    values = [series[-1][1] for run in runs if (series := run.series(metric))]
    return interval(values) if values else None
