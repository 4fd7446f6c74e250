"""A game for thousands of agents that costs next to nothing to play: what is measured with it is the learner."""

from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn.functional import embedding

from martes.data import Discrete, Fields, TeamSpec, Vector
from martes.envs.batched.drawing import PALETTE, Canvas
from martes.envs.batched.engine import Outcome, State
from martes.envs.batched.rules import equals, refuse_below, unit_vectors


@dataclass(frozen=True)
class Crowd:
    """Each agent is shown a sign (one-hot) and should answer with the action of that number; all share the mean.

    Signs are drawn freely at the start; at each step a throw of one die, the same for the whole crowd, moves them on
    by (sign + die) mod `signs`. A step costs a few operations on one number an agent.

    Raises ConfigError for an option below its lowest value.
    """

    agents: int = 64
    """How many agents."""
    signs: int = 5
    """How many signs there are, and as many actions."""
    shared: bool = True
    """Do all share the mean of what each has earned? (Else each keeps its own.)"""
    episode_limit: int = 25
    """Steps after which an episode is cut."""

    def __post_init__(self) -> None:
        refuse_below(self, agents=1, signs=2, episode_limit=1)

    @property
    def best_return(self) -> float:
        """Every answer is right."""
        return float(self.episode_limit)

    @property
    def chance_return(self) -> float:
        """One answer in `signs` is right."""
        return self.episode_limit / self.signs

    @property
    def team(self) -> TeamSpec:
        """Equals."""
        return equals(self.agents, Vector(self.signs), Discrete(self.signs), episode_limit=self.episode_limit)

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """`sign` [env agent]."""
        sign = torch.randint(self.signs, (envs, self.agents), generator=generator, device=generator.device)
        return {"sign": sign}

    def advance(self, state: State, action: Int[Tensor, "env agent"], generator: torch.Generator) -> Outcome:
        """Pays right answers and moves the signs on."""
        sign = state["sign"]
        reward = (action == sign).to(torch.get_default_dtype())
        if self.shared:
            reward = reward.mean(1, keepdim=True).expand(-1, self.agents)
        die = torch.randint(self.signs, (len(sign), 1), generator=generator, device=sign.device)
        return Outcome({"sign": (sign + die) % self.signs}, reward)

    def observe(self, state: State) -> Fields:
        """Its own sign."""
        sign = state["sign"]
        return {"obs": embedding(sign, unit_vectors(self.signs, sign.device, torch.get_default_dtype()))}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """The crowd, a colour for each sign."""
        signs = [int(sign) for sign in state["sign"][0]]
        side = ceil(sqrt(len(signs)))
        canvas = Canvas((-1, -1, side, side))
        for index, sign in enumerate(signs):
            row, column = divmod(index, side)
            canvas.circle(column, side - 1 - row, 0.42, PALETTE[sign % len(PALETTE)], str(sign) if side <= 16 else "")
        return canvas.array()
