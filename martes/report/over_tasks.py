"""What experiments come to over several tasks: interquartile means of normalised scores, as a table and a picture."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

from martes.envs.batched.drawing import INK, MIST, PALETTE
from martes.report.curves import saved
from martes.report.intervals import Interval, interquartile, mean, means_in_tenth
from martes.report.labels import Label, experiments
from martes.report.records import RETURN, Record


class OverTasks(NamedTuple):
    """The scores of experiments that were run on the same tasks: each run's mean in its last tenth, normalised."""

    scores: dict[str, list[list[float]]]
    """Name of an experiment -> its scores, by task and run."""
    tasks: list[str]
    others: list[str]
    """Tasks that are left out: not all of these experiments were run there, or nobody learned anything."""
    scale: str
    """What a score is, in words."""

    def __str__(self) -> str:
        said = f"Over {', '.join(self.tasks)}: {self.scale}."
        why = "not all were run there, or none is known to beat random play"
        left = f" Without {', '.join(self.others)}: {why}." if self.others else ""
        return f"{said}{left} Intervals: 95 % bootstrap, runs drawn inside each task."


def over_tasks(
    runs: Sequence[Record], random: Mapping[str, Interval] | None = None, metric: str = RETURN
) -> OverTasks | None:
    """The scores of the experiments that were run on several tasks, on those tasks that all of them share.

    A return is normalised by (x - r) / (b - r): `r` is random play on that task, `b` the best experiment of these runs
    there, both as means; tasks without both, or whose best is not above random, are left out. Another metric, such as a
    share of battles won, stays as it was measured. None where fewer than two tasks, or of returns fewer than two
    experiments, remain.
    Source: Agarwal et al. 2021, sections 4.1 and 4.3; the normalisation is that of Mnih et al. 2015, with the best
    experiment in the place of a person.
    """
    finals = {label: means_in_tenth(group, 9, metric) for label, group in experiments(runs).items()}
    finals = {label: values for label, values in finals.items() if values}
    seen = list(dict.fromkeys(label.task for label in finals))
    is_return = metric == RETURN
    scales = _scales(finals, random or {}) if is_return else dict.fromkeys(seen, (0.0, 1.0))
    lines: dict[str, dict[str, list[float]]] = {}
    for label, values in finals.items():
        if label.task in scales:
            low, high = scales[label.task]
            lines.setdefault(label.line, {})[label.task] = [(value - low) / (high - low) for value in values]
    wide = {name: scores for name, scores in lines.items() if len(scores) > 1}
    tasks = [task for task in scales if all(task in scores for scores in wide.values())]
    if len(wide) < 1 + is_return or len(tasks) < 2:
        return None
    told = "the return, 0 as random play, 1 as the best experiment here on a task" if is_return else f"{metric} as is"
    return OverTasks(
        {name: [scores[task] for task in tasks] for name, scores in wide.items()},
        tasks,
        [task for task in seen if task not in tasks],
        f"{told}, in the last tenth of each run",
    )


def _scales(finals: Mapping[Label, Sequence[float]], random: Mapping[str, Interval]) -> dict[str, tuple[float, float]]:
    """Task -> what random play and the best experiment come to there."""
    best: dict[str, float] = {}
    for label, values in finals.items():
        best[label.task] = max(sum(values) / len(values), best.get(label.task, -float("inf")))
    chance = {task: random[task].mean for task in best if task in random}
    return {task: (low, best[task]) for task, low in chance.items() if best[task] > low}


def table_over_tasks(found: OverTasks) -> str:
    """A line in Markdown for each experiment: its runs, and over all of them the interquartile mean and the mean."""
    lines = [f"| over {len(found.tasks)} tasks | runs | interquartile mean | mean |", "| --- | ---: | ---: | ---: |"]
    for name, scores in found.scores.items():
        runs = len([*chain.from_iterable(scores)])
        lines.append(f"| {name} | {runs} | {interquartile(scores)} | {mean(scores)} |")
    return "\n".join((*lines, "", str(found), ""))


def picture_over_tasks(found: OverTasks, path: Path) -> Path:
    """The path of a picture of the interquartile means, a point and its interval each.

    Raises ConfigError for a suffix of no kind of picture.
    """
    from matplotlib.figure import Figure  # takes half a second

    caption = fill(str(found), 90)
    height = 1.0 + 0.4 * len(found.scores) + 0.2 * caption.count("\n")
    figure = Figure(figsize=(8, height), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for row, scores in enumerate(found.scores.values()):
        point, low, high = interquartile(scores)
        axes.plot((low, high), (row, row), color=PALETTE[0], linewidth=5, alpha=0.4, solid_capstyle="butt")
        axes.plot(point, row, marker="o", color=PALETTE[0], markersize=7)
    axes.set_yticks(range(len(found.scores)), [fill(name, 40) for name in found.scores], fontsize=11)
    axes.set_ylim(len(found.scores) - 0.5, -0.5)  # the first one on top
    axes.set_title("interquartile mean", fontsize=13, color=INK)
    axes.set_xlabel(caption, fontsize=8)
    axes.grid(axis="x", color=MIST, linewidth=0.6, alpha=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    return saved(figure, path)
