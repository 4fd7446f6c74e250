"""Pictures of JAX suites' states, by their own viewers, without a window."""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from operator import attrgetter

import numpy as np
from jaxtyping import UInt8

from martes.errors import require

Picture = UInt8[np.ndarray, "height width 3"]


def drawn(figure: object) -> Picture:
    """What a figure of matplotlib shows."""
    canvas = import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def battle(draw: Callable[..., object], agents: list[str], state: object) -> Picture:
    """A battle of SMAX, by the suite's `draw` of all `agents`."""
    figure = import_module("matplotlib.figure").Figure(figsize=(5, 5))
    axes = figure.add_subplot()
    shots, step = attrgetter("prev_attack_actions", "step")(state)
    draw(axes, (None, state, dict(zip(agents, shots, strict=True))), 0, int(step))
    axes.images[-1].remove()  # the suite lays a copy of its drawing over it
    return drawn(figure)


def arena(env: object, state: object) -> Picture:
    """The particles of an MPE task."""
    with redirect_stdout(io.StringIO()):
        figure = require("jaxmarl.environments.mpe", "jax").MPEVisualizer(env, [state]).fig
    import_module("matplotlib.pyplot").close(figure)
    return drawn(figure)


def board(viewer: object, render: Callable[[object], object], state: object) -> Picture:
    """What a `viewer` of Jumanji draws when its task renders, on a figure of ours: its own would open a window."""
    figure = import_module("matplotlib.figure").Figure(figsize=(5, 5))
    axes = figure.add_subplot()

    def ours(facecolor: str | tuple[float, ...] = "white", **_: object) -> tuple[object, object]:
        figure.set_facecolor(facecolor)
        return figure, axes

    vars(viewer).update(_get_fig_ax=ours, _display=lambda _: None)
    render(state)
    return drawn(figure)


def kitchen(state: object) -> Picture:
    """A kitchen of Overcooked."""
    viewer = require("jaxmarl.viz.overcooked_visualizer", "jax").OvercookedVisualizer
    grid = np.asarray(attrgetter("maze_map")(state))[3:-3, 3:-3]  # without the margin that a view of five cells needs
    facing, held = attrgetter("agent_dir_idx", "agent_inv")(state)
    return viewer._render_grid(grid, agent_dir_idx=facing, agent_inv=held)


def kitchen_v2(state: object) -> Picture:
    """A kitchen of Overcooked's second version."""
    require("imageio", "video")  # the suite's viewer wants it
    viewer = require("jaxmarl.viz.overcooked_v2_visualizer", "jax").OvercookedV2Visualizer()
    one = require("jax", "jax").tree.map(lambda leaf: leaf[None], state)
    return np.asarray(viewer.render_sequence(one)[0])
