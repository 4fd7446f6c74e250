"""COMA: the counterfactual baseline, TD(lambda) targets with their cuts, one step an update, and every switch."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from martes.algorithms.coma import COMA, COMALearner, counterfactual_advantage
from martes.data import Workspace
from martes.envs.batched.engine import BatchedEnv
from martes.errors import ConfigError, NonFiniteError
from martes.training.evaluate import evaluate
from tests.algorithms.coma_runs import (
    DISCRETE,
    FLOORED,
    GRU,
    NETWORKS,
    SMALL,
    collected,
    collecting,
    scored,
    set_values,
    values,
)
from tests.worlds import WORLDS, World, crossed


# ---------------------------------------------------------------------------------------------------- the equations
@given(st.integers(1, 6), st.integers(0, 2**31), st.floats(-100, 100), st.floats(0.01, 30))
def test_the_policy_gains_nothing_on_its_own_average(actions: int, seed: int, mean: float, scale: float) -> None:
    """sum_u pi(u) A(s, u) = 0: the baseline does not move the gradient (Foerster et al. 2018, lemma 1)."""
    generator = torch.Generator().manual_seed(seed)
    q = mean + scale * torch.randn(4, 3, actions, generator=generator, dtype=torch.float64)
    pi = (scale * torch.randn(4, 3, actions, generator=generator, dtype=torch.float64)).softmax(-1)
    every = [counterfactual_advantage(q, pi, torch.full((4, 3), action)) for action in range(actions)]
    gained = (pi * torch.stack(every, -1)).sum(-1)
    assert torch.allclose(gained, torch.zeros_like(gained), atol=1e-10 * (abs(mean) + scale))


def test_advantage_by_hand() -> None:
    q, pi = torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([[0.5, 0.25, 0.25]])
    assert counterfactual_advantage(q, pi, torch.tensor([2])).item() == 6 - 2.5
    assert counterfactual_advantage(q, pi, torch.tensor([0])).item() == 1 - 2.5


def test_targets_by_hand() -> None:
    """gamma 0.5, lambda 0.5, Q' = 8 everywhere; a true end after row 1, a time limit after row 3, then two rows."""
    learner, window = collected(World(ends=0.0, limit=100), envs=1, rollout=6, gamma=0.5, td_lambda=0.5)
    set_values(learner, 8.0)
    window["reward"] = torch.tensor([1.0, 2, 3, 4, 5, 6])[:, None, None].expand(6, 1, 3)
    window["next_value"] = torch.full((6, 1, 3), 100.0)  # what the collector wrote: it counts at cuts and at the end
    window["cut"][[1, 3]] = True
    window["discount"][1] = 0
    learner._score(window)
    # G_5 = 6 + .5 100;  G_4 = 5 + .5 (.5 8 + .5 G_5);  G_3 = 4 + .5 100;  G_2 = 3 + .5 (.5 8 + .5 G_3);  G_1 = 2;
    # G_0 = 1 + .5 (.5 8 + .5 2)
    expected = torch.tensor([3.5, 2.0, 18.5, 54.0, 21.0, 56.0])
    assert torch.allclose(window["target"][:, 0], expected[:, None].expand(6, 3))


