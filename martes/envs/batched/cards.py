"""Pictures of small games: a title over labelled rows of numbers, or over what an agent's camera sees."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Num, UInt8
from torch import Tensor

from martes.envs.batched.drawing import INK, MIST, PALETTE, PAPER, Canvas, faded

MOST_ROWS = 10


class Row(NamedTuple):
    """A row of a card."""

    label: str
    values: Sequence[float]
    marked: int | None = None
    """The cell with a frame around it."""


def rows_of_agents(values: Num[Tensor, "agent column"]) -> list[Row]:
    """A row for each agent."""
    return [Row(f"agent {index}", numbers(row)) for index, row in enumerate(values)]


def numbers(values: Num[Tensor, "column"]) -> list[float]:
    """The tensor as plain numbers."""
    return [float(value) for value in values]


def card(title: str, rows: Sequence[Row], foot: str = "") -> UInt8[np.ndarray, "400 400 3"]:
    """The rows as cells, deeper in colour the larger their number; blue above zero, red below."""
    shown = rows[:MOST_ROWS]
    width = max(len(row.values) for row in shown)
    largest = max((abs(value) for row in shown for value in row.values), default=0) or 1
    cell = min(2.1 / width, 2.1 / len(shown), 0.7)
    canvas = _titled(title, foot if len(shown) == len(rows) else f"and {len(rows) - len(shown)} more. {foot}")
    for index, row in enumerate(shown):
        y = ((len(shown) - 1) / 2 - index) * cell
        canvas.text(-1.35, y, row.label, INK, 13)
        for place, value in enumerate(row.values):
            x = 0.4 + (place - (width - 1) / 2) * cell
            if place == row.marked:
                canvas.square(x, y, cell, INK)
            canvas.square(x, y, 0.86 * cell, PAPER)
            colour = PALETTE[0] if value > 0 else PALETTE[1] if value < 0 else MIST
            canvas.square(x, y, 0.86 * cell, faded(colour, 0.25 + 0.75 * abs(value) / largest))
            canvas.text(x, y, f"{value:.3g}", INK if abs(value) < largest / 2 else "#FFFFFF", min(16, 45 * cell))
    return canvas.array()


def photograph(
    title: str, picture: UInt8[np.ndarray, "height width"], foot: str = ""
) -> UInt8[np.ndarray, "400 400 3"]:
    """A picture in shades of grey under a title."""
    canvas = _titled(title, foot)
    height, width = picture.shape
    size = 2.4 / max(height, width)
    for row in range(height):
        for column in range(width):
            shade = f"#{int(picture[row, column]):02x}" + f"{int(picture[row, column]):02x}" * 2
            canvas.square((column - (width - 1) / 2) * size, ((height - 1) / 2 - row) * size, size, shade)
    return canvas.array()


def _titled(title: str, foot: str) -> Canvas:
    canvas = Canvas((-1.7, -1.7, 1.7, 1.7))
    canvas.text(0, 1.5, title, INK, 17)
    canvas.text(0, -1.52, foot, INK, 13)
    return canvas
