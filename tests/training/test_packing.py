"""What is packed as JSON and tensors comes back bit for bit, types and sharing included."""

import json
import math
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from martes.errors import CheckpointError
from martes.training.packing import Packing, unpacked


def again(tree):
    packing = Packing()
    form = packing.packed(tree)
    return unpacked(json.loads(json.dumps(form, allow_nan=False)), packing.tensors)


def same(a, b) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        a, b = a.numpy(force=True), b.numpy()
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, dict):
        return list(map(repr, a)) == list(map(repr, b)) and all(map(same, a.values(), b.values()))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = st.text() | st.integers() | st.none() | st.booleans() | st.tuples(st.integers(), st.text())
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(keys, inner, max_size=4)
    ),
)


@given(trees)
def test_any_tree_comes_back_with_its_types(tree):
    assert same(again(tree), tree)


def test_odd_floats_and_large_integers_keep_every_bit():
    payload = struct.unpack(">d", bytes.fromhex("7ff8dead0000beef"))[0]
    tree = {"odd": [math.inf, -math.inf, payload, -0.0, 5e-324, 0.1], "large": [2**200, -(2**63), True, 1]}
    assert same(again(tree), tree)


@pytest.mark.parametrize(
    "dtype",
    ["float64", "float32", "float16", "bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"],
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3)])
def test_tensors_and_arrays_keep_dtype_shape_and_bits(dtype, shape):
    tensor = (torch.rand(shape) * 3).to(getattr(torch, dtype))
    assert same(again({"a": tensor, "b": tensor.numpy().copy()}), {"a": tensor, "b": tensor.numpy()})


def test_bfloat16_and_quiet_nan_payloads_keep_their_bits():
    bits = torch.tensor([0x7FC1, 0x7F80, -0x8000, 0x3F80], dtype=torch.int16)
    back = again([bits.view(torch.bfloat16)])[0]
    assert back.dtype == torch.bfloat16
    assert torch.equal(back.view(torch.int16), bits)


def test_a_tensor_at_two_places_is_one_tensor_afterwards_and_a_view_of_it_is_not():
    weight = torch.rand(4, 4)
    back = again(
        {"head": weight, "body": [weight], "row": weight[1], "across": weight.T, "empty": [torch.empty(0)] * 2}
    )
    assert back["head"] is back["body"][0]
    assert torch.equal(back["row"], weight[1])
    assert torch.equal(back["across"], weight.T)


def test_places_that_read_alike_stay_apart():
    tree = {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, 1: torch.full((1,), 2.0), "1": torch.full((1,), 3.0)}
    assert same(again(tree), tree)


def test_a_dict_that_looks_like_a_form_stays_a_dict():
    tree = {"$tensor": "x", "nested": [{"$tuple": [1]}, {"$dict": {}}, {}]}
    assert same(again(tree), tree)


def test_the_state_of_an_optimiser_and_of_a_generator_comes_back():
    layer = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam([{"params": layer.weight}, {"params": layer.bias, "lr": 0.5}], fused=True)
    layer(torch.ones(3)).sum().backward()
    optimiser.step()
    tree = {"optimiser": optimiser.state_dict(), "random": np.random.default_rng(3).bit_generator.state}
    tree["legacy"] = np.random.RandomState(3).get_state()
    back = again({**tree, "weights": layer.state_dict()})
    assert isinstance(layer.state_dict(), OrderedDict)
    assert same({name: back[name] for name in tree}, tree)
    assert set(back["optimiser"]["state"]) == {0, 1}
    torch.optim.Adam(layer.parameters(), fused=True)
    optimiser.load_state_dict(back["optimiser"])
    assert same(optimiser.state_dict(), tree["optimiser"])


class Point(tuple):
    pass


@pytest.mark.parametrize(
    "leaf", [object(), {1, 2}, b"bytes", 1j, Point((1,)), np.float32(1), np.array(["x"]), torch.eye(2).to_sparse()]
)
def test_what_could_not_come_back_is_refused_with_its_place(leaf):
    with pytest.raises(CheckpointError, match="learner/history/1"):
        Packing().packed({"learner": {"history": [0, leaf]}})
