"""Where members learn: one after the other in this process, side by side in worker processes, or on Ray.

A generation is a function of member and work, so that everywhere the same comes out, and one that was lost with its
worker is run again.
"""

import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from math import inf
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Literal, Protocol, runtime_checkable

import cloudpickle

from martes.envs.worker import DONE, END, Answer
from martes.envs.workforce import Workforce
from martes.errors import ConfigError, EnvError, MartesError, require
from martes.evolution.generation import Outcome, Site, Work, outcome
from martes.evolution.member import Member, State, own
from martes.training.process import cores

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
class Processes:
    """So many worker processes, each of which takes the next member when it is done with one.

    Each is a pool of one: what ends it ends no other.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._idle: list[Workforce] = []
        self._busy: dict[Workforce, int] = {}
        self._lost = ""
        """How a worker ended last."""

    def outcomes(self, work: Work, members: Sequence[Member]) -> list[Outcome]:
        """How each member comes out of its generation. Raises MartesError for one that is lost `ATTEMPTS` times."""
        waiting = list(range(len(members)))
        attempts = [0] * len(members)
        done: dict[int, Outcome] = {}
        try:
            self._hire(min(self._count, len(members)) - len(self._idle))
            while len(done) < len(members):
                while waiting and len(self._busy) < self._count:
                    place = waiting.pop(0)
                    attempts[place] += 1
                    if attempts[place] > ATTEMPTS:
                        told = f"the process of member {members[place].id} died {ATTEMPTS} times"
                        raise MartesError(f"{told}: {self._lost}")
                    self._give(place, cloudpickle.dumps((members[place], work)))
                for force in self._ready():
                    place = self._busy.pop(force)
                    came = self._taken(force)
                    if came is None:
                        waiting.insert(0, place)
                    else:
                        done[place] = came
        except BaseException:
            self.close()  # what is under way is no answer to what is asked next
            raise
        return [done[place] for place in range(len(members))]

    def _hire(self, count: int) -> None:
        """Begins so many workers, side by side."""
        # Spawned: a forked process would share the locks of torch's threads. A generation takes as long as it takes.
        fresh = [Workforce(learning, [range(1)], "starting", inf, "spawn") for _ in range(count)]
        self._idle += fresh
        for force in fresh:
            force.answers()

    def _give(self, place: int, job: bytes) -> None:
        if not self._idle:
            self._hire(1)
        force = self._idle.pop()
        self._busy[force] = place
        with suppress(EnvError):  # it died while it was idle: that is noticed in a moment
            force.order(dict.fromkeys(force.workers, job), "learning")

    def _ready(self) -> list[Workforce]:
        """Those that have something to say, or died; waits for the first."""
        gone = [force for force in self._busy if not force.workers]
        known = [(each, force) for force in self._busy for each in force.workers]
        ends = {end: force for each, force in known for end in (each.pipe.fileno(), each.process.sentinel)}
        told = () if gone else connection.wait(list(ends))
        return gone or list(dict.fromkeys(ends[end] for end in told if isinstance(end, int)))

    def _taken(self, force: Workforce) -> Outcome | None:
        """What a worker says; None where it died."""
        try:
            answers = list(force.answers().values())
        except EnvError as error:
            self._lost = str(error)
            return None
        if not answers:
            return None
        self._idle.append(force)
        said = cloudpickle.loads(answers[0][1:])
        if isinstance(said, BaseException):
            raise said
        assert isinstance(said, Outcome)
        return said

    def close(self) -> None:
        """Ends the workers: idle ones close their environments, others are killed."""
        for worker in (each for force in self._busy for each in force.workers):
            worker.kill()
        for worker in (each for force in self._idle for each in force.workers):
            with suppress(OSError):
                worker.pipe.send_bytes(END)  # to all before any is waited for
        for force in (*self._busy, *self._idle):
            force.close()
        self._idle, self._busy = [], {}


def learning(pipe: Connection, copies: range, closing: ExitStack) -> Answer:
    """The calling of who runs generations of members."""
    hand = Hand()
    closing.callback(hand.close)
    pipe.send_bytes(DONE)

    def answer(order: bytes) -> bytes:
        return DONE + cloudpickle.dumps(hand.outcome(*cloudpickle.loads(order)))

    return answer


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
