"""What a run shows of itself while it trains: a live panel in a terminal, plain lines elsewhere, or nothing."""

from collections.abc import Iterable
from datetime import timedelta
from time import perf_counter
from typing import Literal, Protocol, runtime_checkable

from rich.console import Console, Group, RenderableType
from rich.live import Live as Screen
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from martes.training.rows import Row

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDEST = 24
"""Evaluations that the small curve shows: the newest."""
_FIRST_METRICS = 5
"""How many of a learner's metrics fit into a plain line: the first ones, which are its losses."""
_OF_ALL_TASKS = ("return", "return_deviation", "return_min", "return_max", "length", "episodes", "greedy")
"""What every evaluation tells; the rest is what the environment counts."""


@runtime_checkable
class Display(Protocol):
    """Is told how a run goes on."""

    def open(self) -> None:
        """Begins to show."""
        ...

    def begin(self, steps: int) -> None:
        """This session goes on from `steps` environment steps."""
        ...

    def advance(self, steps: int) -> None:
        """`steps` environment steps are done in all."""
        ...

    def row(self, row: Row) -> None:
        """A row of metrics was written."""
        ...

    def message(self, text: str) -> None:
        """Shows a line."""
        ...

    def close(self) -> None:
        """Shows no more."""
        ...


def display_for(
    progress: Literal["auto", "live", "plain", "none"], title: str, total: int, console: Console | None = None
) -> Display:
    """The display that `logging.progress` asks for; auto is live in a terminal that can move its cursor, else plain."""
    console = console or Console(highlight=False)
    if progress == "none":
        return Plain(title, total, Console(quiet=True))
    if progress == "live" or (progress == "auto" and console.is_terminal and not console.is_dumb_terminal):
        return Live(title, total, console)
    return Plain(title, total, console)


class Pace:
    """How far a run of `total` steps has come, and how long it will still take."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.begin(0)

    def begin(self, steps: int) -> None:
        """This session goes on from `steps`."""
        self.steps = self._first = steps
        self._began = perf_counter()

    @property
    def left(self) -> str:
        """The time that the remaining steps will take at this session's speed so far, as h:mm:ss."""
        done = self.steps - self._first
        if done <= 0:
            return "-:--:--"
        seconds = (perf_counter() - self._began) / done * max(self.total - self.steps, 0)
        return str(timedelta(seconds=round(seconds)))


class Plain:
    """One line a row, without control codes: for files, pipes and notebooks' logs."""

    def __init__(self, title: str, total: int, console: Console) -> None:
        self._title = title
        self._console = console
        self._pace = Pace(total)

    def open(self) -> None:
        """Prints the title."""
        self.message(f"{self._title}: {self._pace.total:,} steps")

    def begin(self, steps: int) -> None:
        """Counts time and steps from here."""
        self._pace.begin(steps)

    def advance(self, steps: int) -> None:
        """Nothing is printed before a row."""
        self._pace.steps = steps

    def row(self, row: Row) -> None:
        """Prints the row's numbers."""
        steps, total = int(row["step"] or 0), self._pace.total
        parts = [f"{steps:>{len(f'{total:,}')},} {min(steps / max(total, 1), 1):>4.0%}"]
        if row["kind"] == "evaluation":
            parts.append(evaluation_in_words(row))
        else:
            parts += [f"{self._pace.left} left", speed_in_words(row), *means_in_words(row, "train/")]
            parts += means_in_words(row, "learn/")[:_FIRST_METRICS]
            parts.append(f"time: {', '.join(phases_in_words(row))}")
        self.message("  ".join(parts))

    def message(self, text: str) -> None:
        """Prints a line."""
        self._console.print(Text(text), soft_wrap=True)

    def close(self) -> None:
        """Nothing is left open."""


