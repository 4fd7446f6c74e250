"""Returns against hand-worked numbers, slow versions episode by episode, and identities."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from martes.maths.returns import gae, lambda_returns, n_step_returns, reverse_scan, reward_to_go

GAMMA = 0.9


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)  # [time env=1]


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Tensor]:
    """A random window [time env agent]: cuts that end nothing, ends that are cut, agents that end alone."""
    shape = [draw(st.integers(1, n)) for n in (9, 3, 3)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    reward, value, final = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    cut = torch.rand(shape[:2], generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    has_ended = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    following = torch.cat((value[1:], final[-1:]))
    next_value = torch.where(cut.unsqueeze(-1), final, following)
    return {
        "reward": reward,
        "value": value,
        "next_value": next_value,
        "discount": GAMMA * (~has_ended).double(),
        "cut": cut,
    }


def segments(cut: Tensor) -> list[tuple[int, int]]:
    """First and one past the last row of each trajectory of one environment."""
    ends = [t + 1 for t in range(len(cut)) if cut[t] or t == len(cut) - 1]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def slow_mixture(window: dict[str, Tensor], weights: list[float]) -> Tensor:
    """The weighted n-step returns of every row, n = 1, 2, ..., cut short at the trajectory's end, by plain sums."""
    reward, discount, next_value = window["reward"], window["discount"], window["next_value"]
    result = torch.zeros_like(reward)
    for env in range(reward.shape[1]):
        for first, last in segments(window["cut"][:, env]):
            for t in range(first, last):
                for n, weight in enumerate(weights, start=1):
                    rows = range(t, min(t + n, last))
                    factor, total = 1.0, 0.0
                    for row in rows:
                        total = total + factor * reward[row, env]
                        factor = factor * discount[row, env]
                    result[t, env] += weight * (total + factor * next_value[rows[-1], env])
    return result


def lambda_weights(lambda_: float) -> list[float]:
    weights = [(1 - lambda_) * lambda_**n for n in range(40)]
    return [*weights, 1 - math.fsum(weights)]


def test_reverse_scan_by_hand() -> None:
    x, decay = column(1.0, 2.0, 3.0), column(0.5, 0.1, 7.0)
    assert torch.equal(reverse_scan(x, decay), column(1 + 0.5 * 2.3, 2 + 0.1 * 3, 3.0))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_nothing_leaks_through_a_decay_of_zero(poison: float) -> None:
    x = column(1.0, 2.0, poison).requires_grad_()
    decay = column(0.5, 0.0, poison).requires_grad_()
    y = reverse_scan(x, decay)
    assert y[:2].tolist() == [[2.0], [2.0]]
    x_gradient, decay_gradient = torch.autograd.grad(y[:2].sum(), (x, decay))
    assert x_gradient.tolist() == [[1.0], [1.5], [0.0]]
    assert decay_gradient.tolist() == [[2.0], [0.0], [0.0]]


def test_reverse_scan_gradient() -> None:
    x, decay = torch.rand(2, 5, 3, dtype=torch.float64).requires_grad_().unbind()
    assert torch.autograd.gradcheck(reverse_scan, (x, decay))


def test_reward_to_go_by_hand() -> None:
    ones, no_cut = column(1.0, 1.0, 1.0), torch.zeros(3, 1, dtype=torch.bool)
    assert reward_to_go(ones, 0.5 * ones, no_cut).flatten().tolist() == [1.75, 1.5, 1.0]
    cut = torch.tensor([[False], [True], [False]])
    assert reward_to_go(ones, 0.5 * ones, cut).flatten().tolist() == [1.5, 1.0, 1.0]


def test_the_end_cuts_at_its_own_row() -> None:
    # Two episodes in one window: gamma 0.9, lambda 0.5, rewards 1, 2 | 3, 4; the first truly ends at row 1, the window
    # stops inside the second, bootstrapped with 5. A cut one row early or late changes the first two advantages.
    reward, value = column(1, 2, 3, 4), column(0.5, 0.2, 0.3, 0.1)
    next_value = column(0.2, 99.0, 0.1, 5.0)
    discount = column(0.9, 0.0, 0.9, 0.9)
    cut = torch.tensor([[False], [True], [False], [False]])
    a_3 = 4 + 0.9 * 5 - 0.1
    a_2 = 3 + 0.9 * 0.1 - 0.3 + 0.9 * 0.5 * a_3
    a_1 = 2 - 0.2
    a_0 = 1 + 0.9 * 0.2 - 0.5 + 0.9 * 0.5 * a_1
    torch.testing.assert_close(gae(reward, value, next_value, discount, cut, 0.5), column(a_0, a_1, a_2, a_3))
    assert (a_0, a_1) == pytest.approx((1.49, 1.8))


def test_a_time_limit_bootstraps_and_cuts() -> None:
    reward, value = column(1, 1, 1), column(2, 3, 4)
    next_value = column(3, 10, 6)  # row 1 is the limit: the value of the real last observation is 10, not 4
    discount, cut = column(0.9, 0.9, 0.9), torch.tensor([[False], [True], [False]])
    delta = (1 + 0.9 * 3 - 2, 1 + 0.9 * 10 - 3, 1 + 0.9 * 6 - 4)
    expected = column(delta[0] + 0.9 * 0.8 * delta[1], delta[1], delta[2])
    torch.testing.assert_close(gae(reward, value, next_value, discount, cut, 0.8), expected)


