"""What a pool of workers must not leave behind, read from /proc."""

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def processes() -> dict[int, tuple[int, str]]:
    """Process -> its parent and its command, of all that run."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(folder.name)] = int(parent), (folder / "cmdline").read_text()
    return found


def descendants(root: int) -> set[int]:
    """The processes below `root`, but for the two that Python itself keeps until it ends."""
    running = processes()
    below, found = {root}, set[int]()
    while below := {pid for pid, (parent, _) in running.items() if parent in below}:
        found |= below
    kept = {pid for pid in found if "resource_tracker" in running[pid][1]}
    return found - kept - {pid for pid in found if running[pid][0] == root and "forkserver" in running[pid][1]}


def soon(happens: Callable[[], bool], within: float = 20.0) -> bool:
    """Does it happen within so many seconds?"""
    deadline = time.monotonic() + within
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.02)
    return happens()


def left(pids: set[int]) -> set[int]:
    """Those that run."""
    return pids & processes().keys()


def blocks() -> int:
    """Shared blocks that this process holds."""
    return Path("/proc/self/maps").read_text().count("memfd:martes")


@contextmanager
def nothing_left() -> Iterator[None]:
    """What begins inside, ends inside: processes, threads, shared memory."""
    gc.collect()  # what came before ends before
    threads, shared, children = threading.active_count(), set(os.listdir("/dev/shm")), descendants(os.getpid())
    yield
    gc.collect()
    assert soon(lambda: descendants(os.getpid()) <= children), "a process is left"
    assert soon(lambda: threading.active_count() <= threads), "a thread is left"
    assert blocks() == 0, "a shared block is left"
    # All processes of the machine share this folder, and other tests run beside this one: what they put there goes.
    assert soon(lambda: set(os.listdir("/dev/shm")) <= shared), "shared memory with a name is left"
