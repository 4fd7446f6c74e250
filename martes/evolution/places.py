"""Where members learn: one after the other in this process, side by side in worker processes, or on Ray.

A generation is a function of member and work, so that everywhere the same comes out, and one that was lost with its
worker is run again.
"""

import os
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from typing import Literal, Protocol, runtime_checkable

import cloudpickle

from martes.errors import ConfigError, MartesError, require
from martes.evolution.generation import Outcome, Site, Work, outcome
from martes.evolution.member import Member, State, own
from martes.training.process import cores, end_with_parent

ATTEMPTS = 3
"""How often a member's generation is begun before its loss is taken to be no accident."""
PlaceName = Literal["here", "processes", "ray"]


@runtime_checkable
class Place(Protocol):
    """Runs generations."""

    def outcomes(self, work: Work, members: Sequence[Member]) -> list[Outcome]:
        """How each member comes out of its generation, in their order."""
        ...

    def close(self) -> None:
        """Ends what it has started."""
        ...


def place_named(name: PlaceName, workers: int, members: int) -> Place:
    """The place of this name, with so many workers (0: one a core), and no more than there are members."""
    if workers < 0:
        raise ConfigError(f"evolution.workers is {workers}: give 1 or more, or 0 for one a core")
    count = min(workers or cores(), members)
    return Here() if name == "here" else Processes(count) if name == "processes" else OnRay(count)


class Here:
    """This process."""

    def __init__(self) -> None:
        self._site = Site()

    def outcomes(self, work: Work, members: Sequence[Member]) -> list[Outcome]:
        """How each member comes out of its generation."""
        return [outcome(member, work, self._site) for member in members]

    def close(self) -> None:
        """Closes its environments."""
        self._site.close()


# ----------------------------------------------------------------------------------------------------------- processes
@runtime_checkable
class Line(Protocol):
    """One end of a pipe that goes both ways."""

    def send_bytes(self, buf: bytes, /) -> None:
        """Sends a message."""
        ...

    def recv_bytes(self) -> bytes:
        """The next message. Raises EOFError where the other end is gone."""
        ...

    def fileno(self) -> int:
        """What to wait for."""
        ...

    def close(self) -> None:
        """Hangs up."""
        ...


@dataclass(eq=False)
class Worker:
    """A process, and the line to it."""

    process: SpawnProcess
    line: Line


