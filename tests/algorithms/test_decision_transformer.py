"""The decision transformer: what it learns from, and that the return it earns rises with the return that is asked."""

from dataclasses import replace
from itertools import pairwise
from typing import Literal

import pytest
import torch

from martes.algorithms.decision_transformer import DecisionLearner, DecisionTransformer
from martes.data import Workspace
from martes.envs.batched.engine import BatchedEnv
from martes.errors import ConfigError
from martes.networks import Network
from martes.training.evaluate import evaluate
from tests.algorithms.imitators import Earning, played

NETWORK = Network(hidden=(16,), memory_size=16, memory_heads=2, channels=(4,))
SMALL = DecisionTransformer(network=NETWORK, context=4, batch=6, ratio=1.0)


def taught(world: str, config: DecisionTransformer = SMALL) -> tuple[DecisionLearner, Workspace]:
    team, data = played(world)
    learner = config.learner(team, torch.Generator().manual_seed(0))
    learner.experience.take(data)
    return learner, next(iter(learner.experience.due(1)))


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.usefixtures("unchecked")
def test_the_return_rises_with_what_is_asked(tokens: Literal[1, 3]) -> None:
    game = Earning(steps=4)
    network = Network(hidden=(32,), memory_size=32, memory_heads=2)
    config = DecisionTransformer(tokens=tokens, network=network, context=4, batch=64, ratio=1.0, lr=5e-3)
    learner = config.learner(game.team, torch.Generator().manual_seed(0))
    learner.experience.take(game.data(256))
    for batch in learner.experience.due(100):
        learner.update(batch)
    assert learner.policy.asked.tolist() == [4.0, 4.0]  # the highest in the data
    earned = []
    for asked in range(5):
        learner.policy.asked.fill_(asked)
        scores = evaluate(learner.policy, BatchedEnv(game, 16), 64, seed=1, greedy=False)
        earned.append(float(scores.agent_returns.mean()))
    assert all(more > less + 0.2 for less, more in pairwise(earned)), earned
    assert max(abs(each - asked) for asked, each in enumerate(earned)) < 1.0, earned
    learner.policy.asked[:] = torch.tensor([1.0, 3.0])  # each agent can be asked for something else
    apart = evaluate(learner.policy, BatchedEnv(game, 16), 64, seed=1, greedy=False).agent_returns.mean(0)
    assert apart[0] < 1.7 and apart[1] > 2.3, apart


@pytest.mark.parametrize("world", ["dying", "continuous"])
def test_what_is_to_come_is_the_sum_of_rewards(world: str) -> None:
    learner, batch = taught(world)
    to_go = learner.returns(batch)
    for env in range(batch.envs):
        steps = int(batch["counted"][:, env].sum())
        reward = batch["reward"][:steps, env]
        for t in range(steps):
            assert torch.allclose(to_go[t, env], reward[t:].sum(0), atol=1e-5)
        assert not to_go[steps:, env].any()


@pytest.mark.parametrize("tokens", [1, 3])
def test_padding_counts_nowhere(tokens: Literal[1, 3]) -> None:
    learner, batch = taught("dying", replace(SMALL, tokens=tokens))
    loss, _ = learner.loss(batch)
    is_padding = ~batch["counted"]
    assert bool(is_padding.any())
    batch["obs"][: batch.time][is_padding] = 7.0
    batch["action"][is_padding] = 1
    assert torch.equal(learner.loss(batch)[0], loss)


def test_what_is_asked_is_the_highest_return_or_what_one_sets() -> None:
    learner, batch = taught("unequal")
    whole = learner.returns(batch)[0]
    learner.update(batch)
    assert torch.allclose(learner.policy.asked, whole.amax(0))
    assert torch.allclose(learner.policy.scale, whole.abs().amax())
    learner, batch = taught("unequal", replace(SMALL, target_return=2.5))
    learner.update(batch)
    assert learner.policy.asked.tolist() == [2.5] * 5


def test_one_reward_for_the_team() -> None:
    learner, batch = taught("discrete", replace(SMALL, reward="sum"))
    assert torch.allclose(learner.returns(batch)[0], batch["reward"].sum((0, 2)).unsqueeze(1).expand(-1, 3), atol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", ["own", "sum", "mean"])
def test_who_acts_is_told_the_return_that_it_learned_from(kind: Literal["own", "sum", "mean"]) -> None:
    learner, batch = taught("dying", replace(SMALL, reward=kind))
    policy, to_go = learner.policy, learner.returns(batch)
    memory, step = policy.initial_memory(batch.envs), 2
    paid = batch["reward"][:step].sum(0)
    policy.head.weight.data.mul_(50)
    policy.asked = to_go[0]  # what is asked of each agent of each episode is what it came to
    seen = {name: batch[name][step] for name in policy.reads if name != "earned"}
    told = policy.step(seen | {"return_to_go": to_go[step]}, memory)[0]["log_prob"]
    assert torch.allclose(policy.step(seen | {"earned": paid}, memory)[0]["log_prob"], told, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokens is 2: it must be 1 or 3"):
        DecisionTransformer(tokens=2)
    with pytest.raises(ConfigError, match="every episode is equally likely"):
        DecisionTransformer(store=replace(SMALL.store, alpha=0.5))


def test_stretches_begin_anywhere_and_keep_what_is_to_come() -> None:
    learner, batch = taught("dying", replace(SMALL, sequence=3))
    whole = learner.returns(batch)
    lengths = batch["counted"].sum(0)
    assert batch.time > 3 and int(lengths.min()) < int(lengths.max())
    begun = [set[int]() for _ in range(batch.envs)]
    for _ in range(100):
        part, inputs = learner.stretch(batch, learner._inputs(batch))
        assert part.time == 3 and inputs["return_to_go"].shape[0] == 3
        for env in range(batch.envs):
            fits = [
                first
                for first in range(max(int(lengths[env]) - 3, 0) + 1)
                if torch.equal(
                    part["reward"][: lengths[env], env], batch["reward"][first : first + 3, env][: lengths[env]]
                )
                and torch.equal(
                    inputs["return_to_go"][: lengths[env], env], whole[first : first + 3, env][: lengths[env]]
                )
            ]
            assert fits, "a stretch is of successive steps of its own episode"
            begun[env] |= {*fits} if len(fits) == 1 else set()
            assert int(part["counted"][:, env].sum()) >= min(3, int(lengths[env]))
            assert int(learner._counted(part)[:, env].any(-1).sum()) <= min(3, int(lengths[env]))
    longest = int(lengths.argmax())
    assert begun[longest] == {*range(int(lengths[longest]) - 2)}
    before = [each.clone() for each in learner.policy.parameters()]
    asked = learner.update(batch)["asked_return"]
    assert not all(map(torch.equal, learner.policy.parameters(), before))
    assert torch.allclose(asked, whole[0].amax(0).mean(), atol=1e-5), "what is asked is the return of a whole episode"


def test_a_stretch_as_long_as_the_longest_episode_is_the_whole() -> None:
    (one, batch), (other, same) = taught("dying"), taught("dying", replace(SMALL, sequence=1000))
    one.update(batch)
    other.update(same)
    assert all(map(torch.equal, one.policy.parameters(), other.policy.parameters()))
