"""What the pictures of the particle environments share."""

from torch import Tensor

from martes.envs.batched.drawing import INK, MIST, PALETTE, Canvas, faded
from martes.envs.batched.engine import State

LETTERS = "ABCDEFGHIJ"
"""Names of the words."""
SHADES = (PALETTE[1], PALETTE[2], PALETTE[0])
"""Red, green and blue, as colour-blind readers tell them apart."""


def points(positions: Tensor) -> list[tuple[float, float]]:
    """The positions as plain numbers."""
    return [(float(x), float(y)) for x, y in positions]


def field(state: State, edge: float = 1.25) -> Canvas:
    """A canvas around the square in which all start; larger once somebody is far out."""
    edge = max(edge, float(state["position"].abs().max()) + 0.2)
    canvas = Canvas((-edge, -edge, edge, edge))
    for side in (-1, 1):
        canvas.line(side, -1, side, 1, MIST)
        canvas.line(-1, side, 1, side, MIST)
    return canvas


def draw_velocity(canvas: Canvas, agents: Tensor, velocity: Tensor) -> None:
    """A line from each agent to where it heads."""
    for (x0, y0), (x1, y1) in zip(points(agents), points(agents + velocity / 2), strict=True):
        canvas.line(x0, y0, x1, y1, INK, 3)


def draw_words(canvas: Canvas, x: float, y: float, loudness: Tensor) -> None:
    """The words in a row, the first at (x, y), darker the louder they are said."""
    for index, said in enumerate(loudness):
        canvas.circle(x + 0.2 * index, y, 0.085, MIST)
        canvas.circle(x + 0.2 * index, y, 0.085, faded(INK, float(said)), LETTERS[index])
