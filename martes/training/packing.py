"""Any state as JSON and named tensors, and back, bit for bit: what a checkpoint's two files hold.

A state is a tree: nested dicts, lists and tuples of tensors, arrays, numbers, truth values, strings and None.
"""

import math
import struct
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from martes.data.trees import joined
from martes.errors import CheckpointError


class Packing:
    """The tensors of a tree under names that tell their place; what JSON has no word for is `{"$kind": content}`."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._known: dict[tuple[object, ...], str] = {}

    def packed(self, node: object, path: str = "") -> object:
        """The JSON form of a node; its tensors are gathered in `tensors`.

        A tensor that stands at several places is kept once and is one tensor again afterwards. Raises CheckpointError,
        naming the place, for anything that is not part of a tree.
        """
        if isinstance(node, Mapping):
            return self._packed_mapping(node, path)
        if isinstance(node, list | tuple) and type(node) in (list, tuple, torch.Size):
            members = [self.packed(each, joined(path, place)) for place, each in enumerate(node)]
            return members if isinstance(node, list) else {"$tuple": members}
        return self._packed_leaf(node, path)

    def _packed_leaf(self, node: object, path: str) -> object:
        if isinstance(node, Tensor):
            return {"$tensor": self._named(node.detach(), path)}
        if isinstance(node, np.ndarray) and node.dtype.kind in "biuf" and node.itemsize <= 8 and node.dtype.isnative:
            return {"$array": self._named(torch.from_numpy(node.copy()), path)}
        if type(node) is float and not math.isfinite(node):
            return {
                "$float": struct.pack(">d", node).hex()
            }  # JSON has no word for these, and NaNs differ in their bits
        if node is None or type(node) in (bool, int, float, str):
            return node
        raise CheckpointError(
            f"{path or 'the root'} of this state is a {type(node).__name__}: a checkpoint holds tensors, arrays, "
            "numbers, strings, None, and dicts, lists and tuples of them. Let state_dict() return it as such"
        )

    def _packed_mapping(self, node: Mapping[object, object], path: str) -> object:
        values = {key: self.packed(value, joined(path, str(key))) for key, value in node.items()}
        if all(isinstance(key, str) and not key.startswith("$") for key in values):
            return {str(key): value for key, value in values.items()}
        return {"$dict": [[self.packed(key, path), value] for key, value in values.items()]}

    def _named(self, tensor: Tensor, path: str) -> str:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype == torch.complex128:
            raise CheckpointError(f"{path} is a {tensor.layout} tensor of {tensor.dtype}: make it dense and real")
        place = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in self._known:
            return self._known[place]
        name = path or "tensor"
        while name in self.tensors:  # keys such as 1 and "1", or "a/b" and a nested b
            name += "'"
        self.tensors[name] = tensor
        self._known[place] = name
        return name


def unpacked(form: object, tensors: Mapping[str, Tensor]) -> object:
    """The tree whose packed form this is. Raises KeyError where a tensor is missing."""
    match form:
        case list():
            tree = [unpacked(each, tensors) for each in form]
        case {"$tensor": str(name)}:
            tree = tensors[name]
        case {"$array": str(name)}:
            tree = tensors[name].numpy()
        case {"$float": str(bits)}:
            tree = struct.unpack(">d", bytes.fromhex(bits))[0]
        case {"$tuple": list(members)}:
            tree = tuple(unpacked(each, tensors) for each in members)
        case {"$dict": list(pairs)}:
            tree = {unpacked(key, tensors): unpacked(value, tensors) for key, value in pairs}
        case dict():
            tree = {key: unpacked(value, tensors) for key, value in form.items()}
        case _:
            tree = form
    return tree
