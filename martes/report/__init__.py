"""What came of runs: data frames, learning curves with intervals, tables, replays."""

from martes.report.chance import random_play
from martes.report.curves import learning_curve
from martes.report.frames import read_runs
from martes.report.intervals import Interval
from martes.report.over_tasks import over_tasks, picture_over_tasks, table_over_tasks
from martes.report.records import Record, records
from martes.report.replay import film_writer, has_display, replay_frames, save_replay, show_replay
from martes.report.tables import results_table

__all__ = [
    "Interval",
    "Record",
    "film_writer",
    "has_display",
    "learning_curve",
    "over_tasks",
    "picture_over_tasks",
    "random_play",
    "read_runs",
    "records",
    "replay_frames",
    "results_table",
    "save_replay",
    "show_replay",
    "table_over_tasks",
]
