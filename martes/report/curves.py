"""Learning curves as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from martes.envs.batched.drawing import INK, MIST, PALETTE
from martes.errors import DataError
from martes.report.intervals import Interval, interval
from martes.report.records import RETURN, Record, experiments, task_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEVIATION, EPISODES = f"{RETURN}_deviation", "evaluation/episodes"
_MARKS = "os^Dv"
"""Shapes that tell lines apart where colours do not."""


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


def learning_curve(
    runs: Sequence[Record], path: Path, random: Mapping[str, Interval] | None = None, metric: str = RETURN
) -> Path:
    """The path of a picture (PNG, or what the path's suffix says) of the metric against environment steps.

    A panel for each task; in it a line and a band for each experiment: the mean over its seeds and the 95 % interval;
    for a single run also the return of its training episodes. `random` marks, by the name of the task, what random
    play comes to. Raises DataError where no run measured the metric.
    """
    from matplotlib.figure import Figure  # takes half a second; no window system is touched

    panels: dict[str, list[Record]] = {}
    for run in runs:
        if run.series(metric):
            panels.setdefault(task_of(run), []).append(run)
    if not panels:
        raise DataError(f"none of these runs has measured {metric!r} yet: {', '.join(str(run.folder) for run in runs)}")
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    size = (8, 5) if len(panels) == 1 else (6.5 * columns, 4.5 * rows)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    for place, (task, group) in enumerate(panels.items(), 1):
        _draw_panel(figure.add_subplot(rows, columns, place), group, (random or {}).get(task), metric)
    figure.savefig(path)
    return path


def _draw_panel(axes: "Axes", runs: Sequence[Record], random: Interval | None, metric: str) -> None:
    if len(runs) == 1 and metric == RETURN:
        _draw_training(axes, runs[0])
    grouped = {label: found for label, group in experiments(runs).items() if (found := curve(group, metric))}
    titles = {label.partition(", ")[0] for label in grouped}
    for index, (label, each) in enumerate(grouped.items()):
        short = label.partition(", ")[2] or "test episodes" if len(titles) == 1 else label
        _draw(axes, each, short, index)
    if random is not None:
        axes.axhspan(random.low, random.high, color=MIST, alpha=0.5, linewidth=0)
        axes.axhline(random.mean, color=INK, linestyle=(0, (4, 3)), linewidth=1.5, label="random play")
    _dress(axes, titles.pop() if len(titles) == 1 else task_of(runs[0]), _axis_name(runs, metric))


def _draw(axes: "Axes", drawn: Curve, label: str, index: int) -> None:
    has_band, colour = bool(drawn.over), PALETTE[index % len(PALETTE)]
    mark = _MARKS[index % len(_MARKS)] if len(drawn.steps) <= 30 else None
    text = f"{label}: mean of {drawn.over}, 95 % interval" if has_band else label
    axes.plot(drawn.steps, drawn.mean, color=colour, linewidth=2.2, marker=mark, markersize=5, label=text)
    if has_band:
        axes.fill_between(drawn.steps, drawn.low, drawn.high, color=colour, alpha=0.2, linewidth=0)


def _draw_training(axes: "Axes", run: Record) -> None:
    series = run.series("train/return")
    if series:
        steps, returns = zip(*series, strict=True)
        axes.plot(steps, returns, color=PALETTE[4], linewidth=1.2, label="training episodes")


def _axis_name(runs: Sequence[Record], metric: str) -> str:
    if metric != RETURN:
        return metric
    ways = {value for run in runs for _, value in run.series("evaluation/greedy")}
    how = " or ".join(word for word, value in (("greedy", 1), ("sampled", 0)) if value in ways)
    return f"return of an episode ({how} actions)" if how else "return of an episode"


def _dress(axes: "Axes", title: str, metric: str) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_title(title, fontsize=14, color=INK)
    axes.set_xlabel("environment steps", fontsize=13)
    axes.set_ylabel(metric, fontsize=13)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=12)
    axes.grid(color=MIST, linewidth=0.6, alpha=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    axes.legend(fontsize=11, frameon=False, loc="best")
