"""A pendulum to swing up, as a differentiable function: what it pays reaches the policy through time, as a gradient."""

from dataclasses import dataclass
from math import pi

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from martes.data import Continuous, Fields, TeamSpec, Vector
from martes.envs.batched.drawing import INK, PALETTE, Canvas
from martes.envs.batched.engine import Outcome, State
from martes.envs.batched.rules import equals, refuse_below

STEP, GRAVITY, SPEED, TORQUE = 0.05, 10.0, 8.0, 2.0


@dataclass(frozen=True)
class Pendulum:
    """Each agent swings up a pendulum of its own; it sees (cos, sin, speed) of the angle, which is 0 upright.

    It pays -(angle² + speed² / 10 + torque² / 1000) a step. Nothing ends but by time. Mass and length are 1; equal,
    number for number, to Gymnasium's Pendulum-v1. The equations are smooth but where speed and torque reach their
    bounds, so that a gradient passes through every step.

    Raises ConfigError for an option below its lowest value.
    """

    agents: int = 1
    """How many agents."""
    steps: int = 200
    """Steps of an episode."""

    def __post_init__(self) -> None:
        refuse_below(self, agents=1, steps=1)

    @property
    def team(self) -> TeamSpec:
        """Equals; the action is a torque."""
        return equals(self.agents, Vector(3), Continuous((-TORQUE,), (TORQUE,)), episode_limit=self.steps)

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """`angle` [env agent], even on [-pi, pi], and `speed`, even on [-1, 1]."""
        drawn = 2 * torch.rand(2, envs, self.agents, generator=generator, device=generator.device) - 1
        return {"angle": pi * drawn[0], "speed": drawn[1]}

    def advance(self, state: State, action: Float[Tensor, "env agent 1"], generator: torch.Generator) -> Outcome:
        """The next state by the semi-implicit Euler method."""
        angle, speed, torque = state["angle"], state["speed"], action.squeeze(-1).clamp(-TORQUE, TORQUE)
        folded = torch.remainder(angle + pi, 2 * pi) - pi
        reward = -(folded.square() + 0.1 * speed.square() + 0.001 * torque.square())
        speed = (speed + (1.5 * GRAVITY * angle.sin() + 3 * torque) * STEP).clamp(-SPEED, SPEED)
        return Outcome({"angle": angle + STEP * speed, "speed": speed}, reward)

    def observe(self, state: State) -> Fields:
        """Where it stands and how fast it turns."""
        angle = state["angle"]
        return {"obs": torch.stack((angle.cos(), angle.sin(), state["speed"]), -1)}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """The pendulums, side by side."""
        canvas = Canvas((-1.2, -1.2, 2.6 * self.agents - 1.4, 1.2), (240 * self.agents, 240))
        for index, angle in enumerate(state["angle"][0]):
            x = 2.6 * index
            canvas.line(x, 0, x - float(angle.sin()), float(angle.cos()), PALETTE[0], 8)
            canvas.circle(x, 0, 0.08, INK)
        return canvas.array()
