"""A worker process: how it starts, and what it is there for: as a rule, to step copies of a task on a shared board."""

import ctypes
import faulthandler
import mmap
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from math import prod
from multiprocessing import reduction, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, ForkServerContext, SpawnContext
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
import torch

from martes.envs.single import Board, Copies, Maker, SingleEnv
from martes.errors import ConfigError, EnvError, MartesError

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
StartMethod = Literal["spawn", "fork", "forkserver"]
RESET, STEP, RENDER, RECORDING, SAVE, END = b"0", b"s", b"p", b"q", b"v", b"e"
"""What a worker is told to do: the first byte of a message."""
ALIVE, DONE, REFUSED, FAILED = b"a", b"d", b"r", b"f"
"""What it answers: it lives, or made one more copy; it did it; it could not, and goes on; it could not, and ends."""


# ------------------------------------------------------------------------------------------------ memory without a name
def shared(handles: list[int]) -> Callable[[tuple[int, ...], np.dtype], np.ndarray]:
    """An allocator that places each array into a shared block of its own, whose descriptor it appends to `handles`.

    A block has no name: it is gone with the last process that holds it, however that ends.
    """

    def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        size = max(1, prod(shape) * dtype.itemsize)  # a block cannot be empty
        handles.append(_unnamed(size))
        return np.ndarray(shape, dtype, mmap.mmap(handles[-1], size))

    return allocate


def _unnamed(size: int) -> int:
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("martes")  # not in /dev/shm, which is small in many containers
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, size)
    return handle


def received(pipe: Connection) -> Callable[[tuple[int, ...], np.dtype], np.ndarray]:
    """An allocator that takes the blocks that the parent shares, one an array, in the order in which it made them."""

    def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        handle = reduction.recv_handle(pipe)
        try:
            return np.ndarray(shape, dtype, mmap.mmap(handle, os.fstat(handle).st_size))
        finally:
            os.close(handle)

    return allocate


# ---------------------------------------------------------------------------------------------------------------- birth
Answer = Callable[[bytes], bytes]
"""What a worker does when it is told to do something: order -> answer."""
Calling = Callable[[Connection, range, ExitStack], Answer]
"""What a worker is there for. (pipe to the parent, its slice of the copies, what is to be closed at its end) -> what it
does from then on, one `DONE` sent before. It can be pickled."""


class Duty(NamedTuple):
    """What a worker is born with."""

    calling: Calling
    copies: range
    inherited: Sequence[Connection]
    """Ends of pipes that a fork has from its parent, and that would keep the others from noticing its death."""
    of_main_thread: bool
    """Was it started by the thread that lives as long as its process?"""


def context_of(method: StartMethod) -> SpawnContext | ForkContext | ForkServerContext:
    """What starts processes in this way."""
    match method:
        case "spawn":
            return multiprocessing.get_context("spawn")
        case "fork":
            return multiprocessing.get_context("fork")
        case "forkserver":
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])  # torch is loaded once, not once a worker
            return context


def two_ends() -> tuple[Connection, Connection]:
    """Both ends of a pipe."""
    one, other = socket.socketpair()
    for end in (one, other):
        end.setblocking(True)  # whatever the default timeout of sockets is
    return Connection(one.detach()), Connection(other.detach())


def pickled(make: object) -> bytes:
    """A maker on its way to a worker, by value where it is the user's script that defines it. Raises ConfigError."""
    try:
        return import_module("cloudpickle").dumps(make)
    except Exception as error:
        raise ConfigError(
            f"what makes the environment cannot be sent to worker processes ({type(error).__name__}: {error}): let it "
            "hold nothing but plain values, or take env.workers=0 or env.start_method=fork"
        ) from error