def test_the_next_episode_moves_nothing_before_the_cut() -> None:
    # Rewards 1, gamma 0.9, lambda 0.8, other values 0: the advantages are (1.72, 1) whatever comes after.
    ones, zeros = column(1, 1, 1, 1), column(0, 0, 0, 0)
    discount, cut = column(0.9, 0.0, 0.9, 0.9), torch.tensor([[False], [True], [False], [False]])
    for later_value in (0.0, 100.0, math.nan, math.inf):
        value, following = zeros.clone(), zeros.clone()
        value[2], following[1] = later_value, later_value
        advantage = gae(ones, value, following, discount, cut, 0.8)
        assert advantage[:2].flatten().tolist() == [1 + 0.9 * 0.8, 1.0]


@given(windows(), st.sampled_from([math.nan, 100.0]), st.sampled_from([0.0, 0.7, 1.0]))
def test_what_follows_a_cut_leaves_every_earlier_return_equal_to_the_bit(
    window: dict[str, Tensor], poison: float, lambda_: float
) -> None:
    changed = {name: tensor.clone() for name, tensor in window.items()}
    before = torch.zeros_like(window["cut"])
    for env in range(before.shape[1]):
        rows = window["cut"][:, env].nonzero().flatten().tolist()
        end = rows[-1] + 1 if rows else 0
        before[:end, env] = True
        for name in ("reward", "value", "next_value"):
            changed[name][end:, env] = poison
    for of in (gae, lambda_returns, n_step_returns, reward_to_go):
        assert torch.equal(returns_of(of, window, lambda_)[before], returns_of(of, changed, lambda_)[before])


def returns_of(function: object, window: dict[str, Tensor], lambda_: float) -> Tensor:
    reward, value, next_value, discount, cut = window.values()
    if function is gae:
        return gae(reward, value, next_value, discount, cut, lambda_)
    if function is lambda_returns:
        return lambda_returns(reward, next_value, discount, cut, lambda_)
    if function is n_step_returns:
        return n_step_returns(reward, next_value, discount, cut, 3)
    return reward_to_go(reward, discount, cut)


@given(windows())
def test_gae_without_lambda_is_the_td_error(window: dict[str, Tensor]) -> None:
    error = window["reward"] + window["discount"] * window["next_value"] - window["value"]
    torch.testing.assert_close(gae(**window, lambda_=0.0), error)


@given(windows())
def test_gae_with_lambda_one_is_the_episode_return_less_the_value(window: dict[str, Tensor]) -> None:
    returns = slow_mixture(window, [0.0] * (len(window["reward"]) - 1) + [1.0])
    torch.testing.assert_close(gae(**window, lambda_=1.0), returns - window["value"])


@given(windows(), st.floats(0.0, 0.5))
def test_gae_is_the_weighted_mean_of_n_step_advantages(window: dict[str, Tensor], lambda_: float) -> None:
    # An agent that ends alone, uncut, has discount 0, and its later rows then count in neither.
    returns = slow_mixture(window, lambda_weights(lambda_))
    torch.testing.assert_close(gae(**window, lambda_=lambda_), returns - window["value"])


@given(windows(), st.floats(0.0, 0.5))
def test_lambda_returns_are_the_weighted_mean_of_n_step_returns(window: dict[str, Tensor], lambda_: float) -> None:
    returns = lambda_returns(window["reward"], window["next_value"], window["discount"], window["cut"], lambda_)
    torch.testing.assert_close(returns, slow_mixture(window, lambda_weights(lambda_)))


@given(windows(), st.floats(0.0, 1.0))
def test_lambda_returns_are_advantages_plus_values(window: dict[str, Tensor], lambda_: float) -> None:
    returns = lambda_returns(window["reward"], window["next_value"], window["discount"], window["cut"], lambda_)
    torch.testing.assert_close(returns, gae(**window, lambda_=lambda_) + window["value"])


@given(windows(), st.integers(1, 12))
def test_n_step_returns_are_sums_up_to_the_cut(window: dict[str, Tensor], n: int) -> None:
    returns = n_step_returns(window["reward"], window["next_value"], window["discount"], window["cut"], n)
    torch.testing.assert_close(returns, slow_mixture(window, [0.0] * (n - 1) + [1.0]))


def test_an_n_of_zero_is_refused() -> None:
    x, cut = column(1.0), torch.zeros(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="n is 0"):
        n_step_returns(x, x, x, cut, 0)


@given(windows())
def test_the_agent_axis_may_be_absent(window: dict[str, Tensor]) -> None:
    alone = {name: x if name == "cut" else x[..., 0] for name, x in window.items()}
    torch.testing.assert_close(gae(**alone, lambda_=0.9), gae(**window, lambda_=0.9)[..., 0])
    reward, _, next_value, discount, cut = alone.values()
    every = window["reward"], window["next_value"], window["discount"], cut
    assert torch.equal(n_step_returns(reward, next_value, discount, cut, 2), n_step_returns(*every, 2)[..., 0])


def test_the_value_after_a_true_end_means_nothing() -> None:
    reward, value = column(1.0, 1.0), column(0.0, 0.0)
    next_value, discount = column(0.0, math.nan), column(0.9, 0.0)
    cut = torch.tensor([[False], [True]])
    assert torch.isfinite(gae(reward, value, next_value, discount, cut, 0.9)).all()
    assert n_step_returns(reward, next_value, discount, cut, 2).flatten().tolist() == [1.9, 1.0]
    assert lambda_returns(reward, next_value, discount, cut, 1.0).flatten().tolist() == [1.9, 1.0]
