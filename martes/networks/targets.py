"""Copies of networks that stay behind, so that what is learned towards does not move with every step."""

from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
EMPTY = (dict, OrderedDict, set)
SETTLED = (bool, int, float, str, type(None))


def still_copy(module: Module) -> Module:
    """A copy of its own that no gradient reaches; `followed` tells whose copy it is.

    Buffers that are no part of its state never change, and are shared.
    """
    saved = module.state_dict().keys()
    own = {id(each): still(each.detach().clone()) for each in module.parameters()}
    shared = {id(each): each for name, each in module.named_buffers() if name not in saved}
    copied = copied_with(module, own | shared)
    vars(copied)["_followed"] = module  # no part of the copy: neither its state nor its parameters know it
    return copied


def still(tensor: Tensor) -> nn.Parameter:
    """A parameter of this tensor, not a copy, that no gradient reaches."""
    return nn.Parameter(tensor.detach(), requires_grad=False)


def copied_with(module: Module, known: Mapping[int, Tensor]) -> Module:
    """A copy of a module with other tensors, `known` by the identity of those that they stand in for.

    Settings that never change are shared.
    """
    parts = [part for part in module.modules() if type(part).__setstate__ is nn.Module.__setstate__]
    copies = {id(part): nn.Module.__new__(type(part)) for part in parts}
    stands: dict[int, object] = {**known, **copies}
    for part in parts:
        # Of a module's two dozen attributes nearly all are empty or never change, and deepcopy asks long about each.
        own = vars(copies[id(part)])
        for name, each in part.__getstate__().items():  # what is compiled is bound to the module, and is no part of it
            own[name] = type(each)() if type(each) in EMPTY and not each else _copied(each, stands)
    return deepcopy(module, stands)


def _copied(value: object, stands: dict[int, object]) -> object:
    settings = getattr(value, "__dataclass_params__", None)
    is_settled = type(value) in SETTLED or (settings is not None and settings.frozen)
    return value if is_settled else deepcopy(value, stands)


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
