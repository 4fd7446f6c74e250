"""How fast martes is on this machine, and how much faster than what it stands in for: `martes bench`."""

import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from martes.bench import agilerl, attention, border, breeding, games, learning, scaling, scaling_page, sequential, value
from martes.bench.agilerl_page import HEADS as BESIDE
from martes.bench.agilerl_page import Told, joined, parts, with_section
from martes.bench.isolated import Bounds
from martes.bench.timing import SECONDS, Measurement
from martes.errors import ConfigError, nearest
from martes.training.process import cores, reuse_memory, threads

METHOD = f"""\
The sides of a ratio take turns in one process with the same threads. Each piece of work is sized to take at least
{SECONDS} s, which also warms it up, and is then timed once a repeat; shown are the median and the range of the repeats.
Random actions are drawn beforehand. An env-step is one step of one copy of an environment, the whole team together.
Where a line says "published", the other side was not run here: its figures are EPyMARL's (commit cbc38c0, its defaults,
torch 2.13), measured once on two shared cores with one thread of torch, on Foraging-8x8-2p-3f. Networks, batches and
updates for each env-step are the same, and one thread of torch; a run acts, stores and learns.
"""


HEADS = ("measurement", "median", "range", "target", "reached")
SCALING = "scaling"
"""The measurement that is a page of its own, and takes longer than all others together."""
AGILERL = "agilerl"
"""The measurement that needs an interpreter with another library: a section of its own."""


def measured(names: Sequence[str], repeats: int, thread_count: int, console: Console) -> list[Measurement]:
    """The measurements of these names, or all; a table of them is printed.

    Raises ConfigError for an unknown name, or less than one repeat.
    """
    for name in names:
        if name not in MEASURES:
            raise ConfigError(f"no measurement {name!r}{nearest(name, (*MEASURES, SCALING, AGILERL))}")
    if repeats < 1:
        raise ConfigError(f"--repeats is {repeats}: it must be at least 1")
    results: list[Measurement] = []
    reuse_memory()  # as every run does
    with threads(thread_count):
        for name in names or MEASURES:
            with console.status(f"measuring {name}"):
                results += MEASURES[name](repeats)
    table = Table(box=None, pad_edge=False)
    for index, head in enumerate(HEADS):
        table.add_column(head, justify="right" if 0 < index < 4 else "left")
    for each in results:
        table.add_row(*each.cells)
    console.print(machine(thread_count), table)
    return results


def markdown(results: Iterable[Measurement], thread_count: int) -> str:
    """A page of the measurements, and of how they were made."""
    rows = [HEADS, ("---", *["---:"] * 3, "---"), *(each.cells for each in results)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    command = "```bash no-run\nmartes bench --output docs/benchmarks.md\n```"
    return f"# Benchmarks\n\nMade by\n\n{command}\n\non {machine(thread_count)}.\n\n{METHOD}\n{table}"


def write(results: Iterable[Measurement], thread_count: int, output: Path) -> None:
    """Writes a page, in which sections that other measurements wrote stay; or, to a name of another end, JSON."""
    text = as_json(results, thread_count)
    if output.suffix == ".md":
        kept = parts(output.read_text(encoding="utf-8"))[1] if output.exists() else []
        text = joined(markdown(results, thread_count), *kept)
    output.write_text(text, encoding="utf-8")


def beside_agilerl(python: Path | None, repeats: int, output: Path | None, console: Console) -> None:
    """Prints how fast martes and AgileRL are, and writes it: as the section of a page (.md), or as JSON.

    Raises ConfigError where AgileRL does not run under `python`.
    """
    load = os.getloadavg()[0]
    with console.status("measuring agilerl"):
        lines, peer = agilerl.measured(python, repeats)
    told = Told(lines, peer, machine(1), load)
    table = Table(*BESIDE, box=None, pad_edge=False)
    for each in lines:
        table.add_row(*each.cells)
    console.print(told.made, table)
    if output is not None:
        page = output.read_text(encoding="utf-8") if output.suffix == ".md" and output.exists() else "# Benchmarks\n"
        text = with_section(page, told.section()) if output.suffix == ".md" else told.as_json()
        output.write_text(text, encoding="utf-8")
        console.print(f"written: {output}")


def as_json(results: Iterable[Measurement], thread_count: int) -> str:
    """The measurements, every repeat of them, as JSON."""
    rows = [asdict(each) | {"median": each.median} for each in results]
    return json.dumps({"machine": machine(thread_count), "measurements": rows}, indent=2) + "\n"


def scaled(agents: Sequence[int], bounds: Bounds, output: Path | None, console: Console) -> None:
    """Prints how speed and memory grow with a team, and writes a page, its picture (.png) and its numbers (.json).

    The three differ in their suffix alone. Raises ConfigError for what cannot be measured, before anything is.
    """
    if bounds.repeats < 1:
        raise ConfigError(f"--repeats is {bounds.repeats}: it must be at least 1")
    if output is not None and output.suffix != ".md":
        raise ConfigError(
            f"--output is {output}: give the page a name that ends with .md; picture and JSON lie beside it"
        )
    cells = scaling.cells(agents, bounds, console)
    where = machine(bounds.threads)
    if bounds.device != "cpu":
        where = f"{torch.cuda.get_device_name(bounds.device)} ({bounds.device}), host {where}"
    for heads, rows in (
        (scaling_page.HEADS, scaling_page.rows(cells, bounds.repeats)),
        (("statement", "found", ""), [each.cells for each in scaling_page.statements(cells)]),
    ):
        table = Table(*heads, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        console.print(where, table, "")
    if output is not None:
        picture = scaling_page.picture(cells, output.with_suffix(".png"), where)
        output.write_text(scaling_page.markdown(cells, bounds, where, picture.name), encoding="utf-8")
        numbers = output.with_suffix(".json")
        numbers.write_text(scaling_page.as_json(cells, bounds, where), encoding="utf-8")
        console.print(f"written: {output}, {picture}, {numbers}")


def machine(thread_count: int) -> str:
    """What the measurements were made on."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{model}, {cores()} cores, {thread_count or cores()} threads, torch {torch.__version__}"


MEASURES: Mapping[str, Callable[[int], list[Measurement]]] = {
    "spread": games.spread,
    "foraging": games.foraging,
    "process": border.process,
    "native": border.native,
    "acting": learning.acting,
    "training": learning.training,
    "windows": learning.windows,
    "value": value.value,
    "attention": attention.attention,
    "sequential": sequential.sequential,
    "breeding": breeding.breeding,
}
