"""What is shown of a generation: a row for each member."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from martes.evolution.generation import Outcome
from martes.evolution.lineage import Life
from martes.evolution.member import in_words

_WIDTH = 140


def generation_table(outcomes: Sequence[Outcome], lives: Sequence[Life], elite: int) -> str:
    """A table of the members: whence they come, what they earned, how they differ, and what is searched."""
    paths = list(dict.fromkeys(path for life in lives for path in life.values))
    table = Table(box=None, pad_edge=False, title=f"generation {lives[0].generation}", title_justify="left")
    for name in ("member", "parent", "steps", "fitness", "training"):
        table.add_column(name, justify="right", no_wrap=True)
    for path in paths:
        table.add_column(path.removeprefix("algorithm."), justify="right")
    table.add_column("change", overflow="fold")
    for each, life in zip(outcomes, lives, strict=True):
        trained = each.episodes.get("return")
        table.add_row(
            f"{'*' if life.id == elite else ''}{life.id}",
            "" if life.parent is None else str(life.parent),
            f"{life.steps:,}",
            "diverged" if life.fitness is None else f"{life.fitness:.4g}",
            "" if trained is None else f"{float(trained.mean()):.4g}",
            *(_shown(life.values.get(path)) for path in paths),
            each.note or _changed(life),
        )
    console = Console(width=_WIDTH, color_system=None, highlight=False, markup=False)
    with console.capture() as shown:
        console.print(table)
    return "\n".join(line.rstrip() for line in shown.get().splitlines())


def _changed(life: Life) -> str:
    told = life.change["note"] and f" ({life.change['note']})"
    if not life.change["what"]:
        return str(life.change["kind"])
    return f"{life.change['what']} {_shown(life.change['before'])} -> {_shown(life.change['after'])}{told}"


def _shown(value: object) -> str:
    if value is None or isinstance(value, int | float | str):
        return in_words(value)
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
