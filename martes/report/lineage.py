"""Who came from whom in a population, what they earned and with which hyperparameters, as a picture."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from martes.envs.batched.drawing import INK, MIST, PALETTE
from martes.errors import DataError
from martes.evolution.lineage import Life, read_lives

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST = 6
"""Hyperparameters that have a panel: the first ones."""


def lineage_picture(record: Path, path: Path) -> Path:
    """The path of a picture (PNG, or what the path's suffix says) of a population's lineage.jsonl.

    A panel for fitness and one for each number that is searched, over the environment steps of each member. A thin line
    leads from each member to those that came from it; the line of descent of the best of the last generation is thick.
    Raises DataError where nobody has lived yet.
    """
    from matplotlib.figure import Figure  # takes half a second; no window system is touched

    lives = read_lives(record)
    if not lives:
        raise DataError(f"{record} tells of nobody: let the population live through a generation")
    numbers = [
        name for name in dict.fromkeys(each for life in lives for each in life.values) if _is_number(lives, name)
    ]
    panels = ["fitness", *numbers[:_MOST]]
    figure = Figure(figsize=(8, 3.4 + 1.9 * (len(panels) - 1)), dpi=120, layout="constrained")
    heights = [2.0, *[1.0] * (len(panels) - 1)]
    axes: list[Axes] = list(figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False).flat)
    for each, name in zip(axes, panels, strict=True):
        _draw(each, lives, name)
    axes[0].legend(fontsize=10, frameon=False, loc="best")
    axes[-1].set_xlabel("environment steps of each member", fontsize=12)
    figure.savefig(path)
    return path


def descent(lives: Sequence[Life]) -> list[Life]:
    """The line of descent of the best of the last generation, oldest first."""
    last = max(life.generation for life in lives)
    known = {(life.generation, life.id): life for life in lives}
    scored = [life for life in lives if life.generation == last and life.score is not None]
    if not scored:
        return []
    line = [max(scored, key=lambda life: (life.score or 0.0, -life.place))]
    while (before := _origin(line[-1], known)) is not None:
        line.append(before)
    return line[::-1]


def _origin(life: Life, known: Mapping[tuple[int, int], Life]) -> Life | None:
    """The same member one generation before, or else its parent then."""
    parent = life.id if life.parent is None else life.parent
    return known.get((life.generation - 1, life.id)) or known.get((life.generation - 1, parent))


def _is_number(lives: Sequence[Life], name: str) -> bool:
    values = [life.values.get(name) for life in lives]
    return all(value is None or (isinstance(value, int | float) and value > 0) for value in values) and any(values)


def _points(lives: Sequence[Life], name: str) -> Iterator[tuple[Life, float]]:
    for life in lives:
        value = life.fitness if name == "fitness" else life.values.get(name)
        if isinstance(value, int | float):
            yield life, float(value)


def _draw(axes: "Axes", lives: Sequence[Life], name: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    shown = {(life.generation, life.id): (life.steps, value) for life, value in _points(lives, name)}
    known = {(life.generation, life.id): life for life in lives}
    for life in lives:
        origin = _origin(life, known)
        ends = [shown.get((each.generation, each.id)) for each in (origin, life) if each is not None]
        if len(ends) == 2 and None not in ends:
            axes.plot(*zip(*filter(None, ends), strict=True), color=MIST, linewidth=1.0, zorder=1)
    points = list(shown.values())
    axes.scatter(*zip(*points, strict=True), s=18, color=PALETTE[0], zorder=2, label="members")
    line = [shown[key] for life in descent(lives) if (key := (life.generation, life.id)) in shown]
    if line:
        told = "descent of the best of the last generation"
        axes.plot(*zip(*line, strict=True), color=PALETTE[1], linewidth=2.4, marker="o", markersize=5, label=told)
    axes.set_ylabel(name.removeprefix("algorithm."), fontsize=12, color=INK)
    values = [value for _, value in points]
    if name != "fitness" and max(values) > 20 * min(values):
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4 if name != "fitness" else 8))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=11)
    axes.grid(color=MIST, linewidth=0.6, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
