"""What one member does in one generation: it goes on where it was, learns for its share of steps, and is scored.

A generation is a function of its member and its work alone, whoever runs it, where and how often.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from martes.algorithms.learner import Learner, Metrics, Scheduled
from martes.data import TeamSpec, VectorEnv
from martes.envs.catalogue import environment
from martes.envs.settings import Environment
from martes.errors import DataError, EnvError, NonFiniteError
from martes.evolution.member import Member, State, revived
from martes.evolution.shared_replay import Seen, seen, with_pool, without_rows
from martes.training.collect import Collector
from martes.training.evaluate import Scores, evaluate
from martes.training.loop import averaged
from martes.training.offline import refuse_without_data
from martes.training.process import threads
from martes.training.seeding import generator_of, seed_of
from martes.training.session import MakeEnv
from martes.training.settings import Evaluation

Fitness = Callable[[Scores, TeamSpec], float]
"""What test episodes are worth, of a team of these agents: higher is better."""


@dataclass(frozen=True)
class Work:
    """What every member does in a generation."""

    env: Environment
    evaluation: Evaluation
    fitness: Fitness
    seed: int
    """Of the whole population; each member has streams of its own."""
    generation: int
    until: int
    """Environment steps that a member has made when it ends, the window that reaches them included."""
    total: int
    """Environment steps of each member in the whole run: what schedules go by."""
    device: str = "cpu"
    threads: int = 1
    """Threads of torch: as many wherever a member learns, since sums of other threads differ in their last bits."""
    make: MakeEnv = environment
    """Makes the environments to learn in."""
    make_test: MakeEnv = environment
    """Makes those of the test episodes."""
    pool: State | None = None
    """What all members have seen in earlier generations; None: each keeps a replay of its own."""


class Outcome(NamedTuple):
    """A member after its generation, and what is told of it."""

    member: Member
    scores: Scores | None
    """Its test episodes; None where learning diverged."""
    metrics: Metrics
    """Means over its updates."""
    episodes: dict[str, Tensor]
    """Its training episodes that ended: returns and lengths."""
    seen: tuple[Seen, ...] = ()
    """What it adds to the pool."""
    note: str = ""
    """Why it has no scores."""


class Site:
    """The environments of one process, which stay open from member to member."""

    def __init__(self) -> None:
        self._open: dict[str, VectorEnv] = {}

    def learning(self, work: Work) -> VectorEnv:
        """Where members learn."""
        if "learning" not in self._open:
            self._open["learning"] = work.make(work.env, work.env.copies, work.device)
        return self._open["learning"]

    def test(self, work: Work) -> VectorEnv:
        """Where they are scored; it shares nothing with the other one."""
        if "test" not in self._open:
            task = replace(work.env, workers=0) if work.env.workers == "auto" else work.env
            self._open["test"] = work.make_test(task, min(task.copies, work.evaluation.episodes), work.device)
        return self._open["test"]

    def close(self) -> None:
        """Closes them; they are made anew where they are needed again."""
        while self._open:
            self._open.popitem()[1].close()


def at_work(member: Member, env: VectorEnv, seed: int, device: str = "cpu") -> tuple[Learner, Collector]:
    """The member's learner and its collector in `env`, where they were when it was last put by.

    A new member opens episodes of its own. So does, in each generation, one whose environment cannot tell its state.
    Raises EnvError where the environment's team is not the member's.
    """
    if env.team != member.team:
        raise EnvError(
            f"the team changed between generations: member {member.id} was made for {_told(member.team)}, and the "
            f"environment now has {_told(env.team)}. An environment must make the same team each time"
        )
    learning, acting = (generator_of(seed, name, member.id, device=device) for name in ("learning", "acting"))
    learner = revived(member, learning)
    refuse_without_data(learner)
    if member.experience is not None:
        learner.experience.load_state_dict(member.experience)
    collector = Collector(env, learner, acting)
    if member.collector is None:
        learning.manual_seed(seed_of(seed, "member", member.id))
        collector.start(seed_of(seed, "environment", member.id))
    else:
        collector.load_state_dict(member.collector, seed_of(seed, "resume", member.id, member.steps))
    return learner, collector


def put_by(member: Member, learner: Learner, collector: Collector, steps: int, fitness: float) -> Member:
    """The member as it stands after `steps` environment steps and an evaluation; the learner is not to go on."""
    return replace(
        member,
        learner=learner.state_dict(),
        experience=learner.experience.state_dict(),
        collector=collector.state_dict(),
        steps=steps,
        fitness=(*member.fitness, fitness),
    )


def outcome(member: Member, work: Work, site: Site) -> Outcome:
    """How the member comes out of a generation.

    Where its loss or its fitness is not finite, or its hyperparameters cannot learn from what it saw (a store that is
    full and holds less than a batch), it stays as it was and its fitness is -inf: others take its place.
    """
    if member.fitness[-1:] == (-inf,):
        return _diverged(member, "it diverged before")
    try:
        with threads(work.threads):
            return _lived(member, work, site)
    except (DataError, NonFiniteError) as error:
        site.close()
        return _diverged(member, str(error))
    except BaseException:
        site.close()  # in whatever state they are
        raise


def _diverged(member: Member, note: str) -> Outcome:
    return Outcome(replace(member, fitness=(*member.fitness, -inf)), None, {}, {}, note=note)


def _lived(member: Member, work: Work, site: Site) -> Outcome:
    member = member if work.pool is None else with_pool(member, work.pool)
    learner, collector = at_work(member, site.learning(work), work.seed, work.device)
    steps, metrics, kept = member.steps, list[Metrics](), list[Seen]()
    while steps < work.until:
        window = collector.collect()
        if isinstance(learner, Scheduled):
            learner.progress = steps / work.total
        steps += window.time * window.envs
        final = collector.final
        if work.pool is not None:
            kept.append(seen(window, final, learner))
        learner.experience.add(window, final)
        metrics += [learner.update(batch) for batch in learner.experience.due(steps)]
    seed = seed_of(work.seed, "evaluation", work.generation)  # all members play the same episodes
    scores = evaluate(learner.policy, site.test(work), work.evaluation.episodes, seed, work.evaluation.greedy)
    fitness = work.fitness(scores, member.team)
    if not isfinite(fitness):
        raise NonFiniteError(f"its fitness is {fitness}")
    told = {name: torch.as_tensor(float(value)) for name, value in averaged(metrics).items()}
    episodes = collector.episodes.taken()  # before it is put by, or its next generation would tell them again
    member = put_by(member, learner, collector, steps, fitness)
    return Outcome(member if work.pool is None else without_rows(member), scores, told, episodes, tuple(kept))


def _told(team: TeamSpec) -> str:
    return f"{', '.join(team.agents)} ({', '.join(f'{name} {space}' for name, space in team.observation.items())})"
