"""One gradient step, and the state that the next one goes on from."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from martes.algorithms.learner import Metrics
from martes.data import Workspace
from martes.data.allocation import tensor_at
from martes.errors import NonFiniteError
from martes.networks import clipped_by_slot
from martes.networks.growth import Parts


def descended(
    loss: Tensor,
    optimiser: torch.optim.Optimizer,
    parts: Mapping[str, tuple[nn.Module, int]],
    max_norm: float | None,
    batch: Workspace,
) -> Metrics:
    """The length of each part's gradient before it was clipped, per slot, for the step that was taken.

    `parts` holds the modules that the loss moves, and how many slots their parameters have. Raises NonFiniteError,
    with the batch, where loss or gradient is not finite; then no parameter has moved.
    """
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norms = {
        f"{name}_grad_norm": clipped_by_slot(module.parameters(), slots, max_norm).max()
        for name, (module, slots) in parts.items()
    }
    if not bool(torch.stack((loss.detach(), *norms.values())).isfinite().all()):
        raise NonFiniteError("the loss or its gradient is not finite", batch)
    optimiser.step()
    return norms


def state_of(parts: Parts, counters: Mapping[str, int]) -> dict[str, object]:
    """The states of modules and optimisers, and what was counted."""
    counted = {name: torch.tensor(count) for name, count in counters.items()}
    return {**{name: part.state_dict() for name, part in parts.items()}, "counters": counted}


def restored(state: Mapping[str, object], parts: Parts) -> dict[str, int]:
    """What was counted; the parts take their states over. Raises KeyError where it is another learner's state."""
    for name, part in parts.items():
        saved = state[name]
        assert isinstance(saved, dict)
        part.load_state_dict(deepcopy(saved))  # torch would share the moments with the giver
    counters = state["counters"]
    assert isinstance(counters, dict)
    return {str(name): int(tensor_at(counters, str(name))) for name in counters}
