"""Means over the valid entries of a tensor, and logits of the legal actions.

`mask` is true where an entry is valid and broadcasts to the tensor. What stands in invalid entries, NaN included,
changes neither a value nor a gradient.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Axes = int | tuple[int, ...] | None


def masked_mean(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*#shape"], dim: Axes = None, keepdim: bool = False
) -> Float[Tensor, "*reduced"]:
    """The mean of the valid entries over `dim` (all axes if None); 0 where none is valid."""
    count = mask.expand_as(x).sum(dim, keepdim=keepdim).clamp(min=1)
    return x.masked_fill(~mask, 0.0).sum(dim, keepdim=keepdim) / count


def masked_variance(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*#shape"], dim: Axes = None, keepdim: bool = False
) -> Float[Tensor, "*reduced"]:
    """The population variance of the valid entries over `dim` (all axes if None); 0 where none is valid."""
    return masked_mean(_deviation(x, mask, dim).square(), mask, dim, keepdim)


def standardise(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*#shape"], eps: float = 1e-8
) -> Float[Tensor, "*shape"]:
    """(x - mean) / (std + eps) over all valid entries, std that of the population; 0 in invalid entries."""
    deviation = _deviation(x, mask, None)
    return deviation / (masked_mean(deviation.square(), mask).sqrt() + eps)


def masked_logits(
    logits: Float[Tensor, "*batch action"], mask: Bool[Tensor, "*#batch action"]
) -> Float[Tensor, "*batch action"]:
    """The logits, with the smallest finite value of their dtype where `mask` is false: probability 0, and no NaN."""
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min)


def _deviation(x: Tensor, mask: Tensor, dim: Axes) -> Tensor:
    return (x - masked_mean(x, mask, dim, keepdim=True)).masked_fill(~mask, 0.0)
