"""Distributions over actions with one face: sample(noise), mode(), action(sample), log_prob, entropy, kl.

Noise comes in from outside, in the shape of the logits or of the mean: a draw is a pure function of it.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor
from torch.nn.functional import softplus

from martes.maths.masks import masked_logits

NARROW = 16
"""Below this many actions torch's CPU log-softmax is 5 to 10 times slower over the last axis than over the first."""

WALL = 1e-3
"""How near to the walls of its box an action that others chose is taken to be, in half widths of the box."""

NODES, REACH = 17, 4.5
"""Points of the trapezoid rule behind the entropy of a squashed Gaussian, and how many deviations they reach."""


def gumbel(
    shape: Sequence[int], generator: torch.Generator, device: torch.device | str | None = None
) -> Float[Tensor, "*shape"]:
    """Standard Gumbel noise of the run's generator, -log(-log U), always finite. Source: Gumbel 1954."""
    uniform = torch.rand(tuple(shape), generator=generator, device=device)
    # U = 0 would give an infinite noise, and an illegal action could win.
    return uniform.clamp_(min=torch.finfo(uniform.dtype).tiny).log_().neg_().log_().neg_()


def straight_through(
    logits: Float[Tensor, "*batch action"],
    noise: Float[Tensor, "*batch action"] | None = None,
    mask: Bool[Tensor, "*#batch action"] | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "*batch action"]:
    """The one-hot of the legal argmax(logits + noise), with the gradient of softmax((logits + noise) / temperature).

    With standard Gumbel noise it is a draw of softmax(logits).
    Source: Jang et al. 2017, section 2.2; Bengio et al. 2013.
    """
    disturbed = (logits if noise is None else logits + noise) / temperature
    soft = (disturbed if mask is None else masked_logits(disturbed, mask)).softmax(-1)
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return hard + soft - soft.detach()


