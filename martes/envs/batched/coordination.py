"""A game of agreement that a fixed convention wins only by half."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn.functional import embedding

from martes.data import Discrete, Fields, TeamSpec, Vector
from martes.envs.batched.cards import Row, card, numbers
from martes.envs.batched.engine import Outcome, State
from martes.envs.batched.rules import equals, refuse_below, unit_vectors


@dataclass(frozen=True)
class CoordSum:
    """The agents' actions should sum to a target, but the first agent should not be predictable.

    All see the target (one-hot, drawn evenly at every step). They share a reward of 2 if their actions sum to it, but
    of 1 if the first agent's action is the one that it has chosen most often for this target in this episode (the
    lowest of several; 0 if the target is new), else of 0. Target 0 can be met in one way only, so that the best mean
    return is `episode_limit` (2 - 1 / `actions`).

    Raises ConfigError for an option below its lowest value. Source: Mahjoub et al. (2024), "Sable: a Performant,
    Efficient and Scalable Sequence Model for MARL".
    """

    agents: int = 3
    """How many agents add up."""
    actions: int = 10
    """How many actions each has, 0 and up; as many targets."""
    episode_limit: int = 100
    """Steps after which an episode is cut."""

    def __post_init__(self) -> None:
        refuse_below(self, agents=2, actions=2, episode_limit=1)

    @property
    def best_return(self) -> float:
        """2 at every step, 1 where the target is 0; the mean over targets."""
        return self.episode_limit * (2 - 1 / self.actions)

    @property
    def convention_return(self) -> float:
        """What a fixed way to meet each target earns, once each was met."""
        return float(self.episode_limit)

    @property
    def team(self) -> TeamSpec:
        """Equals."""
        return equals(self.agents, Vector(self.actions), Discrete(self.actions), episode_limit=self.episode_limit)

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """`target` [env] and `chosen` [env target action]: how often the first agent met a target with an action."""
        device = generator.device
        chosen = torch.zeros(envs, self.actions, self.actions, dtype=torch.int32, device=device)
        return {"target": self._drawn(envs, generator), "chosen": chosen}

    def _drawn(self, envs: int, generator: torch.Generator) -> Int[Tensor, "env"]:
        return torch.randint(self.actions, (envs,), generator=generator, device=generator.device)

    def advance(self, state: State, action: Int[Tensor, "env agent"], generator: torch.Generator) -> Outcome:
        """Pays the sum, then remembers what the first agent did."""
        target, chosen, first = state["target"], state["chosen"], action[:, 0].long()
        row = torch.arange(len(target), device=target.device)
        is_met = action.sum(1) == target
        is_predicted = chosen[row, target].argmax(1) == first
        reward = (is_met * (2 - is_predicted.to(torch.get_default_dtype())))[:, None].expand(-1, self.agents)
        once = torch.ones((), dtype=chosen.dtype, device=chosen.device)
        remembered = chosen.index_put((row, target, first), once, accumulate=True)
        return Outcome({"target": self._drawn(len(target), generator), "chosen": remembered}, reward)

    def observe(self, state: State) -> Fields:
        """The target, for everyone."""
        target = embedding(
            state["target"], unit_vectors(self.actions, state["target"].device, torch.get_default_dtype())
        )
        return {"obs": target[:, None].expand(-1, self.agents, -1)}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """How often the first agent met each target with each action, the target's row framed at the best guess."""
        target, chosen = int(state["target"][0]), state["chosen"][0]
        guess = int(chosen[target].argmax())
        rows = [Row(f"target {i}", numbers(row), guess if i == target else None) for i, row in enumerate(chosen)]
        return card(f"Sum to {target}, but not with {guess} first", rows, "columns: actions of the first agent so far")
