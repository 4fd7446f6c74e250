"""Weights that several processes see: published whole, lent between two tasks, each version with its number."""

from collections.abc import Callable, Iterator
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

ALIGNED = 64
"""Bytes to whose multiples tensors begin."""
Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]


class _Block(NamedTuple):
    """Room for one version."""

    parts: list[Tensor]
    """Its parameters and buffers."""
    numbers: np.ndarray
    """Its plain numbers."""


class SharedWeights:
    """Two versions of a module's parameters and buffers in memory that processes share; the module's own are not moved.

    `publish` writes what the module holds now as the newest version, beside the one that is lent; `lend` makes it the
    one that every `load` brings a module to. Who lends sees to it that nobody is loading, or is still to load what was
    lent before: so no version is seen in part, and all have the same. Beside tensors there travel the plain floats and
    booleans of every submodule (a rate of exploration), and whether the module trains (dropout). What else it keeps in
    attributes does not: let it be a buffer.
    """

    def __init__(self, module: nn.Module, allocate: Allocate) -> None:
        self.version = 0
        """How often something was published here."""
        self._lent = allocate((3,), np.dtype(np.int64))
        """The version that is lent, its block, and does it train?"""
        self._names = _numbers(module)
        self._blocks = [_block(module, len(self._names), allocate) for _ in range(2)]
        self._is_training, self._is_mode_set = module.training, False
        self._loaded = -1

    @torch.no_grad()
    def publish(self, module: nn.Module) -> int:
        """The number of the version that the module's weights are from the next `lend` on."""
        parts, numbers = self._blocks[1 - int(self._lent[1])]
        for part, tensor in zip(parts, _tensors(module), strict=True):
            part.copy_(tensor)
        numbers[:] = [getattr(module.get_submodule(path), name) for path, name in self._names]
        if not self._is_mode_set:
            self._is_training = module.training
        self.version += 1
        return self.version

    def set_mode(self, is_training: bool) -> None:
        """Tells all to train, or to evaluate, from the next `lend` on, whatever the modules do that are published."""
        self._is_training, self._is_mode_set = is_training, True

    def lend(self) -> None:
        """Makes the newest version, and the mode, what `load` gives to all."""
        if self._lent[0] < self.version:
            self._lent[:2] = self.version, 1 - self._lent[1]
        self._lent[2] = self._is_training

    @torch.no_grad()
    def load(self, module: nn.Module) -> int:
        """Brings the module to the version that is lent; its number."""
        version, block, is_training = self._lent.tolist()
        if self._loaded != version:
            parts, numbers = self._blocks[block]
            for part, tensor in zip(parts, _tensors(module), strict=True):
                tensor.copy_(part)
            for (path, name), number in zip(self._names, numbers.tolist(), strict=True):
                owner = module.get_submodule(path)
                setattr(owner, name, bool(number) if isinstance(getattr(owner, name), bool) else number)
            self._loaded = version
        if module.training != bool(is_training):
            module.train(bool(is_training))
        return version


def _block(module: nn.Module, numbers: int, allocate: Allocate) -> _Block:
    places: list[int] = [0]
    for tensor in _tensors(module):
        places.append(places[-1] + -(-tensor.numel() * tensor.element_size() // ALIGNED) * ALIGNED)
    room = torch.from_numpy(allocate((places[-1],), np.dtype(np.uint8)))
    parts = [
        room[place : place + prod(tensor.shape) * tensor.element_size()].view(tensor.dtype).view(tensor.shape)
        for place, tensor in zip(places, _tensors(module), strict=False)
    ]
    return _Block(parts, allocate((numbers,), np.dtype(np.float64)))


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _numbers(module: nn.Module) -> list[tuple[str, str]]:
    """The plain floats and booleans of every submodule: the path to it, and their names. Torch's own stay at home."""
    return [
        (path, name)
        for path, each in module.named_modules()
        for name, value in vars(each).items()
        if type(value) is float or (type(value) is bool and name != "training" and not name.startswith("_"))
    ]
