"""Many runs, several at a time, each in a process of its own; finished ones are kept, interrupted ones go on."""

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Protocol, runtime_checkable

import cloudpickle
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from martes.errors import ConfigError, MartesError
from martes.training.ledger import Entry, Job, Ledger, Status
from martes.training.log import Log
from martes.training.loop import Result, train
from martes.training.process import cores, end_with_parent, interruption
from martes.training.run import RunFolder
from martes.training.settings import Plan

Work = Callable[[str, Plan, RunFolder], Result]
"""Trains one job in its process: (name, plan, run folder) -> how it ended."""


def trained(name: str, plan: Plan, folder: RunFolder) -> Result:
    """The result of one run, its rows of metrics in its folder."""
    with Log(folder.path, plan.logging, plan.training.steps, name, plan.evaluation.greedy) as log:
        return train(plan, folder, log)


def sweep(
    jobs: Iterable[Job],
    folder: Path,
    processes: int = 1,
    *,
    again: bool = False,
    work: Work = trained,
    console: Console | None = None,
) -> dict[str, Entry]:
    """What became of each job (by its key), after `processes` at a time were trained in `folder/<name>/seed-<n>`.

    Finished jobs are not run again; interrupted ones go on from their last checkpoint; failed ones only where `again`
    is true. The cores are divided among the processes. The first Ctrl-C lets every run save and end, a second one
    kills. Raises ConfigError where two jobs are one, or a job was run here with other settings.
    """
    jobs = list(jobs)
    keys = [job.key for job in jobs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None or processes < 1:
        raise ConfigError(
            f"{twice} stands twice in this sweep" if twice else f"processes is {processes}: give 1 or more"
        )
    with RunFolder(folder).claimed(), interruption() as stop:
        ledger = Ledger(folder / "ledger.jsonl")
        done = ("finished",) if again else ("finished", "failed")
        waiting = [job for job in jobs if ledger.entry(job).status not in done]
        threads = max(cores() // max(min(processes, len(waiting)), 1), 1)
        with Crew(folder, ledger, work, threads) as crew, Board(jobs, folder, console or Console()) as board:
            while crew.running or (waiting and not stop.is_set()):
                if stop.is_set():
                    crew.ask_to_end()
                while waiting and len(crew.running) < processes and not stop.is_set():
                    crew.start(waiting.pop(0))
                crew.reap(patience=0.5)
                board.show({job: crew.entry(job) for job in jobs})
            board.show({job: crew.entry(job) for job in jobs})
        return {job.key: ledger.entry(job) for job in jobs}


# ----------------------------------------------------------------------------------------------------------- processes
@runtime_checkable
class Ending(Protocol):
    """The end of a pipe at which a process says how it ended."""

    def recv(self) -> tuple[Status, str]:
        """What it said. Raises EOFError where it ended without a word."""
        ...

    def close(self) -> None:
        """Closes the pipe."""
        ...


@dataclass
class Worker:
    """The process of a job."""

    process: SpawnProcess
    said: Ending
    is_asked_to_end: bool = False


class Crew:
    """The processes at work; leaving it kills those that still are."""

    def __init__(self, folder: Path, ledger: Ledger, work: Work, threads: int) -> None:
        self.folder = folder
        self.ledger = ledger
        self.running: dict[Job, Worker] = {}
        self._work = work
        self._threads = threads

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.running.values():
            worker.process.kill()

    def start(self, job: Job) -> None:
        """Trains the job in a new process."""
        context = get_context("spawn")  # a forked process would share the locks of torch's threads
        said, tell = context.Pipe(duplex=False)
        task = cloudpickle.dumps((self._work, job.name, job.plan, self.folder / job.key))
        process = context.Process(target=_working, args=(task, self._threads, tell), name=job.key)
        self.ledger.record(job, "running")
        process.start()
        tell.close()
        self.running[job] = Worker(process, said)

    def ask_to_end(self) -> None:
        """Lets every process finish its update, save and end; each is asked once, for a second time would abort it."""
        for worker in self.running.values():
            if not worker.is_asked_to_end:
                worker.process.terminate()
                worker.is_asked_to_end = True

    def reap(self, patience: float) -> None:
        """Records what became of processes that ended within `patience` seconds."""
        connection.wait([worker.process.sentinel for worker in self.running.values()], patience)
        for job, worker in list(self.running.items()):
            if not worker.process.is_alive():
                status, note = _ending(worker)
                self.ledger.record(job, status, note)
                del self.running[job]

    def entry(self, job: Job) -> Entry:
        """What is known of a job now."""
        return Entry("running") if job in self.running else self.ledger.entry(job)


def _ending(worker: Worker) -> tuple[Status, str]:
    worker.process.join()
    code = worker.process.exitcode or 0
    try:
        return worker.said.recv()
    except EOFError:  # it had no time to say anything
        is_killed = -code in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
        return ("interrupted" if is_killed else "failed"), f"the process ended with code {code}"
    finally:
        worker.said.close()


def _working(task: bytes, threads: int, tell: connection.Connection) -> None:
    """The life of a worker. Its output goes to output.txt of the run; it does not outlive its parent."""
    if hasattr(os, "setsid"):
        os.setsid()  # a Ctrl-C of the terminal is for the parent alone, which then asks
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    work, name, plan, path = cloudpickle.loads(task)
    folder = RunFolder(path)
    try:
        with folder.claimed(patience=60):  # the process of a killed sweep may still be saving
            _redirect(path / "output.txt")
        result: Result = work(name, plan, folder)
        tell.send(("finished", "") if result.is_finished else ("interrupted", f"at step {result.steps}"))
    except Exception as error:
        traceback.print_exc()
        tell.send(("failed", str(error) if isinstance(error, MartesError) else f"{type(error).__name__}: {error}"))


def _redirect(path: Path) -> None:
    with path.open("a") as output:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)


# ------------------------------------------------------------------------------------------------------------- display
class Board:
    """One table of all jobs, live in a terminal; elsewhere a line for each change of a status."""

    def __init__(self, jobs: Sequence[Job], folder: Path, console: Console) -> None:
        self._jobs = jobs
        self._folder = folder
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._told: dict[Job, Status] = {}

    def __enter__(self) -> "Board":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, entries: dict[Job, Entry]) -> None:
        """Brings what is seen up to date."""
        if self._live is not None:
            self._live.update(self._table(entries), refresh=True)
            return
        for job, entry in entries.items():
            if self._told.get(job, "waiting") != entry.status:
                self._console.print(f"{job.key}: " + "  ".join(filter(None, self._row(job, entry)[2:])), markup=False)
                self._told[job] = entry.status

    def _table(self, entries: dict[Job, Entry]) -> Table:
        table = Table("experiment", "seed", "status", box=None)
        for name in ("steps", "steps/s", "return"):
            table.add_column(name, justify="right")
        table.add_column("", overflow="ellipsis", no_wrap=True)
        for job, entry in entries.items():
            table.add_row(*map(Text, self._row(job, entry)))
        return table

    def _row(self, job: Job, entry: Entry) -> tuple[str, ...]:
        numbers = latest(RunFolder(self._folder / job.key))
        speed = numbers.get("speed/env_steps_per_second") if entry.status == "running" else None
        earned = numbers.get("evaluation/return", numbers.get("train/return"))
        return (
            job.name,
            str(job.plan.training.seed),
            entry.status,
            f"{numbers.get('step', 0):,} / {job.plan.training.steps:,}",
            f"{speed:,.0f}" if speed else "",
            f"{earned:.4g}" if earned is not None else "",
            entry.note,
        )


def latest(folder: RunFolder) -> dict[str, float]:
    """The latest value of each metric in the last rows of a run that may be writing them now."""
    found: dict[str, float] = {}
    if folder.metrics.exists():
        with folder.metrics.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 20_000, 0))
            lines = file.read().split(b"\n")[:-1]  # what follows the last line break is not complete
        for line in lines:
            try:
                found |= {name: value for name, value in json.loads(line).items() if value is not None}
            except ValueError:
                continue  # the first line read may begin in its midst
    return found
