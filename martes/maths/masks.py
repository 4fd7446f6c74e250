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
    return torch.where(mask, x, 0.0).sum(dim, keepdim=keepdim) / count


def masked_variance(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*#shape"], dim: Axes = None, keepdim: bool = False
) -> Float[Tensor, "*reduced"]:
    """The population variance of the valid entries over `dim` (all axes if None); 0 where none is valid."""
    return masked_mean(_deviation(x, mask, dim).square(), mask, dim, keepdim)


def share_of_mean(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*#shape"], whole: Bool[Tensor, "*whole"]
) -> Float[Tensor, ""]:
    """What these valid entries add to the mean over all that `whole` marks; those of all its parts make the mean."""
    return x.masked_fill(~mask, 0.0).sum() / whole.sum().clamp(min=1)


def standardise(
    x: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*#shape"],
    among: tuple[Float[Tensor, "*whole"], Bool[Tensor, "*whole"]] | None = None,
    eps: float = 1e-8,
) -> Float[Tensor, "*shape"]:
    """(x - mean) / (std + eps) over all valid entries, or over those of `among`, of which x is a part.

    std is that of the population; invalid entries become 0.
    """
    whole, valid = among or (x, mask)
    mean = masked_mean(whole, valid)
    std = masked_variance(whole, valid).sqrt()
    return (x - mean).masked_fill(~mask, 0.0) / (std + eps)


def masked_logits(
    logits: Float[Tensor, "*batch action"], mask: Bool[Tensor, "*#batch action"]
) -> Float[Tensor, "*batch action"]:
    """The logits, with the smallest finite value of their dtype where `mask` is false: probability 0, and no NaN."""
    return torch.where(mask, logits, torch.finfo(logits.dtype).min)


def _deviation(x: Tensor, mask: Tensor, dim: Axes) -> Tensor:
    return (x - masked_mean(x, mask, dim, keepdim=True)).masked_fill(~mask, 0.0)
