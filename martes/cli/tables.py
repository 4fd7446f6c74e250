"""What `martes list` and `martes train --help` show: names with what they stand for, and what is installed."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distribution, requires
from typing import TYPE_CHECKING, Literal, get_origin

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from martes.presets import ALGORITHMS, DEFAULT, TASKS

if TYPE_CHECKING:
    from martes.experiment import Experiment, Setting


def console() -> Console:
    """Standard output, as wide as the terminal or the variable COLUMNS says; 120 where neither does."""
    is_known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, markup=False, width=None if is_known else 120)


def table(*columns: str, show_header: bool = True) -> Table:
    """An empty table whose first column never breaks."""
    empty = Table(box=None, pad_edge=False, show_header=show_header)
    for index, name in enumerate(columns):
        empty.add_column(name, no_wrap=not index, overflow="fold")
    return empty


def titled(title: str, content: Table) -> Group:
    """The table below its title."""
    return Group(Text(title, style="bold"), content, "")


def algorithms() -> Group:
    """Every algorithm that is installed."""
    from martes.algorithms.registry import algorithm_entries

    return _listed("algorithms", {name: entry.doc for name, entry in algorithm_entries().items()})


def envs() -> Group:
    """Every environment, and how to get what some of them need."""
    from martes.envs.names import listed_envs

    shown = table("", "", "", show_header=False)
    for name, each in listed_envs().items():
        shown.add_row(name, each.doc, each.cure)
    return titled("environments", shown)


def presets() -> Group:
    """Each algorithm and each task that a preset can be made of."""
    shown = table("task", "environment steps")
    for task, steps in TASKS.items():
        shown.add_row(task, f"{steps:,}")
    return titled(f"presets: <algorithm>/<task>, as in {DEFAULT}; algorithm is {', '.join(ALGORITHMS)}", shown)


def extras() -> Group:
    """Each extra: installed, or the command that installs it."""
    shown = table("extra", "packages", "")
    for name, packages in _extras().items():
        missing = [package for package in packages if not _is_installed(package)]
        shown.add_row(name, ", ".join(packages), f"pip install 'martes[{name}]'" if missing else "installed")
    return titled("extras", shown)


LISTED: Mapping[str, Callable[[], Group]] = {
    "algorithms": algorithms,
    "envs": envs,
    "presets": presets,
    "extras": extras,
}


def settings(experiment: "Experiment") -> list[Group]:
    """A table for each section of an experiment: every value that can be changed, as it is, and what it means."""
    from martes.experiment import settings_of

    return _sections(settings_of(experiment))


def evolution() -> list[Group]:
    """The table of how populations evolve."""
    from martes.evolution.settings import Evolution
    from martes.experiment import settings_in

    return _sections(settings_in(Evolution(), "evolution"))


def _sections(found: "Iterable[Setting]") -> list[Group]:
    from martes.conversion import as_typed, described

    sections: dict[str, Table] = {}
    for each in found:
        name = each.path.partition(".")[0]
        shown = sections.setdefault(name, table("", "", "", show_header=False))
        choices = f" ({described(each.kind)})" if get_origin(each.kind) is Literal else ""
        shown.add_row(f"--{each.path}", as_typed(each.value), each.doc + choices)
    return [titled(name, shown) for name, shown in sections.items()]


def _listed(title: str, docs: Mapping[str, str]) -> Group:
    shown = table("", "", show_header=False)
    for name, doc in docs.items():
        shown.add_row(name, doc)
    return titled(title, shown)


def _extras() -> dict[str, list[str]]:
    """Extra -> its packages, as this installation's metadata say; those for work on martes itself are left out."""
    found: dict[str, list[str]] = {}
    for line in requires("martes") or ():
        match = re.match(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"]", line)
        if match and match[2] not in ("dev", "docs"):
            found.setdefault(match[2], []).append(match[1])
    return found


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True
