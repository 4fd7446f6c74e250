"""How speed and memory grow with the agents of a team and with the length of a rollout: `martes bench scaling`.

All play `crowd`, which costs next to nothing, with networks of one width (64), one head and one layer. Each piece of
work runs in a process of its own. The page, its picture and what is stated of these numbers: `scaling_page`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Literal, NamedTuple

import torch
from rich.console import Console

from martes.algorithms.autoregressive import MAT, Sable
from martes.algorithms.ppo import PPO
from martes.bench.isolated import Bounds, Found, isolated
from martes.bench.learning import acted
from martes.bench.timing import Side
from martes.envs.catalogue import make_env
from martes.errors import ConfigError
from martes.networks import Network
from martes.networks.mat import MATShape
from martes.networks.sable import SableShape
from martes.training.collect import Collector

AGENTS = (2, 8, 32, 128, 512, 1024)
"""Sizes of the team."""
STEPS = 8
"""Steps of a rollout where the team grows."""
LENGTHS = (8, 32, 128, 512)
"""Steps of a rollout where that grows, with `TEAM` agents."""
TEAM = 32
COPIES = 16
MANY = 512
"""From so many agents on, naive MAT plays one copy, one step at a time; and Sable does too, to compare."""
LONG = 64
"""Steps of the rollout that the largest team learns from copy by copy."""

Work = Literal["acting", "learning"]
WORKS: tuple[Work, ...] = ("acting", "learning")

FF, REC, NAIVE, CACHED, MAPPO = "ff-Sable", "rec-Sable", "MAT, naive", "MAT, cached", "MAPPO"
COMPILED = {system: f"{system}, compiled" for system in (FF, REC)}
"""Sable with compile=true, measured from `MANY` agents on. MAT's turns cannot be: what they keep grows."""
COMPILING = 60.0
"""Seconds more for what is compiled first."""
SYSTEMS: Mapping[str, Sable | MAT | PPO] = {
    FF: Sable(network=SableShape(memory=False)),
    REC: Sable(network=SableShape(memory=True)),
    NAIVE: MAT(network=MATShape(caches=False)),
    CACHED: MAT(network=MATShape(caches=True)),
    MAPPO: PPO(critic="central", network=Network(hidden=(64, 64), agent_id=True)),
    COMPILED[FF]: Sable(network=SableShape(memory=False), compile=True),
    COMPILED[REC]: Sable(network=SableShape(memory=True), compile=True),
}


@dataclass(frozen=True)
class Case:
    """Who plays with how many, and how long its rollouts are."""

    system: str
    agents: int
    steps: int = STEPS
    copies: int = COPIES
    saves: bool = False
    """Learn from one copy after the other, and compute blocks again in place of keeping them?"""

    def works(self) -> tuple[Work, ...]:
        """What is measured. Whether it caches or not, MAT learns alike, and compiled turns matter to acting alone."""
        return WORKS[:1] if self.system in (NAIVE, *COMPILED.values()) else WORKS

    @property
    def note(self) -> str:
        """What is unlike the rest."""
        return f"accumulate={self.copies}, recompute=true" if self.saves else ""


class Cell(NamedTuple):
    """A case at one kind of work, and what was found."""

    case: Case
    work: Work
    found: Found


def cases(agents: Sequence[int]) -> list[Case]:
    """All cases, the size of the team growing first, then the length of the rollout; none twice."""
    grown = [Case(system, count) for count in agents for system in SYSTEMS]
    systems = (FF, REC, *COMPILED.values(), NAIVE)
    alone = [Case(system, count, 1, copies=1) for count in agents if count >= MANY for system in systems]
    grown = [case for case in grown if _is_measured(case.system, case.agents >= MANY)] + alone
    longer = [Case(system, TEAM, steps) for system in (REC, CACHED, MAPPO) for steps in LENGTHS]
    return list(dict.fromkeys([*grown, *longer, Case(REC, max(agents), LONG, saves=True)]))


def _is_measured(system: str, is_large: bool) -> bool:
    """Does this system play all copies in a team so large?"""
    return not is_large if system == NAIVE else is_large or system not in COMPILED.values()


def cells(agents: Sequence[int], bounds: Bounds, console: Console) -> list[Cell]:
    """Every cell of the table, measured one after the other; an interrupt ends it with those that there are.

    Raises ConfigError for what cannot be measured.
    """
    if not agents or min(agents) < 1:
        raise ConfigError(f"--agents is {tuple(agents)}: give at least one size of the team, each at least 1")
    if bounds.limit <= 0:
        raise ConfigError(f"--limit is {bounds.limit:g}: it must be above 0")
    if torch.device(bounds.device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device is {bounds.device}: torch finds no CUDA device here")
    wanted: list[tuple[Case, Work]] = [(case, work) for case in cases(agents) for work in case.works()]
    measured: list[Cell] = []
    try:
        for index, (case, work) in enumerate(wanted, 1):
            told = (
                f"{index}/{len(wanted)} {case.system}, {case.agents} agents, {case.steps} steps, {case.copies} copies"
            )
            measured.append(_cell(case, work, bounds, told, console))
    except KeyboardInterrupt:  # it takes long: what was measured is not thrown away
        console.print(f"interrupted: {len(measured)} of {len(wanted)} numbers were measured")
    return measured


def _cell(case: Case, work: Work, bounds: Bounds, told: str, console: Console) -> Cell:
    """One case at one kind of work, in a process of its own."""
    small = partial(ready, replace(case, agents=2, steps=2, copies=2), work, bounds.device)
    if case.system in COMPILED.values():
        bounds = replace(bounds, limit=bounds.limit + COMPILING)
    with console.status(f"{told}: {work}"):
        found = isolated(small, partial(ready, case, work, bounds.device), bounds)
    rate = f"{median(found.values):,.1f} env-steps/s, {found.peak / 1e6:,.1f} MB" if found.values else found.note
    console.print(f"{told}: {work} {rate}")  # the whole takes long: whoever waits sees how far it is
    return Cell(case, work, found)


def ready(case: Case, work: Work, device: str) -> Side:
    """The work of a case, to be done on a device. A piece is a window of acting, or a gradient step over a rollout."""
    env = make_env("crowd", case.copies, device, options={"agents": case.agents})
    # A rollout is learned from again and again, as if for the first time: such steps move the weights next to nothing.
    config = replace(SYSTEMS[case.system], rollout=case.steps, epochs=1, minibatches=1, lr=1e-9)
    if case.saves and not isinstance(config, PPO):
        config = replace(config, accumulate=case.copies, network=replace(config.network, recompute=True))
    learner = config.learner(env.team, torch.Generator(device).manual_seed(0))
    if work == "acting":
        return _awaited(acted(learner, env, case.steps), device)
    collector = Collector(env, learner, torch.Generator(device).manual_seed(1))
    collector.start(0)
    rollout = collector.collect()

    def updates(count: int) -> int:
        for _ in range(count):
            learner.update(rollout)
        return count * case.steps * case.copies

    return _awaited(updates, device)


def _awaited(side: Side, device: str) -> Side:
    """The same work, done only when the device has done it."""
    if torch.device(device).type != "cuda":
        return side

    def done(count: int) -> int:
        units = side(count)
        torch.cuda.synchronize(device)
        return units

    return done
