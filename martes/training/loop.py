"""The one training loop: collect, learn, log, evaluate, save."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from martes.algorithms.learner import Metrics, Scheduled
from martes.data import Workspace
from martes.envs.catalogue import environment
from martes.errors import MartesError, NonFiniteError
from martes.training.evaluate import Scores
from martes.training.log import Log
from martes.training.process import interruption, reuse_memory, threads
from martes.training.run import RunFolder
from martes.training.session import MakeEnv, Session
from martes.training.settings import Plan


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    folder: RunFolder
    steps: int
    """Environment steps made in all."""
    scores: Scores | None
    """The last evaluation; of the final parameters where the run is finished."""
    is_finished: bool
    """Were all steps made (or was the run interrupted, to be resumed)?"""


def train(plan: Plan, folder: RunFolder, log: Log, origin: Path | None = None, make: MakeEnv = environment) -> Result:
    """The result of a run from its first step, or from a checkpoint (`origin`, else the folder's newest), to its last.

    `make` makes its environments: how, is for those to say who know more of a task than its settings.
    The first Ctrl-C (or SIGTERM) ends it cleanly after the current update, saved; a second one aborts. Raises EnvError,
    CheckpointError, and NonFiniteError naming the file that holds the batch; what was saved before stays good.
    """
    training, evaluation = plan.training, plan.evaluation
    reuse_memory()
    with (
        folder.claimed(),
        threads(training.threads),
        interruption() as stop,
        Session(plan, folder, log, make) as session,
    ):
        session.begin(origin)
        learner, collector = session.learner, session.collector
        for difference in folder.record_versions():
            log.message(f"this run was begun with other versions: {difference}")
        if session.steps == 0:
            session.evaluate()
        while not session.is_finished and not stop.is_set():
            with log.phase("act"):
                window = collector.collect()
            if isinstance(learner, Scheduled):
                learner.progress = session.steps / training.steps
            before, session.steps = session.steps, session.steps + session.pace
            with log.phase("learn"), batch_kept(session):
                if window is not None:
                    learner.experience.add(window, collector.final)
                metrics = [learner.update(batch) for batch in learner.experience.due(session.steps)]
            log.update(session.steps, averaged(metrics), collector.episodes.taken())
            session.note()
            if session.is_finished or is_due(evaluation.every, before, session.steps):
                session.evaluate()
            if session.is_finished or stop.is_set() or is_due(training.save_every, before, session.steps):
                session.save()
        return Result(folder, session.steps, session.scores, session.is_finished)


def is_due(every: int, before: int, now: int) -> bool:
    """Does a multiple of `every` lie after step `before` and not after step `now`?"""
    return before // every < now // every


def averaged(updates: list[Metrics]) -> Metrics:
    """The mean of each metric over the updates that report it."""
    names = dict.fromkeys(name for metrics in updates for name in metrics)
    return {name: torch.stack([each[name].float() for each in updates if name in each]).mean() for name in names}


@contextmanager
def batch_kept(session: Session) -> Iterator[None]:
    """Writes the batch of a NonFiniteError to the run folder and lets the error name the file."""
    try:
        yield
    except NonFiniteError as error:
        if not isinstance(error.batch, Workspace):
            raise
        path = session.folder.path / f"nonfinite-{session.steps}.safetensors"
        try:
            error.batch.save(path)
        except MartesError as failure:
            raise NonFiniteError(f"{error} (step {session.steps}); {failure}", error.batch) from error
        raise NonFiniteError(
            f"{error} (step {session.steps}). Workspace.load reads its batch from {path}; earlier checkpoints are good",
            error.batch,
        ) from error
