"""COMA where episodes end, agents die, records are padded and rewards differ."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from martes.data import Workspace
from martes.errors import DataError
from tests.algorithms.coma_runs import NETWORKS, collected, scored, set_values, values
from tests.worlds import WORLDS, World


def test_what_follows_within_an_episode_is_what_was_done() -> None:
    learner, window = scored(replace(WORLDS["masked"], ends=0.2), 2, rollout=10)
    inside = ~window["cut"][:-1]
    assert torch.equal(window["next_value"][:-1][inside], values(learner, window)[1:][inside])


def halves(window: Workspace) -> Workspace:
    """Two episodes of 4 steps one after the other, as two side by side."""
    whole = torch.cat((torch.arange(6), torch.arange(6)))
    both = window.window(0, 4).rows(whole)
    for name in both.names:
        later = window[name][4 : 4 + both[name].shape[0]]
        both[name][:, 6:] = later
    return both


@pytest.mark.parametrize("network", NETWORKS)
def test_two_episodes_after_each_other_are_two_side_by_side(network: str) -> None:
    learner, window = collected(World(ends=0.0, limit=4), network=NETWORKS[network], rollout=8)
    assert window["cut"][3].all() and window["cut"][7].all()
    both = halves(window)
    both["start"][0] = True
    learner._score(window)
    learner._score(both)
    for name in ("loss", "critic_loss"):
        one, other = getattr(learner, name)(window)[0], getattr(learner, name)(both)[0]
        assert torch.allclose(one, other, atol=1e-6), name


@pytest.mark.parametrize("network", NETWORKS)
def test_steps_that_were_never_made_count_nowhere(network: str) -> None:
    """An episode of 5 steps in a record of 8 has exactly its own loss, whatever stands in the other 3."""
    learner, window = collected(World(ends=0.0, limit=5), network=NETWORKS[network], rollout=8)
    alone = window.window(0, 5)
    filled = torch.zeros(8, 6, dtype=torch.bool)
    filled[:5] = True
    fields = {name: window[name].clone() for name in window.names}
    for name in ("reward", "next_value", "obs", "log_prob"):
        fields[name][5:] = fields[name][5:] * 100 + 7
        if name == "obs":
            fields[name][5] = window[name][5]
    padded = Workspace.of(window.schema, fields, filled)
    padded.memory = window.memory
    learner._score(padded)
    learner._score(alone)
    assert torch.equal(padded["target"][:5], alone["target"])
    for name in ("loss", "critic_loss"):
        one, other = getattr(learner, name)(padded), getattr(learner, name)(alone)
        assert torch.allclose(one[0], other[0], rtol=1e-6), name
        assert all(torch.allclose(one[1][each], other[1][each], rtol=1e-5, atol=1e-7) for each in one[1])


def test_what_stands_where_nobody_was_moves_no_gradient() -> None:
    learner, window = scored(WORLDS["dying"], 2, reward="own")
    dead = ~window.mask

    def gradient() -> list[Tensor]:
        learner.optimiser.zero_grad()
        learner.loss(window)[0].backward()
        return [p.grad.clone() for p in learner.actor.parameters() if p.grad is not None]

    before = gradient()
    window["action"][dead] = 2
    window["obs"][: window.time][dead] = 1e3
    window["log_prob"][dead] = torch.nan
    assert all(torch.equal(one, other) for one, other in zip(before, gradient(), strict=True))


def test_the_value_of_a_dead_member_goes_on_with_the_team() -> None:
    learner, window = scored(WORLDS["dying"], 2)
    dead = ~window.mask & window.mask.any(-1, keepdim=True)
    assert dead.any() and learner._valued(window)[dead].all()
    before = learner.critic_loss(window)[0]
    window["target"][dead] += 10
    assert learner.critic_loss(window)[0] > before


def test_unequal_rewards_are_no_common_reward() -> None:
    learner, window = collected(World(), reward="common")
    with pytest.raises(DataError, match=r"paid unequally .* take algorithm.reward=mean or sum"):
        learner.update(window)
    window["reward"] = window["reward"][..., :1].expand(8, 6, 3).clone()
    learner.update(window)


def test_whose_reward_it_is() -> None:
    alive, targets = None, {}
    for reward in ("own", "mean", "sum"):
        _, window = scored(WORLDS["dying"], reward=reward, gamma=0.0)
        alive, targets[reward] = window["agent_mask"][:8], window["target"].clone()
    assert alive is not None
    own = targets["own"] * alive
    total = own.sum(-1, keepdim=True).expand(8, 6, 3)
    assert torch.allclose(targets["mean"], total / alive.sum(-1, keepdim=True).clamp(min=1), atol=1e-6)
    assert torch.allclose(targets["sum"], total, atol=1e-6)


def test_a_team_lives_on_after_a_member() -> None:
    """With a reward for all, the end of one member is not the end of what it is learned from."""
    learner, window = collected(replace(WORLDS["dying"], ends=0.0, limit=100), gamma=0.5, td_lambda=0.0)
    set_values(learner, 8.0)
    window["reward"].zero_()
    died = (window["discount"] == 0) & (window["discount"].amax(-1, keepdim=True) == 1)
    died[-1] = False
    assert died.any()
    learner._score(window)
    assert (window["target"][died] == 4.0).all()
    learner.config = replace(learner.config, reward="own")
    learner._score(window)
    assert (window["target"][died] == 0.0).all()
