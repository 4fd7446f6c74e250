"""Learning curves as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

from martes.envs.batched.drawing import INK, MIST, PALETTE
from martes.errors import ConfigError, DataError, nearest
from martes.report.intervals import Interval, interval
from martes.report.labels import Label, experiments
from martes.report.records import RETURN, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEVIATION, EPISODES = f"{RETURN}_deviation", "evaluation/episodes"
_COLOURS = (*PALETTE[:6], "#7A4A25", "#8C8C8C")
"""What lines have in turn, each time round with other dashes; the palette's yellow is too faint for a line."""
_DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
_MARKS = "os^Dv"
_CROWD = 8
"""Lines of a panel beyond which they are thin."""
_LETTER, _ROW = 0.09, 0.24
"""Inches that a letter and a row of the names below take."""
_OTHERS = ("training episodes", "random play")


class Curve(NamedTuple):
    """A mean over environment steps with the ends of its 95 % interval."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    over: str
    """What the interval is over: "3 seeds", "32 episodes"."""


def curve(runs: Sequence[Record], metric: str = RETURN) -> Curve | None:
    """The mean over runs of a metric at each step at which some run measured it, as far as all go; None if nobody did.

    Between its own measurements a run is taken to move in a straight line. The interval of several runs is the
    bootstrap over them; that of one run's return is 1.96 standard errors over the episodes of each evaluation.
    """
    all_series = [series for run in runs if (series := run.series(metric))]
    if not all_series:
        return None
    if len(all_series) == 1:
        return _single(next(run for run in runs if run.series(metric)), metric)
    first, end = max(series[0][0] for series in all_series), min(series[-1][0] for series in all_series)
    steps = sorted({step for series in all_series for step, _ in series if first <= step <= end})
    points = [interval([_between(series, step) for series in all_series]) for step in steps]
    return Curve(steps, *([*column] for column in zip(*points, strict=True)), over=f"{len(all_series)} seeds")


def _between(series: list[tuple[int, float]], step: int) -> float:
    after = next(index for index, (at, _) in enumerate(series) if at >= step)
    (to, end), (begun, start) = series[after], series[max(after - 1, 0)]
    return end if to == begun else start + (end - start) * (step - begun) / (to - begun)


def _single(run: Record, metric: str) -> Curve:
    series, deviations, episodes = run.series(metric), dict(run.series(DEVIATION)), dict(run.series(EPISODES))
    is_known = metric == RETURN and all(step in deviations and step in episodes for step, _ in series)
    errors = [1.96 * deviations[step] / episodes[step] ** 0.5 if is_known else 0.0 for step, _ in series]
    steps, means = [step for step, _ in series], [value for _, value in series]
    low = [mean - error for mean, error in zip(means, errors, strict=True)]
    high = [mean + error for mean, error in zip(means, errors, strict=True)]
    return Curve(steps, means, low, high, over=f"{max(episodes.values()):.0f} episodes" if is_known else "")


class _Picture(NamedTuple):
    """What is drawn: lines by the title of their panel and by their names."""

    panels: dict[str, dict[str, Curve]]
    tasks: list[str]

    @property
    def names(self) -> list[str]:
        """What the lines are called; a name is one look."""
        return list(dict.fromkeys(name for lines in self.panels.values() for name in lines))

    @property
    def over(self) -> str:
        """What the intervals are over, in all panels."""
        ways = dict.fromkeys(line.over for lines in self.panels.values() for line in lines.values() if line.over)
        return f"mean and 95 % interval of {' or '.join(ways)}" if ways else ""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of panels."""
        count = len(self.panels)
        columns = 2 if count == 4 else min(count, max(3, round(count**0.5)))
        return -(-count // columns), columns

    @property
    def size(self) -> tuple[float, float]:
        """Inches that the panels take."""
        (rows, columns), is_alone = self.grid, len(self.panels) == 1
        wide, high = (8.0, 5.0) if is_alone else (6.5, 4.5) if columns <= 3 else (4.6, 3.4)
        return wide * columns, high * rows


def learning_curve(
    runs: Sequence[Record], path: Path, random: Mapping[str, Interval] | None = None, metric: str = RETURN
) -> Path:
    """The path of a picture of `learning_curves`: of the kind that its suffix says; without one, a PNG.

    Raises ConfigError for a suffix of no kind of picture.
    """
    return saved(learning_curves(runs, random, metric), path)


def saved(figure: "Figure", path: Path) -> Path:
    """The path of a figure, written as its suffix says; without one, as PNG.

    Raises ConfigError for a suffix of no kind of picture.
    """
    kinds = figure.canvas.get_supported_filetypes()
    path = path if path.suffix else path.with_suffix(".png")
    if path.suffix[1:].lower() not in kinds:
        raise ConfigError(f"cannot draw a picture as {path.name!r}: end its name with {', '.join(sorted(kinds))}")
    figure.savefig(path)
    return path


def learning_curves(
    runs: Sequence[Record], random: Mapping[str, Interval] | None = None, metric: str = RETURN
) -> "Figure":
    """The metric against environment steps.

    A panel for each task; in it a line and a band for each experiment: the mean over its seeds and the 95 % interval.
    What has the same name looks the same in all panels. Of a single run also the return of its training episodes is
    drawn. `random` marks, by the name of the task, what random play comes to. Raises DataError where no run measured
    the metric.
    """
    from matplotlib.figure import Figure  # takes half a second; no window system is touched

    found = {label: line for label, group in experiments(runs).items() if (line := curve(group, metric))}
    if not found:
        measured = {name for run in runs for row in run.rows for name in row if "/" in name}
        told = ", ".join(str(run.folder) for run in runs)
        raise DataError(f"none of these runs has measured {metric!r} yet: {told}{nearest(metric, measured)}")
    picture = _picture(found)
    figure = Figure(figsize=picture.size, dpi=120, layout="constrained")
    rows, columns = picture.grid
    for place, task in enumerate(picture.tasks):
        axes = figure.add_subplot(rows, columns, place + 1)
        if len(runs) == 1 and metric == RETURN:
            _draw_training(axes, runs[0])
        _draw_panel(axes, picture, place, (random or {}).get(task))
        if place + columns >= len(picture.tasks):  # nothing stands below it
            axes.set_xlabel("environment steps", fontsize=13)
    figure.supylabel(_axis_name(runs, metric), fontsize=13)
    _name_lines(figure, picture)
    return figure


def _picture(found: Mapping[Label, Curve]) -> _Picture:
    tasks = list(dict.fromkeys(label.task for label in found))
    is_about_one = len({(label.algorithm, label.task) for label in found}) == 1
    panels: dict[str, dict[str, Curve]] = {}
    for label, line in found.items():
        title = label._replace(details="" if len(found) > 1 else label.details) if is_about_one else label.task
        name = (label.details if len(found) > 1 else "") or "test episodes" if is_about_one else label.line
        panels.setdefault(fill(str(title), 80), {})[name] = line
    return _Picture(panels, tasks)


def _draw_panel(axes: "Axes", picture: _Picture, place: int, random: Interval | None) -> None:
    names, (title, lines) = picture.names, list(picture.panels.items())[place]
    width, opacity = (2.2, 0.2) if len(lines) <= _CROWD else (1.4, 0.07)
    for name, line in lines.items():
        index = names.index(name)
        colour, dashes = _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]
        mark = _MARKS[index % len(_MARKS)] if len(line.steps) <= 30 else None
        axes.plot(line.steps, line.mean, color=colour, ls=dashes, lw=width, marker=mark, ms=2.2 * width, label=name)
        if line.over:
            axes.fill_between(line.steps, line.low, line.high, color=colour, alpha=opacity, linewidth=0)
    if random is not None:
        axes.axhspan(random.low, random.high, color=MIST, alpha=0.5, linewidth=0)
        axes.axhline(random.mean, color=INK, linestyle=(0, (4, 3)), linewidth=1.5, label=_OTHERS[1])
    _dress(axes, title)


