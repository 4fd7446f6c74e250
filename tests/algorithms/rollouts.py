"""Learners at work in a world, and the rollouts that they learn from."""

from typing import Any

import torch

from martes.data import Workspace
from martes.envs.batched.engine import BatchedEnv
from martes.training.collect import Collector
from tests.worlds import World


def collecting(world: World, config: Any, windows: int = 1, envs: int = 6) -> tuple[Any, Workspace, Collector]:
    """A learner, the last of `windows` rollouts, all but it learned from, and where the next one comes from."""
    env = BatchedEnv(world, envs)
    learner = config.learner(env.team, torch.Generator().manual_seed(0))
    collector = Collector(env, learner, torch.Generator().manual_seed(1))
    collector.start(2)
    window = collector.collect()
    for _ in range(windows - 1):
        learner.update(window)
        window = collector.collect()
    return learner, window, collector


def collected(world: World, config: Any, windows: int = 1, envs: int = 6) -> tuple[Any, Workspace]:
    """A learner and the last of `windows` rollouts, all but it learned from."""
    return collecting(world, config, windows, envs)[:2]
