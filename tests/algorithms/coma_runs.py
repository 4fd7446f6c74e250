"""Rollouts of COMA in worlds without sense, for tests."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from martes.algorithms.coma import COMA, COMALearner
from martes.data import Workspace
from martes.networks import Network
from tests.algorithms.rollouts import collecting
from tests.worlds import World

SMALL = Network(hidden=(16,), layer_norm=True)
GRU = replace(SMALL, memory="gru", memory_size=12, normalise=True)
NETWORKS = {"mlp": SMALL, "gru": GRU}
DISCRETE = ["discrete", "masked", "unequal", "dying", "forced"]
FLOORED = {"epsilon_start": 0.5, "epsilon_end": 0.1, "epsilon_steps": 200}


def collected(world: World, windows: int = 1, envs: int = 6, **changes: Any) -> tuple[COMALearner, Workspace]:
    """A learner and the last of `windows` rollouts, in a world that pays its agents unequally."""
    config = COMA(**{"reward": "mean", "network": SMALL, "rollout": 8, **changes})
    return collecting(world, config, windows, envs)[:2]


def scored(world: World, windows: int = 1, envs: int = 6, **changes: Any) -> tuple[COMALearner, Workspace]:
    learner, window = collected(world, windows, envs, **changes)
    learner._score(window)
    return learner, window


def set_values(learner: COMALearner, value: float) -> None:
    """Makes the target network answer `value` to everything."""
    with torch.no_grad():
        learner.policy.target.head.linear.weight.zero_()
        learner.policy.target.head.linear.bias.fill_(value)


def values(learner: COMALearner, window: Workspace) -> Tensor:
    """Q' of what was done, agent by agent."""
    with torch.no_grad():
        q = learner.policy.target(learner._inputs(window))
    return torch.stack(
        [q[..., i, :].gather(-1, window["action"][..., i : i + 1])[..., 0] for i in range(q.shape[-2])], -1
    )
