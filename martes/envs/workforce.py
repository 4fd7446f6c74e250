"""Worker processes as their parent sees them: begun, told what to do by a byte, watched over, ended."""

import os
import pickle
import selectors
import signal
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
from types import TracebackType

from martes.envs import worker
from martes.envs.worker import ALIVE, END, FAILED, Calling, Duty, StartMethod
from martes.errors import EnvError

WATCH = 1.0
"""Seconds between two looks at whether those that are waited for still live, should their pipes not tell."""
START = 60.0
"""Seconds that a process may take to start, beyond its timeout."""
GRACE, FAULT_GRACE = 10.0, 2.0
"""Seconds in which workers may close what they hold before they are killed: at the end, and after a fault."""


def shares(copies: int, workers: int) -> list[range]:
    """A contiguous slice of the copies for each worker, their sizes differing by one at most."""
    ends = [index * copies // workers for index in range(workers + 1)]
    return [range(*each) for each in pairwise(ends)]


@dataclass(frozen=True, eq=False)
class Worker:
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


class Workforce:
    """A worker process for each slice of copies, all of one `calling`.

    What goes wrong in one of them (an error, its death, silence for longer than `timeout` seconds) is raised here, and
    ends them all: nobody knows where the others stand. As a context it ends them only if what stands inside fails.
    """

    def __init__(
        self, calling: Calling, slices: Sequence[range], doing: str, timeout: float, method: StartMethod
    ) -> None:
        self.workers: list[Worker] = []
        self.closing = ExitStack()
        """What is called once they have ended."""
        self._timeout = timeout
        self._closed, self._doing = "", doing
        self._due: dict[Worker, float] = {}
        self._got: dict[Worker, bytes] = {}
        self._selector = selectors.DefaultSelector()
        self._end = Finalize(self, _ended, (self.workers, self._selector), exitpriority=0)
        with self:
            self._start(calling, slices, method)
        self._expect(self.workers, START)

    def __enter__(self) -> "Workforce":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._fail(error)

    def _start(self, calling: Calling, slices: Sequence[range], method: StartMethod) -> None:
        context = worker.context_of(method)
        of_main_thread = threading.current_thread() is threading.main_thread()
        for index, copies in enumerate(slices, 1):
            (ours, theirs), (trace, traced) = worker.two_ends(), worker.two_ends()
            held = [end for each in self.workers for end in (each.pipe, each.trace)]
            duty = Duty(calling, copies, [*held, ours, trace] if method == "fork" else [], of_main_thread)
            name = f"worker {index} of {len(slices)}"
            process = context.Process(target=worker.work, args=(theirs, traced, duty), name=name)
            with worker.cradle(is_fork=method == "fork"):
                process.start()
                assert process.pid is not None
                self.workers.append(Worker(process, process.pid, ours, trace, copies))
            theirs.close()
            traced.close()
            self._selector.register(ours, selectors.EVENT_READ, self.workers[-1])

    def share(self, told: object, handles: Iterable[int]) -> dict[Worker, bytes]:
        """Hands an object and open descriptors to each worker; what they answer."""
        for each in self.workers:
            try:
                each.pipe.send(told)
                for handle in handles:
                    reduction.send_handle(each.pipe, handle, each.pid)
            except OSError:
                raise self._death(each) from None
        self._expect(self.workers)
        return self.answers()

    def ordered(self, orders: Mapping[Worker, bytes], doing: str) -> dict[Worker, bytes]:
        """What these workers answer to their orders."""
        self.order(orders, doing)
        return self.answers()

    def order(self, orders: Mapping[Worker, bytes], doing: str) -> None:
        """Tells workers what to do, and goes on at once. Raises EnvError where they have ended."""
        if self._closed:
            raise EnvError(f"this environment is closed ({self._closed}): make a new one")
        self._doing = doing
        try:
            for each, order in orders.items():
                try:
                    each.pipe.send_bytes(order)
                except OSError:
                    raise self._death(each) from None
        except BaseException as error:
            self._fail(error)
            raise
        self._expect(orders)

    def answers(self) -> dict[Worker, bytes]:
        """What each answers who was told to do something, once all have done it."""
        try:
            while self._due:
                self._listen(WATCH)
        except BaseException as error:
            self._fail(error)
            raise
        answers, self._got = self._got, {}
        return answers

    def is_done(self) -> bool:
        """Has each answered who was told to do something? Nobody is waited for."""
        try:
            if self._due:
                self._listen(0)
        except BaseException as error:
            self._fail(error)
            raise
        return not self._due

    def close(self) -> None:
        """Ends the workers; those that take more than some seconds to close what they hold are killed."""
        self._close("close() was called", GRACE)

    def _fail(self, error: BaseException) -> None:
        self._close((str(error) or type(error).__name__).partition("\n")[0], FAULT_GRACE)

    def _close(self, why: str, grace: float) -> None:
        self._closed = self._closed or why
        self._due, self._got = {}, {}
        _ended(self.workers, self._selector, grace)
        self._end.cancel()
        self.closing.close()

    def _expect(self, workers: Iterable[Worker], extra: float = 0) -> None:
        self._due.update(dict.fromkeys(workers, monotonic() + self._timeout + extra))

    def _listen(self, patience: float) -> None:
        """Hears those that have something to say within `patience` seconds; else looks after all that are due."""
        ready = self._selector.select(min(patience, max(0.0, min(self._due.values()) - monotonic())))
        for key, _ in ready:
            each: Worker = key.data
            answer = self._heard(each)
            if answer == ALIVE:
                self._due[each] = monotonic() + self._timeout
            else:
                self._got[each] = answer
                del self._due[each]
        if not ready:
            self._look_after()

    def _heard(self, each: Worker) -> bytes:
        try:
            answer = each.pipe.recv_bytes()
        except (EOFError, OSError):
            raise self._death(each) from None
        if answer[:1] == FAILED:
            raise pickle.loads(answer[1:])
        return answer

    def _look_after(self) -> None:
        """Raises EnvError for a worker that died, or hangs; one that hangs is killed."""
        for each, deadline in self._due.items():
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

    def _death(self, each: Worker) -> EnvError:
        each.process.join(1.0)
        code = each.process.exitcode
        how = "stopped answering" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            how += " (from outside: is there memory enough?)" if -code == signal.SIGKILL else ""
        return EnvError(f"{each}, {self._doing}: it {how}{each.last_lines(patience=0)}")


def _ended(workers: list[Worker], selector: selectors.BaseSelector, grace: float = GRACE) -> None:
    """Ends workers: they close what they hold within `grace` seconds, or are killed."""
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
