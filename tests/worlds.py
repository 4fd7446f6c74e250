"""A game without sense for tests: random observations, masks, deaths and ends, in every kind of action and team."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from martes.data import Action, Continuous, Discrete, Image, MultiDiscrete, TeamSpec, Vector
from martes.envs.batched.engine import Outcome, State

Kind = Literal["discrete", "multi", "continuous"]


@dataclass(frozen=True)
class World:
    """Fields are the edges that a test wants to meet."""

    kind: Kind = "discrete"
    is_unequal: bool = False
    has_masks: bool = False
    has_deaths: bool = False
    has_state: bool = False
    has_image: bool = False
    has_forced: bool = False
    ends: float = 0.1
    limit: int = 7
    agents: int = 3

    def _action(self, large: bool) -> Action:
        match self.kind:
            case "discrete":
                return Discrete(5 if large else 3)
            case "multi":
                return MultiDiscrete((4, 2, 3) if large else (2, 5))
            case "continuous":
                return Continuous((-1.0,) * 3, (2.0,) * 3) if large else Continuous((0.0, -2.0), (1.0, 3.0))

    @property
    def team(self) -> TeamSpec:
        names = [f"big_{i}" if i % 2 or not self.is_unequal else f"small_{i}" for i in range(self.agents)]
        sees = {name: Vector(6 if name.startswith("big") else 4) for name in names}
        if self.has_image:
            sees = {name: {"vector": vector, "camera": Image((3, 8, 8))} for name, vector in sees.items()}
        acts = {name: self._action(name.startswith("big")) for name in names}
        state = Vector(9) if self.has_state else None
        team = TeamSpec.of_agents(sees, acts, state=state, episode_limit=self.limit, masks_actions=self.has_masks)
        return replace(team, forces_actions=self.has_forced)

    def initial(self, envs: int, generator: torch.Generator) -> State:
        return self._drawn(envs, generator, torch.ones(envs, self.agents, dtype=torch.bool))

    def _drawn(self, envs: int, generator: torch.Generator, alive: torch.Tensor) -> State:
        team, n = self.team, self.agents
        # Padding holds zeros, as every environment leaves it.
        real = torch.arange(6) < torch.tensor(team.observation_sizes)[:, None]
        mask = torch.rand(envs, *team.legal_actions.shape, generator=generator) < 0.6
        mask[..., 0] = True
        return {
            "obs": torch.randn(envs, n, 6, generator=generator) * real,
            "camera": torch.randint(256, (envs, n, 3, 8, 8), generator=generator, dtype=torch.uint8),
            "mask": mask,
            "alive": alive,
            "state": torch.randn(envs, 9, generator=generator),
            **({"forced": torch.rand(envs, n, generator=generator) < 0.3} if self.has_forced else {}),
        }

    def advance(self, state: State, action: torch.Tensor, generator: torch.Generator) -> Outcome:
        envs = len(action)
        alive, discount = state["alive"], torch.ones(envs, self.agents)
        if self.has_deaths:  # agents die for good (terminate), and a dead one may be replaced by a newcomer
            dies = alive & (torch.rand(envs, self.agents, generator=generator) < 0.2)
            joins = ~alive & (torch.rand(envs, self.agents, generator=generator) < 0.3)
            discount[dies] = 0
            alive = (alive & ~dies) | joins
        over = torch.rand(envs, generator=generator) < self.ends
        reward = torch.randn(envs, self.agents, generator=generator) * state["alive"]
        return Outcome(self._drawn(envs, generator, alive), reward, discount, over)

    def observe(self, state: State) -> dict[str, torch.Tensor]:
        seen = {"obs": state["obs"]}
        if self.has_image:
            seen = {"obs/vector": state["obs"], "obs/camera": state["camera"]}
        if self.has_masks:
            seen["action_mask"] = state["mask"]
        if self.has_deaths:
            seen["agent_mask"] = state["alive"]
        if self.has_state:
            seen["state"] = state["state"]
        if self.has_forced:  # into the lowest action, which every agent has
            lowest = self.team.bounds[0] if self.kind == "continuous" else torch.zeros(self.agents, dtype=torch.int64)
            choices = self.team.legal_actions.shape[1:2] if self.kind != "discrete" else ()
            action = lowest if self.kind == "continuous" else lowest.reshape(-1, *(1,) * len(choices))
            seen["forced"] = state["forced"]
            seen["forced_action"] = action.expand(len(state["obs"]), self.agents, *choices)
        return seen

    def frame(self, state: State) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)


WORLDS = {
    "discrete": World(),
    "masked": World(has_masks=True, has_state=True),
    "unequal": World(is_unequal=True, has_masks=True, agents=5),
    "dying": World(has_deaths=True, has_masks=True, has_state=True, is_unequal=True),
    "multi-discrete": World("multi", is_unequal=True),
    "multi-discrete-masked": World("multi", is_unequal=True, has_masks=True),
    "continuous": World("continuous", is_unequal=True, has_deaths=True),
    "one-agent": World("continuous", agents=1),
    "image": World(has_image=True, is_unequal=True),
    "forced": World(has_forced=True, has_masks=True),
    "forced-continuous": World("continuous", has_forced=True),
}


def crossed(ones: Sequence[str], others: Sequence[str], thirds: Sequence[str]) -> list[tuple[str, str, str]]:
    """Each of the first with each of the second, the third in turn: every pair of two meets, at no more cases.

    `thirds` is no longer than the other two.
    """
    return [(one, two, thirds[(i + j) % len(thirds)]) for i, one in enumerate(ones) for j, two in enumerate(others)]
