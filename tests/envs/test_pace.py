"""Rates are those of the environment, and the actions that they are measured under are legal."""

from contextlib import closing
from functools import partial

import pytest
import torch

from martes.envs import pace
from martes.envs.pace import drawn_actions, env_steps_per_second
from martes.envs.single import serial_env
from tests.envs.singles import TASKS, Ramble


def test_pace_is_that_of_the_environment(monkeypatch):
    now = [3.0]  # a clock that only steps move: how long a millisecond's sleep takes is the machine's affair
    monkeypatch.setattr(pace, "perf_counter", lambda: now[0])

    class Timed(Ramble):
        def step(self, action, row):
            now[0] += 0.001
            return super().step(action, row)

    with closing(serial_env(Timed, 4)) as env:
        assert env_steps_per_second(env, 0.3) == pytest.approx(1000)


@pytest.mark.parametrize("task", ["masked", "multi", "continuous", "unequal"])
def test_drawn_actions_are_legal_and_all_come(task):
    generator = torch.Generator().manual_seed(0)
    with closing(serial_env(partial(Ramble, **TASKS[task]), 200)) as env:
        step = env.reset(0)
        drawn = drawn_actions(env.team, step, generator)
        assert drawn.shape == env._board.action.shape
        if task == "continuous":
            assert (drawn.abs() <= torch.tensor([1.0, 2.0])).all()
            assert (drawn.amax((0, 1)) > torch.tensor([0.9, 1.8])).all()
            return
        legal = env.team.legal_actions.expand(200, *env.team.legal_actions.shape)
        legal = legal & step.seen["action_mask"] if env.team.masks_actions else legal
        assert legal.gather(-1, drawn[..., None]).all()
        counts = torch.nn.functional.one_hot(drawn, legal.shape[-1]).sum(0)
        assert ((counts > 0) == legal.any(0)).all()
