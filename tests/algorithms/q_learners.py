"""Q-learners that have seen something and learned nothing yet, for tests."""

from dataclasses import replace

import torch

from martes.algorithms.q_learning import QLearner, QLearning
from martes.data import Workspace
from martes.envs.batched.engine import BatchedEnv
from martes.networks import Network
from martes.networks.mixers import Mixing
from martes.training.collect import Collector
from tests.worlds import World

SMALL = Network(hidden=(8,), layer_norm=True)
GRU = replace(SMALL, memory="gru", memory_size=6)
ALONE = {"mixer": "none", "reward": "own"}
QUICK = QLearning(
    mixer="sum", reward="mean", network=SMALL, rollout=16, ratio=0.1, batch=4, mixing=Mixing(8, (8,)), gamma=0.9
)


KINDS = {
    "none": replace(QUICK, mixer="none", reward="own"),
    "sum": replace(QUICK, mixer="sum", reward="sum", network=GRU, last_action=True),
    "monotone": replace(QUICK, mixer="monotone", network=GRU, double=False),
    "joint": replace(QUICK, mixer="joint", last_action=True, dueling=True),
}


def collecting(world: World, config: QLearning, windows: int = 1, envs: int = 3) -> tuple[QLearner, Collector]:
    """A learner that has seen some windows and learned nothing, its networks far from its targets."""
    env = BatchedEnv(world, envs)
    learner = config.learner(env.team, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in learner.online.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    collector = Collector(env, learner, torch.Generator().manual_seed(1))
    collector.start(2)
    for _ in range(windows):
        learner.experience.add(collector.collect(), collector.final)
    return learner, collector


def drawn(learner: QLearner, env_steps: int = 48) -> Workspace:
    """The first batch that is due."""
    return next(iter(learner.experience.due(env_steps)))


def begun(world: World, config: QLearning = QUICK, windows: int = 1, envs: int = 3) -> tuple[QLearner, Workspace]:
    learner, _ = collecting(world, config, windows, envs)
    return learner, drawn(learner, 16 * envs * windows)
