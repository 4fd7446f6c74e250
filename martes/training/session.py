"""The moving parts of a run in progress, and the state that lets it go on as if it had never stopped."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from martes.data import VectorEnv
from martes.envs.catalogue import environment
from martes.envs.process import Hosting
from martes.envs.settings import Environment
from martes.errors import CheckpointError
from martes.training import checkpoint
from martes.training.background import Evaluator
from martes.training.collect import Collector
from martes.training.evaluate import Scores, evaluate
from martes.training.log import Log
from martes.training.offline import Nobody, refuse_without_data
from martes.training.run import RunFolder
from martes.training.seeding import generator_of, seed_of
from martes.training.settings import Plan

MakeEnv = Callable[[Environment, int, str], VectorEnv]
"""Makes so many copies of a task on a device."""


class Session:
    """Environment, learner, collector and log of one run, and how many environment steps it has made.

    Leaving it closes the environments, and ends the process that evaluates in the background.
    """

    def __init__(self, plan: Plan, folder: RunFolder, log: Log, make: MakeEnv = environment) -> None:
        self.plan = plan
        self._make = make
        self.folder = folder
        self.log = log
        self.steps = 0
        self.scores: Scores | None = None
        """What the last evaluation gave."""
        self._scored_at = self._saved_at = -1
        self._testing_at = -1
        """The step whose policy is being tested in the background; -1: none is."""
        self._test_env: VectorEnv | None = None
        self._evaluator: Evaluator | None = None
        seed, device = plan.training.seed, plan.training.device
        data = plan.training.data
        self.env = make(plan.env, 1 if data else plan.env.copies, device)
        with ExitStack() as unless_all_goes_well:
            unless_all_goes_well.callback(self.env.close)
            if note := getattr(self.env, "note", ""):
                log.message(note)
            self.learner = plan.algorithm.learner(self.env.team, generator_of(seed, "learning", device=device))
            self.collector: Collector | Nobody
            if data is None:
                refuse_without_data(self.learner)
                self.collector = Collector(self.env, self.learner, generator_of(seed, "acting", device=device))
            else:
                self.collector = Nobody(self.learner, data, self.env.team)
            unless_all_goes_well.pop_all()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as closing:  # each is closed, whatever comes of the others
            for each in (self._test_env, self.env, self._evaluator):
                if each is not None:
                    closing.callback(each.close)

    def begin(self, origin: Path | None = None) -> None:
        """Goes to where the checkpoint `origin` (none given: the newest of the folder) was saved, or to the first step.

        Raises CheckpointError where that checkpoint is damaged, or comes from another experiment.
        """
        origin = origin or self.folder.newest_checkpoint()
        if origin is None:
            self.collector.start(seed_of(self.plan.training.seed, "environment"))
            return
        state: Any = checkpoint.load(origin)
        try:
            is_owed = bool(state.get("owes_evaluation"))
            self.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{origin} was saved by another experiment than the one that is to go on ({reason:.200}): "
                f"put the settings of its run back into {self.folder.config}, or name another run folder"
            ) from error
        self._saved_at = self.steps
        if is_owed:
            self.evaluate()

    @property
    def pace(self) -> int:
        """Environment steps from one look at what is due to the next."""
        return self.learner.experience.steps * self.plan.env.copies

    @property
    def is_finished(self) -> bool:
        """Has it made all its steps?"""
        return self.steps >= self.plan.training.steps

    def evaluate(self) -> None:
        """Scores the policy as it is now, once; training's environments and random states are left alone.

        In the background this begins the test, as soon as the one before has ended; `note` takes its scores in. That of
        the final policy is waited for.
        """
        if self.steps not in (self._scored_at, self._testing_at):
            self.note(waits=True)
            seed = seed_of(self.plan.training.seed, "evaluation", self.steps)
            with self.log.phase("evaluate"):
                if self.plan.evaluation.background:
                    self._begin(seed)
                else:
                    self._take(self.steps, self._played(seed))
        if self.is_finished:
            self.note(waits=True)

    def _played(self, seed: int) -> Scores:
        wanted, task = self.plan.evaluation, self.plan.env
        if self._test_env is None:
            task = replace(task, workers=0) if task.workers == "auto" else task  # too short to time it again
            self._test_env = self._make(task, min(task.copies, wanted.episodes), self.plan.training.device)
        return evaluate(self.learner.policy, self._test_env, wanted.episodes, seed, wanted.greedy)

    def _begin(self, seed: int) -> None:
        wanted, task = self.plan.evaluation, self.plan.env
        if self._evaluator is None:
            make = partial(self._make, replace(task, workers=0), min(task.copies, wanted.episodes), "cpu")
            hosting = Hosting(1, task.timeout, task.start_method)
            policy = self.learner.policy
            self._evaluator = Evaluator(make, policy, wanted.episodes, greedy=wanted.greedy, hosting=hosting)
        self._evaluator.begin(seed)
        self._testing_at = self.steps

    def note(self, waits: bool = False) -> None:
        """Takes in the scores of the test in the background once it has ended; `waits` until it has."""
        if self._evaluator is None or not self._evaluator.is_busy:
            return
        with self.log.phase("evaluate"):
            found = self._evaluator.result() if waits else self._evaluator.poll()
        if found is not None:
            self._take(self._testing_at, found.scores)
            self._testing_at = -1

    def _take(self, steps: int, scores: Scores) -> None:
        self.scores, self._scored_at = scores, steps
        self.log.evaluation(steps, scores)

    def save(self) -> None:
        """Writes a checkpoint of this step, once. What was scored before is in it: a test under way is waited for.

        One of this very step is not; who goes on from here plays it again, with the same weights.
        """
        if self._saved_at == self.steps:
            return
        if self._testing_at != self.steps:
            self.note(waits=True)
        with self.log.phase("save"):
            checkpoint.save(self.folder.checkpoints, self.state_dict(), self.steps, self.plan.training.keep)
        self._saved_at = self.steps

    def state_dict(self) -> dict[str, object]:
        """All that the rest of the run depends on."""
        return {
            "steps": self.steps,
            "scored_at": self._scored_at,
            "owes_evaluation": self._testing_at == self.steps,
            "scores": asdict(self.scores) if self.scores is not None else None,
            "learner": self.learner.state_dict(),
            "experience": self.learner.experience.state_dict(),
            "collector": self.collector.state_dict(),
            "log": self.log.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self.steps, self._scored_at = state["steps"], state["scored_at"]
        self.scores = Scores(**state["scores"]) if state["scores"] is not None else None
        self.learner.load_state_dict(state["learner"])
        self.learner.experience.load_state_dict(state["experience"])
        self.collector.load_state_dict(state["collector"], seed_of(self.plan.training.seed, "resume", self.steps))
        self.log.load_state_dict(state["log"])