@pytest.mark.parametrize("lambda_", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("world", ["masked", "dying"])
def test_targets_are_mixtures_of_n_step_returns(world: str, lambda_: float) -> None:
    """The forward view, in float64, wherever episodes end: one step at lambda 0, all rewards at lambda 1."""
    learner, window = scored(
        replace(WORLDS[world], ends=0.15), 2, rollout=30, reward="own", td_lambda=lambda_, gamma=0.9
    )
    assert window["cut"].sum() > 10
    value = values(learner, window)
    reward, after, discount = (window[name].double() for name in ("reward", "next_value", "discount"))
    for t, env, agent in product(range(30), range(6), range(3)):
        total, weight, gain, factor = 0.0, 1.0, 0.0, 1.0
        for k in range(t, 30):
            gain += factor * reward[k, env, agent].item()
            factor *= 0.9 * discount[k, env, agent].item()
            is_last = k == 29 or window["cut"][k, env]
            future = after[k, env, agent] if is_last else value[k + 1, env, agent]
            share = 1.0 if is_last else 1 - lambda_
            total += weight * share * (gain + factor * float(future))
            weight *= lambda_
            if is_last:
                break
        assert abs(total - window["target"][t, env, agent].item()) < 1e-4


def means_by_hand(learner: COMALearner, window: Workspace) -> tuple[float, ...]:
    """Policy loss without bonus, critic loss, mean |error| and mean Q, from sums over single agents and steps."""
    with torch.no_grad():
        log_pi = learner._distribution(window).log_probs.double()
        every = learner.critic(learner._inputs(window)).double()
    policy, valued, advantages = [], [], []
    for at in product(*(range(size) for size in window["action"].shape)):
        u, q = int(window["action"][at]), every[at]
        if window["agent_mask"][at[:2]].any():
            valued.append((q[u].item(), window["target"][at].item()))
        if window.decided[at]:
            baseline = sum(log_pi[at][other].exp() * q[other] for other in range(len(q)))
            worth = window["target"][at] if learner.config.advantage == "return" else q[u]
            advantages.append(float(worth - baseline))
            policy.append(float((baseline - worth) * log_pi[at][u]))
    sums = (
        sum(policy),
        sum((y - q) ** 2 for q, y in valued),
        sum(abs(y - q) for q, y in valued),
        sum(q for q, _ in valued),
    )
    scale = (sum(each**2 for each in advantages) / len(advantages)) ** 0.5 if learner.config.scale_advantage else 1
    return sums[0] / len(policy) / scale, *(each / len(valued) for each in sums[1:])


@pytest.mark.parametrize(("world", "advantage", "scaled"), crossed(DISCRETE, ["critic", "return"], ["", "scaled"]))
def test_losses_are_the_papers_by_hand(world: str, advantage: str, scaled: str) -> None:
    told = {"advantage": advantage, "scale_advantage": bool(scaled), **FLOORED}
    learner, window = scored(WORLDS[world], 3, entropy=0.1, normalise_value=False, target_every=1, **told)
    policy, critic, error, q = means_by_hand(learner, window)
    loss, metrics = learner.loss(window)
    assert metrics["coma_loss"] == loss.detach()
    assert loss.item() == pytest.approx(policy - 0.1 * metrics["entropy"].item(), abs=1e-5)
    critic_loss, metrics = learner.critic_loss(window)
    assert critic_loss.item() == pytest.approx(critic, rel=1e-4)
    assert metrics["td_error_abs"].item() == pytest.approx(error, rel=1e-4)
    assert metrics["q_taken_mean"].item() == pytest.approx(q, abs=1e-5)
    assert metrics["target_mean"].item() == pytest.approx(window["target"][learner._valued(window)].mean().item())


def test_the_scale_of_the_rewards_is_no_matter() -> None:
    """In deviations of the return the losses of rewards that are 1000 times as large are the same."""
    losses: dict[float, tuple[Tensor, Tensor]] = {}
    for scale in (1.0, 1000.0):
        learner, window = collected(World(), entropy=0.0, gamma=0.0)
        window["reward"] *= scale
        learner._score(window)
        with torch.no_grad():  # a critic that knows as much in either case
            learner.critic.head.linear.weight.fill_(0.1)
            learner.critic.head.linear.bias.zero_()
        losses[scale] = learner.loss(window)[0].detach(), learner.critic_loss(window)[0].detach()
    assert torch.allclose(losses[1.0][0], losses[1000.0][0], rtol=1e-2)
    assert torch.allclose(losses[1.0][1], losses[1000.0][1], rtol=1e-2)


# ---------------------------------------------------------------------------------------------------------- the policy
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("world", "sharing", "network"), crossed(DISCRETE, ["shared", "group", "agent"], [*NETWORKS]))
def test_what_is_learned_from_is_the_policy_that_acted(world: str, sharing: str, network: str) -> None:
    """On-policy to rounding, floor, memory and masks included; so nothing needs a ratio."""
    learner, window = collected(WORLDS[world], 3, sharing=sharing, network=NETWORKS[network], **FLOORED)
    mask = window.decided
    assert mask.any()
    now = learner._distribution(window).log_prob(window["action"])
    assert torch.allclose(now[mask], window["log_prob"][mask], atol=1e-5)


def test_each_window_is_learned_from_once() -> None:
    learner, window = collected(World())
    learner.experience.add(window)
    assert len(list(learner.experience.due(48))) == 1
    assert not list(learner.experience.due(96))


def test_the_floor_moves_with_environment_steps_and_is_saved() -> None:
    learner, window, collector = collecting(World(), COMA(reward="mean", network=SMALL, rollout=8, **FLOORED))
    seen = [learner.update(window)["epsilon"].item()]
    for _ in range(5):
        window = collector.collect()
        seen.append(learner.update(window)["epsilon"].item())
    assert seen == pytest.approx([0.5, 0.5 - 0.4 * 48 / 200, 0.5 - 0.4 * 96 / 200, 0.5 - 0.4 * 144 / 200, 0.116, 0.1])
    twin = learner.config.learner(World().team, torch.Generator())
    twin.load_state_dict(learner.state_dict())
    assert twin.actor.floor == learner.actor.floor == pytest.approx(0.1)
    assert "epsilon" not in collected(World())[0].update(collected(World())[1])


def test_a_policy_without_doubts_has_finite_losses() -> None:
    learner, window = collected(WORLDS["masked"])
    learner.actor.head.weight.data.mul_(1e6)
    learner._score(window)
    loss, _ = learner.loss(window)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in learner.actor.parameters() if p.grad is not None)
    learner.update(window)
    assert all(p.isfinite().all() for p in learner.policy.parameters())


def test_acting_needs_the_policy_alone() -> None:
    learner, _ = collected(WORLDS["masked"])
    assert learner.policy.part_for("action") is learner.actor
    assert "state" not in learner.policy.part_for("action").reads
    assert len(evaluate(learner.policy, BatchedEnv(WORLDS["masked"], 3), 5, seed=0).returns) == 5


