"""Deterministic policy gradients that have seen something and learned nothing yet, for tests."""

from typing import Any

import torch
from torch import Tensor

from martes.algorithms.maddpg import MADDPG, MADDPGLearner
from martes.data import Workspace
from martes.envs.batched.engine import BatchedEnv
from martes.networks import Network
from martes.networks.deterministic import ActionNoise
from martes.training.collect import Collector
from tests.worlds import World

SMALL = Network(hidden=(8,), layer_norm=True)
QUICK = MADDPG(network=SMALL, rollout=16, ratio=0.1, batch=8, warmup=0, gamma=0.9, max_grad_norm=None)
TD3: dict[str, Any] = {"twin_critics": True, "policy_delay": 2, "target_noise": 0.2}
LOUD = ActionNoise(start=0.5, end=0.5)


def collecting(world: World, config: MADDPG, windows: int = 1, envs: int = 3) -> tuple[MADDPGLearner, Collector]:
    """A learner that has seen some windows and learned nothing, its networks far from its targets."""
    env = BatchedEnv(world, envs)
    learner = config.learner(env.team, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in (*learner.policy.parameters(), *learner.critics.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    collector = Collector(env, learner, torch.Generator().manual_seed(1))
    collector.start(2)
    for _ in range(windows):
        learner.experience.add(collector.collect(), collector.final)
    return learner, collector


def begun(world: World, config: MADDPG = QUICK, windows: int = 2, envs: int = 3) -> tuple[MADDPGLearner, Workspace]:
    """Such a learner, and the first batch that is due."""
    learner, _ = collecting(world, config, windows, envs)
    return learner, next(iter(learner.experience.due(16 * envs * windows)))


def flat(module: torch.nn.Module) -> Tensor:
    """All parameters of a module, a copy."""
    return torch.cat([each.detach().flatten() for each in module.parameters()])
