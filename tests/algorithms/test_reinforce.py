"""REINFORCE: returns and losses by hand, whole episodes each learned from once, and a game that it learns."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from martes.algorithms.off_policy import Store
from martes.algorithms.reinforce import Reinforce, ReinforceLearner
from martes.data import Workspace
from martes.envs.batched.engine import BatchedEnv
from martes.errors import ConfigError
from martes.maths.returns import reward_to_go
from martes.networks import Network
from martes.training.collect import Collector
from tests.worlds import WORLDS, World

SMALL = Reinforce(network=Network(hidden=(8,)), episodes=5, rollout=8, gamma=0.9)
GRU = replace(SMALL, network=Network(hidden=(8,), memory="gru", memory_size=6))


def collecting(world: World, config: Reinforce = SMALL, envs: int = 3) -> tuple[ReinforceLearner, Collector]:
    env = BatchedEnv(world, envs)
    learner = config.learner(env.team, torch.Generator().manual_seed(0))
    collector = Collector(env, learner, torch.Generator().manual_seed(1))
    collector.start(2)
    return learner, collector


def batch_of(learner: ReinforceLearner, collector: Collector) -> Workspace:
    while True:
        learner.experience.add(collector.collect(), collector.final)
        for batch in learner.experience.due(0):
            return batch


def test_returns_of_ones() -> None:
    one = torch.ones(3, 1, 1)
    returns = reward_to_go(one, 0.5 * one, torch.tensor([[False], [False], [True]]))
    assert returns.flatten().tolist() == [1.75, 1.5, 1.0]


@pytest.mark.parametrize("config", [SMALL, GRU], ids=["mlp", "gru"])
@pytest.mark.parametrize("world", WORLDS)
def test_the_loss_is_the_papers_episode_by_episode(world: str, config: Reinforce) -> None:
    plain = replace(config, baseline="none", standardise=False, entropy=0.0)
    learner, collector = collecting(WORLDS[world], plain)
    batch = batch_of(learner, collector)
    terms = []
    for env in range(batch.envs):
        memory, steps = learner.policy.initial_memory(1), int(batch.mask[:, env].any(-1).nonzero()[-1]) + 1
        returns = torch.zeros(collector.env.team.size)
        log_probs = []
        for t in range(steps):
            inputs = {name: batch[name][t, env : env + 1] for name in (*learner.policy.reads, learner.policy.choice)}
            outputs, memory = learner.policy.step(inputs, memory)
            log_probs.append(outputs["log_prob"][0])
        for t in reversed(range(steps)):
            returns = batch["reward"][t, env] + 0.9 * batch["discount"][t, env] * returns
            terms += [-returns[i] * log_probs[t][i] for i in range(len(returns)) if batch.decided[t, env, i]]
    loss, _ = learner.loss(batch)
    assert torch.allclose(loss, torch.stack(terms).mean(), atol=1e-5)


@pytest.mark.parametrize("baseline", ["none", "mean", "critic"])
def test_padding_counts_nowhere(baseline: str) -> None:
    learner, collector = collecting(WORLDS["dying"], replace(SMALL, baseline=baseline))
    batch = batch_of(learner, collector)
    loss, _ = learner.loss(batch)
    is_padding = ~batch["counted"]
    assert bool(is_padding.any())
    for name in ("obs", "reward", "action"):
        field = batch[name][: batch.time]
        noise = torch.full_like(field, 3 if name == "action" else 50)
        where = is_padding.view(*is_padding.shape, *(1,) * (field.ndim - 2))
        field.copy_(torch.where(where, noise.clamp(max=2), field))
    assert torch.equal(learner.loss(batch)[0], loss)


def test_the_mean_and_the_critic_are_baselines() -> None:
    world = WORLDS["masked"]
    learner, collector = collecting(world, replace(SMALL, baseline="mean"))
    batch = batch_of(learner, collector)
    target = learner.returns(batch)
    assert torch.allclose(learner._expected(batch, target)[0].squeeze(), target[batch.mask].mean())
    learner, collector = collecting(world, replace(SMALL, baseline="critic", value_weight=1.0, lr=0.01))
    batch = batch_of(learner, collector)
    errors = [learner.update(batch)["value_loss"] for _ in range(60)]
    assert errors[-1] < 0.7 * errors[0]
    assert not learner._expected(batch, learner.returns(batch))[0].requires_grad


def test_each_episode_is_learned_from_once() -> None:
    learner, collector = collecting(World(), SMALL)
    seen: list[float] = []
    ended = 0
    for _ in range(30):
        window = collector.collect()
        ended += int(window["cut"].sum())
        learner.experience.add(window, collector.final)
        for batch in learner.experience.due(0):
            assert batch.envs >= 5 and bool(batch["start"][0].all())
            seen += batch["obs"][0, :, 0, 0].tolist()
    assert len(set(seen)) == len(seen)
    assert ended - SMALL.episodes < len(seen) <= ended


@pytest.mark.parametrize("wrong", [{"alpha": 0.5}, {"folder": "rows"}, {"device": "cpu"}])
def test_what_episodes_that_are_learned_from_once_cannot_heed_is_refused(wrong: dict[str, Any]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(ConfigError, match=rf"algorithm\.store\.{name} is {value}"):
        Reinforce(store=Store(**wrong))


def test_a_state_goes_on_as_if_never_stopped() -> None:
    learner, collector = collecting(World(), SMALL)
    learner.experience.add(collector.collect(), collector.final)
    twin, _ = collecting(World(), SMALL)
    twin.load_state_dict(learner.state_dict())
    twin.experience.load_state_dict(learner.experience.state_dict())
    for _ in range(3):
        window = collector.collect()
        for each in (learner, twin):
            each.experience.add(window, collector.final)
            for batch in each.experience.due(0):
                each.update(batch)
    assert learner.updates == twin.updates > 0
    for mine, its in zip(learner.policy.parameters(), twin.policy.parameters(), strict=True):
        assert torch.equal(mine, its)
