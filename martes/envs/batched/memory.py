"""A game that only memory wins."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn.functional import embedding

from martes.data import Discrete, Fields, TeamSpec, Vector
from martes.envs.batched.cards import card, rows_of_agents
from martes.envs.batched.engine import Outcome, State
from martes.envs.batched.rules import equals, refuse_below, unit_vectors


@dataclass(frozen=True)
class MemoryCue:
    """Each agent is shown a cue of its own at t = 0 and is asked for it at t = `delay`: 1 for the right answer.

    It sees the cue (one-hot, at t = 0 alone), then whether it is asked now; between the two, nothing. No other step
    pays. Without memory nothing beats chance, 1 / `cues`, unless the delay is 0. After the answer the game is over.

    Raises ConfigError for an option below its lowest value.
    """

    agents: int = 2
    """How many agents."""
    cues: int = 4
    """How many cues there are, and as many actions."""
    delay: int = 8
    """Steps from the cue to the question."""

    def __post_init__(self) -> None:
        refuse_below(self, agents=1, cues=2, delay=0)

    @property
    def best_return(self) -> float:
        """Every answer is right."""
        return 1.0

    @property
    def chance_return(self) -> float:
        """One answer in `cues` is right."""
        return 1 / self.cues

    @property
    def team(self) -> TeamSpec:
        """Equals; an episode takes `delay` + 1 steps."""
        return equals(self.agents, Vector(self.cues + 1), Discrete(self.cues))

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """`cue` [env agent] and `clock` [env]."""
        device = generator.device
        cue = torch.randint(self.cues, (envs, self.agents), generator=generator, device=device)
        return {"cue": cue, "clock": torch.zeros(envs, dtype=torch.int64, device=device)}

    def advance(self, state: State, action: Int[Tensor, "env agent"], generator: torch.Generator) -> Outcome:
        """Pays the answers where agents are asked."""
        is_asked = state["clock"] == self.delay
        reward = ((action == state["cue"]) & is_asked[:, None]).to(torch.get_default_dtype())
        return Outcome({"cue": state["cue"], "clock": state["clock"] + 1}, reward, over=is_asked)

    def observe(self, state: State) -> Fields:
        """The cue at first, the question at last."""
        cue, clock = state["cue"], state["clock"][:, None, None]
        shown = embedding(cue, unit_vectors(self.cues, cue.device, torch.get_default_dtype())) * (clock == 0)
        is_asked = (clock == self.delay).to(shown.dtype).expand(-1, self.agents, 1)
        return {"obs": torch.cat((shown, is_asked), 2)}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """What each agent sees, the cue that it should remember framed."""
        cues = [int(cue) for cue in state["cue"][0]]
        rows = rows_of_agents(self.observe(state)["obs"][0, :, :-1])
        rows = [row._replace(marked=cue) for row, cue in zip(rows, cues, strict=True)]
        clock = int(state["clock"][0])
        return card("Which cue was it?" if clock == self.delay else "Remember the cue", rows, f"step {clock}")
