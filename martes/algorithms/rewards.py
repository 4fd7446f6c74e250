"""What a team learns from: each agent's own reward, or one for all."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from martes.errors import DataError
from martes.maths.masks import masked_mean
from martes.maths.statistics import Moments

Reward = Literal["own", "common", "mean", "sum"]


def rewards_of(
    kind: Reward,
    reward: Float[Tensor, "time env agent"],
    alive: Bool[Tensor, "time env agent"],
    earned: Moments | None = None,
) -> Float[Tensor, "time env value"]:
    """The rewards themselves (`own`), or one for all [time env 1]: the sum over all, or the mean of who is there.

    A `common` reward is that mean, too. Where it is known what was `earned`, they come in its deviations.
    """
    if earned is not None:
        reward = reward / earned.scale().to(reward)
    match kind:
        case "own":
            return reward
        case "sum":
            return reward.sum(-1, keepdim=True)
        case "mean" | "common":
            return masked_mean(reward, alive, dim=-1, keepdim=True)


def refuse_unequal(
    reward: Float[Tensor, "time env agent"], there: Bool[Tensor, "time env agent"], agents: tuple[str, ...]
) -> None:
    """Raises DataError where agents who are there are paid unequally in one step."""
    highest = reward.masked_fill(~there, -torch.inf).amax(-1)
    lowest = reward.masked_fill(~there, torch.inf).amin(-1)
    is_unequal = highest > lowest + 1e-5 * (1 + lowest.abs())
    if bool(is_unequal.any()):
        step, env = is_unequal.nonzero()[0].unbind()
        paid = dict(zip(agents, reward[step, env].tolist(), strict=True))
        raise DataError(
            f"the agents of this team are paid unequally ({paid}), and algorithm.reward=common promises one reward for "
            "all: take algorithm.reward=mean or sum, or agents that learn for themselves (iql)"
        )
