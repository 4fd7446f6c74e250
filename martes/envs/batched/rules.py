"""Pieces that the rules of small games are made of."""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from martes.data import Action, Observation, TeamSpec, Vector
from martes.envs.batched.engine import Outcome, State
from martes.errors import ConfigError


def refuse_below(game: object, **lowest: float) -> None:
    """Raises ConfigError where an option of the game lies below its lowest value."""
    for name, low in lowest.items():
        value = getattr(game, name)
        if not value >= low:
            raise ConfigError(f"{type(game).__name__}.{name} is {value}: it must be {low} or more")


def equals(
    agents: int,
    observation: Observation,
    action: Action,
    state: Vector | None = None,
    episode_limit: int | None = None,
) -> TeamSpec:
    """The team of `agents` members of one group, `agent_0` and so on."""
    return TeamSpec(
        agents=tuple(f"agent_{index}" for index in range(agents)),
        groups={"agent": tuple(range(agents))},
        observation={"agent": observation},
        action={"agent": action},
        state=state,
        episode_limit=episode_limit,
    )


@lru_cache(maxsize=256)
def table(
    values: tuple[tuple[float, ...], ...], device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "row column"]:
    """The numbers of a game as a tensor, made once for each device and dtype."""
    return torch.tensor(values, device=device, dtype=dtype)


@lru_cache(maxsize=256)
def unit_vectors(count: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "{count} {count}"]:
    """What `embedding` turns integers below `count` into one-hot vectors with."""
    return torch.eye(count, device=device, dtype=dtype)


def last(state: State, reward: Float[Tensor, "env agent"]) -> Outcome:
    """The outcome of the step after which the game is over."""
    return Outcome(state, reward, over=torch.ones(len(reward), dtype=torch.bool, device=reward.device))
