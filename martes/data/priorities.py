"""Proportional priorities: which places of a store are drawn how often, and what corrects for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from martes.data.allocation import tensor_at
from martes.data.streams import runs
from martes.errors import ConfigError, DataError
from martes.maths.schedules import Constant, Schedule

FAN = 32
"""Children of a node: 4 levels reach a million leaves, and few wide operations cost less than many narrow ones."""


@dataclass(frozen=True)
class Prioritised:
    """Draw in proportion to p^alpha, p = |error| + epsilon. Source: Schaul et al. 2016, section 3.3."""

    alpha: float = 0.6
    """0: uniform; 1: in full proportion to the error."""
    beta: Schedule = field(default_factory=lambda: Constant(0.4))
    """How much of the bias the importance weights take back, by environment steps; 1: all of it."""
    epsilon: float = 1e-6
    """Added to every error, so that nothing is never drawn again."""

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.epsilon <= 0:
            raise ConfigError(
                f"alpha is {self.alpha} and epsilon {self.epsilon}: alpha must be 0 or more, epsilon above 0"
            )


class SumTree:
    """Weights of `size` leaves, where setting k of them and drawing k by weight cost O(k log size), without a loop."""

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.size = size
        self._levels = [torch.zeros(_padded(size), dtype=torch.float64, device=device)]
        while len(self._levels[-1]) > FAN:
            above = _padded(len(self._levels[-1]) // FAN)
            self._levels.append(torch.zeros(above, dtype=torch.float64, device=device))

    @property
    def weights(self) -> Float64[Tensor, "leaf"]:
        """The weight of every leaf (a view)."""
        return self._levels[0][: self.size]

    @property
    def total(self) -> Float64[Tensor, ""]:
        """The sum of all weights."""
        return self._levels[-1].sum()

    def assign(self, index: Int64[Tensor, "place"], weight: Float64[Tensor, "place"]) -> None:
        """Sets the weights of the leaves `index`; of several for one leaf the greatest counts."""
        self._levels[0].scatter_reduce_(0, index, weight, "amax", include_self=False)
        for below, above in zip(self._levels[:-1], self._levels[1:], strict=True):
            index = runs(index // FAN)
            above.index_copy_(0, index, below.view(-1, FAN).index_select(0, index).sum(-1))

    def replace(self, weights: Float64[Tensor, "leaf"]) -> None:
        """Sets the weights of all leaves."""
        self.weights.copy_(weights)
        for below, above in zip(self._levels[:-1], self._levels[1:], strict=True):
            above[: len(below) // FAN].copy_(below.view(-1, FAN).sum(-1))

    def found(self, target: Float64[Tensor, "draw"]) -> Int64[Tensor, "draw"]:
        """The leaf on whose share of [0, total) each target lies, leaves laid side by side. Its weight is never 0."""
        node = torch.zeros_like(target, dtype=torch.int64)
        for level in reversed(self._levels):
            children = level.view(-1, FAN).index_select(0, node)
            ends = children.cumsum(-1)  # draw child
            # Sums of one node in two orders differ by a rounding: a target must not fall behind its last child.
            target = target.minimum(ends[:, -1].nextafter(torch.zeros_like(target)))[:, None]
            child = (ends <= target).sum(-1, keepdim=True)
            target = (target - ends.gather(1, child) + children.gather(1, child)).clamp(min=0).squeeze(1)
            node = node * FAN + child.squeeze(1)
        return node


def _padded(size: int) -> int:
    return -(-size // FAN) * FAN


class Priorities:
    """The priorities of the places of a store. New ones get the greatest seen, so that each is drawn early on."""

    def __init__(self, config: Prioritised, size: int, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.tree = SumTree(size, device)
        self._greatest = torch.ones((), dtype=torch.float64, device=device)

    def renew(self, written: Int64[Tensor, "written"], entered: Int64[Tensor, "entered"]) -> None:
        """Forgets the places `written`; gives those `entered` the greatest priority. Algorithm 1, line 6."""
        self.tree.assign(written, torch.zeros_like(written, dtype=torch.float64))
        self.tree.assign(entered, (self._greatest**self.config.alpha).expand(len(entered)))

    def drawn(
        self, count: int, beta: float, generator: torch.Generator
    ) -> tuple[Int64[Tensor, "draw"], Float32[Tensor, "draw"]]:
        """`count` places, and the importance weight of each.

        P(i) = p_i^alpha / sum_k p_k^alpha, one draw from each of `count` equal shares of the sum (appendix B.2.1);
        w_i = (N P(i))^-beta / max_j w_j over the draws (section 3.4). Raises DataError where no place has a priority.
        """
        shares = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
        shares = shares.to(self.tree.total.device) + torch.arange(count, device=self.tree.total.device)
        total = self.tree.total
        if not bool(total > 0):
            raise DataError("nothing has a priority yet: add experience before drawing from it")
        place = self.tree.found(shares / count * total)
        weight = self.tree.weights[place]
        return place, (weight.min() / weight).pow(beta).float()

    def update(self, place: Int64[Tensor, "draw"], error: Float[Tensor, "draw"]) -> None:
        """Sets p = |error| + epsilon where something is drawn at all. Algorithm 1, line 12.

        Raises DataError where an error is not finite.
        """
        priority = error.detach().to(self.tree.weights.device, torch.float64).abs() + self.config.epsilon
        if not bool(priority.isfinite().all()):
            raise DataError(f"a priority of {error.detach()[~error.detach().isfinite()][0].item()}: errors are finite")
        place = place.to(priority.device)
        is_drawn = self.tree.weights[place] > 0  # a place may hold no step any more
        place, priority = place[is_drawn], priority[is_drawn]
        self._greatest = torch.cat((priority, self._greatest[None])).amax()
        self.tree.assign(place, priority**self.config.alpha)

    def state_dict(self) -> dict[str, object]:
        """The weights of all places (lent, not copied) and the greatest priority seen."""
        return {"weights": self.tree.weights, "greatest": self._greatest}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restores `state_dict`."""
        self._greatest = tensor_at(state, "greatest").to(self._greatest.device)
        self.tree.replace(tensor_at(state, "weights").to(self._greatest.device))

    def keep(self, is_held: Bool[Tensor, "place"]) -> None:
        """Forgets the places where `is_held` is false."""
        self.tree.replace(self.tree.weights * is_held)
