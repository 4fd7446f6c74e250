"""Data sets for tests of those who imitate, and a game whose return one can ask for."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from martes.data import Discrete, TeamSpec, Vector, Workspace
from martes.data.data_set import data_set
from martes.envs.batched.engine import BatchedEnv, Outcome, State
from martes.networks import Network, Policy
from martes.training.evaluate import evaluate
from martes.training.recorder import Recorder
from tests.worlds import WORLDS


@dataclass(frozen=True)
class Earning:
    """Action 1 pays 1, action 0 nothing, six times: any return from 0 to 6 can be had."""

    agents: int = 2
    steps: int = 6

    @property
    def team(self) -> TeamSpec:
        names = tuple(f"a_{index}" for index in range(self.agents))
        return TeamSpec(names, {"a": tuple(range(self.agents))}, {"a": Vector(1)}, {"a": Discrete(2)})

    def initial(self, envs: int, generator: torch.Generator) -> State:
        return {"clock": torch.zeros(envs)}

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> Outcome:
        clock = state["clock"] + 1
        return Outcome({"clock": clock}, action.float(), over=clock == self.steps)

    def observe(self, state: State) -> dict[str, Tensor]:
        return {"obs": state["clock"].view(-1, 1, 1).expand(-1, self.agents, 1) / self.steps}

    def frame(self, state: State) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)

    def data(self, episodes: int) -> Workspace:
        """Agents that each earn with a rate of their own in each episode."""
        generator = torch.Generator().manual_seed(0)
        clock = torch.arange(self.steps + 1).view(-1, 1, 1).expand(-1, self.agents, 1) / self.steps
        found = []
        for _ in range(episodes):
            rate = torch.rand(self.agents, generator=generator)
            action = (torch.rand(self.steps, self.agents, generator=generator) < rate).long()
            discount = torch.ones(self.steps, self.agents)
            discount[-1] = 0
            found.append({"obs": clock.clone(), "action": action, "reward": action.float(), "discount": discount})
        return data_set(self.team, found)


def played(world: str, episodes: int = 12) -> tuple[TeamSpec, Workspace]:
    """What a drawn policy did in a world without sense."""
    recorder = Recorder(BatchedEnv(WORLDS[world], 3))
    policy = Policy(recorder.team, Network(hidden=(8,), channels=(4,)), "shared", torch.Generator().manual_seed(0))
    evaluate(policy, recorder, episodes, seed=1, greedy=False)
    return recorder.team, recorder.data(episodes)
