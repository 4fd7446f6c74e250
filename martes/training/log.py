"""The log of a run: gathers numbers without waiting for the device, and writes them as rows that a killed run keeps."""

import math
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from martes.errors import CheckpointError, DataError, require
from martes.training.display import display_for
from martes.training.rows import Csv, JsonLines, Number, Row, Sink, TensorBoard, WeightsAndBiases
from martes.training.sacred_runs import About, Sacred, required_sacred
from martes.training.settings import Logging


@runtime_checkable
class Played(Protocol):
    """What the log reads of an evaluation."""

    @property
    def returns(self) -> Tensor:
        """Return of each episode [episode]."""
        ...

    @property
    def lengths(self) -> Tensor:
        """Length of each episode [episode]."""
        ...

    @property
    def stats(self) -> Mapping[str, float]:
        """Means of what else the environment counts."""
        ...


class Tally:
    """A running sum on the device that its numbers come from; read once a row."""

    def __init__(self, total: Tensor, count: int = 0) -> None:
        self.total = total
        self.count = count

    def add(self, total: Tensor, count: int = 1) -> None:
        """Takes in the sum of `count` numbers."""
        self.total = self.total.to(total.device).add_(total.detach())
        self.count += count

    def mean(self) -> float:
        """The mean so far; this waits for the device."""
        return float(self.total) / self.count


