"""What was measured as agents and rollouts grow: a table, what is stated of its numbers, and a picture."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import linear_regression, median
from typing import TYPE_CHECKING, NamedTuple

from martes.bench.isolated import Bounds, Found
from martes.bench.scaling import (
    CACHED,
    COMPILED,
    COMPILING,
    COPIES,
    FF,
    LONG,
    MANY,
    NAIVE,
    REC,
    STEPS,
    SYSTEMS,
    TEAM,
    WORKS,
    Case,
    Cell,
    Work,
)  # fmt: skip
from martes.envs.batched.drawing import INK, MIST, PALETTE
from martes.networks.autoregressive import UNROLLED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADS = (
    "agents", "steps", "copies", "system", "acting, env-steps/s", "acting, peak MB", "learning, env-steps/s",
    "learning, peak MB", "note",
)  # fmt: skip
SLOPE = 1.1
"""What still counts as linear: the slope of log memory over log size."""
ROOM = 16e9
"""Bytes in which the largest team is to be trained."""
_MARKS = "os^DvP*"

METHOD = f"""\
The game is `crowd`: each agent names the sign that it is shown; a step costs next to nothing. All networks have width
64, one head and one layer (MAPPO: 64-64 for the policy, which sees its agent's own observation, and for the critic,
which sees all of them joined). An env-step is one step of one copy, the whole team together.

- **Acting**: choosing the actions of every agent and stepping the game, recorded over the given steps. **Learning**:
  one gradient step over one rollout of the given steps and copies, in one piece unless a note says otherwise.
- **Each number has a process of its own**, which first does the same with two agents, two steps and two copies. *Peak*
  is how far memory then rises above what the process held before: parameters, optimiser, rollout and activations are
  in it, the interpreter and torch are not. On a CPU it is resident memory (`VmHWM`), on a GPU what torch allocated.
- Speed is the median of the repeats. Work that leaves no time for all of them is told with their number; work that did
  not end in time, with the limit.
- **MAT, naive** decodes the whole team again for each agent, as the published code does; **cached** keeps keys and
  values. Both attend by fused kernels, and learn alike, which is measured once. From {MANY} agents on naive MAT plays
  one copy, step by step; so does Sable, in lines of its own, for a comparison of like with like.
- **Compiled** is `algorithm.compile=true`: of a team above {UNROLLED} agents one turn is compiled, not the step. MAT's
  turns are not: what it keeps grows with each of them. Measured from {MANY} agents on, with {COMPILING:g} s more.
