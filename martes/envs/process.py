"""Copies of a task in worker processes: one board in shared memory, and a byte a step to say that it is time."""

import os
import pickle
import selectors
import signal
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import reduction
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from time import monotonic
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8

from martes.data import TeamSpec
from martes.envs import worker
from martes.envs.pace import medians
from martes.envs.single import Board, HostedEnv, Maker, counted, limited, serial_env
from martes.envs.worker import ALIVE, END, FAILED, REFUSED, RENDER, RESET, SAVE, STEP, Duty, StartMethod
from martes.errors import ConfigError, EnvError

WATCH = 1.0
"""Seconds between two looks at whether those that are waited for still live, should their pipes not tell."""
START = 60.0
"""Seconds that a process may take to start, beyond its timeout."""
GRACE, FAULT_GRACE = 10.0, 2.0
"""Seconds in which workers may close their environments before they are killed: at the end, and after a fault."""


@dataclass(frozen=True)
class Hosting:
    """Where the copies of a task in plain Python are stepped."""

    workers: int | Literal["auto"] = 0
    """Processes that step them; 0: this one does; auto: one a core if that proves faster here, which takes seconds."""
    timeout: float = 60.0
    """Seconds without an answer after which a worker counts as hanging: it is killed, and the run ends."""
    start_method: StartMethod = "spawn"
    """How workers begin: spawn works everywhere; forkserver and fork are quicker, fork only before threads run."""

    def __post_init__(self) -> None:
        if isinstance(self.workers, int) and self.workers < 0:
            raise ConfigError(f"env.workers is {self.workers}: give a number of processes, 0 for none, or auto")
        if self.workers and sys.platform == "win32":
            raise ConfigError(f"env.workers is {self.workers}: worker processes need Linux or macOS, take 0")
        if not self.timeout > 0:
            raise ConfigError(f"env.timeout is {self.timeout}: give the seconds that a step may take")


DEFAULT = Hosting()


def cores() -> int:
    """Processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, eq=False)
class _Worker:
    """A worker as its parent sees it."""

    process: BaseProcess
    pid: int
    pipe: Connection
    trace: Connection
    """Where Python says in which line it stands when it crashes, or is asked."""
    copies: range

    def __str__(self) -> str:
        first, last = self.copies[0], self.copies[-1]
        return f"{self.process.name} (environment {f'copies {first} to {last}' if last > first else f'copy {first}'})"

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; one that is gone does not mind."""
        with suppress(OSError):
            os.kill(self.pid, number)

    def last_lines(self, patience: float) -> str:
        """Where it stood when it crashed, or stands since it was asked; nothing where it did not tell."""
        text = b""
        while self.trace.poll(patience) and (some := os.read(self.trace.fileno(), 65536)):
            text, patience = text + some, 0.1
        return f"\nIt stood at\n{text.decode(errors='replace')}" if text else ""

    def kill(self) -> None:
        """Kills it, and what its environments started."""
        with suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        self.signal(signal.SIGKILL)