def _draw_training(axes: "Axes", run: Record) -> None:
    series = run.series("train/return")
    if series:
        steps, returns = zip(*series, strict=True)
        axes.plot(steps, returns, color=PALETTE[4], linewidth=1.2, label=_OTHERS[0])


def _name_lines(figure: "Figure", picture: _Picture) -> None:
    """Writes below the panels what the lines are called, and makes the picture as much higher as that takes."""
    found = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = {text: handle for each in found for handle, text in zip(*each, strict=True)}
    names = sorted(handles, key=lambda name: name in _OTHERS)  # what is beside the experiments stands last
    width, height = picture.size
    texts = [fill(name, int((width - 1) / _LETTER)) for name in names]
    letters = max(len(row) for text in texts for row in text.splitlines())
    columns = max(1, min(len(names), int(width / (letters * _LETTER + 0.6))))
    written = sum(1 + text.count("\n") for text in texts)
    figure.set_size_inches(width, height + _ROW * (-(-written // columns) + bool(picture.over)))
    figure.legend(
        [handles[name] for name in names],
        texts,
        loc="outside lower center",
        ncols=columns,
        title=picture.over or None,
        fontsize=11,
        title_fontsize=11,
        frameon=False,
    )


def _axis_name(runs: Sequence[Record], metric: str) -> str:
    if metric != RETURN:
        return metric
    ways = {value for run in runs for _, value in run.series("evaluation/greedy")}
    how = " or ".join(word for word, value in (("greedy", 1), ("sampled", 0)) if value in ways)
    return f"return of an episode ({how} actions)" if how else "return of an episode"


def _dress(axes: "Axes", title: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_title(title, fontsize=14, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1, steps=(1, 2, 2.5, 5, 10)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=12)
    axes.grid(color=MIST, linewidth=0.6, alpha=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