class Live:
    """A progress bar over the newest returns, losses and phase times; messages scroll by above it."""

    def __init__(self, title: str, total: int, console: Console) -> None:
        self._title = title
        self._pace = Pace(total)
        self._bar = Progress(
            TextColumn("[bold]steps"),
            BarColumn(None),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            _Speed(),
            _Left(self._pace),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("steps", total=total)
        self._train: Row = {}
        self._evaluations: list[Row] = []
        self._screen = Screen(get_renderable=self._panel, console=console, refresh_per_second=4)

    def open(self) -> None:
        """Begins to draw."""
        self._screen.start(refresh=True)

    def begin(self, steps: int) -> None:
        """Counts time and steps from here."""
        self._pace.begin(steps)
        self._bar.reset(self._task, completed=steps)

    def advance(self, steps: int) -> None:
        """Moves the bar."""
        self._pace.steps = steps
        self._bar.update(self._task, completed=steps)

    def row(self, row: Row) -> None:
        """Shows the row's numbers from the next refresh on."""
        if row["kind"] == "train":
            self._train = row
        else:
            self._evaluations = [*self._evaluations[1 - _WIDEST :], row]

    def message(self, text: str) -> None:
        """Prints a line above the panel."""
        self._screen.console.print(Text(text))

    def close(self) -> None:
        """Draws a last time, and leaves the panel standing."""
        self._screen.stop()

    def _panel(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        if self._evaluations:
            returns = [value for row in self._evaluations if isinstance(value := row["evaluation/return"], float | int)]
            newest = self._evaluations[-1]
            table.add_row("test", f"{evaluation_in_words(newest)} at {newest['step']:,}  {small_curve(returns)}")
        if self._train:
            table.add_row("training", "  ".join(means_in_words(self._train, "train/")) or "no episode has ended yet")
            table.add_row("learning", "  ".join(means_in_words(self._train, "learn/")))
            table.add_row("time", "  ".join(phases_in_words(self._train)))
        return Group(Text(self._title, style="bold cyan"), self._bar, table)


class _Speed(ProgressColumn):
    """Environment steps per second over the last half minute."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "-/s", style="progress.data.speed")


class _Left(ProgressColumn):
    """Time left."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        return Text(f"{self._pace.left} left", style="progress.remaining")


def small_curve(values: Iterable[float]) -> str:
    """The values as a row of blocks, from the lowest to the highest."""
    values = list(values)
    low, span = min(values, default=0.0), max(values, default=0.0) - min(values, default=0.0)
    return "".join(_BLOCKS[round((value - low) / span * (len(_BLOCKS) - 1)) if span else 0] for value in values)


def in_words(value: object) -> str:
    """A number in about four digits; `none` where it was not finite."""
    if not isinstance(value, float | int):
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def evaluation_in_words(row: Row) -> str:
    """How the test episodes went: mean return, its deviation over episodes, what the environment counts, and how."""
    how = "greedy" if row.get("evaluation/greedy") else "sampled"
    earned = f"return {in_words(row['evaluation/return'])} ± {in_words(row['evaluation/return_deviation'])}"
    known = {f"evaluation/{name}" for name in _OF_ALL_TASKS}
    counted = means_in_words({name: value for name, value in row.items() if name not in known}, "evaluation/")
    return f"evaluation {', '.join((earned, *counted))} ({how}, {row['evaluation/episodes']} episodes)"


def means_in_words(row: Row, prefix: str) -> list[str]:
    """The means over training or test episodes (`train/`, `evaluation/`) or over updates (`learn/`)."""
    return [f"{name.removeprefix(prefix)} {in_words(value)}" for name, value in row.items() if name.startswith(prefix)]


def phases_in_words(row: Row) -> list[str]:
    """The share of the wall time that each phase took."""
    shares = {name.removeprefix("time/"): value for name, value in row.items() if name.startswith("time/")}
    return [f"{name} {value:.0%}" for name, value in shares.items() if isinstance(value, float | int)]


def speed_in_words(row: Row) -> str:
    """Environment steps per second since the row before."""
    return f"{in_words(row['speed/env_steps_per_second'])}/s"
