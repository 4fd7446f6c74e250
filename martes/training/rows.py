"""Rows of metrics on disk: JSON lines, which are the record; CSV, TensorBoard and Weights & Biases, which follow it."""

import csv
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn, Protocol, runtime_checkable

import yaml

from martes.errors import DataError, require

Number = float | int | None
"""A finite number, or None for one that is not."""
Row = dict[str, Number | str]
"""`step`, `time` and `kind`, then one number a name."""

KINDS = ("train", "evaluation")
_FIRST = ("step", "time", "kind")


def read_rows(path: Path) -> list[Row]:
    """The complete rows of a metrics.jsonl; an unfinished last line, which a killed run leaves, is no row.

    Raises DataError, naming the file and the line, where a row is not strict JSON or not a row.
    """
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _row(line: bytes, place: str) -> Row:
    try:
        row = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_distinct)
    except ValueError as error:
        raise DataError(f"{place} is not strict JSON: {error}") from None
    if (
        not isinstance(row, dict)
        or row.get("kind") not in KINDS
        or type(row.get("step")) is not int
        or "time" not in row
    ):
        raise DataError(
            f"{place} is no row of metrics: it has an integer step, a time and a kind, {' or '.join(KINDS)}"
        )
    for name, value in row.items():
        if name != "kind" and (isinstance(value, bool) or not isinstance(value, float | int | None)):
            raise DataError(f"{place}: {name} is {value!r}, which is not a number")
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name occurs twice")
    return names


@runtime_checkable
class Sink(Protocol):
    """Takes rows in, one at a time; what it took is safe when `write` returns."""

    def write(self, row: Row) -> None:
        """Takes in a row."""
        ...

    def close(self) -> None:
        """Takes no more."""
        ...


class JsonLines:
    """One strict JSON object a line. Opening keeps the first `keep` rows of an older file and drops what follows."""

    def __init__(self, path: Path, keep: int) -> None:
        path.touch()
        lines = path.read_bytes().split(b"\n")[:-1][:keep]
        os.truncate(path, sum(len(line) + 1 for line in lines))
        self.kept = read_rows(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        """Appends the row."""
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Csv:
    """The same rows as a table whose columns are all names so far; a row without a name leaves its cell empty.

    Where a row brings a new name, the whole table is written anew beside the old one, which it then replaces.
    """

    def __init__(self, path: Path, kept: Iterable[Row]) -> None:
        self._path = path
        self._rows = list(kept)
        self._write_all()

    def _write_all(self) -> None:
        self._columns = list(dict.fromkeys((*_FIRST, *(name for row in self._rows for name in row))))
        beside = self._path.with_name(self._path.name + ".new")
        with beside.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, self._columns, lineterminator="\n")
            table.writeheader()
            table.writerows(self._rows)
        os.replace(beside, self._path)
        self._file = self._path.open("a", encoding="utf-8", newline="")

    def write(self, row: Row) -> None:
        """Appends the row."""
        self._rows.append(row)
        if row.keys() <= set(self._columns):
            csv.DictWriter(self._file, self._columns, lineterminator="\n").writerow(row)
            self._file.flush()
        else:
            self._file.close()
            self._write_all()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """The same numbers as TensorBoard scalars over environment steps.

    A resumed run opens a new event file that declares everything from the last kept row's step on void, then repeats
    the rows kept from there on: readers see neither a gap nor a number twice.
    """

    def __init__(self, folder: Path, kept: list[Row]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second, and not every run logs to it

        _wait_for_a_later_name(folder)
        last = int(kept[-1]["step"] or 0) if kept else 0
        self._writer = SummaryWriter(str(folder), purge_step=last)
        for row in kept:
            if int(row["step"] or 0) >= last:  # later, too: what is evaluated in the background comes late
                self.write(row)

    def write(self, row: Row) -> None:
        """Appends the row's numbers."""
        for name, value in numbers_of(row).items():
            self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


def _wait_for_a_later_name(folder: Path) -> None:
    """Sleeps until the second in which the folder's newest event file was opened is over, if it is not.

    Readers take the files in the order of their names, which begin with that second and, within one, follow no order.
    """
    opened = max((int(file.name.split(".")[3]) for file in folder.glob("events.out.tfevents.*")), default=0)
    time.sleep(min(1, max(0, opened + 1 - time.time())))  # at most one: the clock may have been set back


class WeightsAndBiases:
    """The same numbers in a run of Weights & Biases, with `config.yaml` as its configuration.

    A resumed run goes on as the same run there; rows that it repeats stand twice, since nothing sent can be recalled.
    """

    def __init__(self, folder: Path, project: str, title: str, identity: str) -> None:
        config = folder / "config.yaml"
        self._run = require("wandb", "wandb").init(
            project=project,
            name=title,
            id=identity,
            resume="allow",
            dir=str(folder),
            config=yaml.safe_load(config.read_text()) if config.exists() else None,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, row: Row) -> None:
        """Sends the row's numbers, or keeps them for later where there is no network."""
        self._run.log({"step": row["step"], **numbers_of(row)})

    def close(self) -> None:
        """Ends the session."""
        self._run.finish()


def numbers_of(row: Row) -> Mapping[str, Number]:
    """The finite numbers of a row, by name, without its step and its time."""
    return {name: value for name, value in row.items() if name not in _FIRST and isinstance(value, float | int)}
