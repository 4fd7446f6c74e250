"""What became of each run of a sweep, kept so that nothing that is finished is done twice."""

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from martes.errors import CheckpointError, ConfigError
from martes.training.settings import Plan

Status = Literal["waiting", "running", "finished", "interrupted", "failed"]


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep: an experiment under a name; its seed is the plan's own."""

    name: str
    plan: Plan

    @property
    def key(self) -> str:
        """Name and seed: the job's place in the ledger, and its run folder within the sweep's."""
        return f"{self.name}/seed-{self.plan.training.seed}"

    @property
    def fingerprint(self) -> str:
        """Equal for equal settings; where and how numbers are logged is none of them."""
        plan = self.plan
        settings = repr((plan.env, plan.algorithm, plan.training, plan.evaluation))
        return hashlib.sha256(settings.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Entry:
    """The last that is known of a job."""

    status: Status
    note: str = ""
    """Of a failed job, its error; of an interrupted one, what ended it."""
    settings: str = ""


class Ledger:
    """The entries of a sweep's ledger.jsonl: one JSON object a line, only ever appended; the last of a job counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, Entry] = {}
        content = path.read_bytes() if path.exists() else b""
        for line in content.split(b"\n"):
            try:
                told = json.loads(line)
                self._entries[told["job"]] = Entry(told["status"], told["note"], told["settings"])
            except (ValueError, KeyError, TypeError):
                continue  # a line that a crash cut short
        if content and not content.endswith(b"\n"):
            self._append(b"\n")

    def entry(self, job: Job) -> Entry:
        """What is known of a job; one that ran when the sweep was killed counts as interrupted.

        Raises ConfigError where the ledger knows this job with other settings.
        """
        known = self._entries.get(job.key)
        if known is None:
            return Entry("waiting")
        if known.settings != job.fingerprint:
            raise ConfigError(
                f"{job.key} was run with other settings in {self._path.parent}: name another folder for this sweep, "
                "or give the experiment another name"
            )
        return Entry("interrupted", "the sweep was killed") if known.status == "running" else known

    def record(self, job: Job, status: Status, note: str = "") -> None:
        """Appends an entry; when this returns, it is on disk. Raises CheckpointError where the disk is full."""
        entry = {"job": job.key, "status": status, "note": note, "settings": job.fingerprint, "time": time.time()}
        self._append(json.dumps(entry).encode() + b"\n")
        self._entries[job.key] = Entry(status, note, job.fingerprint)

    def _append(self, line: bytes) -> None:
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(line)
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self._path}: {error.strerror}. Make room and start the sweep again: it goes on"
            ) from error
