"""Measurements count what they say, sides take turns, and a missing package is told."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from martes import bench
from martes.bench import learning, scaling, scaling_page, timing, value
from martes.bench.isolated import Bounds, Found, Making, isolated
from martes.bench.scaling import CACHED, COPIES, FF, MANY, NAIVE, REC, STEPS, Case, Cell
from martes.cli.commands import Bench
from martes.errors import ConfigError


def test_rates_are_units_a_second_and_sides_take_turns(monkeypatch):
    order, now = list[str](), [5.0]  # a clock that only work moves: the machine's own speed is not what is tested
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])

    def side(name: str, seconds: float) -> timing.Side:
        def work(count: int) -> int:
            order.append(name)
            now[0] += seconds * count
            return 10 * count

        return work

    found = timing.rates({"fast": side("fast", 0.002), "slow": side("slow", 0.02)}, repeats=3)
    assert order[-6:] == ["fast", "slow"] * 3
    assert found["fast"] == pytest.approx([5_000] * 3)
    assert found["slow"] == pytest.approx([500] * 3)
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


def test_generations_are_bred_fast(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    found = bench.MEASURES["breeding"](1)
    assert len(found) == 4
    assert all(each.median and each.target == 20 for each in found)


def test_windows_beat_their_loop(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(learning, "LENGTHS", (25,))
    found = bench.MEASURES["windows"](5)  # a median: a core that is lent to others for a moment spoils one of them
    assert len(found) == 2
    assert all(each.median is not None and each.median > 1 for each in found if each.name.startswith("MLP"))


def test_layers_over_time_beat_the_plain_one(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    found = bench.MEASURES["attention"](3)  # a median, see above
    assert len(found) == 7
    assert all(each.median is not None and each.median > 1 for each in found)


@pytest.mark.parametrize("name", ["VDN", "COMA"])
def test_learners_are_measured_beside_what_was_published(name, monkeypatch):
    """An update twice as fast as published is 2.0x; runs learn as often as theirs."""
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(value, "PUBLISHED", {name: value.Published(update=1e6, alone=None, together=1e-3)})
    found = bench.MEASURES["value"](1)
    assert len(found) == 3 and all(each.values[0] > 1 for each in found)
    assert [each.target for each in found] == [5, 3, 5]
    run = value._begun(name, value.BATCHED, 8)
    updates, steps = run.updates, run.steps
    run.go_on(4)
    assert (run.updates - updates) * 8 * value.EPISODE == run.steps - steps


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


# ------------------------------------------------------------------------------------------------------------- scaling
def made_up(power: float, naive: Found, speed: float = 100.0) -> list[Cell]:
    """All cells of a measurement in which Sable's memory grows with this power of agents and of steps."""
    found = {
        (case, work): Found((speed,) * 5, int(1e5 * (case.agents * case.steps) ** power), before=10**8)
        for case in scaling.cases(scaling.AGENTS)
        for work in case.works()
    }
    found |= {key: naive for key in found if key[0].system == NAIVE}
    found |= {key: replace(each, values=(50.0,) * 5) for key, each in found.items() if key[0].system == CACHED}
    return [Cell(*key, each) for key, each in found.items()]


def test_every_cell_is_measured_at_the_sizes_that_are_told():
    cases = scaling.cases(scaling.AGENTS)
    assert len(set(cases)) == len(cases)
    for system in scaling.SYSTEMS:
        sizes = [case.agents for case in cases if case.system == system and case.steps in (1, STEPS)]
        large = {size for size in scaling.AGENTS if size >= MANY}
        assert set(sizes) == (large if system in scaling.COMPILED.values() else set(scaling.AGENTS))
    assert all(case.copies == (1 if case.agents >= MANY else COPIES) for case in cases if case.system == NAIVE)
    assert {case.steps for case in cases if case.system == REC and case.agents == 32} == set(scaling.LENGTHS)


def test_statements_hold_the_numbers_to_what_is_promised():
    slow = Found((10.0, 10.0, 20.0), 5)
    good = {each.claim: each for each in scaling_page.statements(made_up(1.0, slow))}
    assert all(each.reached for each in good.values())
    assert good[f"{REC} acts at least 5 times as fast as {NAIVE}: 512 agents, 1 copy"].found == "10 times"
    assert good[f"{FF} acts at least 1 times as fast as {CACHED}: 512 agents, 16 copies"].found == "2 times"
    assert (
        good[f"{REC}, learning: memory grows linearly with steps (slope at most 1.1)"].found == "1.00 from 128 to 512"
    )
    fits = good[f"{REC} learns from 1024 agents, 8 steps, 16 copies in 16 GB"]
    assert fits.found == "0.92 GB, torch and interpreter included"
    bad = scaling_page.statements(made_up(1.2, Found((30.0,), 5)))
    assert [each.reached for each in bad] == [False] * 10 + [True] * 5 + [False]
    unknown = scaling_page.statements(made_up(1.0, Found(note="over 120 s")))
    assert [each.cells[2] for each in unknown if NAIVE in each.claim] == ["not measured"] * 4


