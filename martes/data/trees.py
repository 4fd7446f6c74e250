"""Trees of tensors: nested tuples and dicts. A module's memory and a checkpoint are such trees."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    Memory = Tensor | tuple["Memory", ...] | dict[str, "Memory"]
    """What a temporal module carries from step to step: tensors `env ...`; () for a module without memory."""

    Outline = list["Outline"] | dict[str, "Outline"] | None
    """The form of a tree without its tensors, fit for JSON: a tensor is null, a tuple is a list."""
else:  # at run time an annotation can look one level deep only
    Memory = Tensor | tuple[object, ...] | dict[str, object]
    Outline = list[object] | dict[str, object] | None


def mapped(function: Callable[..., Tensor], tree: Memory, *others: Memory) -> Memory:
    """The tree of `function(leaf, *other_leaves)`; the other trees have the form of the first."""
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if isinstance(tree, dict):
        return {name: mapped(function, branch, *_at(others, name)) for name, branch in tree.items()}
    return tuple(mapped(function, branch, *_at(others, i)) for i, branch in enumerate(tree))


def _at(trees: tuple[Memory, ...], name: str | int) -> Iterator[Memory]:
    """The branch of each tree at a name of a dict or a place of a tuple."""
    return (dict(_branches(each))[name] for each in trees)


def _branches(tree: Memory) -> Iterator[tuple[str | int, Memory]]:
    if isinstance(tree, dict):
        yield from tree.items()
    if isinstance(tree, tuple):
        yield from enumerate(tree)


def leaves(tree: Memory, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Each tensor of the tree with its path (`0/hidden`), in order."""
    if isinstance(tree, Tensor):
        yield path, tree
    for name, branch in _branches(tree):
        yield from leaves(branch, joined(path, name))


def joined(path: str, name: str | int) -> str:
    """The path of a branch of the node at `path`."""
    return f"{path}/{name}" if path else str(name)


def outline(tree: Memory) -> Outline:
    """The form of the tree: with `leaves`, all that `rebuilt` needs."""
    if isinstance(tree, Tensor):
        return None
    if isinstance(tree, dict):
        return {name: outline(branch) for name, branch in tree.items()}
    return [outline(branch) for branch in tree]


def rebuilt(form: Outline, tensors: Mapping[str, Tensor], path: str = "") -> Memory:
    """The tree of this form whose leaf at each path is `tensors[path]`. Raises KeyError where a path is missing."""
    if form is None:
        return tensors[path]
    if isinstance(form, dict):
        return {name: rebuilt(branch, tensors, joined(path, name)) for name, branch in form.items()}
    return tuple(rebuilt(branch, tensors, joined(path, i)) for i, branch in enumerate(form))


def cleared(memory: Memory, fresh: Memory, start: Tensor) -> Memory:
    """The memory with every environment where `start` is true put back to `fresh` (leading axis `env` in all)."""

    def choose(old: Tensor, new: Tensor) -> Tensor:
        return torch.where(start.view(-1, *(1,) * (old.dim() - 1)), new, old)

    return mapped(choose, memory, fresh)
