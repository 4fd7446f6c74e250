"""Typed words and YAML become typed fields exactly, or are refused by path."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from martes.conversion import Typed, as_typed, branches, changed, converted, described, nested, plain
from martes.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)
    word: Literal["none", "gru", 3] = "none"

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ConfigError("sizes is empty: give one")


@dataclass(frozen=True)
class Outer:
    rate: float = 0.5
    count: int = 1
    is_on: bool = False
    name: str = "x"
    limit: float | None = None
    label: str | None = None
    pair: tuple[int, float] = (1, 0.5)
    table: tuple[tuple[float, ...], ...] = ((1.0,),)
    free: Mapping[str, object] = field(default_factory=dict[str, object])
    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
KINDS = {
    int: st.integers(),
    float: FLOATS,
    bool: st.booleans(),
    float | None: st.none() | FLOATS,
    tuple[int, ...]: st.lists(st.integers(), min_size=1).map(tuple),
    tuple[int, float]: st.tuples(st.integers(), FLOATS),
    tuple[tuple[float, ...], ...]: st.lists(st.lists(FLOATS, min_size=1).map(tuple), min_size=1).map(tuple),
    Literal["none", "gru", 3]: st.sampled_from(["none", "gru", 3]),
}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_typed_comes_back_exactly(kind):
    @given(KINDS[kind])
    def check(value):
        back = converted(kind, Typed(as_typed(value)), "x")
        assert back == value
        assert type(back) is type(value)

    check()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_written_as_yaml_comes_back_exactly(kind):
    @given(KINDS[kind])
    def check(value):
        assert converted(kind, yaml.safe_load(yaml.safe_dump(plain(value))), "x") == value

    check()


@pytest.mark.parametrize(
    ("kind", "typed", "value"),
    [
        (int, "1e6", 1_000_000),
        (int, "1_000", 1000),
        (float, "1e-3", 1e-3),
        (float, "2", 2.0),
        (bool, "True", True),
        (float | None, "None", None),
        (float | None, "null", None),
        (str | None, "12", "12"),
        (str, "none", "none"),
        (tuple[int, ...], "64,64", (64, 64)),
        (tuple[int, ...], "64 64", (64, 64)),
        (tuple[int, ...], "(64, 64)", (64, 64)),
        (tuple[int, ...], "[64]", (64,)),
        (tuple[float, ...], "1e-3,2", (1e-3, 2.0)),
        (tuple[tuple[float, ...], ...], "[[1, 1e1], [2]]", ((1.0, 10.0), (2.0,))),
        (object, "1e-3", 1e-3),
        (object, "[1, 2]", [1, 2]),
        (object, "{", "{"),
        (Mapping[str, object], "{a: 1}", {"a": 1}),
    ],
)
def test_what_people_type(kind, typed, value):
    assert converted(kind, Typed(typed), "x") == value


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rate": "abc"}, "o.rate is 'abc': it must be a finite number"),
        ({"rate": math.nan}, "o.rate is nan: it must be a finite number"),
        ({"rate": math.inf}, "it must be a finite number"),
        ({"rate": True}, "o.rate is True"),
        ({"count": 1.5}, "o.count is 1.5: it must be a whole number"),
        ({"count": False}, "o.count is False"),
        ({"count": "--5"}, "o.count is '--5': it must be a whole number"),
        ({"count": "1__0"}, "o.count is '1__0': it must be a whole number"),
        ({"is_on": 1}, "o.is_on is 1: it must be true or false"),
        ({"name": 3}, "o.name is 3: it must be text"),
        ({"limit": "low"}, "o.limit is 'low': it must be a finite number or none"),
        ({"pair": [1]}, r"o.pair is \[1\]: it must be a list of 2: a whole number, a finite number"),
        ({"table": [[1], ["a"]]}, r"o.table\[1\]\[0\] is 'a': it must be a finite number"),
        ({"inner": {"word": "gr"}}, "o.inner.word is 'gr': it must be none or gru or 3"),
        ({"inner": {"sizes": 3}}, "o.inner.sizes is 3: it must be a list, each a whole number"),
        ({"inner": {"sise": 3}}, "unknown key 'o.inner.sise'; did you mean 'sizes'"),
        ({"inner": 3}, "o.inner is 3: give its fields one by one: o.inner.sizes, o.inner.word"),
        ({"other": {"sizes": ["a"]}}, r"o.other.sizes\[0\] is 'a'"),
        ({"inner": {"sizes": []}}, "sizes is empty: give one"),
        ({"free": 3}, "o.free is 3: it must be a mapping of names to values"),
        ({"ratee": 3}, "unknown key 'o.ratee'; did you mean 'rate'"),
    ],
)
def test_what_does_not_fit_is_told_by_its_path(change, told):
    with pytest.raises(ConfigError, match=told):
        changed(Outer(), change, "o")


def test_a_tree_changes_what_it_names_and_nothing_else():
    before = Outer(inner=Inner(sizes=(7,)))
    after = changed(before, {"inner": {"word": "gru"}, "other": {"sizes": [4]}, "free": {"a": [1, 2]}}, "o")
    assert after == Outer(inner=Inner((7,), "gru"), other=Inner((4,)), free={"a": [1, 2]})
    assert changed(after, {"other": None}, "o").other is None
    assert changed(before, {"inner": Inner((9,))}, "o").inner == Inner((9,))
    assert before == Outer(inner=Inner(sizes=(7,)))


def test_branches_keep_the_order_of_the_fields():
    tree = branches(Outer())
    assert list(tree)[:3] == ["rate", "count", "is_on"]
    assert tree["inner"] == {"sizes": [1, 2], "word": "none"}
    assert changed(Outer(rate=3.0, inner=Inner((5,))), tree, "o") == Outer()


def test_paths_nest_once():
    assert nested([("a.b", 1), ("a.c.d", 2), ("e", 3)]) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    with pytest.raises(ConfigError, match=r"a\.b is given twice: 1 and 2"):
        nested([("a.b", 1), ("a.b", 2)])
    for pairs in ([("a", 1), ("a.b", 2)], [("a.b", 2), ("a", 1)]):
        with pytest.raises(ConfigError, match="given"):
            nested(pairs)


def test_every_type_has_words():
    assert described(tuple[int, ...] | None) == "a list, each a whole number or none"
    assert described(Inner) == "the fields of Inner"