def test_the_page_drops_nothing(tmp_path):
    cells, bounds = made_up(1.0, Found(note="over 120 s")), Bounds()
    cells[0] = cells[0]._replace(found=Found((7.0, 9.0), 12_345_678))
    page = scaling_page.markdown(cells, bounds, "a machine", "scaling.png")
    assert "| 2 | 8 | 16 | ff-Sable | 8 | 12.3 | 100 | 1.6 | acting: 2 repeats |" in page
    assert "| 512 | 1 | 1 | MAT, naive | over 120 s | - | - | - |  |" in page
    assert "accumulate=16, recompute=true" in page
    assert page.count("\n| ") == 2 + 16 + 2 + len(scaling.cases(scaling.AGENTS))
    told = json.loads(scaling_page.as_json(cells, bounds, "a machine"))
    assert len(told["cells"]) == len(cells)
    assert scaling_page.picture(cells, tmp_path / "scaling.png", "a machine").stat().st_size > 50_000


def test_all_that_is_measured_works(tmp_path, monkeypatch):
    def here(small: Making, work: Making, bounds: Bounds) -> Found:
        return Found(tuple(timing.afforded(work(), 1, seconds=0)), 1)

    for name, size in {"MANY": 3, "LONG": 3, "TEAM": 4, "LENGTHS": (1, 2)}.items():
        for module in (scaling, scaling_page):
            monkeypatch.setattr(module, name, size, raising=module is scaling)
    monkeypatch.setattr(scaling, "isolated", here)
    plain = {name: replace(system, compile=False) for name, system in scaling.SYSTEMS.items()}
    monkeypatch.setattr(scaling, "SYSTEMS", plain)  # here every call is checked, which no compiled function can hold
    bench.scaled((2, 3), Bounds(1), tmp_path / "page.md", Console(width=200))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".png"]
    cells = json.loads((tmp_path / "page.json").read_text())["cells"]
    assert {each["system"] for each in cells if each["agents"] == 3} == set(scaling.SYSTEMS)
    assert all(each["values"][0] > 0 for each in cells)


def test_an_interrupted_measurement_keeps_what_it_has(tmp_path, monkeypatch):
    begun: list[Making] = []

    def here(small: Making, work: Making, bounds: Bounds) -> Found:
        begun.append(work)
        if len(begun) > 3:
            raise KeyboardInterrupt
        return Found((1.0,), 1)

    monkeypatch.setattr(scaling, "isolated", here)
    bench.scaled((2, 8), Bounds(1), tmp_path / "page.md", Console(width=200))
    assert len(json.loads((tmp_path / "page.json").read_text())["cells"]) == 3


def test_a_process_of_its_own_tells_speed_and_memory():
    case = Case(REC, 64)
    small, work = (partial(scaling.ready, each, "learning", "cpu") for each in (Case(REC, 2, 1, 1), case))
    found = isolated(small, work, Bounds(repeats=1, limit=240, threads=1))
    tokens = case.agents * case.steps * case.copies
    assert found.values
    assert 2_000 * tokens < found.peak < 120_000 * tokens  # allocators and matrix libraries differ in what they keep
    assert 50e6 < found.before < 2e9
    assert isolated(small, work, Bounds(limit=0.01)).note == "over 0.01 s"
    assert isolated(small, partial(scaling.ready, case, "learning", "nowhere"), Bounds()).note == "ended with code 1"


@pytest.mark.parametrize(
    "wrong",
    [
        Bench(("scaling", "spread")),
        Bench(("scaling",), repeats=0),
        Bench(("scaling",), agents=(0, 2)),
        Bench(("scaling",), limit=0),
        Bench(("scaling",), device="cuda:99"),
        Bench(("scaling",), output=Path("page.json")),
    ],
)
def test_a_scaling_that_cannot_be_is_refused_before_it_begins(wrong):
    with pytest.raises(ConfigError):
        wrong()
