import gymnasium
import numpy as np
import pytest
import torch

from martes.envs.batched.engine import BatchedEnv
from martes.envs.batched.pendulum import Pendulum
from martes.errors import ConfigError


def test_it_is_gymnasiums_pendulum():
    theirs = gymnasium.make("Pendulum-v1").unwrapped
    game, generator = Pendulum(), torch.Generator().manual_seed(0)
    chance = np.random.default_rng(0)
    state = game.initial(1, generator)
    theirs.reset(seed=0)
    theirs.state = np.array([state["angle"].item(), state["speed"].item()])
    for _ in range(120):
        torque = chance.uniform(-2.5, 2.5)
        seen, paid, *_ = theirs.step(np.array([torque]))
        outcome = game.advance(state, torch.tensor([[[torque]]], dtype=torch.float32), generator)
        state = outcome.state
        assert float(outcome.reward) == pytest.approx(float(paid), rel=1e-4, abs=1e-3)
        np.testing.assert_allclose(game.observe(state)["obs"][0, 0], seen, atol=2e-3)
        # From where theirs stands: rounding grows in a swinging pendulum.
        state = {"angle": torch.tensor([[theirs.state[0]]]).float(), "speed": torch.tensor([[theirs.state[1]]]).float()}


def test_it_ends_by_time_alone_and_draws_itself():
    env = BatchedEnv(Pendulum(agents=2, steps=3), 4)
    env.reset(0)
    steps = [env.step(torch.zeros(4, 2, 1)) for _ in range(3)]
    assert [bool(step.cut.all()) for step in steps] == [False, False, True]
    assert all((step.discount == 1).all() for step in steps)
    assert env.render(1).shape == (240, 480, 3)
    with pytest.raises(ConfigError, match="steps is 0"):
        Pendulum(steps=0)
