"""Losses against hand-worked numbers and their identities."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from martes.maths.losses import clipped_surrogate, clipped_value_loss, huber, kl_estimate


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_clipped_surrogate_by_hand() -> None:
    ratio, advantage = row(1.5, 1.5, 0.5, 0.5, 1.1), row(2.0, -2.0, 2.0, -2.0, 3.0)
    # min(rho A, clip(rho) A): a gain counts up to the clip, a loss counts in full.
    objective = row(1.2 * 2, 1.5 * -2, 0.5 * 2, 0.8 * -2, 1.1 * 3)
    torch.testing.assert_close(clipped_surrogate(ratio, advantage, 0.2), -objective)
    torch.testing.assert_close(clipped_surrogate(ratio, advantage, None), -ratio * advantage)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_at_ratio_one_the_loss_is_minus_the_mean_advantage_and_its_gradient_the_policy_gradient(
    clip: float | None,
) -> None:
    advantage, ratio = torch.randn(50, dtype=torch.float64), torch.ones(50, dtype=torch.float64, requires_grad=True)
    loss = clipped_surrogate(ratio, advantage, clip).mean()
    torch.testing.assert_close(loss, -advantage.mean())
    loss.backward()
    torch.testing.assert_close(ratio.grad, -advantage / 50)


def test_no_gradient_pushes_a_ratio_further_out_of_the_trust_region() -> None:
    ratio = row(1.5, 0.5, 1.5, 0.5).requires_grad_()
    clipped_surrogate(ratio, row(1.0, -1.0, -1.0, 1.0), 0.2).sum().backward()
    assert ratio.grad is not None
    assert ratio.grad.tolist() == [0.0, 0.0, 1.0, -1.0]


def test_clipped_value_loss_by_hand() -> None:
    value, old, target = row(3.0, 1.1, 0.0), row(1.0, 1.0, 1.0), row(4.0, 2.0, 0.0)
    # V_clip = 1.2, 1.1, 0.8
    torch.testing.assert_close(clipped_value_loss(value, old, target, 0.2), row(2.8**2, 0.9**2, 0.8**2) / 2)
    torch.testing.assert_close(clipped_value_loss(value, old, target, None), row(1.0, 0.9**2, 0.0) / 2)


def test_huber_by_hand() -> None:
    torch.testing.assert_close(huber(row(-3.0, 0.5, 2.0), 2.0), row(2 * (2 * 3 - 2), 0.25, 4.0))
    torch.testing.assert_close(huber(row(-3.0, 0.5, 2.0), None), row(9.0, 0.25, 4.0))


@given(st.lists(st.floats(-20, 5), min_size=1, max_size=9))
def test_kl_estimate_is_never_negative_and_zero_where_nothing_moved(log_ratio: list[float]) -> None:
    x = row(*log_ratio)
    assert (kl_estimate(x) >= 0).all()
    torch.testing.assert_close(kl_estimate(x), x.exp() - 1 - x, atol=1e-12, rtol=1e-9)
    assert kl_estimate(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_kl_estimate_averages_to_the_divergence() -> None:
    old, new = row(0.2, 0.3, 0.5), row(0.6, 0.3, 0.1)
    mean = (old * kl_estimate(new.log() - old.log())).sum()  # every action, weighted by how often it is taken
    assert mean.item() == pytest.approx(0.2 * math.log(0.2 / 0.6) + 0.5 * math.log(0.5 / 0.1))
