from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from martes.report.intervals import Interval, interval, last, tenth
from martes.report.records import Record


def run_of(values, every=100, metric="evaluation/return"):
    rows = [{"step": i * every, "time": 0.0, "kind": "evaluation", metric: value} for i, value in enumerate(values)]
    return Record(Path("run"), {}, rows)


def test_an_interval_of_one_value_is_that_value():
    assert interval([3.5]) == Interval(3.5, 3.5, 3.5) and str(interval([3.5])) == "3.5"


def test_an_interval_needs_values():
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_the_bootstrap_of_two_values_reaches_both():
    # Both draws are the lower value with probability 1/4, which is more than 2.5 %; so with the upper one.
    assert interval([1.0, 3.0]) == Interval(2.0, 1.0, 3.0)


def test_many_values_give_the_interval_of_the_normal_law():
    values = [float(value) for value in range(-200, 201)]
    deviation = (sum(value**2 for value in values) / len(values)) ** 0.5
    found = interval(values)
    assert found.mean == 0
    assert found.high == pytest.approx(1.96 * deviation / len(values) ** 0.5, rel=0.1)
    assert found.low == pytest.approx(-found.high, rel=0.15)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12))
def test_an_interval_lies_among_its_values_holds_its_mean_and_repeats(values):
    found = interval(values)
    assert (
        min(values) - 1e-6 <= found.low <= found.mean + 1e-6 and found.mean - 1e-6 <= found.high <= max(values) + 1e-6
    )
    assert found == interval(values)


def test_above_means_all_above():
    low, high = Interval(0, -1, 1), Interval(2, 1.5, 3)
    assert high.is_above(low) and not low.is_above(high) and not Interval(2, 0.5, 3).is_above(low)


def test_tenths_by_hand():
    run = run_of([0, 2, 50, 50, 50, 50, 50, 50, 50, 6, 10])  # steps 0, 100, ..., 1000
    assert tenth([run], 0) == Interval(1, 1, 1) and tenth([run], 9) == Interval(8, 8, 8)
    other = run_of([4, 6, 50, 50, 50, 50, 50, 50, 50, 16, 20])
    assert tenth([run, other], 0) == Interval(3, 1, 5)
    assert last([run, other]) == Interval(15, 10, 20)


def test_nothing_measured_is_none():
    assert tenth([run_of([])], 0) is None and last([run_of([1.0])], "train/return") is None
