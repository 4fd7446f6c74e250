"""Beside AgileRL: the table says what was measured, both sides do equal work, and a peer that cannot run is told."""

import json
import os
import sys
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from martes import bench
from martes.bench import agilerl, agilerl_page, agilerl_peer
from martes.bench.agilerl_page import Beside, Told, with_section
from martes.bench.learning import Run
from martes.bench.timing import Measurement
from martes.cli.commands import Bench
from martes.envs.catalogue import environment
from martes.errors import ConfigError
from martes.evolution.generation import Site

RATE = Beside("training", (100.0, 200.0, 400.0), (300.0, 800.0, 2000.0), goal=3, note="why")
TIME = Beside("an update", (100.0, 125.0), (500.0, 500.0), goal=8, is_time=True)
BRED = Beside("generation", (1.0,), (16.0,), most=50, is_time=True)
PAGE = "# Benchmarks\n\n| a |\n\n## Beside AgileRL\n\nold\n\n## Others\n\nkept\n"


def test_a_line_tells_both_sides_their_ratio_and_its_goal():
    """Ratios are taken within a repeat, 3, 4 and 5; times are the inverse of what was done in a second."""
    assert RATE.cells == ("training", "200/s", "800/s", "4.0x", "3.0x to 5.0x", "3x", "yes", "why")
    assert TIME.cells == ("an update", "8.89 ms", "2.00 ms", "4.5x", "4.0x to 5.0x", "8x", "no", "")
    assert BRED.cells[5:7] == ("50 ms", "no")
    assert replace(BRED, ours=(25.0,)).is_reached
    assert replace(BRED, ours=(25.0,), goal=30).is_reached is False
    assert replace(RATE, goal=None).cells[5:7] == ("", "")


def test_the_section_takes_its_own_place_in_the_page(tmp_path):
    told = Told((RATE, TIME), "AgileRL 2.58.0", "a machine", 1.25)
    page = with_section(PAGE, told.section())
    heads = [line for line in page.splitlines() if line.startswith("#")]
    assert heads == ["# Benchmarks", "## Beside AgileRL", "## Others"]
    assert "old" not in page and page.endswith("kept\n")
    assert (
        "on a machine, beside AgileRL 2.58.0; 1.2 processes were at work there before it began: **a busy machine**"
        in page
    )
    assert "busy" not in replace(told, load=0.1).section()
    assert "| an update | 8.89 ms | 2.00 ms | 4.5x | 4.0x to 5.0x | 8x | no |  |" in page
    assert with_section(page, told.section()) == page
    assert with_section("# Benchmarks\n", told.section()).startswith("# Benchmarks\n\n## Beside AgileRL\n")
    rows = json.loads(told.as_json())["lines"]
    assert [row["ratio"] for row in rows] == [4.0, 4.5]
    assert rows[0]["ours"] == [300.0, 800.0, 2000.0]

    output = tmp_path / "page.md"
    output.write_text(page)
    bench.write([Measurement("new", (2.0,), 1)], 1, output)
    written = output.read_text()
    assert "| new | 2.0x |" in written and "| a |" not in written
    assert written.partition("\n## ")[2] == page.partition("\n## ")[2]


def test_both_sides_do_equal_work():
    theirs = agilerl_peer.SETTINGS["MADDPG"]["learn_step"]
    assert isinstance(theirs, int)
    assert theirs // agilerl_peer.ENVS == agilerl.STEPS
    assert agilerl_peer.PIECE % (agilerl.STEPS * agilerl.COPIES) == 0
    assert agilerl.ROLLOUT * agilerl.COPIES == agilerl_peer.ROLLOUT == agilerl_peer.SETTINGS["IPPO"]["learn_step"]
    env = environment(agilerl.BATCHED)
    run = Run(agilerl.ALGORITHMS["MATD3"].learner(env.team, torch.Generator().manual_seed(0)), env)
    updates = run.updates
    assert run.go_on(3) == 3 * 96
    assert run.updates == updates + 3
    assert run.update(2) == 2
    assert run.updates == updates + 5


@pytest.mark.parametrize(("name", "critics"), [("MADDPG", 2 * 1953), ("MATD3", 4 * 1953), ("IPPO", None)])
def test_parameters_are_counted_by_hand(name, critics):
    """Two slots, padded to 11 numbers in and 5 out: layers of 32, 32, 64, 32, each normalised. A critic sees 14 + 8."""
    widths = (11, 32, 32, 64, 32)
    body = sum((a + 1) * b + 2 * b for a, b in pairwise(widths))
    learner = agilerl.ALGORITHMS[name].learner(environment(agilerl.BATCHED).team, torch.Generator())
    spread = 10 if name == "IPPO" else 0  # of its actions, learned
    assert agilerl.parameters(learner) == (2 * (body + 33 * 5) + spread, critics or 2 * (body + 33))


@pytest.mark.parametrize("is_revived", [False, True])
def test_generations_are_bred(is_revived):
    bred = agilerl.generations(agilerl.ALGORITHMS["MADDPG"], environment(agilerl.BATCHED).team, is_revived)
    assert bred(2) == 2


def stand_in(folder: Path, script: str) -> Path:
    """An interpreter that runs a line of shell in place of what it is given."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return path


def test_orders_are_answered_until_the_peer_ends(tmp_path):
    """One that has ended says what it said last, not that a pipe is broken."""
    python = stand_in(tmp_path, "echo '{\"agilerl\": \"1\"}'; read order; echo 7; echo '' lost >&2")
    with agilerl.Peer(python) as peer:
        assert peer.hello() == {"agilerl": "1"}
        assert peer.side("environment")(3) == 7
        with pytest.raises(ConfigError, match=r"does not run under --python .*\(lost\).*pip install agilerl==2.58.0"):
            peer.side("environment")(3)
        process = peer._process
    assert process.poll() == 0


@pytest.mark.skipif(find_spec("agilerl") is not None, reason="it is installed here")
def test_an_interpreter_without_agilerl_is_refused():
    with pytest.raises(ConfigError, match=r"No package metadata was found for agilerl\).*peft mpe2"):
        agilerl.measured(Path(sys.executable), 1)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (Bench(("agilerl",)), "say --python"),
        (Bench(("agilerl", "spread"), python=Path(sys.executable)), "measure it alone"),
        (Bench(("agilerl",), python=Path(sys.executable), repeats=0), "--repeats is 0"),
        (Bench(("agilerl",), python=Path("nowhere/python")), "nowhere/python cannot be run: No such file"),
        (Bench(("agilerl",), python=Path(os.curdir)), "cannot be run: Permission denied"),
    ],
)
def test_what_cannot_be_measured_is_refused(wrong, told):
    with pytest.raises(ConfigError, match=told):
        wrong()


def test_the_section_is_headed_as_it_is_found():
    assert Told((), "", "", 0.0).section().startswith(f"{agilerl_page.HEADING}\n")


def test_a_population_lives_as_evolve_lets_it():
    """Two generations of four members, each of as many steps as one of the peer's; the pool grows with them."""
    with closing(Site()) as site:
        lived = agilerl.population(agilerl.BATCHED, environment(agilerl.BATCHED).team, site)
        assert lived(1) == lived(1) == 4 * agilerl_peer.PIECE
