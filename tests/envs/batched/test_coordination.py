import random
from collections import Counter, defaultdict

import pytest
import torch

from martes.envs.batched import BatchedEnv
from martes.envs.batched.coordination import CoordSum
from martes.errors import ConfigError


def expected(target: int, actions: list[int], history: list[int]) -> float:
    """The rule, as slowly as it can be said."""
    if sum(actions) != target:
        return 0.0
    counts = Counter(history)
    guess = min((action for action in counts if counts[action] == max(counts.values())), default=0)
    return 1.0 if actions[0] == guess else 2.0


@pytest.mark.parametrize(("agents", "actions"), [(2, 2), (3, 4), (4, 5)])
def test_rewards_follow_the_rule_in_every_copy_over_several_episodes(agents: int, actions: int):
    copies, limit = 5, 30
    env = BatchedEnv(CoordSum(agents, actions, limit), copies)
    target = env.reset(0).seen["obs"][:, 0].argmax(-1).tolist()
    history: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(copies)]
    draw, seen = random.Random(0), Counter()
    for t in range(3 * limit):
        joint = [[draw.randrange(actions) for _ in range(agents)] for _ in range(copies)]
        for row, goal in zip(joint, target, strict=True):
            if draw.random() < 0.7 and 0 <= goal - sum(row[:-1]) < actions:
                row[-1] = goal - sum(row[:-1])
        step = env.step(torch.tensor(joint))
        pays = [expected(target[i], joint[i], history[i][target[i]]) for i in range(copies)]
        assert step.reward.tolist() == [[pay] * agents for pay in pays]
        seen.update(pays)
        for i in range(copies):
            history[i][target[i]].append(joint[i][0])
        ended = (t + 1) % limit == 0
        assert step.cut.eq(ended).all()
        assert step.discount.eq(1).all()  # a time limit
        if ended:
            history = [defaultdict(list) for _ in range(copies)]  # forgotten with the episode
        assert step.seen["obs"].sum(-1).eq(1).all()
        assert torch.equal(step.seen["obs"], step.seen["obs"][:, :1].expand(-1, agents, -1))  # all see the same
        target = step.seen["obs"][:, 0].argmax(-1).tolist()
    assert min(seen[pay] for pay in (0.0, 1.0, 2.0)) > 10  # every branch was met


def mean_return(is_clever: bool) -> float:
    """Of a team that lets the first agent avoid its commonest action (clever), or always play 0 (a convention)."""
    copies, game = 200, CoordSum()
    env = BatchedEnv(game, copies)
    target = env.reset(0).seen["obs"][:, 0].argmax(-1)
    counts = torch.zeros(copies, 10, 10)
    total, rows = torch.zeros(copies), torch.arange(copies)
    for _ in range(game.episode_limit):
        guess = counts[rows, target].argmax(1)
        first = ((guess == 0) & (target > 0)).long() if is_clever else torch.zeros_like(target)
        counts[rows, target, first] += 1
        action = torch.stack((first, target - first, torch.zeros_like(first)), 1)
        step = env.step(action)
        total += step.reward[:, 0]
        target = step.seen["obs"][:, 0].argmax(-1)
    return float(total.mean())


def test_the_best_return_is_earned_by_who_is_never_predictable():
    assert CoordSum().best_return == 190
    assert mean_return(is_clever=True) == pytest.approx(CoordSum().best_return, abs=1)


def test_a_fixed_convention_earns_little_more_than_half():
    assert mean_return(is_clever=False) == pytest.approx(CoordSum().convention_return, abs=0)


def test_the_history_of_the_first_agent_is_drawn():
    env = BatchedEnv(CoordSum(), 1)
    env.reset(0)
    before = env.render()
    env.step(torch.tensor([[3, 0, 0]]))
    assert before.shape == (400, 400, 3)
    assert (env.render() != before).any()


@pytest.mark.parametrize(("option", "value", "low"), [("agents", 1, 2), ("actions", 1, 2), ("episode_limit", 0, 1)])
def test_options_below_their_lowest_are_refused(option: str, value: int, low: int):
    with pytest.raises(ConfigError, match=rf"CoordSum\.{option} is {value}: it must be {low} or more"):
        CoordSum(**{option: value})
