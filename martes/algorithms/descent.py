"""Gradient steps: down a loss, clipped by slot, and the state that the next one goes on from."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from martes.algorithms.learner import Metrics
from martes.compiling import compiled
from martes.data import Workspace
from martes.data.allocation import tensor_at
from martes.errors import NonFiniteError
from martes.networks import clipped_by_slot
from martes.networks.growth import Parts

Loss = Callable[..., tuple[Tensor, Metrics] | tuple[Tensor, Metrics, Tensor]]
"""What is descended, what to watch, and what else the learner asks. Of a piece of a batch its share, so that pieces add
up."""
Gradient = dict[int, Tensor]
"""By the place of a parameter among those of its optimiser; none where the loss does not depend on it."""


class Stepped(NamedTuple):
    """What a gradient step was made of."""

    metrics: Metrics
    norms: dict[str, Float[Tensor, "slot"]]
    """The length of each part's gradient before it was cut."""
    told: Tensor | None
    """What else the loss tells: from replay how far off each draw was, which draws with priorities go by."""

    @property
    def watched(self) -> Metrics:
        """The metrics, and of each part the longest gradient."""
        return self.metrics | {f"{name}_grad_norm": norms.max() for name, norms in self.norms.items()}


class Descent:
    """Steps of one optimiser down one loss, the gradient of each slot cut to `max_norm`.

    `parts` holds the modules that the loss moves, and how many slots their parameters have. With `compiles_for` a
    device, loss, gradient and cut are one function compiled for it, in which nothing need be kept for the way back.
    Such a loss must draw no random numbers.
    """

    def __init__(
        self,
        loss: Loss,
        optimiser: torch.optim.Optimizer,
        parts: Mapping[str, tuple[nn.Module, int]],
        max_norm: float | None,
        compiles_for: torch.device | None = None,
    ) -> None:
        self.loss, self.optimiser, self.max_norm = loss, optimiser, max_norm
        self._learned: list[Tensor] = [each for group in optimiser.param_groups for each in group["params"]]
        place = {id(each): index for index, each in enumerate(self._learned)}
        self._parts = {
            name: ([place[id(each)] for each in module.parameters()], slots) for name, (module, slots) in parts.items()
        }
        self._found, self._summand = self._whole, self._piece
        if compiles_for is not None:
            self._found, self._summand = (compiled(each, compiles_for) for each in (self._whole, self._piece))

    def __call__(self, batch: Workspace, *given: object) -> Stepped:
        """Takes a step down the loss of a batch, and of what else it is told.

        Raises NonFiniteError, with the batch, where loss or gradient is not finite; then no parameter has moved.
        """
        return self._step(*self._found(batch, *given), batch)

    def summed(self, pieces: Sequence[tuple[object, ...]], batch: Workspace) -> Stepped:
        """Takes one step down the sum of the losses of pieces of a batch, found one after the other: in less memory.

        Each piece is what the loss is told. Raises NonFiniteError as a whole step does.
        """
        gradient, loss, found = self._summand(*pieces[0])
        for piece in pieces[1:]:
            more, part, seen = self._summand(*piece)
            gradient = more | {at: each + more[at] if at in more else each for at, each in gradient.items()}
            loss, metrics = loss + part, {name: metric + seen.metrics[name] for name, metric in found.metrics.items()}
            found = found._replace(metrics=metrics)
        return self._step(*self._cut(gradient, loss, found), batch)

    def _whole(self, *given: object) -> tuple[Gradient, Tensor, Stepped]:
        return self._cut(*self._piece(*given))

    def _piece(self, *given: object) -> tuple[Gradient, Tensor, Stepped]:
        """Gradient, loss, and what to watch."""
        loss, metrics, *told = self.loss(*given)
        moved = {place: each for place, each in enumerate(self._learned) if each.requires_grad}
        found = zip(moved, torch.autograd.grad(loss, [*moved.values()], allow_unused=True), strict=True)
        gradient = {place: each.contiguous() for place, each in found if each is not None}  # as optimisers assume
        metrics = {name: each.detach() for name, each in metrics.items()}
        if torch.compiler.is_compiling():  # such a function cannot give tensors that are views of one another
            metrics = {name: each.clone() for name, each in metrics.items()}
        return gradient, loss.detach(), Stepped(metrics, {}, told[0].detach() if told else None)

    @torch.no_grad()
    def _cut(self, gradient: Gradient, loss: Tensor, found: Stepped) -> tuple[Gradient, Tensor, Stepped]:
        """The gradient, cut; whether all is finite; what to watch."""
        norms: dict[str, Tensor] = {}
        for name, (places, slots) in self._parts.items():
            known = [place for place in places if place in gradient]
            if known:
                cut, norms[name] = clipped_by_slot([gradient[place] for place in known], slots, self.max_norm)
                gradient = {**gradient, **dict(zip(known, cut, strict=True))}
        is_finite = torch.cat((loss.reshape(1), *norms.values())).isfinite().all()
        return gradient, is_finite, found._replace(norms=norms)

    def _step(self, gradient: Gradient, is_finite: Tensor, found: Stepped, batch: Workspace) -> Stepped:
        if not bool(is_finite):
            raise NonFiniteError("the loss or its gradient is not finite", batch)
        for place, parameter in enumerate(self._learned):
            parameter.grad = gradient.get(place)
        self.optimiser.step()
        return found


def state_of(parts: Parts, counters: Mapping[str, int]) -> dict[str, object]:
    """The states of modules and optimisers, and what was counted."""
    counted = {name: torch.tensor(count) for name, count in counters.items()}
    return {**{name: part.state_dict() for name, part in parts.items()}, "counters": counted}


def restored(state: Mapping[str, object], parts: Parts) -> dict[str, int]:
    """What was counted; the parts take their states over. Raises KeyError where it is another learner's state."""
    for name, part in parts.items():
        saved = state[name]
        assert isinstance(saved, dict)
        # Networks copy what they are given; optimisers would share the moments with the giver.
        part.load_state_dict(saved if isinstance(part, nn.Module) else deepcopy(saved))
    counters = state["counters"]
    assert isinstance(counters, dict)
    return {str(name): int(tensor_at(counters, str(name))) for name in counters}
