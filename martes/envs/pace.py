"""How fast environments step under random actions, on this machine, now."""

from collections.abc import Iterator
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from martes.data import Continuous, TeamSpec, TimeStep, VectorEnv

WINDOWS, SECONDS = 5, 0.2
"""A rate is the median over so many windows of at least so many seconds; one more, before, warms up."""


def drawn_actions(team: TeamSpec, step: TimeStep, generator: torch.Generator) -> Tensor:
    """Actions [env agent ...] drawn evenly among those that are legal after `step`."""
    envs = len(step.cut)
    if team.action_kind is Continuous:
        low, high = team.bounds
        return torch.lerp(low, high, torch.rand(envs, *low.shape, generator=generator))
    exist = team.legal_actions.expand(envs, *team.legal_actions.shape)
    legal = step.seen["action_mask"].cpu() & exist if team.masks_actions else exist
    return (legal * (1 - torch.rand(legal.shape, generator=generator))).argmax(-1)


def paces(env: VectorEnv, seconds: float = SECONDS) -> Iterator[float]:
    """Env-steps a second of one window after the other, without end; drawing the actions is not counted."""
    generator = torch.Generator().manual_seed(0)
    step = env.reset(0)
    while True:
        spent, steps = 0.0, 0
        while not spent or spent < seconds:
            action = drawn_actions(env.team, step, generator).to(step.cut.device)
            began = perf_counter()
            step = env.step(action)
            spent += perf_counter() - began
            steps += 1
        yield steps * env.num_envs / spent


def medians(*envs: VectorEnv, seconds: float = SECONDS) -> list[float]:
    """Env-steps a second of each environment: medians of windows in which they take turns."""
    turns = [paces(env, seconds) for env in envs]
    rounds = [[next(turn) for turn in turns] for _ in range(1 + WINDOWS)]
    return [median(rates) for rates in zip(*rounds[1:], strict=True)]


def env_steps_per_second(env: VectorEnv, seconds: float) -> float:
    """Env-steps a second under random actions, measured for about `seconds` once it is warm."""
    return medians(env, seconds=seconds / WINDOWS)[0]