"""


class Statement(NamedTuple):
    """A claim, what was found, and whether that reaches it; None: it was not measured."""

    claim: str
    found: str
    reached: bool | None

    @property
    def cells(self) -> tuple[str, ...]:
        """Claim, finding, verdict."""
        verdict = {True: "reached", False: "missed", None: "not measured"}
        return self.claim, self.found, verdict[self.reached]


Table = dict[tuple[Case, Work], Found]


def rows(cells: Iterable[Cell], repeats: int) -> list[tuple[str, ...]]:
    """A row for each case, with the cells of acting and learning."""
    table = _table(cells)
    return [
        (
            *(str(each) for each in (case.agents, case.steps, case.copies)),
            case.system,
            *(text for work in WORKS for text in _shown(table.get((case, work)))),
            "; ".join(_notes(case, table, repeats)),
        )
        for case in dict.fromkeys(case for case, _ in table)
    ]


def _table(cells: Iterable[Cell]) -> Table:
    return {(case, work): found for case, work, found in cells}


def _shown(found: Found | None) -> tuple[str, str]:
    if found is None or not found.values:
        return (found.note if found else "-"), "-"
    return _number(median(found.values)), _number(found.peak / 1e6)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _notes(case: Case, table: Table, repeats: int) -> list[str]:
    measured = ((work, len(table[case, work].values)) for work in WORKS if (case, work) in table)
    fewer = [f"{work}: {_repeats(count)}" for work, count in measured if 0 < count < repeats]
    return [note for note in (case.note, *fewer) if note]


def _repeats(count: int) -> str:
    return f"{count} repeats" if count > 1 else "once, not warmed up"


# --------------------------------------------------------------------------------------------------------- statements
def statements(cells: Iterable[Cell]) -> list[Statement]:
    """What Sable promises of speed and memory, held against these numbers."""
    table = _table(cells)
    largest = max((case.agents for case, _ in table if case.saves), default=0)
    linear = [
        *(_is_linear(table, system, work, "agents") for system in (FF, REC) for work in WORKS),
        *(_is_linear(table, REC, work, "steps") for work in WORKS),
    ]
    against = [
        *(_is_faster(table, system, Case(NAIVE, MANY, 1, copies=1), 5) for system in (FF, REC, *COMPILED.values())),
        *(_is_faster(table, system, Case(CACHED, MANY), 1) for system in (FF, REC, *COMPILED.values())),
    ]
    trained = [_fits(table, case) for case in (Case(REC, largest), Case(REC, largest, LONG, saves=True))]
    return [*linear, *against, *trained]


def _is_linear(table: Table, system: str, work: Work, axis: str) -> Statement:
    """Least squares of log memory over log size, where size is a tenth of the largest at least."""
    points = _points(table, system, work, axis, lambda found: float(found.peak))
    points = [(size, peak) for size, peak in points if peak > 0 and size >= max(points)[0] / 10]
    claim = f"{system}, {work}: memory grows linearly with {axis} (slope at most {SLOPE:g})"
    if len(points) < 2:
        return Statement(claim, "", None)
    slope = linear_regression(*([math.log(value) for value in column] for column in zip(*points, strict=True))).slope
    return Statement(claim, f"{slope:.2f} from {points[0][0]} to {points[-1][0]}", slope <= SLOPE)


def _is_faster(table: Table, system: str, other: Case, times: float) -> Statement:
    own = Case(system, other.agents, other.steps, other.copies)
    copies = f"{other.copies} " + ("copies" if other.copies > 1 else "copy")
    claim = f"{system} acts at least {times:g} times as fast as {other.system}: {other.agents} agents, {copies}"
    ours, theirs = (table.get((case, "acting"), Found()).values for case in (own, other))
    if not ours or not theirs:
        return Statement(claim, "", None)
    ratio = median(ours) / median(theirs)
    return Statement(claim, f"{ratio:.3g} times", ratio >= times)


def _fits(table: Table, case: Case) -> Statement:
    claim = f"{case.system} learns from {case.agents} agents, {case.steps} steps, {case.copies} copies in 16 GB"
    found = table.get((case, "learning"), Found())
    if not found.values:
        return Statement(claim, found.note, None)
    whole = found.before + found.peak
    return Statement(claim, f"{whole / 1e9:.2f} GB, torch and interpreter included", whole <= ROOM)


def _points(
    table: Table, system: str, work: Work, axis: str, read: Callable[[Found], float], copies: int = COPIES
) -> list[tuple[int, float]]:
    """(size, number) of the cases in which only this axis grows, in order."""
    found: list[tuple[int, float]] = []
    for (case, did), each in table.items():
        is_ours = (case.system, did, case.copies, case.saves) == (system, work, copies, False) and bool(each.values)
        fixed = case.agents == TEAM if axis == "steps" else case.steps == (STEPS if copies > 1 else 1)
        if is_ours and fixed:
            found.append((case.steps if axis == "steps" else case.agents, read(each)))
    return sorted(found)


# --------------------------------------------------------------------------------------------------------------- pages
def markdown(cells: Sequence[Cell], bounds: Bounds, machine: str, picture: str) -> str:
    """A page: how it was made, the picture, what is stated, the table."""
    device = f" --device {bounds.device}" if bounds.device != "cpu" else ""
    command = f"```bash no-run\nmartes bench scaling{device} --output docs/scaling.md\n```"
    made = f"Made by\n\n{command}\n\non {machine}; up to {bounds.repeats} repeats, {bounds.limit:g} s for each number."
    claims = [("statement", "found", ""), ("---",) * 3, *(each.cells for each in statements(cells))]
    marks = ["---:"] * 3 + ["---"] + ["---:"] * 4 + ["---"]
    table = [HEADS, tuple(marks), *rows(cells, bounds.repeats)]
    parts = (
        made,
        METHOD,
        f"![speed and memory]({picture})",
        "## Stated",
        _joined(claims),
        "## Measured",
        _joined(table),
    )
    return "# Scaling\n\n" + "\n\n".join(part.strip() for part in parts) + "\n"


def _joined(table: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def as_json(cells: Iterable[Cell], bounds: Bounds, machine: str) -> str:
    """Every repeat of every cell, and the statements, as JSON."""
    cells = list(cells)
    measured = [asdict(case) | {"work": work} | asdict(found) for case, work, found in cells]
    stated = [each._asdict() for each in statements(cells)]
    content = {"machine": machine, "bounds": asdict(bounds), "cells": measured, "statements": stated}
    return json.dumps(content, indent=2) + "\n"


def picture(cells: Iterable[Cell], path: Path, machine: str) -> Path:
    """The path of a picture: speed and memory against the agents, and memory against the steps of a rollout."""
    from matplotlib.figure import Figure

    table = _table(cells)
    figure = Figure(figsize=(15, 9), dpi=110, layout="constrained")
    panels = figure.subplots(2, 3)
    for column, work in enumerate(WORKS):
        _draw(panels[0, column], table, work, "agents", is_speed=True)
        _draw(panels[1, column], table, work, "agents", is_speed=False)
        _draw(panels[column, 2], table, work, "steps", is_speed=False)
    labelled = {
        label: line for axes in panels.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    columns = len(labelled) if len(labelled) <= 6 else (len(labelled) + 1) // 2
    figure.legend(labelled.values(), labelled, loc="outside upper center", ncols=columns, fontsize=12, frameon=False)
    figure.supxlabel(machine, fontsize=10, color=INK)
    figure.savefig(path)
    return path


def _draw(axes: "Axes", table: Table, work: Work, axis: str, is_speed: bool) -> None:
    """Lines of all systems, those of one copy hollow; and the slope of what grows linearly."""

    def read(found: Found) -> float:
        return median(found.values) if is_speed else found.peak / 1e6

    drawn: set[int] = set()
    for index, system in enumerate(SYSTEMS):
        style = {"color": PALETTE[index], "marker": _MARKS[index], "markersize": 7, "linewidth": 2.2}
        for copies in (COPIES, 1):
            points = _points(table, system, work, axis, read, copies)
            if not points or (copies == 1 and axis == "steps"):
                continue
            drawn |= {size for size, _ in points}
            one = {"linestyle": (0, (2, 2)), "markerfacecolor": "white"} if copies == 1 else {}
            axes.plot(*zip(*points, strict=True), **style, **one, label=system + (", 1 copy" if one else ""))
    if drawn and not is_speed:
        _draw_linear(axes, _points(table, REC, work, axis, read))
    what = "env-steps a second" if is_speed else "peak memory, MB"
    fixed = f"{STEPS} steps" if axis == "agents" else f"{TEAM} agents"
    axes.set_title(f"{work}: {what}", fontsize=14, color=INK)
    axes.set_xlabel(f"{'agents' if axis == 'agents' else 'steps of a rollout'} ({fixed}, {COPIES} copies)", fontsize=12)
    _scale(axes, sorted(drawn))


def _draw_linear(axes: "Axes", points: list[tuple[int, float]]) -> None:
    if len(points) > 1 and points[-1][1] > 0:
        (low, _), (high, peak) = points[0], points[-1]
        axes.plot((low, high), (peak * low / high, peak), color=MIST, linewidth=5, zorder=0, label="linear")


def _scale(axes: "Axes", sizes: list[int]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(color=MIST, linewidth=0.6, alpha=0.7)
    axes.tick_params(labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
