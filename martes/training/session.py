"""The moving parts of a run in progress, and the state that lets it go on as if it had never stopped."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from martes.data import VectorEnv
from martes.envs.catalogue import environment
from martes.envs.settings import Environment
from martes.errors import CheckpointError
from martes.training import checkpoint
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

    Leaving it closes the environments.
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
        self._test_env: VectorEnv | None = None
        seed, device = plan.training.seed, plan.training.device
        data = plan.training.data
        self.env = make(plan.env, 1 if data else plan.env.copies, device)
        if note := getattr(self.env, "note", ""):
            log.message(note)
        self.learner = plan.algorithm.learner(self.env.team, generator_of(seed, "learning", device=device))
        self.collector: Collector | Nobody
        if data is None:
            refuse_without_data(self.learner)
            self.collector = Collector(self.env, self.learner, generator_of(seed, "acting", device=device))
        else:
            self.collector = Nobody(self.learner, data, self.env.team)

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for env in (self.env, self._test_env):
            if env is not None:
                env.close()

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
            self.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{origin} was saved by another experiment than the one that is to go on ({reason:.200}): "
                f"resume with the settings in {self.folder.config}, or name another run folder"
            ) from error
        self._saved_at = self.steps

    @property
    def pace(self) -> int:
        """Environment steps from one look at what is due to the next."""
        return self.learner.experience.steps * self.plan.env.copies

    @property
    def is_finished(self) -> bool:
        """Has it made all its steps?"""
        return self.steps >= self.plan.training.steps

    def evaluate(self) -> None:
        """Scores the policy as it is now, once; training's environments and random states are left alone."""
        if self._scored_at == self.steps:
            return
        wanted, seed = self.plan.evaluation, self.plan.training.seed
        with self.log.phase("evaluate"):
            if self._test_env is None:
                task = self.plan.env
                task = replace(task, workers=0) if task.workers == "auto" else task  # too short to time it again
                self._test_env = self._make(task, min(task.copies, wanted.episodes), self.plan.training.device)
            seed = seed_of(seed, "evaluation", self.steps)
            self.scores = evaluate(self.learner.policy, self._test_env, wanted.episodes, seed, wanted.greedy)
        self._scored_at = self.steps
        self.log.evaluation(self.steps, self.scores)

    def save(self) -> None:
        """Writes a checkpoint of this step, once."""
        if self._saved_at == self.steps:
            return
        with self.log.phase("save"):
            checkpoint.save(self.folder.checkpoints, self.state_dict(), self.steps, self.plan.training.keep)
        self._saved_at = self.steps

    def state_dict(self) -> dict[str, object]:
        """All that the rest of the run depends on."""
        return {
            "steps": self.steps,
            "scored_at": self._scored_at,
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
