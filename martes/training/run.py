"""The folder of a run: where each of its files lies, with what it was made, and who may write to it."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

import martes
from martes.errors import CheckpointError
from martes.training import checkpoint

try:
    import fcntl
except ImportError:  # not on Windows: there nobody watches over a run folder
    fcntl = None


class RunFolder:
    """The names of a run's files. Making one writes nothing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.versions = self.path / "versions.json"
        self.metrics = self.path / "metrics.jsonl"
        self.table = self.path / "metrics.csv"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.learning_curve = self.path / "learning_curve.png"
        self.replay = self.path / "replay.gif"
        self._lock = self.path / ".lock"

    def newest_checkpoint(self) -> Path | None:
        """Where a resumed run goes on; None before the first save."""
        return checkpoint.newest(self.checkpoints)

    @property
    def has_begun(self) -> bool:
        """Is there a number or a checkpoint of it?"""
        return self.metrics.exists() or self.newest_checkpoint() is not None

    def forget(self, config: str | None = None) -> None:
        """Removes what a run that has not begun has left; config.yaml holds `config` again, other files stay."""
        if self.has_begun:
            return
        for path in (self.versions, self._lock):
            path.unlink(missing_ok=True)
        if config is not None:
            write_text(self.config, config)
        else:
            self.config.unlink(missing_ok=True)
        with suppress(OSError):  # it is not empty
            self.path.rmdir()

    def record_versions(self) -> list[str]:
        """What has changed since versions.json was written (by the first call): rounding can then differ."""
        now = versions()
        if not self.versions.exists():
            write_text(self.versions, json.dumps(now, indent=2) + "\n")
        try:
            begun = json.loads(self.versions.read_text(encoding="utf-8"))
        except ValueError:
            begun = None
        if not isinstance(begun, dict):
            return [f"{self.versions} is damaged, nobody knows which"]
        return [f"{name} {begun.get(name)}, now {value}" for name, value in now.items() if begun.get(name) != value]

    @contextmanager
    def claimed(self, patience: float = 0) -> Iterator[None]:
        """The folder, made if need be, is this process's alone, until it ends in whatever way.

        Raises CheckpointError where another process holds it for more than `patience` seconds, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = self._lock.open("w")
        except OSError as error:
            raise CheckpointError(
                f"cannot write the run folder {self.path}: {error.strerror}; name another one"
            ) from error
        with lock:
            self._wait_for(lock.fileno(), time.monotonic() + patience)
            yield

    def _wait_for(self, lock: int, deadline: float) -> None:
        while fcntl is not None:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() >= deadline:
                    raise CheckpointError(
                        f"another process is training in {self.path}: wait for it, end it, or name another run folder"
                    ) from None
                time.sleep(0.2)


def write_text(path: Path, text: str) -> None:
    """Writes a small file, whole or not at all. Raises CheckpointError where it cannot be written."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error.strerror}. Make room, or name another folder") from error


def versions() -> dict[str, object]:
    """What this process computes with: packages, machine, threads, git revisions of the project and of martes."""
    return {
        "martes": martes.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git": {"project": revision(Path.cwd()), "martes": revision(Path(__file__).parent)},
    }


def revision(folder: Path) -> dict[str, object] | None:
    """The commit of a folder's repository and whether files differ from it; None outside of repositories."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"revision": commit, "dirty": _git(folder, "status", "--porcelain", "--untracked-files=no") != ""}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(("git", *words), cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
