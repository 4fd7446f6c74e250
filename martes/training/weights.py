"""Weights that several processes see: published whole, read whole, each version with its number."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

ALIGNED = 64
"""Bytes to whose multiples tensors begin."""
Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]


class SharedWeights:
    """A copy of a module's parameters and buffers in memory that processes share; the module's own are not moved.

    `publish` writes what the module holds now, `load` brings a module to the newest version. A lock on the open file
    `handle` (the processes of one lock each have it open) keeps a reader from seeing half of a version; where a process
    dies, its lock is gone. Beside tensors there travel the plain floats of every submodule (a rate of exploration), and
    whether the module trains (dropout). What else it keeps in attributes does not: let it be a buffer.
    """

    def __init__(self, module: nn.Module, allocate: Allocate, handle: int) -> None:
        self._handle = handle
        self._head = allocate((2,), np.dtype(np.int64))
        """Version, and is it in training?"""
        places: list[int] = [0]
        for tensor in _tensors(module):
            places.append(places[-1] + -(-tensor.numel() * tensor.element_size() // ALIGNED) * ALIGNED)
        block = torch.from_numpy(allocate((places[-1],), np.dtype(np.uint8)))
        self._parts = [
            block[place : place + prod(tensor.shape) * tensor.element_size()].view(tensor.dtype).view(tensor.shape)
            for place, tensor in zip(places, _tensors(module), strict=False)
        ]
        self._numbers = allocate((len(_numbers(module)),), np.dtype(np.float64))
        self._loaded = -1

    @property
    def version(self) -> int:
        """How often something was published."""
        return int(self._head[0])

    @torch.no_grad()
    def publish(self, module: nn.Module) -> int:
        """The number of the version that the module's weights are from now on."""
        with _locked(self._handle, fcntl.LOCK_EX):
            for part, tensor in zip(self._parts, _tensors(module), strict=True):
                part.copy_(tensor)
            self._numbers[:] = [getattr(each, name) for each, name in _numbers(module)]
            self._head[1] = module.training
            self._head[0] += 1
        return self.version

    def set_mode(self, is_training: bool) -> None:
        """Tells every process to train, or to evaluate, from its next `load` on."""
        self._head[1] = is_training

    @torch.no_grad()
    def load(self, module: nn.Module) -> int:
        """Brings the module to the newest version; its number."""
        if self._loaded != self.version:
            with _locked(self._handle, fcntl.LOCK_SH):
                for part, tensor in zip(self._parts, _tensors(module), strict=True):
                    tensor.copy_(part)
                for (each, name), number in zip(_numbers(module), self._numbers.tolist(), strict=True):
                    setattr(each, name, number)
                self._loaded = self.version
        if module.training != bool(self._head[1]):
            module.train(bool(self._head[1]))
        return self._loaded


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _numbers(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """The plain floats of every submodule: whose, and under which name."""
    return [(each, name) for each in module.modules() for name, value in vars(each).items() if type(value) is float]


@contextmanager
def _locked(handle: int, kind: int) -> Iterator[None]:
    fcntl.lockf(handle, kind)
    try:
        yield
    finally:
        fcntl.lockf(handle, fcntl.LOCK_UN)


def lock_file() -> int:
    """An open file to lock, without a name: its descriptor is to be closed, and sent to who takes part."""
    return os.memfd_create("martes-lock") if hasattr(os, "memfd_create") else _temporary()


def _temporary() -> int:
    from tempfile import TemporaryFile

    with TemporaryFile() as file:
        return os.dup(file.fileno())
