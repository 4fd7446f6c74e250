"""Measurements count what they say, sides take turns, and a missing package is told."""

import json
import sys
import time

import pytest
from rich.console import Console

from martes import bench
from martes.bench import learning, timing
from martes.errors import ConfigError


def test_rates_are_units_a_second_and_sides_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.01)
    order: list[str] = []

    def side(name: str, seconds: float) -> timing.Side:
        def work(count: int) -> int:
            order.append(name)
            time.sleep(seconds * count)
            return 10 * count

        return work

    found = timing.rates({"fast": side("fast", 0.002), "slow": side("slow", 0.02)}, repeats=3)
    assert order[-6:] == ["fast", "slow"] * 3
    assert all(2_000 < rate <= 5_000 for rate in found["fast"])
    assert all(200 < rate <= 500 for rate in found["slow"])
    assert timing.ratios([10.0, 20.0], [5.0, 40.0]) == (2.0, 0.5)


def test_a_measurement_is_its_median():
    ratio = timing.Measurement("a", (1.0, 30.0, 20.0), target=15)
    assert ratio.median == 20.0
    assert ratio.cells == ("a", "20.0x", "1.0x to 30.0x", "15.0x", "yes")
    rate = timing.Measurement("b", (1234.4,), target=2000, is_ratio=False)
    assert rate.cells == ("b", "1,234/s", "1,234/s to 1,234/s", "2,000/s", "no")


@pytest.mark.parametrize("name", ["acting", "training"])
def test_the_rate_of_acting_and_training(name, monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    (each,) = bench.MEASURES[name](1)
    assert each.median is not None
    assert each.median > 1_000


def test_windows_beat_their_loop(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(learning, "LENGTHS", (25,))
    found = bench.MEASURES["windows"](3)
    assert len(found) == 2
    assert all(each.median is not None and each.median > 1 for each in found if each.name.startswith("MLP"))


@pytest.mark.parametrize(("name", "package", "extra"), [("spread", "mpe2", "mpe"), ("foraging", "lbforaging", "lbf")])
def test_without_the_original_the_line_says_how_to_get_it(name, package, extra, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    results = bench.measured([name], 1, 1, Console(width=200))
    assert [each.median for each in results] == [None, None]
    assert f"{package} is not installed: pip install 'martes[{extra}]'" in bench.markdown(results, 1)
    rows = json.loads(bench.as_json(results, 1))["measurements"]
    assert [row["values"] for row in rows] == [[], []]


@pytest.mark.parametrize(("names", "repeats"), [(["spred"], 1), ([], 0)])
def test_what_cannot_be_measured_is_refused(names, repeats):
    with pytest.raises(ConfigError):
        bench.measured(names, repeats, 1, Console())
