"""The canvas draws where the world says, with y up, in the colours asked for."""

import numpy as np
import pytest

from martes.envs.batched.drawing import INK, PALETTE, PAPER, Canvas, faded


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def where(picture: np.ndarray, colour: str) -> tuple[np.ndarray, np.ndarray]:
    return (picture == rgb(colour)).all(-1).nonzero()


def test_an_empty_canvas_is_paper() -> None:
    picture = Canvas((0, 0, 1, 1), (30, 20)).array()
    assert picture.shape == (20, 30, 3) and picture.dtype == np.uint8
    assert (picture == rgb(PAPER)).all()


def test_a_circle_stands_at_its_place_with_y_up() -> None:
    canvas = Canvas((-1, -1, 1, 1), (200, 200))
    canvas.circle(0.5, 0.25, 0.2, PALETTE[0])
    rows, columns = where(canvas.array(), PALETTE[0])
    assert (rows.mean(), columns.mean()) == pytest.approx((74.5, 149.5), abs=1)  # row 0 is y = 1
    assert len(rows) == pytest.approx(np.pi * 20**2, rel=0.05)


def test_a_square_fills_its_cell_and_no_other() -> None:
    canvas = Canvas((0, 0, 4, 2), (40, 20))
    canvas.square(1.5, 0.5, 1, PALETTE[1])
    rows, columns = where(canvas.array(), PALETTE[1])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 19, 10, 19)


def test_one_scale_for_both_axes_and_the_world_centred() -> None:
    canvas = Canvas((0, 0, 1, 1), (300, 100))
    canvas.square(0.5, 0.5, 1, INK)
    rows, columns = where(canvas.array(), INK)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 99, 100, 199)


def test_a_line_joins_its_ends() -> None:
    canvas = Canvas((0, 0, 1, 1), (100, 100))
    canvas.line(0.2, 0.2, 0.8, 0.2, INK, width=4)
    rows, columns = where(canvas.array(), INK)
    assert (rows.mean(), columns.mean()) == pytest.approx((79.5, 49.5), abs=1)
    assert rows.max() - rows.min() + 1 in (3, 4, 5) and columns.max() - columns.min() > 58


def test_a_veil_lets_the_ground_through() -> None:
    canvas = Canvas((0, 0, 1, 1), (20, 20), background="#FFFFFF")
    canvas.square(0.5, 0.5, 0.5, faded("#000000", 0.25))
    assert np.abs(canvas.array()[10, 10].astype(int) - 191).max() <= 1
    assert canvas.array()[0, 0].tolist() == [255] * 3


def test_letters_stand_out_from_what_they_stand_on_and_inside_it() -> None:
    for colour, is_light in ((INK, False), (PALETTE[6], True)):
        canvas, plain = Canvas((-1, -1, 1, 1), (100, 100)), Canvas((-1, -1, 1, 1), (100, 100))
        canvas.circle(0, 0, 0.5, colour, text="12")
        plain.circle(0, 0, 0.5, colour)
        rows, columns = (canvas.array() != plain.array()).any(-1).nonzero()
        assert len(rows) > 100 and (np.hypot(rows - 49.5, columns - 49.5) < 25).all()
        letters = canvas.array()[rows, columns].astype(int).sum(-1)
        assert (letters.min() < 300) if is_light else (letters.max() > 600)


def test_text_is_centred() -> None:
    canvas = Canvas((0, 0, 1, 1), (200, 100))
    canvas.text(0.5, 0.5, "HIH", size=20)
    rows, columns = (canvas.array() != rgb(PAPER)).any(-1).nonzero()
    assert (rows.min() + rows.max(), columns.min() + columns.max()) == pytest.approx((99, 199), abs=4)
    assert columns.max() - columns.min() > 20
