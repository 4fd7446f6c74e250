"""The physics of the multi-agent particle environments: discs that are thrust, damped and pushed apart, in a plane.

Entities are numbered agents first, then landmarks; a world is `position` [env entity 2] and `velocity` [env agent 2].
Every function takes many worlds at once and returns what holds in each.

Source: Lowe, Wu, Tamar, Harb, Abbeel and Mordatch (2017), section 5; Mordatch and Abbeel (2018), section 3, in the
version of the package mpe2.
"""

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding, softplus

TIME_STEP = 0.1
DAMPING = 0.25
"""Part of the velocity that is lost in each step."""
ACCELERATION = 5.0
"""What a full action adds to the velocity in a unit of time."""
CONTACT_STIFFNESS = 100.0
CONTACT_MARGIN = 1e-3
"""Distance over which contact sets in: the world is smooth."""
CLOSEST = 1e-12  # a distance that keeps the direction of a contact finite where two agents coincide

DIRECTIONS = ((0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))
"""Stay, left, right, down, up."""


@lru_cache
def constant(values: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A table of the game, made once for each kind of tensor it meets."""
    return torch.tensor(values, dtype=dtype, device=device)


@lru_cache
def seen_entities(agents: int, landmarks: int, device: torch.device) -> Int[Tensor, "agent seen"]:
    """The entities that each agent sees, in the order of its observation: all landmarks, then the other agents."""
    everywhere = range(agents, agents + landmarks)
    rows = [[*everywhere, *(other for other in range(agents) if other != agent)] for agent in range(agents)]
    return torch.tensor(rows, device=device)


def scattered(envs: int, entities: int, generator: torch.Generator) -> Float[Tensor, "env entity 2"]:
    """Positions drawn evenly from the square [-1, 1]²."""
    return torch.empty(envs, entities, 2, device=generator.device).uniform_(-1.0, 1.0, generator=generator)


def relative_position(
    position: Float[Tensor, "env entity 2"], seen: Int[Tensor, "agent seen"]
) -> Float[Tensor, "env agent seen 2"]:
    """Where the entities of `seen` stand, seen from each agent."""
    agents = len(seen)
    return position.index_select(1, seen.flatten()).unflatten(1, seen.shape) - position[:, :agents, None]


def thrust(action: Tensor, like: Tensor) -> Float[Tensor, "*batch 2"]:
    """The force of an action on its agent's unit mass, in the dtype of `like`.

    An integer chooses among `DIRECTIONS`; five real numbers, clipped to [0, 1], blend them, opposite ones cancelling.
    """
    if action.is_floating_point():
        part = action.to(like.dtype).clamp(0.0, 1.0)
        return ACCELERATION * (part[..., 2::2] - part[..., 1::2])
    return embedding(action.long(), constant(DIRECTIONS, like.dtype, like.device)) * ACCELERATION


def contact_force(
    relative: Float[Tensor, "env agent other 2"], reach: float | Tensor
) -> Float[Tensor, "env agent 2"]:
    """The force on each agent that others nearer than `reach` (the sum of two radii) push away.

    f = -stiffness · Σ_other margin · softplus((reach - d) / margin) · relative / d. It is 0 between agents that stand in
    one point, where no direction is away.
    """
    distance = relative.norm(dim=-1)
    depth = softplus(reach - distance, beta=1.0 / CONTACT_MARGIN, threshold=40.0)  # exact in float64 up to there
    return (relative * (depth / distance.clamp_min(CLOSEST)).unsqueeze(-1)).sum(2) * -CONTACT_STIFFNESS


def moved(
    position: Float[Tensor, "env agent 2"], velocity: Float[Tensor, "env agent 2"], force: Float[Tensor, "env agent 2"]
) -> tuple[Float[Tensor, "env agent 2"], Float[Tensor, "env agent 2"]]:
    """Position and velocity one step later: the position follows the old velocity, force acts on the new one."""
    return (
        torch.add(position, velocity, alpha=TIME_STEP),
        torch.add(velocity * (1.0 - DAMPING), force, alpha=TIME_STEP),
    )
