"""Soft actor-critic: targets and losses by hand, one agent and several, real numbers and choices; and temperatures."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from martes.algorithms.soft_actor_critic import SAC, SACLearner
from martes.data import Workspace
from martes.envs.batched.engine import BatchedEnv
from martes.errors import ConfigError
from martes.networks import Network
from martes.training.collect import Collector
from tests.worlds import WORLDS, World

SMALL = SAC(network=Network(hidden=(8,)), warmup=0, batch=6, ratio=0.1, rollout=8, gamma=0.9, temperature=0.5)


def collecting(world: World, config: SAC = SMALL) -> tuple[SACLearner, Collector]:
    env = BatchedEnv(world, 5)
    learner = config.learner(env.team, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for module in (learner.policy, learner.critics, learner.target_critics):
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    collector = Collector(env, learner, torch.Generator().manual_seed(1))
    collector.start(2)
    return learner, collector


def begun(world: World, config: SAC = SMALL) -> tuple[SACLearner, Workspace]:
    learner, collector = collecting(world, config)
    for _ in range(3):
        learner.experience.add(collector.collect(), collector.final)
    return learner, next(iter(learner.experience.due(40)))


def value_of(learner: SACLearner, batch: Workspace, t: int, codes: Tensor) -> Tensor:
    """min_k Q'_k of the joint action whose codes these are, by the plain pass."""
    inputs = {name: batch[name][t : t + 1] for name in (*learner.critics.reads, "agent_mask")}
    return learner.target_critics(inputs, codes.unsqueeze(0)).amin(0)[0]


@pytest.mark.parametrize("world", ["continuous", "one-agent", "forced-continuous"])
def test_the_target_of_real_numbers_is_that_of_the_drawn_action_less_its_log_density(world: str) -> None:
    learner, batch = begun(WORLDS[world])
    drawn = learner.drawn(batch)
    soft = value_of(learner, batch, 1, drawn.codes[1]) - 0.5 * drawn.log_prob[1] * batch["agent_mask"][1]
    by_hand = batch["reward"][0] + 0.9 * batch["discount"][0] * soft
    assert torch.allclose(learner.targets(batch, drawn)[0], by_hand, atol=1e-5)


@pytest.mark.parametrize("world", ["masked", "unequal", "dying", "forced"])
def test_the_target_of_choices_is_the_mean_over_all_of_the_agents_own(world: str) -> None:
    learner, batch = begun(WORLDS[world])
    drawn = learner.drawn(batch)
    assert drawn.probs is not None
    pi, agents = drawn.probs[1], drawn.codes.shape[2]
    alive = batch["agent_mask"][1]
    soft = torch.zeros(batch.envs, agents)
    for agent in range(agents):
        for choice in range(pi.shape[-1]):
            codes = drawn.codes[1].clone()
            codes[:, agent] = torch.eye(pi.shape[-1])[choice]
            q = value_of(learner, batch, 1, codes)[:, agent]
            cost = 0.5 * pi[:, agent, choice].log() * alive[:, agent]
            soft[:, agent] += torch.where(pi[:, agent, choice] > 0, pi[:, agent, choice] * (q - cost), 0)
    by_hand = batch["reward"][0] + 0.9 * batch["discount"][0] * soft
    assert torch.allclose(learner.targets(batch, drawn)[0], by_hand, atol=1e-4)


@pytest.mark.parametrize("world", ["forced", "forced-continuous"])
def test_where_the_next_action_is_forced_the_target_is_its_value_alone(world: str) -> None:
    learner, batch = begun(WORLDS[world], replace(SMALL, batch=20))
    drawn, forced = learner.drawn(batch), batch["forced"][1]
    codes = torch.where(forced.unsqueeze(-1), learner.codes.of_actions(batch["forced_action"])[1], drawn.codes[1])
    by_hand = batch["reward"][0] + 0.9 * batch["discount"][0] * value_of(learner, batch, 1, codes)
    assert bool(forced.any())
    assert torch.allclose(learner.targets(batch, drawn)[0][forced], by_hand[forced], atol=1e-5)


@pytest.mark.parametrize("world", ["masked", "unequal"])
def test_a_high_temperature_is_no_harm_where_choices_are_illegal(world: str) -> None:
    learner, batch = begun(WORLDS[world], replace(SMALL, temperature=1e4))
    drawn = learner.drawn(batch)
    assert drawn.probs is not None and bool((drawn.probs == 0).any())
    learner.policy_loss(batch, drawn)[0].backward()
    assert all(bool(each.grad.isfinite().all()) for each in learner.policy.parameters())  # pyright: ignore
    assert bool(learner.targets(batch, drawn).isfinite().all())


def test_a_time_limit_is_no_end() -> None:
    """Where an episode is cut by time, what really followed is valued; where it ended, nothing is."""
    learner, collector = collecting(World("continuous", ends=0.0, limit=3, agents=1), replace(SMALL, batch=64))
    for _ in range(3):
        learner.experience.add(collector.collect(), collector.final)
    batch = next(iter(learner.experience.due(10)))
    cut = batch["cut"][0]
    assert bool(cut.any())
    drawn = learner.drawn(batch)
    gap = learner.targets(batch, drawn)[0] - batch["reward"][0]
    assert bool((gap[cut] != 0).all())


