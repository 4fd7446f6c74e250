"""What run folders hold, read strictly: a damaged run is named, and the others are still there."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from martes.errors import DataError
from martes.training.rows import Row, read_rows

Value = str | int | float | bool | None
"""A hyperparameter; a list is written as text."""

RETURN = "evaluation/return"
"""The metric that reports are about, unless told otherwise."""


@dataclass(frozen=True)
class Record:
    """One run: its folder, its hyperparameters by their path (`algorithm.lr`) and its rows of metrics."""

    folder: Path
    config: Mapping[str, Value]
    rows: Sequence[Row]

    @property
    def seed(self) -> int | None:
        """The run's seed."""
        seed = self.config.get("training.seed")
        return seed if isinstance(seed, int) else None

    @property
    def is_finished(self) -> bool:
        """Did it make all its steps, and its last evaluation?"""
        steps = [row["step"] for row in self.rows if row["kind"] == "evaluation"] or [row["step"] for row in self.rows]
        wanted, made = self.config.get("training.steps"), steps[-1] if steps else None
        return isinstance(wanted, int) and isinstance(made, int) and made >= wanted

    def series(self, name: str) -> list[tuple[int, float]]:
        """Environment steps and values of one metric, where it was a finite number."""
        pairs = ((row["step"], row.get(name)) for row in self.rows)
        return [(step, value) for step, value in pairs if isinstance(step, int) and isinstance(value, float | int)]


def records(*folders: str | os.PathLike[str]) -> list[Record]:
    """Every run in these folders, each a run's own or one with runs somewhere below it, in the order of their names.

    Damaged runs are left out, and named with what is wrong in one warning. Raises DataError where no run is left.
    """
    good: list[Record] = []
    damaged: list[str] = []
    for folder in dict.fromkeys(found for each in folders for found in _run_folders(Path(each))):
        try:
            good.append(Record(folder, _config(folder / "config.yaml"), _rows(folder / "metrics.jsonl")))
        except DataError as error:
            damaged.append(str(error))
    if not good:
        told = "; ".join(damaged) or "a run's folder holds config.yaml and metrics.jsonl"
        raise DataError(f"no run to read in {', '.join(map(str, folders)) or 'no folder at all'}: {told}")
    if damaged:
        warnings.warn(f"{len(damaged)} damaged runs are left out: {'; '.join(damaged)}", stacklevel=2)
    return good


def _run_folders(folder: Path) -> Iterator[Path]:
    """The folder itself if it is a run's, else the runs below it; what lies inside a run's folder is its own."""
    if any((folder / name).exists() for name in ("config.yaml", "metrics.jsonl")):
        yield folder
    elif folder.is_dir():
        for below in sorted(folder.iterdir()):
            if below.is_dir():
                yield from _run_folders(below)


def _rows(path: Path) -> list[Row]:
    try:
        return read_rows(path)
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None


def _config(path: Path) -> dict[str, Value]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path} holds no hyperparameters")
    return dict(flat(tree))


def flat(tree: Mapping[str, object], path: str = "") -> Iterator[tuple[str, Value]]:
    """The hyperparameters of a configuration by their path."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value if isinstance(value, Value) else str(value)


def task_of(run: Record) -> str:
    """The name of a run's task, or the place of its factory."""
    return str(run.config.get("env.factory") or run.config.get("env.name") or "unnamed")
