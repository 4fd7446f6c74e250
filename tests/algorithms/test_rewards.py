"""One reward for all: sums, means of who is there, and the refusal of a promise that is not kept."""

import pytest
import torch

from martes.algorithms.rewards import Reward, refuse_unequal, rewards_of
from martes.errors import DataError

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
