"""Schedules: exact at both ends, clamped outside, monotone between, and refusing what makes no sense."""

import math
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from martes.maths.schedules import Constant, Exponential, Linear

positive = st.floats(1e-6, 1e6)


def test_by_hand() -> None:
    assert Constant(0.3)(10**9) == 0.3
    assert Linear(1.0, 0.0, 4)(1) == Linear(1.0, 0.0, 4.0)(1.0) == 0.75
    assert Exponential(1.0, 0.01, 4.0)(2) == pytest.approx(0.1)


def test_a_value_is_a_float_whatever_its_ends_are() -> None:
    for schedule in (Constant(1), Linear(2, 1, 4), Exponential(2, 1, 4)):
        assert all(type(schedule(step)) is float for step in (0, 2, 4, 9))


@example(1.0, 0.1, 3.0, Linear)  # here start + (end - start) is not end,
@example(0.01, 0.007, 3.0, Exponential)  # and here start (end / start) is not
@given(positive, positive, positive, st.sampled_from([Linear, Exponential]))
def test_ends_are_exact_and_held(start: float, end: float, steps: float, schedule: type) -> None:
    value = schedule(start, end, steps)
    assert value(0) == value(-1) == start
    assert value(steps) == value(steps + 1) == value(10 * steps) == end
    middle = value(0.5 * steps)
    mean = (start + end) / 2 if schedule is Linear else math.sqrt(start * end)
    assert middle == pytest.approx(mean)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(math.nan), "value is nan"),
        (lambda: Linear(math.inf, 0.0, 1.0), "start is inf"),
        (lambda: Linear(0.0, math.nan, 1.0), "end is nan"),
        (lambda: Linear(1.0, 0.0, 0.0), "steps is 0.0"),
        (lambda: Exponential(0.0, 1.0, 1.0), "start is 0.0"),
        (lambda: Exponential(1.0, -1.0, 1.0), "end is -1.0"),
        (lambda: Exponential(1.0, 1.0, math.nan), "steps is nan"),
    ],
)
def test_impossible_fields_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
