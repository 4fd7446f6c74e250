"""One reward for all: sums, means of who is there, scales, and the refusal of a promise that is not kept."""

from dataclasses import replace

import pytest
import torch

from martes.algorithms.coma import COMA
from martes.algorithms.rewards import Reward, refuse_unequal, rewards_of
from martes.errors import DataError
from martes.maths.statistics import empty_moments, merged_moments
from tests.algorithms import q_learners
from tests.algorithms.coma_runs import SMALL
from tests.algorithms.q_learners import KINDS
from tests.algorithms.rollouts import collecting
from tests.worlds import WORLDS, World

REWARD = torch.tensor([[[1.0, 2.0, 6.0]], [[3.0, 3.0, 9.0]]])
ALIVE = torch.tensor([[[True, True, True]], [[True, True, False]]])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("own", REWARD.tolist()),
        ("sum", [[[9.0]], [[15.0]]]),
        ("mean", [[[3.0]], [[3.0]]]),
        ("common", [[[3.0]], [[3.0]]]),
    ],
)
def test_kinds_by_hand(kind: Reward, expected: list) -> None:
    assert rewards_of(kind, REWARD, ALIVE).tolist() == expected


def test_unequal_pay_is_refused_by_name_and_only_among_who_is_there() -> None:
    agents = ("ann", "bob", "cay")
    refuse_unequal(REWARD[1:], ALIVE[1:], agents)
    refuse_unequal(1e6 * REWARD[1:] + torch.tensor([0.0, 0.1, 0.0]), ALIVE[1:], agents)  # a rounding
    with pytest.raises(DataError, match=r"\{'ann': 1.0, 'bob': 2.0, 'cay': 6.0\}.*reward=mean or sum.*iql"):
        refuse_unequal(REWARD, ALIVE, agents)


# ------------------------------------------------------------------------------------------------------------- scale
def test_scaled_rewards_by_hand() -> None:
    """Of 1, 2, 6, 3 and 3 the mean is 3 and the variance 2.8; the 9 of who is absent counts nowhere."""
    earned = merged_moments(empty_moments(), REWARD, ALIVE)
    assert rewards_of("own", REWARD, ALIVE, earned)[0, 0].tolist() == pytest.approx(
        [each / 2.8**0.5 for each in (1, 2, 6)]
    )


def test_a_replay_counts_each_reward_once_and_no_padding() -> None:
    learner, collector = q_learners.collecting(WORLDS["dying"], replace(KINDS["none"], scale_reward=True), windows=0)
    paid = [torch.empty(0)]
    for count in range(1, 4):
        window = collector.collect()
        paid.append(window["reward"][window.mask])
        learner.experience.add(window, collector.final)
        for batch in learner.experience.due(48 * count):
            learner.update(batch)
    assert learner.updates > 0 and learner.experience.earned is not None
    assert learner.experience.earned.seen == len(torch.cat(paid))
    deviation = torch.cat(paid).std(correction=0)
    assert torch.allclose(learner.experience.earned.scale().float(), deviation, rtol=1e-5)
    again, _ = q_learners.collecting(WORLDS["dying"], replace(KINDS["none"], scale_reward=True), windows=0)
    again.experience.load_state_dict(learner.experience.state_dict())
    assert again.experience.earned == learner.experience.earned


def test_coma_counts_each_reward_once() -> None:
    config = COMA(reward="mean", network=SMALL, rollout=8, scale_reward=True, normalise_value=False)
    learner, window, collector = collecting(WORLDS["dying"], config, 1, 6)
    learner.earned, paid = empty_moments(), [torch.empty(0)]
    for _ in range(3):
        window = collector.collect()
        paid.append(window["reward"][window.mask])
        learner.update(window)
    assert torch.allclose(learner.earned.scale().float(), torch.cat(paid).std(correction=0), rtol=1e-5)
    again = config.learner(collector.env.team, torch.Generator())
    again.load_state_dict(learner.state_dict())
    assert again.earned == learner.earned


def test_scaled_values_are_those_of_scaled_rewards() -> None:
    """The deviation divides what is learned from, and the scale of a task is no matter."""
    targets: dict[float, torch.Tensor] = {}
    for size in (1.0, 100.0):
        learner, collector = q_learners.collecting(
            World(), replace(KINDS["none"], scale_reward=True, gamma=0.0), windows=0
        )
        window = collector.collect()
        window["reward"] *= size
        learner.experience.add(window, collector.final)
        targets[size] = learner.errors(next(iter(learner.experience.due(48)))).target
    assert torch.allclose(targets[1.0], targets[100.0], rtol=1e-4)
