"""The physics of the multi-agent particle environments: discs in a plane, thrust, damped and pushed apart.

Entities are numbered agents first, then landmarks. In here the copies are the last axis, `entity 2 env`, so that each
kernel runs along them; `copies_last` and `copies_first` lead in and out.

Source: Lowe, Wu, Tamar, Harb, Abbeel and Mordatch (2017), section 5.1; Mordatch and Abbeel (2018); as played
by https://github.com/Farama-Foundation/MPE2.
"""

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding, softplus

from martes.data import Action, Continuous, Discrete
from martes.envs.batched.rules import table

TIME_STEP = 0.1
DAMPING = 0.25
"""Part of the velocity that a step takes away."""
ACCELERATION = 5.0
"""What a full action adds to the velocity in a unit of time, where a game says nothing else; masses are 1."""
CONTACT_STIFFNESS = 100.0
CONTACT_MARGIN = 1e-3
"""Distance over which a contact sets in."""
CLOSEST = 1e-12
"""The distance at which a contact's direction is still told."""

DIRECTIONS = ((0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))
"""Where the actions push: nowhere, left, right, down, up."""


def choice_or_strengths(n: int, continuous: bool) -> Action:
    """One of `n` actions, or the strength of each in [0, 1]."""
    return Continuous((0.0,) * n, (1.0,) * n) if continuous else Discrete(n)


@lru_cache
def seen_entities(agents: int, landmarks: int, device: torch.device) -> Int[Tensor, "agent seen"]:
    """The entities that each agent sees, in the order of its observation: all landmarks, then the other agents."""
    marks = range(agents, agents + landmarks)
    rows = [[*marks, *(other for other in range(agents) if other != agent)] for agent in range(agents)]
    return torch.tensor(rows, device=device)


def scattered(envs: int, entities: int, generator: torch.Generator) -> Float[Tensor, "env entity 2"]:
    """Positions drawn evenly from the square [-1, 1]²."""
    return copies_first(torch.empty(entities, 2, envs, device=generator.device).uniform_(-1, 1, generator=generator))


def copies_last(states: Float[Tensor, "env entity 2"]) -> Float[Tensor, "entity 2 env"]:
    """The same numbers with the copies side by side in memory, whichever way they lay before."""
    return states.permute(1, 2, 0).contiguous()


def copies_first(states: Float[Tensor, "entity 2 env"]) -> Float[Tensor, "env entity 2"]:
    """The same memory, seen as a game's state."""
    return states.permute(2, 0, 1)


def relative_position(
    position: Float[Tensor, "entity 2 env"], seen: Int[Tensor, "agent seen"]
) -> Float[Tensor, "agent seen 2 env"]:
    """Where the entities `seen` by each agent stand, measured from that agent."""
    return position.index_select(0, seen.flatten()).view(*seen.shape, *position.shape[1:]) - position[: len(seen), None]


def length(vector: Float[Tensor, "*batch 2 env"]) -> Float[Tensor, "*batch env"]:
    """The Euclidean length."""
    across, up = vector.unbind(-2)
    return torch.hypot(across, up)


def thrust(
    action: Tensor, like: Tensor, acceleration: float | Float[Tensor, "agent 1 1"] = ACCELERATION
) -> Float[Tensor, "agent 2 env"]:
    """The force that each agent's action exerts on it, in the dtype of `like`.

    An integer [env agent] chooses among `DIRECTIONS`; real numbers [env agent 5], clipped to [0, 1], blend them.
    """
    if action.is_floating_point():
        part = action.to(like.dtype).clamp(0.0, 1.0)
        push = part[..., 2::2] - part[..., 1::2]  # right - left, up - down
    else:
        push = embedding(action.long(), table(DIRECTIONS, like.device, like.dtype))
    return push.permute(1, 2, 0) * acceleration


def contact_force(relative: Float[Tensor, "agent other 2 env"], reach: float | Tensor) -> Float[Tensor, "agent 2 env"]:
    """The force by which others nearer than `reach`, the sum of both radii, push each agent away.

    f_i = -stiffness · Σ_j margin · softplus((reach - d_ij) / margin) · relative_ij / d_ij, with d the distance. It is 0
    between two in the same place, where no direction leads away.
    """
    distance = length(relative)
    overlap = softplus(reach - distance, beta=1 / CONTACT_MARGIN, threshold=40.0)  # linear where float64 cannot tell
    return (relative * (overlap / distance.clamp_min(CLOSEST)).unsqueeze(-2)).sum(1) * -CONTACT_STIFFNESS


def moved(
    position: Float[Tensor, "agent 2 env"],
    velocity: Float[Tensor, "agent 2 env"],
    force: Float[Tensor, "agent 2 env"],
    top_speed: Float[Tensor, "agent 1 1"] | None = None,
) -> tuple[Float[Tensor, "agent 2 env"], Float[Tensor, "agent 2 env"]]:
    """Position and velocity one step later: the position follows the old velocity, the force changes the new one."""
    later = torch.add(velocity * (1 - DAMPING), force, alpha=TIME_STEP)
    if top_speed is not None:
        later = later * (top_speed / length(later).unsqueeze(-2)).clamp_max(1.0)  # at rest: inf, so 1
    return torch.add(position, velocity, alpha=TIME_STEP), later
