"""The command `martes`: each subcommand is a dataclass whose fields are its options, and which is called to run it."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, fields, is_dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional, Suppress

from martes.conversion import Typed
from martes.errors import ConfigError, MartesError, nearest
from martes.presets import ALGORITHMS, DEFAULT, PRESETS, TASKS

if TYPE_CHECKING:
    from martes.api import Run
    from martes.experiment import Experiment
    from martes.training.evaluate import Scores

Settings = tuple[tuple[str, object], ...]
"""Pairs of a path and its value, as typed."""
_INTERRUPTED = 130


@dataclass(frozen=True)
class Train:
    """Train an experiment; every value of it can be changed: `--algorithm.lr 1e-3`, or `algorithm.lr=1e-3`."""

    preset: Positional[str] = DEFAULT
    """`<algorithm>/<task>`, as `martes list presets` shows."""
    steps: int | None = None
    """Environment steps (training.steps)."""
    seed: int | None = None
    """The one seed (training.seed)."""
    run_dir: Path | None = None
    """Folder of the run. [default: runs/<preset>-s<seed>-<time>]"""
    resume: Path | None = None
    """Go on with this run, in place of a preset."""
    file: Path | None = None
    """Take these values first: a config.yaml repeats its run exactly."""
    settings: Suppress[Settings] = ()

    def __call__(self) -> int:
        """Trains, and says where the results lie."""
        from martes import api

        settings = [*self.settings, *_given(("training.steps", self.steps), ("training.seed", self.seed))]
        if self.resume is not None:
            if self.preset != DEFAULT or self.run_dir or self.file:
                raise ConfigError("--resume goes on with a run's own experiment: leave out PRESET, --run-dir and --file")
            folder = api.located(self.resume)[0]
            experiment = api.continued(folder, settings)
        else:
            experiment = experiment_of(self.preset, self.file, settings)
            folder = api.new_folder(experiment, self.run_dir, self.preset)
        run = api.trained(experiment, folder)
        return _told(run)
