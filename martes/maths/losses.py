"""Elementwise losses, each to be minimised; the caller takes the (masked) mean."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import huber_loss


def clipped_surrogate(
    ratio: Float[Tensor, "*shape"], advantage: Float[Tensor, "*shape"], clip: float | None
) -> Float[Tensor, "*shape"]:
    """The loss of the clipped policy objective.

    max(-A rho, -A clip(rho, 1 - clip, 1 + clip)); without clip the plain policy gradient, -A rho.
    Source: Schulman et al. 2017, equation 7, with the sign turned.
    """
    loss = -advantage * ratio
    return loss if clip is None else torch.maximum(loss, -advantage * ratio.clamp(1 - clip, 1 + clip))


def clipped_value_loss(
    value: Float[Tensor, "*shape"],
    behaviour_value: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    clip: float | None,
) -> Float[Tensor, "*shape"]:
    """The loss of a value that should move by at most `clip` from the value it had when acting.

    1/2 max((V - R)^2, (V_old + clip(V - V_old, -clip, clip) - R)^2); without clip 1/2 (V - R)^2.
    Source: Schulman et al. 2017, the authors' code; Engstrom et al. 2020, section 3.
    """
    error = (value - target).square()
    if clip is not None:
        near = behaviour_value + (value - behaviour_value).clamp(-clip, clip)
        error = torch.maximum(error, (near - target).square())
    return 0.5 * error


def huber(error: Float[Tensor, "*shape"], delta: float | None) -> Float[Tensor, "*shape"]:
    """Twice the Huber loss: e^2 where |e| <= delta, else delta (2 |e| - delta); None: e^2. Source: Huber 1964."""
    if delta is None:
        return error.square()
    return 2 * huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)


def kl_estimate(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """One-sample estimates of KL(behaviour || policy) in nats: rho - 1 - log rho, unbiased and never negative.

    Source: Schulman 2020, "Approximating KL divergence", estimator k3.
    """
    return log_ratio.expm1() - log_ratio