# ------------------------------------------------------------------------------------------------------------- updates
@pytest.mark.parametrize("envs", [2, 8])
def test_periods_are_updates_whatever_the_number_of_environments(envs: int) -> None:
    config = COMA(reward="mean", network=SMALL, rollout=8, target_every=3)
    learner, window, collector = collecting(World(), config, envs=envs)
    first = [p.clone() for p in learner.policy.target.parameters()]
    for nth in range(1, 7):
        learner.update(window)
        pairs = list(zip(learner.policy.target.parameters(), learner.critic.parameters(), strict=True))
        assert all(torch.equal(one, other) for one, other in pairs) == (nth % 3 == 0)
        assert all(torch.equal(one, old) for (one, _), old in zip(pairs, first, strict=True)) == (nth < 3)
        assert all(one.grad is None and not one.requires_grad for one, _ in pairs)
        assert steps_of(learner) == (nth, nth)
        window = collector.collect()


def steps_of(learner: COMALearner) -> tuple[int, int]:
    """Steps that the optimisers of the policy and of the critic made."""
    both = (learner.optimiser, learner.critic_optimiser)
    return tuple(int(next(iter(each.state.values()))["step"]) for each in both)  # pyright: ignore


@pytest.mark.parametrize(("by", "epochs", "steps"), [("rollout", 3, 3), ("step", 1, 8), ("step", 2, 16)])
def test_the_critic_takes_as_many_steps_as_asked_for(by: str, epochs: int, steps: int) -> None:
    learner, window = collected(World(), critic_by=by, critic_epochs=epochs)
    learner.update(window)
    assert steps_of(learner) == (1, steps)


def test_time_steps_are_taken_from_the_last_to_the_first() -> None:
    learner, window = scored(World(), critic_by="step")
    parts = [part["target"] for part in learner._parts(window)]
    assert torch.equal(torch.cat(parts[::-1]), window["target"])
    whole, error = learner.critic_loss(window)[0], [learner.critic_loss(part)[0] for part in learner._parts(window)]
    assert torch.allclose(torch.stack(error).mean(), whole, rtol=1e-4)


def test_copies_of_a_record_change_no_mean() -> None:
    learner, window = scored(WORLDS["dying"], 2)
    doubled = window.rows(torch.arange(6).repeat(2))
    for name in ("loss", "critic_loss"):
        one, other = getattr(learner, name)(window), getattr(learner, name)(doubled)
        assert torch.allclose(one[0], other[0], rtol=1e-5)
        assert all(torch.allclose(one[1][each], other[1][each], rtol=1e-4, atol=1e-6) for each in one[1])


def test_state_dict_continues_bit_for_bit() -> None:
    config = COMA(reward="mean", network=GRU, rollout=8, target_every=2, **FLOORED)
    learner, window, collector = collecting(World(), config, windows=2)
    assert not torch.equal(learner.critic.head.linear.weight, learner.policy.target.head.linear.weight)
    twin = config.learner(World().team, torch.Generator().manual_seed(99))
    twin.load_state_dict(learner.state_dict())
    for _ in range(3):
        one, other = learner.update(window), twin.update(window)
        assert all(torch.equal(one[name], other[name]) for name in one)
        for (name, a), b in zip(learner.policy.state_dict().items(), twin.policy.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
        window = collector.collect()
    assert twin.env_steps == learner.env_steps == 192 and twin.updates == learner.updates == 4


def test_learning_draws_from_no_global_generator(global_randomness_unused: None) -> None:
    learner, window = collected(WORLDS["dying"], **FLOORED)
    learner.update(window)


@pytest.mark.parametrize("name", ["reward", "next_value"])
def test_what_is_not_finite_stops_before_anything_is_learned(name: str) -> None:
    learner, window = collected(World())
    before = [p.clone() for p in learner.policy.parameters()]
    window[name][-1, 0] = torch.nan
    with pytest.raises(NonFiniteError) as caught:
        learner.update(window)
    assert caught.value.batch is window
    assert all(torch.equal(p, q) for p, q in zip(before, learner.policy.parameters(), strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rollout": 0},
        {"critic_epochs": 0},
        {"target_every": 0},
        {"gamma": 1.1},
        {"td_lambda": -0.1},
        {"epsilon_start": 2.0},
        {"epsilon_steps": 0},
        {"lr": 0.0},
        {"critic_lr": -1.0},
        {"max_grad_norm": 0.0},
        {"critic_network": GRU},
    ],
)
def test_impossible_values_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"algorithm\.{next(iter(wrong))}"):
        COMA(**wrong)


@pytest.mark.parametrize("world", ["continuous", "multi-discrete"])
def test_other_actions_are_refused(world: str) -> None:
    with pytest.raises(ConfigError, match=r"needs Discrete actions, and this team's are .* or take mappo"):
        COMA().learner(WORLDS[world].team, torch.Generator())
