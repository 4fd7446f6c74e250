"""The multi-agent particle environments on batched tensors, the same games as the package mpe2 plays.

Source: Lowe, Wu, Tamar, Harb, Abbeel and Mordatch (2017), "Multi-Agent Actor-Critic for Mixed Cooperative-Competitive
Environments", section 5.1; https://github.com/Farama-Foundation/MPE2.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import embedding, one_hot, pad

from martes.data import Action, Continuous, Discrete, Fields, TeamSpec, Vector
from martes.envs.batched.drawing import INK, MIST, PALETTE, PAPER, Canvas, faded
from martes.envs.batched.engine import Outcome, State
from martes.envs.batched.mpe_world import (
    constant,
    contact_force,
    moved,
    relative_position,
    scattered,
    seen_entities,
    thrust,
)
from martes.errors import ConfigError


@dataclass(frozen=True)
class Spread:
    """As many agents as landmarks: cover every landmark, do not collide (`simple_spread_v3`).

    With the distances d after the step, agent i is rewarded local_ratio · (-number of agents that touch i)
    + (1 - local_ratio) · (-Σ_landmark min_agent d). It sees its velocity and position, where the landmarks and then the
    other agents stand relative to it, and 2 silent (zero) channels for each other agent; the state joins all of it.

    Raises ConfigError for a field out of its range.
    """

    agents: int = 3
    """How many agents, and how many landmarks."""
    continuous: bool = False
    """Five real numbers in [0, 1] (unused, left, right, down, up), not one choice among stay and four directions."""
    local_ratio: float = 0.5
    """Weight of an agent's own collisions; the rest is the weight of the landmarks left alone."""
    episode_limit: int = 25
    """Steps after which an episode is cut."""

    RADIUS = 0.15

    def __post_init__(self) -> None:
        refuse_unless(self.agents >= 1, "agents", self.agents, "at least 1")
        refuse_unless(0 <= self.local_ratio <= 1, "local_ratio", self.local_ratio, "a weight between 0 and 1")
        refuse_unless(self.episode_limit >= 1, "episode_limit", self.episode_limit, "at least 1 step")

    @property
    def team(self) -> TeamSpec:
        """The facts of the task."""
        width = 2 + 2 + 2 * self.agents + 4 * (self.agents - 1)
        return TeamSpec(
            agents=tuple(f"agent_{index}" for index in range(self.agents)),
            groups={"agent": tuple(range(self.agents))},
            observation={"agent": Vector(width)},
            action={"agent": choices(5, self.continuous)},
            state=Vector(self.agents * width),
            episode_limit=self.episode_limit,
        )

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """Everyone at rest, anywhere."""
        position = scattered(envs, 2 * self.agents, generator)
        return {"position": position, "velocity": torch.zeros_like(position[:, : self.agents])}

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> Outcome:
        """The result of `action`, an integer [env agent] or real numbers [env agent 5]."""
        position, velocity = state["position"], state["velocity"]
        seen = seen_entities(self.agents, self.agents, position.device)
        others = relative_position(position, seen[:, self.agents :])
        force = thrust(action, velocity) + contact_force(others, 2 * self.RADIUS)
        agents, velocity = moved(position[:, : self.agents], velocity, force)
        position = torch.cat((agents, position[:, self.agents :]), 1)

        distance = relative_position(position, seen).norm(dim=-1)  # env agent seen
        alone = distance[..., : self.agents].amin(1).sum(-1, keepdim=True)  # env 1
        touching = (distance[..., self.agents :] < 2 * self.RADIUS).sum(-1)  # env agent
        reward = -self.local_ratio * touching - (1 - self.local_ratio) * alone
        return Outcome({"position": position, "velocity": velocity}, reward)

    def observe(self, state: State) -> Fields:
        """What each agent sees, and all of it joined."""
        position, velocity = state["position"], state["velocity"]
        seen = seen_entities(self.agents, self.agents, position.device)
        relative = relative_position(position, seen).flatten(2)
        silence = velocity.new_zeros(*velocity.shape[:2], 2 * (self.agents - 1))
        obs = torch.cat((velocity, position[:, : self.agents], relative, silence), -1)
        return {"obs": obs, "state": obs.flatten(1)}
def refuse_unless(legal, field, value, cure):
    if not legal: raise ConfigError(field)
def choices(n, continuous):
    return Continuous((0.0,) * n, (1.0,) * n) if continuous else Discrete(n)
