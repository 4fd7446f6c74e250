"""Small populations that walk, for everything that tests evolution."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from martes.algorithms.q_learning import QLearning
from martes.evolution.fitness import team_return
from martes.evolution.folder import PopulationFolder
from martes.evolution.generation import Work
from martes.evolution.loop import Result, evolve
from martes.evolution.member import Member
from martes.evolution.population import first_generation
from martes.evolution.settings import Chances, Evolution
from martes.networks import Network
from martes.training.log import Log
from tests.training.walks import Run, Walk, a_run

TEAM = Walk().team
EVOLUTION = Evolution(every=48, mutation=Chances(0, 1, 1))


def a_plan(steps: int = 144, **values: object) -> Run:
    """16 environment steps a window; with EVOLUTION a generation is three windows."""
    return replace(a_run(steps=steps), **values)


def q_plan(**values: object) -> Run:
    learner = QLearning(
        mixer="none",
        reward="own",
        network=Network(hidden=(8,)),
        rollout=8,
        sequence=1,
        batch=8,
        ratio=0.25,
        target_every=3,
    )
    return a_plan(algorithm=replace(learner, **values))


def work(plan: Run, generation: int = 0, until: int = 48, **values: object) -> Work:
    made = Work(plan.env, plan.evaluation, team_return, plan.training.seed, generation, until, plan.training.steps)
    return replace(made, **values)


def members(plan: Run, size: int = 4) -> list[Member]:
    return first_generation(plan.algorithm, TEAM, size, plan.training.seed)


def evolved(plan: Run, path: Path, evolution: Evolution = EVOLUTION, origin: Path | None = None) -> Result:
    folder = PopulationFolder(path)
    with Log(path, plan.logging, plan.training.steps, "walk", plan.evaluation.greedy) as log:
        return evolve(plan, evolution, folder, log, origin=origin)


def tensors(tree: object, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a state, by its path."""
    if isinstance(tree, Tensor):
        yield path, tree
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for name, branch in pairs:
        yield from tensors(branch, f"{path}/{name}")


def states(member: Member) -> dict[str, Tensor]:
    parts = {"learner": member.learner, "experience": member.experience, "collector": member.collector}
    return dict(tensors(parts))


def same(one: Member, other: Member) -> bool:
    """Is everything about them equal, bit for bit?"""
    a, b = states(one), states(other)
    facts = [(m.id, m.parent, m.algorithm, m.steps, m.fitness, m.change) for m in (one, other)]
    return facts[0] == facts[1] and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
