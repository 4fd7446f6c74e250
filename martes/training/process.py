"""What a run changes of its process and puts back afterwards: the threads of torch, and what Ctrl-C does."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process

import torch

from martes.envs.process import cores as available_cores


def cores() -> int:
    """Processor cores that this process may use: OMP_NUM_THREADS where it is set, as everywhere in numerics."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told):
        return int(told)
    return available_cores()


def reuse_memory() -> None:
    """Lets the C library keep freed memory for the next tensor (glibc alone; elsewhere nothing happens).

    By default tensors of more than a few hundred kilobytes come fresh from the system and go back at once: at large
    batches the page faults were a sixth of the time of learning.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD: the largest value that it takes
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch computes with `count` threads, or with one for each core if `count` is 0."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """An event that is set by the first Ctrl-C or SIGTERM; the next one raises KeyboardInterrupt, as ever."""
    stop = threading.Event()

    def noted(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():  # signals can be caught in that one alone
        yield stop
        return
    before = {number: signal.signal(number, noted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Waits for the end of the process that started this one, then ends this one: for a thread of a worker."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