class Processes:
    """So many worker processes, each of which takes the next member when it is done with one."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._idle: list[Worker] = []
        self._busy: dict[Worker, int] = {}

    def outcomes(self, work: Work, members: Sequence[Member]) -> list[Outcome]:
        """How each member comes out of its generation. Raises MartesError for one that is lost `ATTEMPTS` times."""
        waiting = list(range(len(members)))
        attempts = [0] * len(members)
        done: dict[int, Outcome] = {}
        while len(done) < len(members):
            while waiting and len(self._busy) < self._count:
                place = waiting.pop(0)
                attempts[place] += 1
                if attempts[place] > ATTEMPTS:
                    raise MartesError(f"the process of member {members[place].id} died {ATTEMPTS} times: no memory?")
                self._give(place, cloudpickle.dumps((members[place], work)))
            for worker in self._ready():
                place = self._busy.pop(worker)
                came = self._taken(worker)
                if came is None:
                    waiting.insert(0, place)
                else:
                    done[place] = came
        return [done[place] for place in range(len(members))]

    def _give(self, place: int, job: bytes) -> None:
        worker = self._idle.pop() if self._idle else _started()
        self._busy[worker] = place
        with suppress(OSError):  # it died while it was idle: that is noticed in a moment
            worker.line.send_bytes(job)

    def _ready(self) -> list[Worker]:
        """The workers that have something to say, or died; waits for the first."""
        ends = {end: worker for worker in self._busy for end in (worker.line.fileno(), worker.process.sentinel)}
        return list(dict.fromkeys(ends[end] for end in connection.wait(list(ends)) if isinstance(end, int)))

    def _taken(self, worker: Worker) -> Outcome | None:
        """What a worker says; None where it died."""
        try:
            said = cloudpickle.loads(worker.line.recv_bytes())
        except (EOFError, OSError):
            worker.process.join()
            worker.line.close()
            return None
        self._idle.append(worker)
        if isinstance(said, BaseException):
            raise said
        assert isinstance(said, Outcome)
        return said

    def close(self) -> None:
        """Ends the workers: idle ones close their environments, others are killed."""
        for worker in self._busy:
            worker.process.kill()
        for worker in self._idle:
            worker.line.close()
        for worker in (*self._busy, *self._idle):
            worker.process.join()
        self._idle, self._busy = [], {}


def _started() -> Worker:
    context = get_context("spawn")  # a forked process would share the locks of torch's threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_working, args=(theirs,))
    process.start()
    theirs.close()
    return Worker(process, ours)


def _working(line: Line) -> None:
    """The life of a worker: it ends with its line, and does not outlive its parent."""
    if hasattr(os, "setsid"):
        os.setsid()  # a Ctrl-C of the terminal is for the parent alone
    threading.Thread(target=end_with_parent, daemon=True).start()
    hand = Hand()
    try:
        while True:
            line.send_bytes(cloudpickle.dumps(hand.outcome(*cloudpickle.loads(line.recv_bytes()))))
    except EOFError:
        hand.close()


class Hand:
    """Runs generations elsewhere, and hands back what is fit for the way."""

    def __init__(self) -> None:
        self._site = Site()

    def outcome(self, member: Member, work: Work) -> Outcome | Exception:
        """How the member comes out, its tensors on the CPU and no larger than what they hold; or what went wrong."""
        try:
            done = outcome(member, work, self._site)
        except Exception as error:
            error.add_note(f"in the generation {work.generation} of member {member.id}")
            return _fit_to_send(error)
        return done._replace(member=_packed(done.member))

    def close(self) -> None:
        """Closes its environments."""
        self._site.close()


def _fit_to_send(error: Exception) -> Exception:
    """The error, or what it says where it does not survive the way: with a lock in it, or with arguments of its own."""
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        return MartesError("".join(traceback.format_exception(error)).rstrip())
    return error


def _packed(member: Member) -> Member:
    return replace(
        member,
        learner=_own(member.learner),
        experience=None if member.experience is None else _own(member.experience),
        collector=None if member.collector is None else _own(member.collector),
    )


def _own(state: State) -> State:
    return {name: own(branch) for name, branch in state.items()}


# ----------------------------------------------------------------------------------------------------------------- Ray
class OnRay:
    """So many actors on Ray: on the cluster that this process is connected to, else on one of this machine.

    Raises MissingExtra without the extra `ray`.
    """

    def __init__(self, count: int) -> None:
        self._ray = require("ray", "ray")
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            self._ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False)
        actor = self._ray.remote(max_restarts=-1, max_task_retries=ATTEMPTS - 1, num_cpus=1)(Hand)
        self._actors = [actor.remote() for _ in range(count)]

    def outcomes(self, work: Work, members: Sequence[Member]) -> list[Outcome]:
        """How each member comes out of its generation. Raises MartesError for one that is lost `ATTEMPTS` times."""
        pool = require("ray.util", "ray").ActorPool(self._actors)
        told = self._ray.put(work)
        try:
            came = list(pool.map(lambda actor, member: actor.outcome.remote(member, told), members))
        except self._ray.exceptions.RayError as error:
            raise MartesError(f"Ray lost a member {ATTEMPTS} times: {' '.join(str(error).split()):.300}") from error
        for each in came:
            if isinstance(each, Exception):
                raise each
        return came

    def close(self) -> None:
        """Ends the actors, and Ray where it was started here."""
        for actor in self._actors:
            self._ray.kill(actor)
        if self._is_ours:
            self._ray.shutdown()
