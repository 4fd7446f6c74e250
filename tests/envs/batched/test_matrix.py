import itertools

import pytest
import torch

from martes.envs.batched import BatchedEnv
from martes.envs.batched.matrix import MatrixGame, TwoStep, climbing, penalty
from martes.errors import ConfigError

JOINT = torch.tensor(list(itertools.product(range(3), repeat=2)))


def paid(game: MatrixGame) -> list[list[float]]:
    """What both players get for each joint action, row by row."""
    env = BatchedEnv(game, len(JOINT))
    env.reset(0)
    return env.step(JOINT).reward.tolist()


def test_climbing_pays_as_its_authors_wrote_it():
    assert paid(climbing()) == [[r, r] for r in (11, -30, 0, -30, 7, 6, 0, 0, 5)]
    assert climbing().best_return == 11
    assert climbing(25).best_return == 275
    assert climbing().chance_return == pytest.approx(-31 / 9)


@pytest.mark.parametrize("k", [-100.0, -10.0, 0.0])
def test_penalty_pays_as_its_authors_wrote_it(k: float):
    assert paid(penalty(k)) == [[r, r] for r in (10, 0, k, 0, 2, 0, k, 0, 10)]
    assert penalty(k).best_return == 10
    assert penalty(k).chance_return == pytest.approx((22 + 2 * k) / 9)


def test_two_tables_may_differ_and_need_not_be_square():
    game = MatrixGame(payoff=((1, 2, 3), (4, 5, 6)), second=((0, 0, 9), (0, 0, 0)))
    assert game.team.action_sizes == ((2,), (3,))
    assert game.best_return == 6
    env = BatchedEnv(game, 6)
    env.reset(0)
    action = torch.tensor(list(itertools.product(range(2), range(3))))
    assert env.step(action).reward.tolist() == [[1, 0], [2, 0], [3, 9], [4, 0], [5, 0], [6, 0]]


def test_every_player_sees_its_seat_and_the_time():
    env = BatchedEnv(climbing(steps=4), 2)
    step = env.reset(0)
    for t in range(9):
        assert step.seen["obs"].tolist() == [[[1, 0, t % 4 / 4], [0, 1, t % 4 / 4]]] * 2
        step = env.step(torch.zeros(2, 2, dtype=torch.int64))
        assert step.cut.tolist() == [t % 4 == 3] * 2
        assert step.discount.tolist() == [[float(t % 4 != 3)] * 2] * 2  # it ends, it is not cut short


def test_the_last_joint_action_is_framed():
    env = BatchedEnv(climbing(steps=2), 1)
    env.reset(0)
    before = env.render()
    env.step(torch.tensor([[1, 2]]))
    after = env.render()
    assert before.shape == (400, 400, 3)
    assert (before != after).any()


def test_the_two_steps_of_the_qmix_paper():
    """All sixteen pairs of joint actions, and what both see on the way."""
    pairs = list(itertools.product(itertools.product(range(2), repeat=2), repeat=2))
    env = BatchedEnv(TwoStep(), len(pairs))
    step = env.reset(0)
    assert step.seen["obs"].tolist() == [[[1, 0, 0]] * 2] * 16
    assert torch.equal(step.seen["state"], step.seen["obs"][:, 0])
    step = env.step(torch.tensor([first for first, _ in pairs]))
    assert not step.reward.any()
    assert not step.cut.any()
    in_b = torch.tensor([first[0] == 1 for first, _ in pairs])
    assert torch.equal(step.seen["state"][:, 2] == 1, in_b)  # the first agent alone decided
    assert torch.equal(step.seen["state"][:, 1] == 1, ~in_b)
    step = env.step(torch.tensor([second for _, second in pairs]))
    table = {(0, 0): 0.0, (0, 1): 1.0, (1, 0): 1.0, (1, 1): 8.0}
    expected = [table[second] if first[0] else 7.0 for first, second in pairs]
    assert step.reward.tolist() == [[pay, pay] for pay in expected]
    assert step.cut.all()
    assert not step.discount.any()
    assert max(expected) == TwoStep().best_return
    assert sum(expected) / 16 == TwoStep().chance_return


def test_the_table_that_pays_next_is_drawn():
    env = BatchedEnv(TwoStep(), 2)
    env.reset(0)
    env.step(torch.tensor([[0, 0], [1, 0]]))
    assert (env.render(0) != env.render(1)).any()


@pytest.mark.parametrize(
    "options",
    [
        {"payoff": ()},
        {"payoff": ((),)},
        {"payoff": ((1, 2), (3,))},
        {"payoff": ((1, 2), (3, 4)), "second": ((1, 2),)},
        {"second": ((1,),)},
    ],
)
def test_tables_that_are_no_tables_are_refused(options: dict[str, tuple[tuple[float, ...], ...]]):
    with pytest.raises(ConfigError, match=r"MatrixGame\.(payoff|second) is .* rows of one length"):
        MatrixGame(**options)


def test_no_rounds_and_a_penalty_that_is_a_prize_are_refused():
    with pytest.raises(ConfigError, match=r"MatrixGame\.steps is 0: it must be 1 or more"):
        climbing(steps=0)
    for k in (1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"penalty\.k is .*: it must be 0 or less"):
            penalty(k)