@contextmanager
def cradle(is_fork: bool) -> Generator[None]:
    """Processes started inside have one thread, are deaf to Ctrl-C at first, and do not run the user's script again.

    What they need of that script comes with the maker, by value; so it needs no `if __name__ == "__main__"`.
    """
    if not is_fork:
        resource_tracker.ensure_running()  # else it comes up inside, and lets signals through
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    before, script = {name: os.environ.get(name) for name in ONE_THREAD}, sys.modules["__main__"]
    try:
        if not is_fork:
            os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
            sys.modules["__main__"] = ModuleType("__main__")
        yield
    finally:
        sys.modules["__main__"] = script
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# ----------------------------------------------------------------------------------------------------------------- life
def work(pipe: Connection, trace: Connection, duty: Duty) -> None:
    """The life of a worker: it follows its calling until it is told to end.

    All orders and answers go through `pipe`; where Python stands when it crashes or hangs is written to `trace`.
    """
    _settle(trace, duty)
    with ExitStack() as closing:
        try:
            pipe.send_bytes(ALIVE)
            answer = duty.calling(pipe, duty.copies, closing)
            while (order := pipe.recv_bytes()) != END:
                pipe.send_bytes(answer(order))
        except (EOFError, ConnectionError):
            pass  # the parent is gone: what environments raise comes as a MartesError
        except BaseException as error:
            with suppress(OSError):
                pipe.send_bytes(FAILED + _report(error, is_traced=True))


def _settle(trace: Connection, duty: Duty) -> None:
    """Makes a worker deaf to Ctrl-C, the leader of what it starts, mortal with its parent, and single-threaded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.setpgid(0, 0)  # so that what its environments start can be killed with it
    for connection in duty.inherited:
        connection.close()
    if sys.platform == "linux" and duty.of_main_thread:  # elsewhere it ends when next it looks into its pipe
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, sent when the thread that started it ends
    faulthandler.enable(trace.fileno())
    faulthandler.register(signal.SIGUSR1, trace.fileno())
    torch.set_num_threads(1)


def stepping(pipe: Connection, copies: range, closing: ExitStack, make: Maker | bytes, limit: int | None) -> Answer:
    """The calling of who makes copies of a task, says what team they are, and steps them on the parent's board.

    `make` comes pickled, unless the worker is a fork.
    """
    envs: list[SingleEnv] = []
    for copy in copies:
        envs.append(_made(make, copy))
        closing.callback(_closed, envs[-1])
        pipe.send_bytes(ALIVE)
    pipe.send_bytes(DONE + pickle.dumps(envs[0].team))
    team, count = pipe.recv()
    crew = Copies(envs, Board(team, count, received(pipe)), copies.start, limit)
    pipe.send_bytes(DONE)
    return partial(_stepped, crew)


def _made(make: Maker | bytes, copy: int) -> SingleEnv:
    try:
        made: Maker = pickle.loads(make) if isinstance(make, bytes) else make
        return made()
    except MartesError:
        raise
    except Exception as error:
        raise EnvError(f"environment copy {copy} could not be made: {type(error).__name__}: {error}") from error


def _closed(env: SingleEnv) -> None:
    with suppress(Exception):  # the process ends, and with it all that is left open
        env.close()


def _stepped(crew: Copies, order: bytes) -> bytes:
    match order[:1]:
        case b"s":
            crew.step()
            return DONE + pickle.dumps(crew.stats) if crew.stats else DONE
        case b"0":
            crew.reset(np.frombuffer(order, np.int64, offset=1).tolist())
            return DONE
        case b"q":
            return _answer(crew.is_recording)
        case b"v":
            return _answer(crew.save_replay)
        case _:
            return _answer(partial(crew.render, int(order[1:])))


def _answer(ask: Callable[[], object]) -> bytes:
    try:
        return DONE + pickle.dumps(ask())
    except Exception as error:  # no reason to stop stepping: many tasks draw nothing, or record nothing
        return REFUSED + _report(error, is_traced=False)


def _report(error: BaseException, is_traced: bool) -> bytes:
    """The error as it is to be raised, pickled: a MartesError keeps its class; of others, an EnvError tells."""
    told = error if isinstance(error, MartesError) else EnvError(f"{type(error).__name__}: {error}")
    if is_traced and isinstance(told, EnvError):
        trace = "".join(traceback.format_exception(error.__cause__ or error))
        told = EnvError(f"{told}\n\nIn its worker:\n{trace}")
    try:
        pickle.loads(report := pickle.dumps(told))
    except Exception:
        return pickle.dumps(EnvError(f"{type(told).__name__}: {told}"))
    return report
