import pytest
import torch

from martes.envs.batched import BatchedEnv
from martes.envs.batched.memory import MemoryCue
from martes.errors import ConfigError


@pytest.mark.parametrize("delay", [0, 1, 5])
@pytest.mark.parametrize("agents", [1, 3])
def test_the_cue_is_shown_once_and_asked_for_later(delay: int, agents: int):
    game = MemoryCue(agents, cues=4, delay=delay)
    env = BatchedEnv(game, 64)
    step = env.reset(0)
    for _ in range(3):  # episodes
        cue = step.seen["obs"][..., :4].argmax(-1)
        assert step.seen["obs"][..., :4].sum(-1).eq(1).all()
        for t in range(delay + 1):
            asked = t == delay
            assert step.seen["obs"][..., 4].eq(float(asked)).all()
            if t > 0:
                assert not step.seen["obs"][..., :4].any()  # blank
            wrong = torch.arange(64)[:, None] % 2 == 1
            step = env.step((cue + wrong) % 4)
            assert torch.equal(step.reward, (~wrong).float().expand(64, agents) * asked)
            assert step.cut.eq(asked).all()
            assert step.discount.eq(float(not asked)).all()
        assert step.start.all()


def test_every_agent_and_copy_has_a_cue_of_its_own_evenly_drawn():
    step = BatchedEnv(MemoryCue(agents=2, cues=4), 4000).reset(0)
    cue = step.seen["obs"][..., :4].argmax(-1)
    assert (cue[:, 0] == cue[:, 1]).float().mean() == pytest.approx(0.25, abs=0.03)
    assert cue.flatten().bincount().div(8000).tolist() == pytest.approx([0.25] * 4, abs=0.02)


def test_who_remembers_earns_the_best_return_and_who_guesses_that_of_chance():
    game = MemoryCue(agents=2, cues=4, delay=3)
    env = BatchedEnv(game, 3000)
    generator = torch.Generator().manual_seed(0)
    returns: dict[str, float] = {}
    for name in ("remembers", "guesses"):
        cue = env.reset(1).seen["obs"][..., :4].argmax(-1)
        total = torch.zeros(3000, 2)
        for _ in range(4):
            guess = torch.randint(4, cue.shape, generator=generator)
            total += env.step(cue if name == "remembers" else guess).reward
        returns[name] = float(total.mean())
    assert returns["remembers"] == game.best_return == 1
    assert returns["guesses"] == pytest.approx(game.chance_return, abs=0.03)


def test_an_episode_is_drawn_from_the_cue_to_the_question():
    env = BatchedEnv(MemoryCue(delay=2), 1)
    env.reset(0)
    frames = [env.render()]
    for _ in range(2):
        env.step(torch.zeros(1, 2, dtype=torch.int64))
        frames.append(env.render())
    assert all(frame.shape == (400, 400, 3) for frame in frames)
    assert (frames[0] != frames[1]).any()
    assert (frames[1] != frames[2]).any()


@pytest.mark.parametrize(("option", "value", "low"), [("agents", 0, 1), ("cues", 1, 2), ("delay", -1, 0)])
def test_options_below_their_lowest_are_refused(option: str, value: int, low: int):
    with pytest.raises(ConfigError, match=rf"MemoryCue\.{option} is {value}: it must be {low} or more"):
        MemoryCue(**{option: value})
