"""Results as a table in Markdown."""

from collections.abc import Mapping, Sequence
from statistics import median

from martes.report.intervals import Interval, interquartile, last, means_in_tenth, tenth
from martes.report.labels import Label, experiments
from martes.report.records import RETURN, Record

SPEED = "speed/env_steps_per_second"
QUARTERS = 4
"""Seeds from which on an interquartile mean leaves any out."""


def results_table(runs: Sequence[Record], random: Mapping[str, Interval] | None = None, metric: str = RETURN) -> str:
    """A line for each experiment: seeds, steps, the metric at the end, in its first and its last tenth, of random play.

    Each is the mean over seeds with its 95 % bootstrap interval. `random` gives, by the name of the task, what random
    play comes to. The last column says whether the last tenth lies above the first one and above random play, ends of
    the intervals compared. Where there are experiments of four seeds or more, the interquartile mean of the last tenth
    over seeds stands beside its mean.
    """
    grouped = experiments(runs)
    is_many = max(map(len, grouped.values()), default=0) >= QUARTERS
    more = ["interquartile mean"] if is_many else []
    heads = ["experiment", "seeds", "steps", "at the end", "first tenth", "last tenth", *more, "random play", "steps/s"]
    lines = [[*heads, "learned"], ["---", *["---:"] * len(heads)]]
    lines += [_line(label, group, random or {}, metric, is_many) for label, group in grouped.items()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _line(
    label: Label, runs: Sequence[Record], random: Mapping[str, Interval], metric: str, is_many: bool
) -> list[str]:
    first, final, chance = (
        tenth(runs, 0, metric),
        tenth(runs, 9, metric),
        random.get(label.task),
    )
    finals = means_in_tenth(runs, 9, metric) if is_many else []
    middle = [interquartile([finals]) if len(finals) >= QUARTERS else None] if is_many else []
    lower = [each for each in (first, chance) if each is not None]
    has_learned = final is not None and all(final.is_above(each) for each in lower)
    speeds = [median(values) for run in runs if (values := [value for _, value in run.series(SPEED)])]
    steps = max((int(row["step"] or 0) for run in runs for row in run.rows), default=0)
    return [
        f"{label}{'' if all(run.is_finished for run in runs) else ' (unfinished)'}",
        str(len(runs)),
        f"{steps:,}",
        *("-" if each is None else str(each) for each in (last(runs, metric), first, final, *middle, chance)),
        f"{sum(speeds) / len(speeds):,.0f}" if speeds else "-",
        ("yes" if has_learned else "no") if len(runs) > 1 else "one seed",
    ]
