"""Copies of networks that stay behind, so that what is learned towards does not move with every step."""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def still_copy(module: Module) -> Module:
    """A copy of its own that no gradient reaches."""
    return deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, share: float = 1.0) -> None:
    """Moves every parameter of `target` by `share` of the way to that of `online`; buffers are copied.

    theta' <- theta' + share (theta - theta'). Source: Lillicrap et al. 2016, section 3.
    """
    for theirs, ours in zip(target.parameters(), online.parameters(), strict=True):
        theirs.lerp_(ours, share) if share < 1 else theirs.copy_(ours)
    for theirs, ours in zip(target.buffers(), online.buffers(), strict=True):
        theirs.copy_(ours)
