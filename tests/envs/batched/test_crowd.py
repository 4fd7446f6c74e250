import pytest
import torch

from martes.envs.batched import BatchedEnv
from martes.envs.batched.crowd import Crowd
from martes.errors import ConfigError


@pytest.mark.parametrize("agents", [1, 2, 64, 1024])
@pytest.mark.parametrize("shared", [True, False])
def test_right_answers_are_paid(agents: int, shared: bool):
    env = BatchedEnv(Crowd(agents, shared=shared, episode_limit=4), 3)
    step = env.reset(0)
    for t in range(9):
        sign = step.seen["obs"].argmax(-1)
        assert step.seen["obs"].sum(-1).eq(1).all()
        action = (sign + (torch.arange(agents) % 3 == t % 3)) % 5  # every third is wrong
        hit = (action == sign).float()
        step = env.step(action)
        expected = hit.mean(1, keepdim=True).expand(-1, agents) if shared else hit
        assert torch.allclose(step.reward, expected)
        assert step.cut.eq(t % 4 == 3).all()
        assert step.discount.eq(1).all()


def test_signs_move_on_unforeseeably_and_stay_evenly_spread():
    env = BatchedEnv(Crowd(agents=3, episode_limit=1000), 50)
    step = env.reset(0)
    signs = [step.seen["obs"].argmax(-1)]
    for _ in range(99):
        signs.append(env.step(signs[-1]).seen["obs"].argmax(-1))
    seen = torch.stack(signs)
    die = (seen[1:] - seen[:-1]) % 5
    assert torch.equal(die, die[..., :1].expand_as(die))  # one die a crowd
    assert die[..., 0].flatten().bincount().div(99 * 50).tolist() == pytest.approx([0.2] * 5, abs=0.03)
    assert seen.flatten().bincount().div(seen.numel()).tolist() == pytest.approx([0.2] * 5, abs=0.03)


def test_known_returns():
    game = Crowd(agents=30)
    env = BatchedEnv(game, 200)
    generator = torch.Generator().manual_seed(0)
    for is_right, answer in ((True, game.best_return), (False, game.chance_return)):
        sign, total = env.reset(1).seen["obs"].argmax(-1), torch.zeros(200, 30)
        for _ in range(game.episode_limit):
            step = env.step(sign if is_right else torch.randint(5, sign.shape, generator=generator))
            total, sign = total + step.reward, step.seen["obs"].argmax(-1)
        assert float(total.mean()) == pytest.approx(answer, abs=0.1)


def test_small_and_large_crowds_are_drawn():
    for agents in (1, 7, 1000):
        env = BatchedEnv(Crowd(agents), 1)
        env.reset(0)
        assert env.render().shape == (400, 400, 3)
        assert env.render().std() > 5


@pytest.mark.parametrize(("option", "value", "low"), [("agents", 0, 1), ("signs", 1, 2), ("episode_limit", 0, 1)])
def test_options_below_their_lowest_are_refused(option: str, value: int, low: int):
    with pytest.raises(ConfigError, match=rf"Crowd\.{option} is {value}: it must be {low} or more"):
        Crowd(**{option: value})
