"""The loop of evolution: every member lives through a generation, then it is decided who goes on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from martes.data import TeamSpec
from martes.envs.catalogue import environment
from martes.errors import ConfigError, NonFiniteError
from martes.evolution.display import generation_table
from martes.evolution.fitness import fitness_named
from martes.evolution.folder import Described, PopulationFolder, Saved, load, save, save_run, save_runs
from martes.evolution.generation import Fitness, Outcome, Work
from martes.evolution.lineage import Life, lives, read_lives, write_lives
from martes.evolution.member import Member, State
from martes.evolution.places import Place, place_named
from martes.evolution.population import Breeding, breeding_of, first_generation, next_generation, score
from martes.evolution.selection import best
from martes.evolution.settings import Evolution
from martes.evolution.shared_replay import pooled, refuse_unshared
from martes.evolution.windows import refuse_uncut
from martes.training.log import Log
from martes.training.loop import averaged, is_due
from martes.training.process import interruption, reuse_memory
from martes.training.session import MakeEnv
from martes.training.settings import Plan


class Surroundings(NamedTuple):
    """What those above know more of than an experiment's settings say."""

    make: MakeEnv = environment
    """Makes the environments to learn in."""
    make_test: MakeEnv = environment
    """Makes those of test episodes."""
    described: Described = repr
    """What config.yaml says of a member."""


AS_SET = Surroundings()


@dataclass(frozen=True)
class Result:
    """How an evolution ended."""

    folder: PopulationFolder
    members: tuple[Member, ...]
    """The last generation as it was evaluated: the newest fitness of each is its own."""
    elite: Member
    """The best of them."""
    history: tuple[Life, ...]
    """Everybody who ever lived."""
    is_finished: bool
    """Were all steps made, or the target reached (or was it interrupted, to be resumed)?"""
    has_reached: bool
    """Has the best member reached the target?"""


def evolve(
    plan: Plan,
    evolution: Evolution,
    folder: PopulationFolder,
    log: Log,
    around: Surroundings = AS_SET,
    origin: Path | None = None,
) -> Result:
    """The result of an evolution from its first generation, or from a checkpoint (`origin`), to its last.

    The first Ctrl-C (or SIGTERM) ends it after the generation, saved; a second one aborts. Raises ConfigError for
    settings that cannot be, EnvError, CheckpointError, and NonFiniteError where every member has diverged.
    """
    reuse_memory()
    with folder.run.claimed(), interruption() as stop:
        run = Run(plan, evolution, folder, log, around)
        run.begin(origin)
        try:
            while not run.is_finished and not stop.is_set():
                run.live()
                if run.is_finished or stop.is_set() or run.is_save_due:
                    run.save()
        finally:
            run.place.close()
        return run.result()


