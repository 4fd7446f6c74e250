"""The contract between environments and everything that acts in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from martes.data.team import TeamSpec

Fields = Mapping[str, Tensor]
"""Workspace field name -> tensor of one time step."""


@dataclass(slots=True)
class TimeStep:
    """What an environment answers to `reset` and `step`, for all its copies at once.

    `seen` is the observation that the next action is chosen from: where an episode was cut, already the first of the
    next one (`start`). `final` is the real last observation, of every copy, present only when some copy was cut; its
    rows mean something only where `cut` is true. Both hold workspace fields: `obs` or `obs/<part>`, `agent_mask`, and
    where the team has them `state`, `action_mask`, and `forced` with `forced_action`: what the environment will do in
    an agent's place whatever that agent chooses.
    """

    seen: Fields
    start: Bool[Tensor, "env"]
    reward: Float[Tensor, "env agent"]
    discount: Float[Tensor, "env agent"]
    """0 exactly where an agent truly terminated at this step, else 1."""
    cut: Bool[Tensor, "env"]
    """Does the trajectory end after this step, for any reason?"""
    final: Fields | None = None
    stats: Fields = field(default_factory=dict[str, Tensor])
    """What the environment counts of an episode (`battle_won`), `env`, read where `cut` is true."""


@runtime_checkable
class VectorEnv(Protocol):
    """Many copies of one task, stepped together, that reset themselves."""

    team: TeamSpec
    num_envs: int

    def reset(self, seed: int) -> TimeStep:
        """The first step of every copy; equal seeds give equal futures."""
        ...

    def step(self, action: Tensor) -> TimeStep:
        """The result of `action` [env agent ...] in every copy."""
        ...

    def render(self, index: int = 0) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of one copy as it stands."""
        ...

    def close(self) -> None:
        """Frees what the environment holds."""
        ...

    def state_dict(self) -> dict[str, object]:
        """Everything that the future depends on, random state included: tensors, numbers and strings, nested."""
        ...

    def load_state_dict(self, state: dict[str, object]) -> TimeStep:
        """Restores `state_dict` and returns the step that the next action is chosen from."""
        ...