class Pool:
    """A crew of worker processes, each with a contiguous slice of the copies, on a board in shared memory.

    `hosting.workers` of them (one a core where that is no number), never more than copies. What goes wrong in one of
    them (an error, its death, silence for longer than `hosting.timeout`) is raised here, and closes the pool.
    """

    def __init__(self, make: Maker, copies: int, limit: int | None = None, hosting: Hosting = DEFAULT) -> None:
        counted(copies)
        self.stats: dict[int, Mapping[str, float]] = {}
        self._timeout = hosting.timeout
        self._closed, self._doing, self._steps = "", "making its environments", 0
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._end = Finalize(self, _ended, (self._workers, self._selector), exitpriority=0)
        count = min(copies, hosting.workers if isinstance(hosting.workers, int) and hosting.workers else cores())
        ends = [index * copies // count for index in range(count + 1)]
        try:
            self._start(make, limit, [range(*each) for each in pairwise(ends)], hosting.start_method)
            self.team = limited(self._common_team(), limit)
            self.board = self._shared_board(copies)
        except BaseException:
            _ended(self._workers, self._selector, FAULT_GRACE)
            raise

    def _start(self, make: Maker, limit: int | None, slices: Sequence[range], method: StartMethod) -> None:
        context = worker.context_of(method)
        carried = make if method == "fork" else worker.pickled(make)
        of_main_thread = threading.current_thread() is threading.main_thread()
        for index, copies in enumerate(slices, 1):
            (ours, theirs), (trace, traced) = worker.two_ends(), worker.two_ends()
            held = [end for each in self._workers for end in (each.pipe, each.trace)]
            duty = Duty(carried, copies, limit, [*held, ours, trace] if method == "fork" else [], of_main_thread)
            name = f"worker {index} of {len(slices)}"
            process = context.Process(target=worker.work, args=(theirs, traced, duty), name=name)
            with worker.cradle(is_fork=method == "fork"):
                process.start()
                assert process.pid is not None
                self._workers.append(_Worker(process, process.pid, ours, trace, copies))
            theirs.close()
            traced.close()
            self._selector.register(ours, selectors.EVENT_READ, self._workers[-1])

    def _common_team(self) -> TeamSpec:
        """What the workers say that their copies are: this process makes none, and needs not know how."""
        answers = self._answers(self._workers, START)
        teams: list[TeamSpec] = [pickle.loads(answers[each][1:]) for each in self._workers]
        for each, team in zip(self._workers, teams, strict=True):
            if team != teams[0]:
                raise EnvError(
                    f"{each} made {team}, but {self._workers[0]} made {teams[0]}: all copies must be of one team"
                )
        return teams[0]

    def _shared_board(self, copies: int) -> Board:
        handles: list[int] = []
        try:
            board = Board(self.team, copies, worker.shared(handles))
            for each in self._workers:
                try:
                    each.pipe.send((self.team, copies))
                    for handle in handles:
                        reduction.send_handle(each.pipe, handle, each.pid)
                except OSError:
                    raise self._death(each) from None
            self._answers(self._workers)  # each has filled it, and nobody will do so again
        finally:
            for handle in handles:
                os.close(handle)
        return board

    def reset(self, seeds: Sequence[int]) -> None:
        """Opens an episode in every copy."""
        self.stats, self._steps = {}, 0
        numbers = np.array(seeds, np.int64)
        slices = {each: numbers[each.copies.start : each.copies.stop] for each in self._workers}
        self._ordered({each: RESET + mine.tobytes() for each, mine in slices.items()}, "opening episodes")

    def step(self) -> None:
        """Steps every copy by its row of `board.action`. Raises EnvError for what goes wrong in a worker."""
        self.stats = {}
        self._steps += 1
        answers = self._ordered(dict.fromkeys(self._workers, STEP), f"step {self._steps} since the reset")
        for answer in answers.values():
            if len(answer) > 1:
                self.stats |= pickle.loads(answer[1:])

    def render(self, copy: int) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of one copy."""
        orders = {each: RENDER + str(copy).encode() for each in self._workers if copy in each.copies}
        (answer,) = self._ordered(orders, "drawing a picture").values()
        return _granted(answer)

    def save_replay(self) -> None:
        """Saves what each copy recorded."""
        for answer in self._ordered(dict.fromkeys(self._workers, SAVE), "saving replays").values():
            _granted(answer)

    def close(self) -> None:
        """Ends the workers; those that take more than some seconds to close their copies are killed."""
        self._close("close() was called", GRACE)

    def _close(self, why: str, grace: float) -> None:
        self._closed = self._closed or why
        _ended(self._workers, self._selector, grace)
        self._end.cancel()
        self.board.release()

    def _ordered(self, orders: Mapping[_Worker, bytes], doing: str) -> dict[_Worker, bytes]:
        """What these workers answer. Whatever goes wrong closes the pool: nobody knows where the others stand."""
        if self._closed:
            raise EnvError(f"this environment is closed ({self._closed}): make a new one")
        self._doing = doing
        try:
            for each, order in orders.items():
                try:
                    each.pipe.send_bytes(order)
                except OSError:
                    raise self._death(each) from None
            return self._answers(orders)
        except BaseException as error:
            self._close((str(error) or type(error).__name__).partition("\n")[0], FAULT_GRACE)
            raise

    def _answers(self, workers: Iterable[_Worker], extra: float = 0) -> dict[_Worker, bytes]:
        due = dict.fromkeys(workers, monotonic() + self._timeout + extra)
        answers: dict[_Worker, bytes] = {}
        while due:
            ready = self._selector.select(min(WATCH, max(0.0, min(due.values()) - monotonic())))
            for key, _ in ready:
                each: _Worker = key.data
                answer = self._heard(each)
                if answer == ALIVE:
                    due[each] = monotonic() + self._timeout
                else:
                    answers[each] = answer
                    del due[each]
            if not ready:
                self._look_after(due)
        return answers

    def _heard(self, each: _Worker) -> bytes:
        try:
            answer = each.pipe.recv_bytes()
        except (EOFError, OSError):
            raise self._death(each) from None
        if answer[:1] == FAILED:
            raise pickle.loads(answer[1:])
        return answer

    def _look_after(self, due: Mapping[_Worker, float]) -> None:
        """Raises EnvError for a worker that died, or hangs; one that hangs is killed."""
        for each, deadline in due.items():
            if each.process.exitcode is not None:
                raise self._death(each)
            if monotonic() >= deadline:
                each.signal(signal.SIGUSR1)
                lines = each.last_lines(patience=1.0)
                each.kill()
                raise EnvError(
                    f"{each}, {self._doing}: no answer for {self._timeout:g} s, so it was killed; raise "
                    f"env.timeout if its environments may take that long{lines}"
                )

    def _death(self, each: _Worker) -> EnvError:
        each.process.join(1.0)
        code = each.process.exitcode
        how = "stopped answering" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            how += " (from outside: is there memory enough?)" if -code == signal.SIGKILL else ""
        return EnvError(f"{each}, {self._doing}: it {how}{each.last_lines(patience=0)}")


def _granted(answer: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """What a worker was asked for. Raises what it refused with."""
    told = pickle.loads(answer[1:])
    if answer[:1] == REFUSED:
        raise told
    return told


def _ended(workers: list[_Worker], selector: selectors.BaseSelector, grace: float = GRACE) -> None:
    """Ends workers: they close their environments within `grace` seconds, or are killed."""
    selector.close()
    for each in workers:
        with suppress(OSError):
            each.pipe.send_bytes(END)
        each.pipe.close()
        each.trace.close()
    deadline = monotonic() + grace
    while workers:
        process = workers[-1].process
        process.join(max(0.0, deadline - monotonic()))
        if process.exitcode is None:
            workers[-1].kill()
        process.join()
        process.close()
        workers.pop()


# ------------------------------------------------------------------------------------------------------------- choosing
def hosted_env(
    make: Maker,
    copies: int,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    hosting: Hosting = DEFAULT,
) -> HostedEnv:
    """`copies` of a task where `hosting` wants them: here, in worker processes, or where they are faster."""
    if hosting.workers == "auto":
        return _faster(make, copies, device, limit, hosting)
    if hosting.workers == 0:
        return serial_env(make, copies, device, limit)
    return process_env(make, copies, device, limit, hosting)


def process_env(
    make: Maker, copies: int, device: torch.device | str = "cpu", limit: int | None = None, hosting: Hosting = DEFAULT
) -> HostedEnv:
    """`copies` of a task in worker processes: step for step what `serial_env` gives from the same seed.

    Raises what a worker raises as it makes its copies (MissingExtra, ConfigError, else EnvError), and ConfigError where
    `make` cannot be sent to a process.
    """
    pool = Pool(make, copies, limit, hosting)
    return HostedEnv(pool.team, pool.board, pool, device)


def _faster(make: Maker, copies: int, device: torch.device | str, limit: int | None, hosting: Hosting) -> HostedEnv:
    """Serial or in processes, whichever makes more steps a second now; `note` tells both rates."""
    if min(copies, cores()) == 1:
        env = serial_env(make, copies, device, limit)
        env.note = f"{copies} copies in this process: {cores()} cores leave nothing to share"
        return env
    with ExitStack() as closing:
        processes = process_env(make, copies, device, limit, hosting)  # first: a fork should inherit little
        closing.callback(processes.close)
        serial = serial_env(make, copies, device, limit)
        closing.callback(serial.close)
        in_processes, in_series = medians(processes, serial)
        rates = f"{in_processes:,.0f} steps/s in processes, {in_series:,.0f} in series"
        closing.pop_all()
    if in_processes > in_series:
        serial.close()
        processes.note = f"{copies} copies in {min(copies, cores())} worker processes: {rates}"
        return processes
    processes.close()
    serial.note = f"{copies} copies in this process: {rates}"
    return serial
