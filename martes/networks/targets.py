"""Copies of networks that stay behind, so that what is learned towards does not move with every step."""

from collections import OrderedDict
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
EMPTY = (dict, OrderedDict, set)


def still_copy(module: Module) -> Module:
    """A copy of its own that no gradient reaches; `followed` tells whose copy it is.

    Buffers that are no part of its state never change, and are shared.
    """
    saved = module.state_dict().keys()
    known: dict[int, object] = {id(each): each for name, each in module.named_buffers() if name not in saved}
    # A module has a dozen collections for hooks, nearly always empty, which cost deepcopy more than all else together.
    empty = (each for part in module.modules() for each in vars(part).values() if type(each) in EMPTY and not each)
    known |= {id(each): type(each)() for each in empty}
    still = deepcopy(module, known).requires_grad_(False)
    vars(still)["_followed"] = module  # no part of the copy: neither its state nor its parameters know it
    return still


def followed(module: nn.Module) -> nn.Module | None:
    """The network that this one is a still copy of; None: it is none."""
    return vars(module).get("_followed")


class Following:
    """What moves still copies on after their networks, `(copy, network), ...`; their tensors are looked up once."""

    def __init__(self, *pairs: tuple[nn.Module, nn.Module]) -> None:
        self._learned: list[tuple[Tensor, Tensor]] = []
        self._kept: list[tuple[Tensor, Tensor]] = []
        for target, online in pairs:
            self._learned += zip(target.parameters(), online.parameters(), strict=True)
            self._kept += zip(target.buffers(), online.buffers(), strict=True)
        self._kept = [(theirs, ours) for theirs, ours in self._kept if theirs is not ours]

    @torch.no_grad()
    def __call__(self, share: float = 1.0) -> None:
        """Moves every parameter by `share` of the way to that of its network; buffers are copied.

        theta' <- theta' + share (theta - theta'). Source: Lillicrap et al. 2016, section 3.
        """
        for theirs, ours in self._learned:
            theirs.lerp_(ours, share) if share < 1 else theirs.copy_(ours)
        for theirs, ours in self._kept:
            theirs.copy_(ours)


def follow(target: nn.Module, online: nn.Module, share: float = 1.0) -> None:
    """Moves `target` by `share` of the way to `online`, as `Following` does."""
    Following((target, online))(share)