class Categorical:
    """One discrete action. Where no action is legal the distribution is uniform, and has no gradient."""

    def __init__(
        self, logits: Float[Tensor, "*batch action"], mask: Bool[Tensor, "*#batch action"] | None = None
    ) -> None:
        logits = _full_precision(logits)
        self.mask = mask
        self.log_probs: Tensor = _log_softmax(logits if mask is None else masked_logits(logits, mask))

    def floored(self, epsilon: Float[Tensor, ""]) -> "Categorical":
        """The mixture (1 - epsilon) p + epsilon u, where u is uniform over the legal actions.

        Source: Foerster et al. 2018, section 5, where u is uniform over all actions.
        """
        one = torch.ones_like(self.log_probs)
        uniform = Categorical(one, self.mask).log_probs
        return Categorical(torch.logaddexp(self.log_probs + (1 - epsilon).log(), uniform + epsilon.log()), self.mask)

    def sample(self, noise: Float[Tensor, "*batch action"]) -> Int[Tensor, "*batch"]:
        """A draw, given standard Gumbel noise: argmax(log p + noise). Source: Maddison et al. 2014."""
        return _argmax(self.log_probs + noise)

    def mode(self) -> Int[Tensor, "*batch"]:
        """The most probable action."""
        return _argmax(self.log_probs)

    def action(self, sample: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """What the environment executes: the sample itself."""
        return sample

    def log_prob(self, sample: Integer[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """log p(sample), in nats."""
        return self.log_probs.gather(-1, sample.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """-sum p log p, in nats; 0 log 0 = 0."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def kl(self, other: "Categorical") -> Float[Tensor, "*batch"]:
        """KL(self || other) = sum p (log p - log q), in nats."""
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(-1)


class MultiCategorical:
    """Several discrete sub-actions, independent given the logits, padded to the widest.

    `mask` is false where a choice does not exist or is illegal, so sizes may differ by sub-action and by agent.
    A sub-action without a choice draws 0 and counts nowhere.
    """

    def __init__(
        self, logits: Float[Tensor, "*batch sub size"], mask: Bool[Tensor, "*#batch #sub #size"] | None = None
    ) -> None:
        self.is_absent = None if mask is None else ~mask.any(-1)
        self.sub_actions = Categorical(logits, mask)

    def sample(self, noise: Float[Tensor, "*batch sub size"]) -> Int[Tensor, "*batch sub"]:
        """A draw of every sub-action, given standard Gumbel noise."""
        return self._counted(self.sub_actions.sample(noise))

    def mode(self) -> Int[Tensor, "*batch sub"]:
        """The most probable choice of every sub-action."""
        return self._counted(self.sub_actions.mode())

    def action(self, sample: Int[Tensor, "*batch sub"]) -> Int[Tensor, "*batch sub"]:
        """What the environment executes: the sample itself."""
        return sample

    def log_prob(self, sample: Integer[Tensor, "*batch sub"]) -> Float[Tensor, "*batch"]:
        """The sum of log p over sub-actions, in nats."""
        return self._counted(self.sub_actions.log_prob(sample)).sum(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """The sum of the sub-actions' entropies, in nats."""
        return self._counted(self.sub_actions.entropy()).sum(-1)

    def kl(self, other: "MultiCategorical") -> Float[Tensor, "*batch"]:
        """KL(self || other), the sum over sub-actions, in nats."""
        return self._counted(self.sub_actions.kl(other.sub_actions)).sum(-1)

    def _counted(self, x: Tensor) -> Tensor:
        return x if self.is_absent is None else x.masked_fill(self.is_absent, 0)


class SquashedGaussian:
    """A Gaussian u, independent by dimension, squashed by tanh into the box [low, high].

    The sample is u; the executed action is a = low + (high - low) (tanh u + 1) / 2. Densities are those of a over its
    box, so they compare between boxes. `dim_mask` is false in padded dimensions, which count nowhere.
    Source: Haarnoja et al. 2018, appendix C.
    """

    def __init__(
        self,
        mean: Float[Tensor, "*batch dim"],
        log_std: Float[Tensor, "*#batch dim"],
        low: Float[Tensor, "*#batch dim"],
        high: Float[Tensor, "*#batch dim"],
        dim_mask: Bool[Tensor, "*#batch dim"] | None = None,
    ) -> None:
        self.mean = _full_precision(mean)
        self.log_std = _full_precision(log_std).expand_as(self.mean)
        self.low, self.high, self.dim_mask = low, high, dim_mask

    def sample(self, noise: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """A draw of u, given standard normal noise: mean + std noise."""
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Float[Tensor, "*batch dim"]:
        """The u whose action is the median of the actions: the mean."""
        return self.mean

    def action(self, sample: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """What the environment executes; lerp keeps it inside the box to the last bit."""
        return torch.lerp(self.low.expand_as(sample), self.high.expand_as(sample), (sample.tanh() + 1) / 2)

    def sample_of(self, action: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The u whose action this is, |u| <= artanh(1 - 1e-3): at the walls of the box it would be infinite."""
        share = 2 * (action - self.low) / (self.high - self.low) - 1
        return share.clamp(-1 + WALL, 1 - WALL).atanh()

    def log_prob(self, sample: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """The log density of the executed action a at u: log N(u) - log |da/du|, in nats."""
        deviation = (sample - self.mean) * (-self.log_std).exp()
        gaussian = -0.5 * (deviation.square() + math.log(2 * math.pi)) - self.log_std
        return self._total(gaussian - _log_slope(sample) - self._log_half_width())

    def entropy(self) -> Float[Tensor, "*batch"]:
        """The entropy of the executed action, H(u) + E[log |da/du|], in nats; differentiable and without randomness.

        The expectation is taken by the trapezoid rule, which converges geometrically under a Gaussian weight. Error a
        dimension: below 1.1e-5 nats for std <= 1, 2.4e-4 at 2 (worst mean in [-6, 6]).
        Source: Goodwin 1949.
        """
        nodes = torch.linspace(-REACH, REACH, NODES, dtype=self.mean.dtype, device=self.mean.device)
        weights = (-0.5 * nodes.square()).softmax(0)
        # E[log(1 - tanh(u)^2)], term by term as in `_log_slope`: only softplus(-2 u) needs the nodes.
        doubled = torch.addcmul(-2 * self.mean.unsqueeze(-1), -2 * self.log_std.exp().unsqueeze(-1), nodes)
        log_slope = 2 * (math.log(2) - self.mean - softplus(doubled) @ weights)  # [*batch dim node] -> [*batch dim]
        gaussian = self.log_std + 0.5 * math.log(2 * math.pi * math.e)
        return self._total(gaussian + log_slope + self._log_half_width())

    def kl(self, other: "SquashedGaussian") -> Float[Tensor, "*batch"]:
        """KL(self || other), in nats, for equal boxes: that of the two Gaussians, since squashing loses nothing."""
        ratio = (2 * (self.log_std - other.log_std)).exp()
        distance = ((self.mean - other.mean) * (-other.log_std).exp()).square()
        return self._total(0.5 * (ratio + distance - 1) + other.log_std - self.log_std)

    def _log_half_width(self) -> Tensor:
        return ((self.high - self.low) / 2).log()

    def _total(self, x: Tensor) -> Tensor:
        return (x if self.dim_mask is None else x.masked_fill(~self.dim_mask, 0.0)).sum(-1)


def _log_slope(u: Tensor) -> Tensor:
    # log(1 - tanh(u)^2) without the cancellation.
    return 2 * (math.log(2) - u - softplus(-2 * u))


def _full_precision(x: Tensor) -> Tensor:
    # A ratio of probabilities from bfloat16 logits would be wrong in its second digit.
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _argmax(x: Tensor) -> Tensor:
    return x.contiguous().argmax(-1)  # 10 times as fast as over the strides that `_log_softmax` leaves


def _log_softmax(logits: Tensor) -> Tensor:
    if logits.shape[-1] >= NARROW:
        return logits.log_softmax(-1)
    return logits.movedim(-1, 0).contiguous().log_softmax(0).movedim(0, -1)
