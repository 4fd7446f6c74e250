"""Evaluation in the background: a process of its own plays test episodes while the learner goes on."""

import os
import pickle
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from time import monotonic
from typing import Literal, NamedTuple

from martes.data import TimeStep, VectorEnv
from martes.envs import worker
from martes.envs.process import Hosting
from martes.envs.worker import ALIVE, DONE, Answer
from martes.envs.workforce import WATCH, Workforce
from martes.errors import EnvError
from martes.networks import TemporalModule
from martes.training.evaluate import Scores, evaluate
from martes.training.weights import SharedWeights


class Evaluated(NamedTuple):
    """What a version of the weights was worth."""

    version: int
    """The version that was tested, as `Evaluator.begin` numbered it."""
    scores: Scores


@dataclass(frozen=True)
class Exam:
    """What is tested, in which environments."""

    make: Callable[[], VectorEnv]
    """Makes the test environments; sent to the process by value where a user's script defines it."""
    policy: TemporalModule
    episodes: int
    greedy: bool = True


class Evaluator:
    """Scores a policy in a process of its own; nobody waits for it but who asks for the `result`.

    `begin` publishes the policy's weights under a new number and starts a test of exactly these, unless one is under
    way. `poll` hands out a finished test, once. A failure comes with its traceback: with `on_failure` "raise" out of
    the next call, with "warn" as a warning, and the next `begin` starts a new process. Leaving the context ends it.
    """

    def __init__(
        self,
        make: Callable[[], VectorEnv],
        policy: TemporalModule,
        episodes: int,
        *,
        greedy: bool = True,
        on_failure: Literal["raise", "warn"] = "raise",
        hosting: Hosting | None = None,
    ) -> None:
        self.policy = policy
        self._exam = Exam(make, deepcopy(policy.part_for("action")).cpu(), episodes, greedy)
        self._on_failure = on_failure
        self._hosting = hosting or Hosting(workers=1)
        self._force: Workforce | None = None
        self._weights: SharedWeights | None = None
        self.version = 0
        """The newest version that a test was begun of."""
        self._under_way = 0
        """The version that is being tested; 0: none is."""

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    @property
    def is_busy(self) -> bool:
        """Is a test under way (or finished, and not yet handed out)?"""
        return self._under_way > 0

    def begin(self, seed: int) -> int | None:
        """Starts a test of the policy as it is now; the number of this version, or None where one is under way.

        The first call starts the process, which takes seconds; later ones return at once.
        """
        if self.is_busy:
            return None
        try:
            force, weights = self._opened()
            weights.publish(self.policy.part_for("action"))
            weights.lend()
            force.order(dict.fromkeys(force.workers, seed.to_bytes(8, "little")), "evaluating")
        except EnvError as error:
            self._failed(error)
            return None
        self.version += 1
        self._under_way = self.version
        return self.version

    def poll(self) -> Evaluated | None:
        """The test that is finished; None where there is none. Nobody is waited for."""
        try:
            is_done = self.is_busy and self._force is not None and self._force.is_done()
        except EnvError as error:
            return self._failed(error)
        return self.result() if is_done else None

    def result(self) -> Evaluated | None:
        """The test that is under way, once it is finished; None where there is none, or it failed."""
        if not self.is_busy or self._force is None:
            return None
        try:
            (answer,) = self._force.answers().values()
        except EnvError as error:
            return self._failed(error)
        version, self._under_way = self._under_way, 0
        return Evaluated(version, pickle.loads(answer[1:]))

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._under_way = 0
        if self._force is not None:
            self._force.close()
            self._force = None

    def _failed(self, error: EnvError) -> None:
        self.close()
        if self._on_failure == "raise":
            raise error
        warnings.warn(f"an evaluation in the background failed, training goes on: {error}", stacklevel=3)

    def _opened(self) -> tuple[Workforce, SharedWeights]:
        if self._force is not None and self._weights is not None:
            return self._force, self._weights
        method = self._hosting.start_method
        carried = self._exam if method == "fork" else worker.pickled(self._exam)
        calling = partial(examining, told=carried)
        force = Workforce(calling, [range(1)], "making its environments", self._hosting.timeout, method)
        with force:
            force.answers()
            handles: list[int] = []
            try:
                self._weights = SharedWeights(self._exam.policy, worker.shared(handles))
                force.share(None, handles)
            finally:
                for handle in handles:
                    os.close(handle)
        self._force = force
        return force, self._weights


def examining(pipe: Connection, copies: range, closing: ExitStack, told: bytes | Exam) -> Answer:
    """The calling of who plays test episodes with the newest weights."""
    test: Exam = pickle.loads(told) if isinstance(told, bytes) else told
    env = test.make()
    closing.callback(env.close)
    pipe.send_bytes(DONE)
    pipe.recv()
    weights = SharedWeights(test.policy, worker.received(pipe))
    pipe.send_bytes(DONE)
    last = monotonic()

    def alive(step: TimeStep) -> None:
        nonlocal last
        if monotonic() - last > WATCH:
            pipe.send_bytes(ALIVE)
            last = monotonic()

    def answer(order: bytes) -> bytes:
        weights.load(test.policy)
        scores = evaluate(test.policy, env, test.episodes, int.from_bytes(order, "little"), test.greedy, alive)
        return DONE + pickle.dumps(scores)

    return answer