class Run:
    """An evolution in progress."""

    def __init__(
        self, plan: Plan, evolution: Evolution, folder: PopulationFolder, log: Log, around: Surroundings
    ) -> None:
        self.plan, self.evolution, self.folder, self.log, self.around = plan, evolution, folder, log, around
        if plan.training.data is not None:
            raise ConfigError("training.data: members of a population learn from what they do; leave it out")
        self.team = team_of(plan, around)
        self.breeding: Breeding = breeding_of(evolution, plan.algorithm, self.team)
        refuse_uncut(plan.algorithm, self.breeding.space, self.team, plan.env.copies)
        self.fitness: Fitness = fitness_named(evolution.fitness, self.team)
        self.every = evolution.every or plan.evaluation.every
        refuse_unshared(plan.algorithm, self.team, evolution.shared_replay)
        self.pool: State | None = {} if evolution.shared_replay else None
        self.members: tuple[Member, ...] = ()
        self.history: list[Life] = []
        self.generation = -1
        """The last that was evaluated."""
        self.place: Place = place_named(evolution.place, evolution.workers, evolution.population)

    def begin(self, origin: Path | None) -> None:
        """Goes to where a checkpoint was saved, or to the first generation."""
        training, log = self.plan.training, self.log
        if origin is None:
            size, device = self.evolution.population, training.device
            self.members = tuple(
                first_generation(self.plan.algorithm, self.team, size, training.seed, self.breeding, device)
            )
        else:
            saved = load(origin, self.plan.algorithm, self.team)
            self.generation, self.members, self.pool = saved.generation, saved.members, saved.pool
            self.history = [each for each in read_lives(self.folder.lineage) if each.generation <= saved.generation]
            log.load_state_dict(saved.log)
        for difference in self.folder.run.record_versions():
            log.message(f"this population was begun with other versions: {difference}")
        searched = ", ".join(f"{path} {each.low:g} to {each.high:g}" for path, each in self.breeding.space.items())
        log.message(
            f"{len(self.members)} members, {training.steps:,} steps each, {training.steps * len(self.members):,} in "
            f"all; a generation is {self.every:,} steps; searched: {searched or 'nothing'}"
        )

    @property
    def is_finished(self) -> bool:
        """Were all steps made, or was the target reached?"""
        return (self.generation + 1) * self.every >= self.plan.training.steps or self.has_reached

    @property
    def has_reached(self) -> bool:
        """Has the best member reached the target?"""
        target = self.evolution.target
        if target is None or self.generation < 0:
            return False
        return score(self.elite, self.evolution.window) >= target

    @property
    def elite(self) -> Member:
        """The best member of the last generation."""
        return self.members[best([score(member, self.evolution.window) for member in self.members])]

    @property
    def is_save_due(self) -> bool:
        """Does a multiple of `training.save_every` lie within the last generation?"""
        return is_due(self.plan.training.save_every, self.generation * self.every, (self.generation + 1) * self.every)

    def live(self) -> None:
        """Lets the next generation live, and records it."""
        training, generation = self.plan.training, self.generation + 1
        members: Sequence[Member] = self.members
        if generation:
            with self.log.phase("select"):
                members = next_generation(self.members, self.breeding, training.seed, generation)
        work = Work(
            self.plan.env,
            self.plan.evaluation,
            self.fitness,
            training.seed,
            generation,
            until=min((generation + 1) * self.every, training.steps),
            total=training.steps,
            device=training.device,
            threads=training.threads or 1,
            make=self.around.make,
            make_test=self.around.make_test,
            pool=self.pool,
        )
        with self.log.phase("live"):
            outcomes = self.place.outcomes(work, members)
        self.generation, self.members = generation, tuple(each.member for each in outcomes)
        if self.pool is not None:
            learner = self.plan.algorithm.learner(self.team, torch.Generator(training.device))
            self.pool = pooled(self.pool, [each.seen for each in outcomes], learner)
        with self.log.phase("save"):
            self._record(outcomes, work.until)

    def _record(self, outcomes: Sequence[Outcome], steps: int) -> None:
        of_best = next(each for each in outcomes if each.member is self.elite)
        if of_best.scores is None:
            raise NonFiniteError(f"every member of generation {self.generation} diverged, the best so: {of_best.note}")
        evolution, searched = self.evolution, self.breeding.space
        new = lives(outcomes, self.generation, evolution.window, searched, self.plan.algorithm)
        self.history += new
        write_lives(self.history, self.folder.lineage, self.folder.table)
        episodes = [each.episodes for each in outcomes]
        names = dict.fromkeys(name for told in episodes for name in told)
        joined = {name: torch.cat([told[name] for told in episodes if name in told]) for name in names}
        self.log.update(steps, averaged([each.metrics for each in outcomes]), joined)
        worth = [each.fitness for each in new if each.fitness is not None]
        stats = {"fitness_best": max(worth), "fitness_mean": sum(worth) / len(worth)}
        self.log.evaluation(steps, replace(of_best.scores, stats={**of_best.scores.stats, **stats}))
        self.log.message(generation_table(outcomes, new, of_best.member.id))
        described = self.around.described(of_best.member.algorithm)
        save_run(self.folder.elite, of_best.member, described, self.log.state_dict())

    def save(self) -> None:
        """Writes the population, and each member as a run."""
        with self.log.phase("save"):
            log = self.log.state_dict()
            save(self.folder, Saved(self.generation, self.members, log, self.pool), self.plan.training.keep)
            save_runs(self.folder, self.members, self.around.described, log)

    def result(self) -> Result:
        """How it stands."""
        target, is_finished = self.evolution.target, self.is_finished
        if target is not None and is_finished and not self.has_reached:
            came = score(self.elite, self.evolution.window)
            self.log.message(f"the target {target:g} was not reached: the best came to {came:.4g}")
        members, elite = self.members, self.elite
        return Result(self.folder, members, elite, tuple(self.history), is_finished, self.has_reached)


def team_of(plan: Plan, around: Surroundings) -> TeamSpec:
    """The team of the plan's task."""
    env = around.make(replace(plan.env, copies=1, workers=0), 1, "cpu")
    try:
        return env.team
    finally:
        env.close()
