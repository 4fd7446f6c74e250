"""Running moments that normalise observations and values, and intervals for reports."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EPSILON = 1e-8
"""Added to the variance, so that a constant feature is divided by 1e-4 and not by 0."""


class Moments(NamedTuple):
    """How many entries were seen, their mean and their sum of squared deviations; slots (agents, groups) come first."""

    seen: Float[Tensor, "*slot"]
    mean: Float[Tensor, "*slot_feature"]
    m2: Float[Tensor, "*slot_feature"]

    def variance(self) -> Float[Tensor, "*slot_feature"]:
        """The population variance; 1 before anything was seen."""
        seen = _widened(self.seen, self.mean)
        return torch.where(seen > 0, self.m2 / seen.clamp(min=1), 1.0)

    def scale(self) -> Float[Tensor, "*slot_feature"]:
        """The standard deviation by which values are divided, never 0."""
        return (self.variance() + EPSILON).sqrt()


def empty_moments(
    slots: Sequence[int] = (), features: Sequence[int] = (), device: torch.device | str | None = None
) -> Moments:
    """Moments of nothing, in float64: a sum over 1e9 steps loses nothing that matters."""
    zeros = torch.zeros((*slots, *features), dtype=torch.float64, device=device)
    return Moments(torch.zeros(tuple(slots), dtype=torch.float64, device=device), zeros, zeros.clone())


def merged_moments(
    moments: Moments, batch: Float[Tensor, "*slot_rows_feature"], mask: Bool[Tensor, "*slot_rows"] | None = None
) -> Moments:
    """The moments of what was seen before and of the valid entries of `batch` together.

    With d = x - mean_a and n = n_a + n_b:  mean = mean_a + sum d / n;  M2 = M2_a + sum d^2 - (sum d)^2 / n.
    `batch` holds any number of row axes between its slots and its features; `mask` has no features.
    Source: Chan, Golub and LeVeque 1979, the pairwise merge on data shifted by the old mean.
    """
    slots, features = moments.seen.shape, moments.mean.shape[moments.seen.ndim :]
    row = len(slots)
    # In place on a copy: with fresh memory at each step this takes 6 times as long on a large batch.
    d = batch.reshape(*slots, -1, *features).to(moments.mean.dtype, copy=True).sub_(moments.mean.unsqueeze(row))
    seen = moments.seen + d.shape[row]
    if mask is not None:
        is_valid = mask.reshape(*slots, -1)
        d.masked_fill_(~_widened(is_valid, d), 0.0)
        seen = moments.seen + is_valid.sum(row)
    n = _widened(seen.clamp(min=1), moments.mean)
    total = d.sum(row)
    m2 = (moments.m2 + d.square_().sum(row) - total.square() / n).clamp(min=0)
    return Moments(seen, moments.mean + total / n, m2)


def normalised(
    x: Float[Tensor, "*slot_rows_feature"], moments: Moments, clip: float | None = None
) -> Float[Tensor, "*slot_rows_feature"]:
    """(x - mean) / scale in the dtype of x, held in [-clip, clip]."""
    slots, features = moments.seen.shape, moments.mean.shape[moments.seen.ndim :]
    shape = (*slots, *(1,) * (x.ndim - moments.mean.ndim), *features)
    y = (x - moments.mean.to(x.dtype).reshape(shape)) / moments.scale().to(x.dtype).reshape(shape)
    return y if clip is None else y.clamp(-clip, clip)


def interquartile_mean(values: Float[Tensor, "*batch run"]) -> Float[Tensor, "*batch"]:
    """The mean of the middle half of the runs; a quarter of them, rounded down, is left out at each end.

    Source: Agarwal et al. 2021, section 4.3.
    """
    quarter = values.shape[-1] // 4
    return values.sort(-1).values[..., quarter : values.shape[-1] - quarter].mean(-1)


def _mean(values: Tensor) -> Tensor:
    return values.mean(-1)


def bootstrap_interval(
    values: Float[Tensor, "*stratum run"] | Sequence[Float[Tensor, "_"]],
    level: float,
    generator: torch.Generator,
    resamples: int = 2000,
    statistic: Callable[[Tensor], Tensor] = _mean,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The lower and the upper end of the percentile bootstrap interval of a statistic, the mean unless told otherwise.

    Along a leading axis (seeds, or tasks), or in a list where they are of unequal sizes, stand strata: runs are drawn
    with replacement inside each, and all are then pooled. ValueError if level is not inside (0, 1).
    Source: Efron 1979; Agarwal et al. 2021, section 4.1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie inside (0, 1)")
    strata = values.reshape(-1, values.shape[-1]).unbind() if isinstance(values, Tensor) else values
    drawn = [
        each[torch.randint(len(each), (resamples, len(each)), generator=generator, device=each.device)]
        for each in strata
    ]
    pooled = torch.cat(drawn, -1)  # [resample run]
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=pooled.dtype, device=pooled.device)
    low, high = statistic(pooled).quantile(ends)
    return low, high


def _widened(x: Tensor, like: Tensor) -> Tensor:
    return x.reshape(x.shape + (1,) * (like.ndim - x.ndim))
