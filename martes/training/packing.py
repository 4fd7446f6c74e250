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
        match node:
            case None | bool() | str():
                return node
            case int() if type(node) is int:
                return node
            case float() if type(node) is float:
                return node if math.isfinite(node) else {"$float": struct.pack(">d", node).hex()}
            case Tensor():
                return {"$tensor": self._named(node.detach(), path)}
            case np.ndarray() if node.dtype.kind in "biuf" and node.itemsize <= 8 and node.dtype.isnative:
                return {"$array": self._named(torch.from_numpy(node.copy()), path)}
            case list():
                return [self.packed(each, joined(path, i)) for i, each in enumerate(node)]
            case tuple() if type(node) in (tuple, torch.Size):
                return {"$tuple": [self.packed(each, joined(path, i)) for i, each in enumerate(node)]}
            case Mapping():
                return self._packed_mapping(node, path)
        raise CheckpointError(
            f"{path or 'the root'} of this state is a {type(node).__name__}: a checkpoint holds tensors, arrays, numbers, "
            "strings, None, and dicts, lists and tuples of them. Let state_dict() return it as such"
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
            return [unpacked(each, tensors) for each in form]
        case {"$tensor": str(name)}:
            return tensors[name]
        case {"$array": str(name)}:
            return tensors[name].numpy()
        case {"$float": str(bits)}:
            return struct.unpack(">d", bytes.fromhex(bits))[0]
        case {"$tuple": list(members)}:
            return tuple(unpacked(each, tensors) for each in members)
        case {"$dict": list(pairs)}:
            return {unpacked(key, tensors): unpacked(value, tensors) for key, value in pairs}
        case dict():
            return {key: unpacked(value, tensors) for key, value in form.items()}
    return form
