"""Runs as Sacred's FileStorageObserver keeps them (Greff et al., 2017), for what reads PyMARL's `results/sacred`."""

import datetime
import sys
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import yaml

from martes.errors import require
from martes.training.display import in_words
from martes.training.rows import Number, Row, numbers_of

_EPISODES = {"return_deviation": "return_std", "length": "ep_length_mean"}
_OURS = ("episodes", "greedy", "return_min", "return_max")


def pymarl_name(name: str) -> str:
    """The name under which PyMARL's users look for a number: `test_return_mean`, `battle_won_mean`, `loss`.

    What PyMARL has no name for keeps its own.
    """
    kind, _, rest = name.partition("/")
    if kind == "learn":
        return rest
    if kind not in ("train", "evaluation") or rest in _OURS:
        return name
    return ("test_" if kind == "evaluation" else "") + _EPISODES.get(rest, f"{rest}_mean")


def required_sacred() -> ModuleType:
    """Sacred's observers. Raises MissingExtra where they, or the setuptools that they need, are not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # setuptools tells at every import that pkg_resources will go
        require("pkg_resources", "sacred")
        require("sacred", "sacred")
        return require("sacred.observers", "sacred")


class About(NamedTuple):
    """Which run it is."""

    title: str
    steps: int
    """Environment steps that it is to make."""
    config: Path
    """Its config.yaml."""


class Sacred:
    """Rows in the next numbered folder below `storage`: config.json, run.json, metrics.json, info.json, cout.txt.

    info.json and metrics.json hold each number under PyMARL's name (info.json: `<name>` and its steps, `<name>_T`).
    A resumed run opens a folder of its own, which begins with the rows that were kept.
    """

    def __init__(self, storage: Path, kept: Iterable[Row], about: About) -> None:
        self._observer = required_sacred().FileStorageObserver(storage, copy_sources=False)
        self._steps, self._last = about.steps, 0
        self._info: dict[str, list[Number]] = {}
        self._said = f"{about.title}: {about.steps:,} steps\n"
        host = require("sacred.host_info", "sacred").get_host_info()
        config = yaml.safe_load(about.config.read_text(encoding="utf-8")) if about.config.exists() else {}
        told: dict[str, object] = {
            "name": about.title,
            "base_dir": str(Path.cwd()),
            "sources": [],
            "dependencies": [],
            "repositories": [],
            "mainfile": None,
        }
        self._observer.started_event(
            ex_info=told, command="train", host_info=host, start_time=_now(), config=config, meta_info={}, _id=None
        )
        for row in kept:
            self.write(row)

    def write(self, row: Row) -> None:
        """Appends the row."""
        step = self._last = int(row["step"] or 0)
        numbers = {pymarl_name(name): value for name, value in numbers_of(row).items()}
        for name, value in numbers.items():
            self._info.setdefault(name, []).append(value)
            self._info.setdefault(f"{name}_T", []).append(step)
        told = "  ".join(f"{name}: {in_words(value)}" for name, value in numbers.items())
        self._said += f"t_env: {step}  {told}\n"
        when = _now()
        measured = {name: {"values": [value], "steps": [step], "timestamps": [when]} for name, value in numbers.items()}
        self._observer.log_metrics(measured, self._info)
        self._observer.heartbeat_event(self._info, self._said, when, None)

    def close(self) -> None:
        """Says how the run ended: COMPLETED, INTERRUPTED, or FAILED with the traceback of what is being raised."""
        if self._last >= self._steps:
            self._observer.completed_event(_now(), None)
        elif (error := sys.exception()) is not None:
            self._observer.failed_event(_now(), traceback.format_exception(error))
        else:
            self._observer.interrupted_event(_now(), "INTERRUPTED")


def _now() -> datetime.datetime:
    """Universal time without its zone, as Sacred writes it."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
