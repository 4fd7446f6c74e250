"""The states of a window of a GRU, and their gradient, against the loop over its steps."""

import pytest
import torch

from martes.networks.recurrence import gru_states
from martes.networks.stacked import StackedGRU

SIZES = pytest.mark.parametrize(("slots", "time", "rows", "size"), [(1, 1, 1, 1), (1, 7, 5, 4), (3, 6, 4, 5)])


def looped(gru: StackedGRU, x: torch.Tensor, h: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    states: list[torch.Tensor] = []
    for x_t, keep_t in zip(x.unbind(1), keep.unbind(1), strict=True):
        h = gru.step(x_t, h * keep_t)
        states.append(h)
    return torch.stack(states, 1)


def given(slots: int, time: int, rows: int, size: int) -> tuple[StackedGRU, list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(slots)
    gru = StackedGRU((3,) * slots, size, generator).double()
    torch.nn.init.normal_(gru.recurrent.bias, generator=generator)
    x = torch.randn(slots, time, rows, 3 * size, generator=generator, dtype=torch.float64)
    h = torch.randn(slots, rows, size, generator=generator, dtype=torch.float64)
    keep = (torch.rand(1, time, rows, 1, generator=generator) < 0.7).double()
    return gru, [x.requires_grad_(), h.requires_grad_(), gru.recurrent.weight, gru.recurrent.bias], keep


@SIZES
def test_states_and_gradients_are_those_of_the_loop(slots: int, time: int, rows: int, size: int) -> None:
    gru, leaves, keep = given(slots, time, rows, size)
    x, h = leaves[:2]
    states, expected = gru.sequence(x, h, keep), looped(gru, x, h, keep)
    assert torch.allclose(states, expected, atol=1e-12)
    direction = torch.randn_like(states)
    found = torch.autograd.grad((states * direction).sum(), leaves)
    for ours, slow in zip(found, torch.autograd.grad((expected * direction).sum(), leaves), strict=True):
        assert torch.allclose(ours, slow, atol=1e-11)


def test_the_gradient_is_the_slope() -> None:
    _, (x, h, weight, bias), keep = given(2, 4, 2, 2)
    assert torch.autograd.gradcheck(lambda x, h, w, b: gru_states(x, h, keep, w, b), (x, h, weight, bias))


def test_a_fresh_start_passes_nothing_on() -> None:
    gru, leaves, keep = given(2, 5, 3, 4)
    keep[:, 2] = 0
    x, h = leaves[:2]
    of_x, of_h = torch.autograd.grad(gru.sequence(x, h, keep)[:, 2:].square().sum(), (x, h))
    assert not of_x[:, :2].any() and not of_h.any() and bool(of_x[:, 2:].any())


def test_no_gradient_no_graph() -> None:
    gru, (x, h, _, _), keep = given(1, 4, 3, 2)
    with torch.no_grad():
        assert not gru.sequence(x, h, keep).requires_grad
