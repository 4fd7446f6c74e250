"""Behaviour cloning: the loss by hand, whole episodes against transitions, padding, and that it does as was done."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from martes.algorithms.imitation import BehaviourCloning, CloningLearner
from martes.data import Workspace
from martes.data.experience import Episodes, Transitions
from martes.errors import DataError
from martes.networks import Network
from tests.algorithms.imitators import played
from tests.worlds import WORLDS

SMALL = BehaviourCloning(network=Network(hidden=(16,), channels=(4,)), batch=8)
GRU = replace(SMALL, network=Network(hidden=(8,), channels=(4,), memory="gru", memory_size=6))


def taught(world: str, config: BehaviourCloning = SMALL) -> CloningLearner:
    team, data = played(world)
    learner = config.learner(team, torch.Generator().manual_seed(0))
    learner.experience.take(data)
    with torch.no_grad():
        learner.policy.head.weight.mul_(50)
    return learner


def whole(learner: CloningLearner, by: Episodes | Transitions) -> Workspace:
    """Every episode, or every step, of what the learner was given, once."""
    replay = learner.experience._replay
    assert replay is not None
    place = by.is_drawable(replay).nonzero().squeeze(1)
    return by.gathered(replay, place)


@pytest.mark.parametrize("world", WORLDS)
def test_transitions_and_whole_episodes_are_one_for_who_has_no_memory(world: str) -> None:
    learner = taught(world)
    by_step, _ = learner.loss(whole(learner, Transitions(8)))
    by_episode, _ = learner.loss(whole(learner, Episodes(8)))
    assert torch.allclose(by_step, by_episode, atol=1e-5)


@pytest.mark.parametrize("config", [SMALL, GRU], ids=["mlp", "gru"])
@pytest.mark.parametrize("world", ["dying", "continuous", "multi-discrete"])
def test_more_padding_changes_nothing(world: str, config: BehaviourCloning) -> None:
    learner = taught(world, replace(config, sequence=None))
    replay = learner.experience._replay
    assert replay is not None
    place = (replay.streams.lengths > 0).nonzero().squeeze(1)
    longest = int(replay.streams.lengths[place].amax())
    steps = replay.streams.lengths[place].long()
    spans = (place, steps, torch.zeros_like(steps))
    losses = [learner.loss(replay._gathered(place, spans, longest + more))[0] for more in (0, 1, 5)]
    assert torch.equal(losses[0], losses[1]) or torch.allclose(losses[0], losses[1], atol=1e-6)
    assert torch.allclose(losses[0], losses[2], atol=1e-6)


def test_the_loss_of_choices_is_their_cross_entropy() -> None:
    learner = taught("discrete")
    batch = whole(learner, Transitions(8))
    features = learner.policy.body.features({"obs": batch["obs"][:1]})
    scores = learner.policy.slots.unstacked(learner.policy.head(features), (1, batch.envs))
    by_hand = cross_entropy(scores.flatten(0, 2), batch["action"].long().flatten())
    assert torch.allclose(learner.loss(batch)[0], by_hand, atol=1e-5)


def test_the_loss_of_real_numbers_is_their_density_or_their_distance() -> None:
    learner = taught("one-agent", replace(SMALL, error="squared"))
    batch = whole(learner, Transitions(8))
    batch["action"][...] = batch["action"].clamp(learner.policy.low * 0.9, learner.policy.high * 0.9)
    inputs = {name: batch[name][:1] for name in learner.policy.reads}
    best = learner.policy.step({name: value[0] for name, value in inputs.items()}, ())[0]["action"]
    off = (best - batch["action"][0]) * 2 / (learner.policy.high - learner.policy.low)
    assert torch.allclose(learner.loss(batch)[0], off.square().mean(), atol=1e-6)
    likely = taught("one-agent")
    sample = likely.policy.distribution(likely.policy.body.features(inputs), inputs).sample_of(batch["action"])
    scored = likely.policy.step({**{name: value[0] for name, value in inputs.items()}, "sample": sample[0]}, ())[0]
    assert torch.allclose(scored["action"], batch["action"][0], atol=1e-5)
    assert torch.allclose(likely.loss(batch)[0], -scored["log_prob"].mean(), atol=1e-5)


def test_what_the_environment_did_in_an_agents_place_teaches_nothing() -> None:
    learner = taught("forced")
    batch = whole(learner, Episodes(8))
    before, _ = learner.loss(batch)
    forced = batch["forced"][: batch.time]
    assert bool((forced & batch.mask).any())
    batch["action"][forced] = 1 - batch["action"][forced].clamp(max=1)
    assert torch.equal(learner.loss(batch)[0], before)


@pytest.mark.parametrize("world", ["masked", "multi-discrete-masked", "unequal"])
def test_what_a_policy_cannot_do_is_refused(world: str) -> None:
    learner = taught(world)
    batch = whole(learner, Transitions(8))
    learner.update(batch)
    if world == "unequal":  # agent 0 has three choices of five
        batch["action_mask"][0, 3, 0], batch["action"][0, 3, 0] = True, 4
    else:
        batch["action_mask"][0, 3, 0, ..., 1], batch["action"][0, 3, 0] = False, 1
    with pytest.raises(DataError, match="not legal: agent 0"):
        learner.update(batch)


@pytest.mark.parametrize("config", [SMALL, replace(GRU, sequence=None), replace(GRU, sequence=3, burn_in=2)])
@pytest.mark.parametrize("world", ["unequal", "continuous"])
def test_it_does_as_was_done(world: str, config: BehaviourCloning) -> None:
    learner = taught(world, replace(config, lr=1e-2, ratio=1.0))
    losses = [learner.update(batch)["loss"] for batch in learner.experience.due(60)]
    assert torch.stack(losses[-10:]).mean() < torch.stack(losses[:5]).mean() - 0.03


def test_a_state_goes_on_as_if_never_stopped() -> None:
    learner, twin = taught("masked", GRU), taught("masked", GRU)
    for batch in learner.experience.due(200):
        learner.update(batch)
    twin.load_state_dict(learner.state_dict())
    twin.experience.load_state_dict(learner.experience.state_dict())
    for each in (learner, twin):
        for batch in each.experience.due(400):
            each.update(batch)
    assert learner.updates == twin.updates == 8
    for mine, its in zip(learner.policy.parameters(), twin.policy.parameters(), strict=True):
        assert torch.equal(mine, its)