class Log:
    """Rows of metrics of one run in `folder`, and the display of its progress. The names are listed in docs/logging.md.

    Raises MissingExtra at once where a logger that is asked for is not installed.
    """

    def __init__(self, folder: Path, logging: Logging, total_steps: int, title: str, greedy: bool) -> None:
        if logging.wandb is not None:
            require("wandb", "wandb")
        if logging.sacred is not None:
            required_sacred()
        self._folder = folder
        self._logging = logging
        self._title = title
        self._total_steps = total_steps
        self._greedy = greedy
        self._display = display_for(logging.progress, title, total_steps)
        self._sinks: list[Sink] = []
        self._identity = uuid.uuid4().hex[:12]
        self._rows = 0
        self._steps = self._row_steps = 0
        self._began = perf_counter()
        self._row_time = 0.0
        self._phases: dict[str, float] = {}
        self._tallies: dict[str, Tally] = {}

    def __enter__(self) -> "Log":
        self._display.open()
        self._display.begin(self._steps)
        how = "greedy, the most probable action" if self._greedy else "sampled, as in training"
        self._display.message(f"evaluation is {how}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            with suppress(*() if error is None else (CheckpointError,)):  # the first error is the one to see
                if self._tallies:
                    self._write_training()
        finally:
            self._close_sinks()
            self._display.close()

    @property
    def time(self) -> float:
        """Seconds that this run took so far, those before a resume included."""
        return perf_counter() - self._began

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the wall time inside as time for `name`: act, learn, evaluate or save."""
        began = perf_counter()
        try:
            yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + perf_counter() - began

    def update(self, steps: int, metrics: Mapping[str, Tensor], episodes: Mapping[str, Tensor]) -> None:
        """Takes in the `metrics` of a learner and the `episodes` that ended since the last call, after `steps` in all.

        Writes the row of training that is due each `logging.every` steps: means over updates and over episodes.
        """
        for name, metric in metrics.items():
            if metric.ndim:
                raise DataError(f"the metric {name!r} has shape {list(metric.shape)}: give one number")
            self._tally(f"learn/{name}").add(metric)
        for name, values in episodes.items():
            self._tally(f"train/{name}").add(values.double().sum(), values.numel())
        self._steps = steps
        self._display.advance(steps)
        if steps // self._logging.every > self._row_steps // self._logging.every:
            self._write_training()

    def _tally(self, name: str) -> Tally:
        if name not in self._tallies:
            self._tallies[name] = Tally(torch.zeros((), dtype=torch.float64))
        return self._tallies[name]

    def _write_training(self) -> None:
        seconds = max(self.time - self._row_time, 1e-9)
        apart = self._phases.get("evaluate", 0.0) + self._phases.get("save", 0.0)
        row: dict[str, float] = {}
        if "train/return" in self._tallies:
            row["train/episodes"] = self._tallies["train/return"].count
        row |= {name: tally.mean() for name, tally in self._tallies.items() if tally.count}
        row["speed/env_steps_per_second"] = (self._steps - self._row_steps) / max(seconds - apart, 1e-9)
        row |= {f"time/{name}": spent / seconds for name, spent in self._phases.items()}
        self._write("train", self._steps, row)
        self._tallies.clear()
        self._phases.clear()
        self._row_steps, self._row_time = self._steps, self.time

    def evaluation(self, steps: int, result: Played) -> None:
        """Writes the row of an evaluation of the policy after `steps` steps."""
        returns, lengths = result.returns.double().cpu(), result.lengths.double().cpu()
        row = {f"evaluation/{name}": value for name, value in result.stats.items()} | {
            "evaluation/return": float(returns.mean()),
            "evaluation/return_deviation": float(returns.std(correction=0)),
            "evaluation/return_min": float(returns.min()),
            "evaluation/return_max": float(returns.max()),
            "evaluation/length": float(lengths.mean()),
            "evaluation/episodes": returns.numel(),
            "evaluation/greedy": int(self._greedy),
        }
        self._write("evaluation", steps, row)

    def _write(self, kind: str, steps: int, numbers: Mapping[str, float]) -> None:
        finite: dict[str, Number] = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        row: Row = {"step": steps, "time": round(self.time, 3), "kind": kind, **finite}
        with self._disk():
            for sink in self._opened_sinks():
                sink.write(row)
        self._rows += 1
        self._display.row(row)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"cannot write metrics to {self._folder}: {error.strerror or error}. Earlier rows and checkpoints are "
                "safe; make room, then resume the run"
            ) from error

    def _opened_sinks(self) -> list[Sink]:
        """Where rows go; at the first call, `self._rows` rows of older files are kept and the rest is dropped."""
        if not self._sinks:
            self._folder.mkdir(parents=True, exist_ok=True)
            record = JsonLines(self._folder / "metrics.jsonl", self._rows)
            if len(record.kept) < self._rows:
                self.message(f"metrics.jsonl lacks {self._rows - len(record.kept)} rows that the checkpoint knew of")
                self._rows = len(record.kept)
            self._sinks = [record]
            if self._logging.csv:
                self._sinks.append(Csv(self._folder / "metrics.csv", record.kept))
            if self._logging.tensorboard:
                self._sinks.append(TensorBoard(self._folder / "tensorboard", record.kept))
            if self._logging.wandb is not None:
                self._sinks.append(WeightsAndBiases(self._folder, self._logging.wandb, self._title, self._identity))
            if self._logging.sacred is not None:
                about = About(self._title, self._total_steps, self._folder / "config.yaml")
                self._sinks.append(Sacred(Path(self._logging.sacred), record.kept, about))
        return self._sinks

    def _close_sinks(self) -> None:
        for sink in self._sinks:
            with suppress(OSError):  # every row was flushed: a full disk has nothing more to say
                sink.close()
        self._sinks = []

    def message(self, text: str) -> None:
        """Shows a line of text."""
        self._display.message(text)

    def state_dict(self) -> dict[str, object]:
        """How many rows are written, and everything that the next one is made of."""
        return {
            "rows": self._rows,
            "steps": self._steps,
            "row_steps": self._row_steps,
            "time": self.time,
            "row_time": self._row_time,
            "identity": self._identity,
            "phases": dict(self._phases),
            "tallies": {name: [tally.total.clone(), tally.count] for name, tally in self._tallies.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`: rows that the folder's files hold beyond it are dropped, for they will come again."""
        self._close_sinks()
        self._rows, self._steps, self._row_steps = state["rows"], state["steps"], state["row_steps"]
        self._began, self._row_time = perf_counter() - state["time"], state["row_time"]
        self._identity, self._phases = state["identity"], dict(state["phases"])
        self._tallies = {name: Tally(total.clone(), count) for name, (total, count) in state["tallies"].items()}
        self._display.begin(self._steps)
        with self._disk():
            self._opened_sinks()
