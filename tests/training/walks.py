"""A small noisy game, and runs of it, for everything that tests training."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from martes.algorithms.ppo import PPO
from martes.data import Discrete, TeamSpec, TimeStep, Vector
from martes.envs.batched.engine import BatchedEnv, Outcome, State
from martes.envs.settings import Environment
from martes.networks import Network
from martes.training.log import Log
from martes.training.loop import Result, train
from martes.training.run import RunFolder
from martes.training.settings import Evaluation, Logging, Training


@dataclass(frozen=True)
class Walk:
    """Two walkers stay near 0 against noise; far out, they fall. What each sees is where both are."""

    limit: int = 7

    @property
    def team(self) -> TeamSpec:
        return TeamSpec(("a_0", "a_1"), {"a": (0, 1)}, {"a": Vector(2)}, {"a": Discrete(3)}, Vector(2), self.limit)

    def initial(self, envs: int, generator: torch.Generator) -> State:
        return {"place": torch.randn(envs, 2, generator=generator)}

    def advance(self, state: State, action: torch.Tensor, generator: torch.Generator) -> Outcome:
        push = 0.5 * (action - 1) + 0.3 * torch.randn(state["place"].shape, generator=generator)
        place = state["place"] + push
        return Outcome({"place": place}, -place.abs(), over=(place.abs() > 2).any(1))

    def observe(self, state: State) -> dict[str, torch.Tensor]:
        place = state["place"]
        return {"obs": torch.stack([place, place.flip(1)], -1), "state": place}

    def frame(self, state: State) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)


class Forgetful(BatchedEnv):
    """An environment that keeps its state to itself."""

    def state_dict(self) -> dict[str, object]:
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, object]) -> TimeStep:
        raise NotImplementedError


def forgetful(copies: int) -> Forgetful:
    return Forgetful(Walk(), copies)


class Breaking(BatchedEnv):
    """An environment whose reward is not a number from its step `at` on."""

    def __init__(self, copies: int, at: int) -> None:
        super().__init__(Walk(), copies)
        self.left = at

    def step(self, action: torch.Tensor) -> TimeStep:
        step = super().step(action)
        self.left -= 1
        if self.left <= 0:
            step.reward = torch.full_like(step.reward, torch.nan)
        return step


def breaking(copies: int, at: int) -> Breaking:
    return Breaking(copies, at)


@dataclass(frozen=True)
class Run:
    """A plan as the loop wants it, small enough for tests."""

    env: Environment = field(default_factory=lambda: Environment("walk", 2, "tests.training.walks:Walk"))
    algorithm: PPO = field(default_factory=PPO)
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    logging: Logging = field(default_factory=Logging)


def a_run(memory: Literal["none", "gru"] = "none", steps: int = 160, save_every: int = 48) -> Run:
    """16 environment steps a window: evaluated each 3rd, saved as told."""
    return Run(
        algorithm=PPO(network=Network(hidden=(8,), memory=memory, memory_size=8), rollout=8, epochs=2, minibatches=2),
        training=Training(steps=steps, seed=3, threads=1, save_every=save_every, keep=2),
        evaluation=Evaluation(every=48, episodes=3),
        logging=Logging(every=32, progress="none", tensorboard=False),
    )


def with_env(run: Run, **values: object) -> Run:
    return replace(run, env=replace(run.env, **values))


def trained(run: Run, path: Path, origin: Path | None = None) -> Result:
    folder = RunFolder(path)
    with Log(path, run.logging, run.training.steps, "walk", run.evaluation.greedy) as log:
        return train(run, folder, log, origin)
