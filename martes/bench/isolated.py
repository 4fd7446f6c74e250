"""A piece of work in a process of its own: how fast it is, and by how much it raises the peak of memory."""

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from time import perf_counter

import torch

from martes.bench.timing import Side, afforded
from martes.training.process import reuse_memory, threads

Making = Callable[[], Side]
"""Makes a piece of work ready; a process of its own must be able to unpickle it."""

STARTING = 120.0
"""Seconds in which a process must have imported what it needs and done a small piece of work."""
RESERVE = 0.7
"""The share of its time that a process plans to use."""


@dataclass(frozen=True)
class Bounds:
    """What a process is given."""

    repeats: int = 5
    limit: float = 120.0
    """Seconds, from when it is ready to when it is ended."""
    threads: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Found:
    """What a process found out."""

    values: tuple[float, ...] = ()
    """Units a second, one a repeat; none where it did not come to an end."""
    peak: int = 0
    """Bytes by which the peak of memory rose over what the process needed before the work."""
    before: int = 0
    """Bytes that it needed before: the interpreter, torch, and what a small piece of the same work leaves."""
    note: str = ""
    """Why there are no values."""


def isolated(small: Making, work: Making, bounds: Bounds) -> Found:
    """Speed and peak of memory of `work`, all it is made of included, in a fresh process.

    The process first does the `small` piece, so that what libraries keep for ever counts to what was there before. The
    peak is that of resident memory (`VmHWM` where there is /proc), or of what torch has allocated on a CUDA device.
    Where the work is not done by `bounds.limit` the process is ended, and the note says so.
    """
    context = get_context("spawn")  # a forked process would begin with the memory of its parent
    heard, tell = context.Pipe(duplex=False)
    process = context.Process(target=_working, args=(small, work, bounds, tell), daemon=True)
    process.start()
    tell.close()
    try:
        if not heard.poll(STARTING):
            return Found(note=f"not ready after {STARTING:.0f} s")
        heard.recv()
        if not heard.poll(bounds.limit):
            return Found(note=f"over {bounds.limit:g} s")
        return heard.recv()
    except EOFError:
        process.join()
        return Found(note=f"ended with code {process.exitcode}" + (": killed" if process.exitcode == -9 else ""))
    finally:
        process.kill()
        process.join()
        heard.close()


def _working(small: Making, work: Making, bounds: Bounds, tell: connection.Connection) -> None:
    device = torch.device(bounds.device)
    reuse_memory()  # as every run does
    with threads(bounds.threads):
        small()(1)
        before = _memory_now(device)
        tell.send("ready")
        began = perf_counter()
        try:
            side = work()
            left = RESERVE * bounds.limit - (perf_counter() - began)
            values = tuple(afforded(side, bounds.repeats, left))
            tell.send(Found(values, max(_peak(device) - before, 0), before))
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(
                error
            ):
                raise
            tell.send(Found(note="out of memory"))


def _memory_now(device: torch.device) -> int:
    """Bytes in use; the peak is counted from here on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):  # not every system lets a process forget its peak: it is then that of all its life
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or _peak(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    own = _status("VmHWM")  # in Linux ru_maxrss is never below the memory of the parent process
    if own:
        return own
    import resource  # which not every system has

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int:
    """Bytes of an entry of /proc/self/status; 0 where there is none."""
    path = Path("/proc/self/status")
    found = re.search(rf"{name}:\s+(\d+) kB", path.read_text()) if os.access(path, os.R_OK) else None
    return int(found[1]) * 1024 if found else 0
