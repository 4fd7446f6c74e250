"""What `martes list` and `martes train --help` show: names with what they stand for, and what is installed."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distribution, requires
from typing import TYPE_CHECKING, Literal, get_origin

from rich.console import Console
from rich.table import Table

from martes.conversion import as_typed, described
from martes.presets import ALGORITHMS, DEFAULT, TASKS

if TYPE_CHECKING:
    from martes.experiment import Experiment


def console() -> Console:
    """Standard output, as wide as the terminal or the variable COLUMNS says; 120 where neither does."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=120)


def table(title: str, *columns: str, show_header: bool = True) -> Table:
    """An empty table whose first column never breaks."""
    empty = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=show_header
    )
    for index, name in enumerate(columns):
        empty.add_column(name, no_wrap=not index, overflow="fold")
    return empty


def algorithms() -> Table:
    """Every algorithm that is installed."""
    from martes.algorithms.registry import algorithm_entries

    return _listed("algorithms", {name: entry.doc for name, entry in algorithm_entries().items()})


def envs() -> Table:
    """Every environment that is installed."""
    from martes.envs.catalogue import listed_envs

    return _listed("environments", listed_envs())


def presets() -> Table:
    """Each algorithm and each task that a preset can be made of."""
    shown = table(f"presets: <algorithm>/<task>, as in {DEFAULT}", "task", "environment steps", "with each of")
    for task, steps in TASKS.items():
        shown.add_row(task, f"{steps:,}", ", ".join(ALGORITHMS))
    return shown


def extras() -> Table:
    """Each extra: installed, or the command that installs it."""
    shown = table("extras", "extra", "packages", "")
    for name, packages in _extras().items():
        missing = [package for package in packages if not _is_installed(package)]
        shown.add_row(name, ", ".join(packages), f"pip install 'martes[{name}]'" if missing else "installed")
    return shown


LISTED: Mapping[str, Callable[[], Table]] = {
    "algorithms": algorithms,
    "envs": envs,
    "presets": presets,
    "extras": extras,
}


def settings(experiment: "Experiment") -> Iterable[Table]:
    """A table for each section of an experiment: every value that can be changed, as it is, and what it means."""
    from martes.experiment import settings_of

    sections: dict[str, Table] = {}
    for each in settings_of(experiment):
        name = each.path.partition(".")[0]
        shown = sections.setdefault(name, table(name, "", "", "", show_header=False))
        choices = f" ({described(each.kind)})" if get_origin(each.kind) is Literal else ""
        shown.add_row(f"--{each.path}", as_typed(each.value), each.doc + choices)
    return sections.values()


def _listed(title: str, docs: Mapping[str, str]) -> Table:
    shown = table(title, "name", "")
    for name, doc in docs.items():
        shown.add_row(name, doc)
    return shown


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