def test_the_policys_step_moves_no_critic() -> None:
    learner, batch = begun(WORLDS["continuous"], replace(SMALL, sharing="agent"))
    before = [each.clone() for each in learner.critics.parameters()]
    learner.descent(batch, learner.drawn(batch))
    assert all(each.grad is None for each in learner.critics.parameters())
    assert all(map(torch.equal, learner.critics.parameters(), before))
    assert all(each.grad is not None and bool(each.grad.any()) for each in learner.policy.head.parameters())


@pytest.mark.parametrize("world", ["masked", "continuous"])
def test_the_policys_loss_is_the_papers(world: str) -> None:
    learner, batch = begun(WORLDS[world])
    drawn = learner.drawn(batch)
    inputs = {name: batch[name][:1] for name in (*learner.critics.reads, "agent_mask")}
    taken = learner.codes.of_actions(batch["action"])
    total, count = torch.zeros(()), 0
    for agent in range(drawn.codes.shape[2]):
        is_own = batch.decided[0, :, agent]
        if drawn.probs is None:
            codes = taken.clone()
            codes[:, :, agent] = drawn.codes[:1, :, agent]
            terms = 0.5 * drawn.log_prob[0, :, agent] - learner.critics(inputs, codes).amin(0)[0, :, agent]
        else:
            terms = torch.zeros(batch.envs)
            for choice, prob in enumerate(drawn.probs[0, :, agent].unbind(-1)):
                codes = taken.clone()
                codes[:, :, agent] = torch.eye(drawn.probs.shape[-1])[choice]
                q = learner.critics(inputs, codes).amin(0)[0, :, agent]
                terms = terms + torch.where(prob > 0, prob * (0.5 * prob.clamp(min=1e-30).log() - q), 0)
        total, count = total + terms[is_own].sum(), count + int(is_own.sum())
    assert torch.allclose(learner.policy_loss(batch, drawn)[0], total / count, atol=1e-4)


@pytest.mark.parametrize("world", ["masked", "continuous", "one-agent"])
@pytest.mark.parametrize("asked", [0.0, 1.0])
def test_the_temperature_rises_where_entropy_lacks_and_falls_where_it_abounds(world: str, asked: float) -> None:
    dimension = 5.0 if asked else -9.0
    config = replace(SMALL, choice_entropy=asked, dimension_entropy=dimension, temperature_lr=0.1)
    learner, batch = begun(WORLDS[world], config)
    before = learner.temperature
    learner.update(batch)
    assert bool((learner.temperature > before).all() if asked else (learner.temperature < before).all())


def test_what_entropy_is_asked_depends_on_the_box_and_on_what_is_legal() -> None:
    learner, batch = begun(WORLDS["one-agent"])  # three numbers, each in [-1, 2]: half widths of 1.5
    assert torch.allclose(learner.asked_entropy(batch), torch.tensor(3 * (-1 + math.log(1.5))))
    learner, batch = begun(WORLDS["masked"])
    legal = (batch["action_mask"][:1] & learner.codes.legal).sum(-1)
    assert torch.allclose(learner.asked_entropy(batch), 0.3 * legal.log())


def test_a_fixed_temperature_stays() -> None:
    learner, batch = begun(WORLDS["masked"], replace(SMALL, tuned=False))
    learner.update(batch)
    assert torch.allclose(learner.temperature, torch.tensor(0.5))


def test_what_is_fixed_goes_by_the_config_and_not_by_the_state() -> None:
    for tuned in (False, True):
        learner, _ = collecting(WORLDS["masked"], replace(SMALL, tuned=tuned))
        twin, _ = collecting(WORLDS["masked"], replace(SMALL, tuned=tuned, temperature=2.0))
        twin.load_state_dict(learner.state_dict())
        assert torch.allclose(twin.temperature, torch.tensor(0.5 if tuned else 2.0))


def test_several_choices_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="not several at once: take mappo"):
        collecting(WORLDS["multi-discrete"])


def test_a_state_goes_on_as_if_never_stopped() -> None:
    learner, collector = collecting(WORLDS["dying"])
    twin, _ = collecting(WORLDS["dying"])
    learner.experience.add(collector.collect(), collector.final)
    for batch in learner.experience.due(40):
        learner.update(batch)
    twin.load_state_dict(learner.state_dict())
    twin.experience.load_state_dict(learner.experience.state_dict())
    window = collector.collect()
    for each in (learner, twin):
        each.experience.add(window, collector.final)
        for batch in each.experience.due(80):
            each.update(batch)
    for mine, its in zip(learner.policy.parameters(), twin.policy.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert torch.equal(learner.temperature, twin.temperature) and learner.updates == twin.updates
