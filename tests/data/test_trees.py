import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from martes.data.trees import Memory, cleared, leaves, mapped, outline, rebuilt

TREE: Memory = ({"hidden": torch.arange(3.0), "cell": (torch.ones(3, 2),)}, (), torch.zeros(3))

tensors = st.integers(0, 9).map(lambda n: torch.full((2,), float(n)))
names = st.text("abc", min_size=1, max_size=3)
trees = st.recursive(
    tensors, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(names, inner, max_size=3)
)


def test_leaves_come_in_order_with_their_paths():
    assert [path for path, _ in leaves(TREE)] == ["0/hidden", "0/cell/0", "2"]
    assert [path for path, _ in leaves(torch.ones(1))] == [""]
    assert list(leaves(())) == []


def test_a_tree_is_mapped_with_others_of_its_form():
    doubled = mapped(lambda a, b: a + b, TREE, TREE)
    assert [path for path, _ in leaves(doubled)] == [path for path, _ in leaves(TREE)]
    for (_, once), (_, twice) in zip(leaves(TREE), leaves(doubled), strict=True):
        assert torch.equal(twice, 2 * once)


def test_trees_of_unlike_forms_are_not_mapped_together():
    for other in ({"b": torch.ones(1)}, (), torch.ones(1)):
        with pytest.raises(KeyError, match="a"):
            mapped(torch.add, {"a": torch.ones(1)}, other)


@given(trees)
def test_a_tree_is_rebuilt_from_its_outline_and_leaves(tree: Memory):
    form = json.loads(json.dumps(outline(tree)))
    again = rebuilt(form, dict(leaves(tree)))
    assert outline(again) == outline(tree)
    assert [(path, leaf.tolist()) for path, leaf in leaves(again)] == [(p, x.tolist()) for p, x in leaves(tree)]


def test_a_missing_leaf_is_an_error():
    kept = {path: leaf for path, leaf in leaves(TREE) if path != "0/cell/0"}
    with pytest.raises(KeyError, match="0/cell/0"):
        rebuilt(outline(TREE), kept)


def test_memory_is_cleared_only_where_an_episode_starts():
    memory = {"a": torch.ones(3, 2, 4), "b": torch.full((3,), 5)}
    fresh = {"a": torch.zeros(3, 2, 4), "b": torch.full((3,), -1)}
    after = cleared(memory, fresh, torch.tensor([True, False, True]))
    assert isinstance(after, dict)
    assert torch.equal(after["a"][:, 0, 0], torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(after["b"], torch.tensor([-1, 5, -1]))
    assert memory["b"].tolist() == [5, 5, 5]  # what went in is as it was
