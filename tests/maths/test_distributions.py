"""Distributions: hand-worked numbers, frequencies of draws, densities that integrate to 1, masks without a trace."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from martes.maths.distributions import Categorical, MultiCategorical, SquashedGaussian, gumbel, straight_through


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestGumbel:
    def test_moments(self) -> None:
        noise = gumbel((100_000,), torch.Generator().manual_seed(0))
        assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
        assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)

    def test_always_finite(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for uniform in (0.0, 1 - 2**-24):  # the ends of what torch.rand can give
            with monkeypatch.context() as patch:
                patch.setattr(torch, "rand", lambda shape, u=uniform, **_: torch.full(shape, u))
                assert gumbel((3,), torch.Generator()).isfinite().all()


class TestCategorical:
    def test_by_hand(self) -> None:
        logits = numbers(0.2, 0.3, 0.5).log() + 7
        policy = Categorical(logits)
        assert policy.log_prob(torch.tensor(1)).item() == pytest.approx(math.log(0.3))
        entropy = -sum(p * math.log(p) for p in (0.2, 0.3, 0.5))
        assert policy.entropy().item() == pytest.approx(entropy)
        assert policy.mode().item() == 2
        other = Categorical(numbers(0.5, 0.25, 0.25).log())
        expected = 0.2 * math.log(0.2 / 0.5) + 0.3 * math.log(0.3 / 0.25) + 0.5 * math.log(0.5 / 0.25)
        assert policy.kl(other).item() == pytest.approx(expected)
        assert policy.kl(policy).item() == 0

    @pytest.mark.parametrize("actions", [2, 5, 15, 16, 40])
    def test_equal_to_torch(self, actions: int) -> None:
        logits = torch.randn(4, 3, actions)
        policy, reference = Categorical(logits), torch.distributions.Categorical(logits=logits)
        sample = policy.sample(gumbel((4, 3, actions), torch.Generator()))
        assert sample.dtype == torch.int64
        torch.testing.assert_close(policy.log_prob(sample), reference.log_prob(sample))
        torch.testing.assert_close(policy.entropy(), reference.entropy())

    def test_draws_have_their_probabilities(self) -> None:
        logits = torch.tensor([0.5, 0.2, 0.3, 1.0]).log()
        mask = torch.tensor([True, True, True, False])
        noise = gumbel((200_000, 4), torch.Generator().manual_seed(0))
        drawn = Categorical(logits.expand(200_000, 4), mask).sample(noise)
        frequency = torch.bincount(drawn, minlength=4) / 200_000
        torch.testing.assert_close(frequency, torch.tensor([0.5, 0.2, 0.3, 0.0]), atol=0.005, rtol=0.0)

    @given(st.integers(0, 2**31), st.sampled_from([5, 20]), st.sampled_from([1.0, 1e4, 1e30]))
    def test_illegal_actions_leave_no_trace(self, seed: int, actions: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        logits = scale * torch.randn(6, actions, generator=generator)
        mask = torch.rand(6, actions, generator=generator) < 0.5
        mask[:, 1] = True
        noise = gumbel((6, actions), generator)
        outcomes: list[tuple[Tensor, ...]] = []
        for content in (0.0, math.nan, math.inf):
            x = logits.masked_fill(~mask, content).requires_grad_()
            policy = Categorical(x, mask)
            sample = policy.sample(noise)
            assert mask.gather(-1, sample.unsqueeze(-1)).all()
            assert mask.gather(-1, policy.mode().unsqueeze(-1)).all()
            log_prob, entropy = policy.log_prob(sample), policy.entropy()
            (gradient,) = torch.autograd.grad((log_prob + entropy).sum(), x)
            assert (gradient[~mask] == 0).all()
            outcomes.append((sample, log_prob.detach(), entropy.detach(), gradient))
        for name in range(4):
            assert all(torch.equal(outcomes[0][name], other[name]) for other in outcomes[1:])
            assert outcomes[0][name].isfinite().all()

    def test_an_illegal_action_scored_is_finite(self) -> None:
        policy = Categorical(torch.zeros(1, 2), torch.tensor([[True, False]]))
        assert policy.log_prob(torch.tensor([1])).isfinite().all()
        assert policy.log_probs.exp().tolist() == [[1.0, 0.0]]
        assert policy.entropy().item() == 0
        assert Categorical(torch.zeros(1, 2)).kl(policy).isfinite().all()

    def test_without_a_legal_action_it_is_uniform_and_has_no_gradient(self) -> None:
        logits = torch.randn(2, 4, requires_grad=True)
        policy = Categorical(logits, torch.zeros(2, 4, dtype=torch.bool))
        torch.testing.assert_close(policy.entropy(), torch.full((2,), math.log(4)))
        (gradient,) = torch.autograd.grad(policy.entropy().sum() + policy.log_prob(policy.mode()).sum(), logits)
        assert (gradient == 0).all()

    def test_half_precision_logits_are_scored_in_full(self) -> None:
        logits = torch.randn(8, 5).bfloat16()
        assert torch.equal(Categorical(logits).log_probs, Categorical(logits.float()).log_probs)

    def test_gradient(self) -> None:
        logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        sample = torch.tensor([0, 2, 3])
        assert torch.autograd.gradcheck(lambda x: (Categorical(x).entropy(), Categorical(x).log_prob(sample)), logits)


class TestMultiCategorical:
    mask = torch.tensor([[[True, True, False], [True, True, True]], [[True, True, True], [False, False, False]]])
    """Agent 0 chooses among 2 and 3; agent 1 among 3, and its second sub-action does not exist."""

    def test_equal_to_its_parts(self) -> None:
        logits, other_logits = torch.randn(2, 7, 2, 2, 3)  # batch agent sub size
        policy, other = MultiCategorical(logits, self.mask), MultiCategorical(other_logits, self.mask)
        sample = policy.sample(gumbel((7, 2, 2, 3), torch.Generator()))
        assert (sample[:, 0, 0] < 2).all()
        assert (sample[:, 1, 1] == 0).all()

        def parts(x: Tensor) -> list[list[Categorical]]:
            return [[Categorical(x[:, 0, 0, :2]), Categorical(x[:, 0, 1])], [Categorical(x[:, 1, 0])]]

        for agent, (mine, theirs) in enumerate(zip(parts(logits), parts(other_logits), strict=True)):
            log_prob = torch.stack([p.log_prob(sample[:, agent, i]) for i, p in enumerate(mine)]).sum(0)
            torch.testing.assert_close(policy.log_prob(sample)[:, agent], log_prob)
            torch.testing.assert_close(policy.entropy()[:, agent], torch.stack([p.entropy() for p in mine]).sum(0))
            kl = torch.stack([p.kl(q) for p, q in zip(mine, theirs, strict=True)]).sum(0)
            torch.testing.assert_close(policy.kl(other)[:, agent], kl)
            for i, p in enumerate(mine):
                assert torch.equal(policy.mode()[:, agent, i], p.mode())

    def test_padding_leaves_no_trace(self) -> None:
        logits = torch.randn(7, 2, 2, 3)
        sample = MultiCategorical(logits, self.mask).mode()
        outcomes: list[tuple[Tensor, Tensor]] = []
        for content in (0.0, math.nan):
            x = logits.masked_fill(~self.mask, content).requires_grad_()
            policy = MultiCategorical(x, self.mask)
            total = policy.log_prob(sample).sum() + policy.entropy().sum()
            outcomes.append((total.detach(), torch.autograd.grad(total, x)[0]))
        assert torch.equal(outcomes[0][0], outcomes[1][0])
        assert torch.equal(outcomes[0][1], outcomes[1][1])
        assert (outcomes[0][1][~self.mask.expand(7, -1, -1, -1)] == 0).all()

    def test_without_a_mask(self) -> None:
        logits = torch.randn(7, 2, 3)
        expected = Categorical(logits).entropy().sum(-1)
        assert torch.equal(MultiCategorical(logits).entropy(), expected)


class TestSquashedGaussian:
    def test_by_hand(self) -> None:
        policy = SquashedGaussian(numbers(0.5), numbers(math.log(2.0)), numbers(-1.0), numbers(3.0))
        assert policy.sample(numbers(1.5)).item() == pytest.approx(3.5)
        u = 0.8
        assert policy.action(numbers(u)).item() == pytest.approx(-1 + 4 * (math.tanh(u) + 1) / 2)
        normal = -0.5 * (0.3 / 2) ** 2 - math.log(2) - 0.5 * math.log(2 * math.pi)
        slope = 2 * (1 - math.tanh(u) ** 2)
        assert policy.log_prob(numbers(u)).item() == pytest.approx(normal - math.log(slope))
        assert policy.mode().item() == 0.5

    @pytest.mark.parametrize(("mean", "std"), [(0.0, 0.05), (0.3, 0.5), (-1.0, 1.0), (0.5, 2.0)])
    def test_the_density_integrates_to_one_over_the_box(self, mean: float, std: float) -> None:
        # Midpoints u of an even grid of actions in the box: no substitution is used that log_prob itself uses.
        count, low, high = 2_000_000, -1.0, 3.0
        action = low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
        u = torch.atanh(2 * (action - low) / (high - low) - 1).unsqueeze(-1)
        whole = torch.ones_like(u)
        policy = SquashedGaussian(mean * whole, numbers(math.log(std)), numbers(low), numbers(high))
        torch.testing.assert_close(policy.action(u).squeeze(-1), action)
        mass = policy.log_prob(u).exp().sum().item() * (high - low) / count
        assert mass == pytest.approx(1.0, abs=1e-3)

    def test_equal_to_torch(self) -> None:
        mean, log_std, noise = torch.randn(3, 6, 2, dtype=torch.float64)
        low, high = numbers(-1.0, 0.0), numbers(1.0, 5.0)
        policy = SquashedGaussian(mean, log_std, low, high)
        half = (high - low) / 2
        steps = [torch.distributions.TanhTransform(), torch.distributions.AffineTransform(low + half, half)]
        reference = torch.distributions.TransformedDistribution(torch.distributions.Normal(mean, log_std.exp()), steps)
        u = policy.sample(noise)
        torch.testing.assert_close(policy.log_prob(u), reference.log_prob(policy.action(u)).sum(-1))

    @pytest.mark.parametrize("std", [0.05, 0.5, 1.0, 2.0])
    def test_entropy_is_the_mean_of_minus_log_density(self, std: float) -> None:
        means = torch.linspace(-6, 6, 25, dtype=torch.float64).unsqueeze(-1)  # [25 dim=1]
        policy = SquashedGaussian(means, numbers(math.log(std)), numbers(-1.0), numbers(3.0))
        noise = torch.randn(20_000, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        noise = torch.cat((noise, -noise))  # antithetic
        u = means + std * noise  # [draw 25 dim]
        wide = SquashedGaussian(means.expand_as(u), numbers(math.log(std)), numbers(-1.0), numbers(3.0))
        sampled = -wide.log_prob(u).mean(0)
        torch.testing.assert_close(policy.entropy(), sampled, atol=0.02, rtol=0.0)

    @pytest.mark.parametrize(("std", "tolerance"), [(0.05, 1e-6), (0.5, 1e-5), (1.0, 1.1e-5), (2.0, 2.4e-4)])
    def test_entropy_has_the_documented_error(self, std: float, tolerance: float) -> None:
        mean = torch.linspace(-6, 6, 121, dtype=torch.float64).unsqueeze(-1)
        policy = SquashedGaussian(mean, numbers(math.log(std)), numbers(-1.0), numbers(1.0))
        z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
        density = (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi) * (z[1] - z[0])
        log_slope = -2 * (mean + std * z).cosh().log()
        exact = math.log(std) + 0.5 * math.log(2 * math.pi * math.e) + (density * log_slope).sum(-1)
        assert (policy.entropy() - exact).abs().max().item() < tolerance

    def test_kl_is_the_mean_log_ratio(self) -> None:
        low, high = numbers(-1.0, 0.0), numbers(1.0, 5.0)
        policy = SquashedGaussian(numbers(0.1, 0.4), numbers(-0.5, 0.2), low, high)
        other = SquashedGaussian(numbers(-0.3, 0.5), numbers(0.1, -0.1), low, high)
        reference = torch.distributions.kl_divergence(
            torch.distributions.Normal(policy.mean, policy.log_std.exp()),
            torch.distributions.Normal(other.mean, other.log_std.exp()),
        )
        torch.testing.assert_close(policy.kl(other), reference.sum(-1))
        assert policy.kl(policy).item() == 0

    @given(st.floats(-1e3, 1e3))
    def test_far_out_nothing_overflows_and_the_box_is_kept(self, u: float) -> None:
        low, high = torch.tensor([-0.1]), torch.tensor([0.3])
        mean = torch.zeros(1, requires_grad=True)
        policy = SquashedGaussian(mean, torch.zeros(1), low, high)
        sample = torch.tensor([u])
        action = policy.action(sample)
        assert low <= action <= high
        if abs(u) > 20:
            assert action.item() == (high if u > 0 else low).item()
        log_prob = policy.log_prob(sample)
        # -u^2 / 2 and -2 |u| from the slope, to the precision of a float
        expected = -0.5 * u * u - 0.5 * math.log(2 * math.pi) - math.log(0.2)
        expected += 2 * (abs(u) + math.log1p(math.exp(-2 * abs(u))) - math.log(2))
        assert log_prob.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
        log_prob.backward()
        assert mean.grad is not None
        assert mean.grad.isfinite().all()

    def test_the_ends_of_every_box_are_met_exactly(self) -> None:
        low, high = -torch.randn(1000).exp(), torch.randn(1000).exp()
        policy = SquashedGaussian(torch.zeros(1000), torch.zeros(1000), low, high)
        assert torch.equal(policy.action(torch.full((1000,), 30.0)), high)
        assert torch.equal(policy.action(torch.full((1000,), -30.0)), low)

    def test_padded_dimensions_count_nowhere(self) -> None:
        mean = torch.randn(5, 3, requires_grad=True)
        low, high = torch.tensor([-1.0, -1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])  # the padded box is empty
        policy = SquashedGaussian(mean, torch.zeros(3), low, high, torch.tensor([True, True, False]))
        narrow = SquashedGaussian(mean[:, :2], torch.zeros(2), low[:2], high[:2])
        u = torch.randn(5, 3)
        torch.testing.assert_close(policy.log_prob(u), narrow.log_prob(u[:, :2]))
        torch.testing.assert_close(policy.entropy(), narrow.entropy())
        assert (policy.action(u)[:, 2] == 0).all()
        (gradient,) = torch.autograd.grad((policy.log_prob(u) + policy.entropy()).sum(), mean)
        assert gradient.isfinite().all()
        assert (gradient[:, 2] == 0).all()

    def test_gradient(self) -> None:
        mean, log_std, u = torch.randn(3, 2, 3, dtype=torch.float64).unbind()
        low, high = numbers(-1.0, -2.0, 0.0), numbers(1.0, 2.0, 0.5)

        def scores(mean: Tensor, log_std: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            policy = SquashedGaussian(mean, log_std, low, high)
            return policy.log_prob(u), policy.entropy()

        inputs = tuple(x.clone().requires_grad_() for x in (mean, log_std, u))
        assert torch.autograd.gradcheck(scores, inputs)


def test_actions_of_discrete_policies_are_the_samples() -> None:
    single, several = torch.tensor([1, 0]), torch.tensor([[1, 0]])
    assert torch.equal(Categorical(torch.zeros(2, 3)).action(single), single)
    assert torch.equal(MultiCategorical(torch.zeros(1, 2, 3)).action(several), several)


@given(st.floats(0, 1), st.integers(0, 2**31))
def test_a_floored_choice_is_the_mixture_over_legal_actions(epsilon: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(5, 6, generator=generator, dtype=torch.float64)).requires_grad_()
    mask = torch.rand(5, 6, generator=generator) < 0.6
    mask[:, 0] = True
    floored = Categorical(logits, mask).floored(torch.tensor(epsilon, dtype=torch.float64))
    p = logits.masked_fill(~mask, -torch.inf).softmax(-1)
    mixture = (1 - epsilon) * p + epsilon * mask / mask.sum(-1, keepdim=True)
    torch.testing.assert_close(floored.log_probs.exp(), mixture)
    chosen = torch.zeros(5, dtype=torch.int64)
    (ours,) = torch.autograd.grad(floored.log_prob(chosen).sum(), logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(mixture[:, 0].log().sum(), logits)
    torch.testing.assert_close(ours, theirs)


def test_a_floor_keeps_a_choice_without_doubts_finite() -> None:
    logits = torch.tensor([[1e8, 0.0, -1e8], [0.0, 1e8, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True], [False, True, False]])
    for epsilon in (0.0, 0.2, 1.0):
        floored = Categorical(logits, mask).floored(torch.tensor(epsilon))
        legal = floored.log_prob(torch.tensor([2, 1])) if epsilon else floored.log_prob(torch.tensor([0, 1]))
        (gradient,) = torch.autograd.grad((legal + floored.entropy()).sum(), logits)
        assert legal.isfinite().all() and gradient.isfinite().all()
    assert torch.allclose(
        Categorical(logits, mask).floored(torch.tensor(0.3)).log_probs[0].exp()[1:], torch.tensor(0.1)
    )


# ------------------------------------------------------------------------------------------------- straight through
def test_straight_through_is_one_hot_with_the_gradient_of_the_softmax() -> None:
    logits = torch.tensor([1.0, 2.0, 0.5], requires_grad=True)
    weight = torch.tensor([3.0, -1.0, 2.0])
    chosen = straight_through(logits)
    assert torch.equal(chosen.detach(), torch.tensor([0.0, 1.0, 0.0]))
    (chosen * weight).sum().backward()
    p = [math.exp(x) / sum(map(math.exp, (1.0, 2.0, 0.5))) for x in (1.0, 2.0, 0.5)]
    mean = sum(a * b for a, b in zip(p, weight.tolist(), strict=True))
    expected = [a * (b - mean) for a, b in zip(p, weight.tolist(), strict=True)]  # dp_j/dx_i = p_i (d_ij - p_j)
    assert logits.grad is not None and logits.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_straight_through_draws_from_the_softmax_among_the_legal() -> None:
    logits, mask = torch.tensor([0.0, 1.0, 2.0, 9.0]).expand(40_000, 4), torch.tensor([True, True, True, False])
    noise = gumbel((40_000, 4), torch.Generator().manual_seed(0))
    shares = straight_through(logits, noise, mask).mean(0)
    assert torch.allclose(shares, torch.tensor([0.0, 1.0, 2.0, -torch.inf]).softmax(0), atol=0.01)
    assert torch.equal(straight_through(logits, noise, mask, 0.1).mean(0).argmax(), torch.tensor(2))
    free = torch.zeros(4, requires_grad=True)
    (straight_through(free, None, mask) * torch.arange(4.0)).sum().backward()
    assert free.grad is not None and free.grad[3] == 0 and free.grad[:3].abs().sum() > 0


def test_the_sample_of_an_action_is_the_one_that_gives_it() -> None:
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([2.0, 10.0])
    squashed = SquashedGaussian(torch.zeros(50, 2), torch.zeros(2), low, high)
    sample = 2 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    sample = sample.clamp(-3.5, 3.5)
    assert torch.allclose(squashed.sample_of(squashed.action(sample)), sample, atol=1e-3)
    walls = squashed.sample_of(torch.stack((low, high)))  # an action at the wall: far out, and finite
    assert torch.allclose(walls, torch.tensor([[-3.8], [3.8]]).expand(2, 2), atol=0.01)
