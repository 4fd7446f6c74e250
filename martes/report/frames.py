"""Run folders as one data frame."""

import os
from typing import TYPE_CHECKING

from martes.errors import require
from martes.report.records import records

if TYPE_CHECKING:
    import pandas


def read_runs(*folders: str | os.PathLike[str]) -> "pandas.DataFrame":
    """A row for each run, step and metric: run, seed, finished, step, time, kind, name, value, then hyperparameters.

    `folders` are run folders or hold some; each hyperparameter is a column named by its path, `algorithm.lr`. Damaged
    runs are left out and named in one warning. Raises DataError where no run is left, MissingExtra without pandas.
    """
    pandas = require("pandas", "pandas")
    runs = records(*folders)
    cells = [
        (index, row["step"], row["time"], row["kind"], name, value)
        for index, run in enumerate(runs)
        for row in run.rows
        for name, value in row.items()
        if name not in ("step", "time", "kind")
    ]
    long = pandas.DataFrame(cells, columns=["_run", "step", "time", "kind", "name", "value"])
    long["value"] = long["value"].astype(float)
    facts = pandas.DataFrame(
        {"run": str(run.folder), "seed": run.seed, "finished": run.is_finished, **run.config} for run in runs
    )
    first = ["run", "seed", "finished", "step", "time", "kind", "name", "value"]
    return long.join(facts, on="_run")[first + [name for name in facts if name not in first]]
