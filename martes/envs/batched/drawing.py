"""A small canvas in world coordinates, for the pictures that games draw of themselves."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageColor, ImageDraw, ImageFont

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
"""Seven colours that colour-blind readers tell apart (Okabe and Ito, 2008)."""
INK = "#333333"
"""Outlines, walls and letters."""
MIST = "#C9CED3"
"""Grids, and whatever stands back."""
PAPER = "#FBFAF7"
"""The ground that a game is drawn on."""

_SHARPNESS = 3  # Pillow draws without anti-aliasing: draw this much larger, then shrink


def faded(colour: str, opacity: float) -> str:
    """The colour as a veil through which `1 - opacity` of what lies below is seen."""
    red, green, blue = ImageColor.getrgb(colour)[:3]
    return f"#{red:02x}{green:02x}{blue:02x}{round(255 * opacity):02x}"


class Canvas:
    """A picture of the world's rectangle `extent` = (left, bottom, right, top); y points up, lengths are the world's.

    Both axes have one scale; where the proportions of `pixels` = (width, height) differ, the world is centred. A colour
    is a name or `#rrggbb`, with `#rrggbbaa` drawn as a veil. Widths of lines and sizes of letters are in pixels.
    """

    def __init__(
        self,
        extent: tuple[float, float, float, float],
        pixels: tuple[int, int] = (400, 400),
        background: str = PAPER,
    ) -> None:
        left, bottom, right, top = extent
        self._pixels = pixels
        width, height = (side * _SHARPNESS for side in pixels)
        self._scale = min(width / (right - left), height / (top - bottom))
        self._origin = (
            width / 2 - self._scale * (left + right) / 2,
            height / 2 + self._scale * (bottom + top) / 2,
        )
        self._image = Image.new("RGB", (width, height), background)
        self._draw = ImageDraw.Draw(self._image, "RGBA")

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return self._origin[0] + self._scale * x, self._origin[1] - self._scale * y

    def circle(self, x: float, y: float, radius: float, colour: str, text: str = "") -> None:
        """Draws a disc around (x, y), with `text` in its middle."""
        self._draw.circle(self._at(x, y), radius * self._scale, fill=colour)
        self._label(x, y, text, colour, radius)

    def square(self, x: float, y: float, size: float, colour: str, text: str = "") -> None:
        """Draws a square of side `size` around (x, y), with `text` in its middle."""
        (left, bottom), (right, top) = self._at(x - size / 2, y - size / 2), self._at(x + size / 2, y + size / 2)
        self._draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
        self._label(x, y, text, colour, size / 2)

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: str = INK, width: float = 1.0) -> None:
        """Draws a straight line with round ends."""
        ends = self._at(x0, y0), self._at(x1, y1)
        thickness = max(1, round(width * _SHARPNESS))
        self._draw.line(ends, fill=colour, width=thickness)
        for end in ends if thickness > _SHARPNESS and len(colour) != len("#rrggbbaa") else ():
            self._draw.circle(end, (thickness - 1) / 2, fill=colour)

    def text(self, x: float, y: float, string: str, colour: str = INK, size: float = 13.0) -> None:
        """Writes centred on (x, y)."""
        font = ImageFont.load_default(max(1.0, size * _SHARPNESS))
        self._draw.text(self._at(x, y), string, fill=colour, font=font, anchor="mm")

    def _label(self, x: float, y: float, string: str, ground: str, room: float) -> None:
        if not string:
            return
        red, green, blue = ImageColor.getrgb(ground)[:3]
        is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
        fitting = 1.8 * room * self._scale / _SHARPNESS / max(1.6, 0.62 * len(string))
        self.text(x, y, string, INK if is_light else "#FFFFFF", fitting)

    def array(self) -> UInt8[np.ndarray, "height width 3"]:
        """The picture so far."""
        return np.asarray(self._image.resize(self._pixels, Image.Resampling.BOX), dtype=np.uint8)
