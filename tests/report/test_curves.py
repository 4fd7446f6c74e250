from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from martes.envs.batched.drawing import PALETTE
from martes.errors import ConfigError, DataError
from martes.report import Interval, learning_curve, records
from martes.report.curves import curve, learning_curves
from martes.report.records import Record


def run_of(points, **config):
    rows = [{"step": step, "time": 0.0, "kind": "evaluation", **numbers} for step, numbers in points]
    return Record(Path("run"), config, rows)


def returns(*points):
    return run_of([(step, {"evaluation/return": value}) for step, value in points])


def share_of(colour, path, tolerance=12):
    """The share of a picture's points that have this colour."""
    points = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (np.abs(points - ImageColor.getrgb(colour)).max(-1) <= tolerance).mean()


def test_several_runs_are_a_mean_with_a_bootstrap_interval():
    found = curve([returns((0, 0.0), (10, 4.0)), returns((0, 2.0), (10, 4.0))])
    assert found.steps == [0, 10] and found.mean == [1, 4] and found.over == "2 seeds"
    assert found.low == [0, 4] and found.high == [2, 4]


def test_runs_measured_at_other_steps_are_joined_by_straight_lines_as_far_as_all_go():
    found = curve([returns((0, 0.0), (10, 10.0), (30, 10.0)), returns((0, 0.0), (20, 40.0))])
    assert found.steps == [0, 10, 20] and found.mean == [0, 15, 25]


def test_one_run_has_the_interval_of_its_episodes():
    numbers = {"evaluation/return": 5.0, "evaluation/return_deviation": 2.0, "evaluation/episodes": 16}
    found = curve([run_of([(0, numbers)])])
    assert found.low == [pytest.approx(5 - 0.98)] and found.high == [pytest.approx(5 + 0.98)]
    assert found.over == "16 episodes"


def test_one_run_of_another_metric_has_no_interval():
    found = curve([run_of([(0, {"learn/loss": 5.0})])], "learn/loss")
    assert found.low == found.high == found.mean == [5] and found.over == ""


def test_numbers_that_are_not_finite_leave_a_gap():
    assert curve([returns((0, 1.0), (5, None), (10, 2.0))]).steps == [0, 10]
    assert curve([returns((0, None))]) is None


def test_one_run_draws_test_and_training_episodes(runs, tmp_path):
    path = learning_curve(records(runs / "ippo-climbing/0"), tmp_path / "learning_curve.png")
    assert Image.open(path).size == (960, 657)
    assert share_of(PALETTE[0], path) > 0.001 and share_of(PALETTE[4], path) > 0.0005


def test_many_runs_draw_a_line_each_experiment_and_mark_random_play(runs, tmp_path):
    plain = learning_curve(records(runs), tmp_path / "plain.png")
    assert share_of(PALETTE[0], plain) > 0.0001 and share_of(PALETTE[1], plain) > 0.001, "one may hide another"
    assert share_of(PALETTE[2], plain) == 0, "two experiments, two lines"
    marked = learning_curve(records(runs), tmp_path / "marked.png", random={"climbing": Interval(-20.0, -22.0, -18.0)})
    grey = "#e4e6e8"  # the band of random play, half opaque over white
    assert share_of(grey, marked, 2) > 10 * share_of(grey, plain, 2)


def test_each_task_has_a_panel(runs, tmp_path):
    found = records(runs)
    elsewhere = [Record(run.folder, {**run.config, "env.name": "penalty"}, run.rows) for run in found]
    path = learning_curve([*found, *elsewhere], tmp_path / "panels.png")
    assert Image.open(path).size == (1560, 597)


def many(tasks, experiments):
    """Runs of so many experiments, two seeds each, on each of so many tasks."""
    numbers = [{"step": step, "time": 0.0, "kind": "evaluation", "evaluation/return": step / 9} for step in (0, 9)]
    configs = [
        {"algorithm.name": "mine:a rather long name", "env.name": f"task {task}", "algorithm.lr": lr}
        for task in range(tasks)
        for lr in range(experiments)
    ]
    return [Record(Path("run"), {**config, "training.seed": seed}, numbers) for config in configs for seed in (0, 1)]


@pytest.mark.parametrize(("tasks", "experiments"), [(1, 1), (1, 4), (4, 5), (1, 20), (8, 5), (1, 40), (40, 1)])
def test_however_many_experiments_there_are_names_hide_no_panel(tasks, experiments):
    figure = learning_curves(many(tasks, experiments), {"task 0": Interval(0.1, 0.0, 0.2)})
    figure.draw_without_rendering()
    (legend,), dots = figure.legends, figure.dpi
    boxes, names = [axes.get_tightbbox() for axes in figure.axes], legend.get_window_extent()
    assert len(boxes) == tasks and len(legend.get_texts()) == experiments + 1
    assert all(axes.get_legend() is None for axes in figure.axes)
    for place, box in enumerate(boxes):
        assert box.width > 3.5 * dots and box.height > 2.5 * dots
        assert not any(box.overlaps(other) for other in (*boxes[:place], names))
    assert all(figure.bbox.containsx(x) for x in (names.x0, names.x1)) and names.y0 >= -1
    assert max(text.get_window_extent().x1 for text in legend.get_texts()) <= figure.bbox.x1


def test_a_line_has_the_same_look_in_every_panel_and_no_other_line_has_it():
    figure = learning_curves(many(3, 40)[40:])  # the first task lacks half of them

    def looks(axes):
        return {line.get_label(): (line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines}

    first, second, third = map(looks, figure.axes)
    assert len(first) == 20 and second == third and first.items() <= second.items()
    assert len(set(second.values())) == 40


def test_a_run_that_has_just_begun_shows_whole_steps():
    figure = learning_curves([returns((0, 1.0))])
    figure.draw_without_rendering()
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert "0" in shown and not any(text.endswith("m") for text in shown)


def test_the_path_of_a_picture_is_that_of_the_file(runs, tmp_path):
    assert learning_curve(records(runs), tmp_path / "curve") == tmp_path / "curve.png"
    assert (tmp_path / "curve.png").exists()
    with pytest.raises(ConfigError, match=r"cannot draw a picture as 'a\.xyz': end its name with .*pdf.*png"):
        learning_curve(records(runs), tmp_path / "a.xyz")


def test_a_curve_without_measurements_is_refused(runs, tmp_path):
    with pytest.raises(DataError, match="'evaluation/won'"):
        learning_curve(records(runs), tmp_path / "a.png", metric="evaluation/won")
