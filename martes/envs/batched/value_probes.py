"""Games that no action changes, so that the value of every observation is known: they examine critics."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import embedding

from martes.data import Discrete, Fields, TeamSpec, Vector
from martes.envs.batched.cards import Row, card, rows_of_agents
from martes.envs.batched.engine import Outcome, State
from martes.envs.batched.rules import equals, last, refuse_below, table, unit_vectors
from martes.errors import ConfigError


@dataclass(frozen=True)
class Lives:
    """Each agent lives through its own list of rewards, then dies alone; the game is over with the longest life.

    An agent sees the number of the step (one-hot), zeros once it is dead. With one list of one number it is the probe
    for a constant reward, with (0, 1) for a delayed one, with lists of unequal length for an agent that dies while
    others play on: a method that lets the dead bootstrap from the living, or ends the living with the dead, fails.

    Raises ConfigError where some agent has no reward.
    """

    rewards: tuple[tuple[float, ...], ...] = ((1.0,), (1.0,))
    """For each agent, what it earns at each step of its life."""

    def __post_init__(self) -> None:
        if not self.rewards or not all(self.rewards):
            raise ConfigError(f"Lives.rewards is {self.rewards}: give every agent one reward or more")

    @property
    def longest(self) -> int:
        """Steps of an episode."""
        return max(len(life) for life in self.rewards)

    @property
    def best_return(self) -> float:
        """The only return there is, on average over the agents."""
        return sum(map(sum, self.rewards)) / len(self.rewards)

    def value(self, obs: Float[Tensor, "*batch agent step"], gamma: float) -> Float[Tensor, "*batch agent"]:
        """V(t) = Σ_{k >= t} gamma^{k - t} r_k over what is left of an agent's life; 0 once it is dead."""
        known = [
            [sum(gamma**k * r for k, r in enumerate(life[t:])) for t in range(self.longest)] for life in self.rewards
        ]
        return (obs * torch.tensor(known, dtype=obs.dtype, device=obs.device)).sum(-1)

    @property
    def team(self) -> TeamSpec:
        """Equals, with two actions that do nothing."""
        return equals(len(self.rewards), Vector(self.longest), Discrete(2))

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """`clock`: the number of the step."""
        return {"clock": torch.zeros(envs, dtype=torch.int64, device=generator.device)}

    def _scheduled(self, clock: Tensor, rows: tuple[tuple[float, ...], ...]) -> Float[Tensor, "env agent"]:
        return embedding(clock, table(rows, clock.device, torch.get_default_dtype()))

    @cached_property
    def _steps(self) -> tuple[tuple[tuple[float, ...], ...], ...]:
        """What each step pays each agent, whether the agent goes on after it, and whether it lives to see it."""
        steps = range(self.longest + 1)
        pays = tuple(tuple(life[t] if t < len(life) else 0.0 for life in self.rewards) for t in steps)
        goes_on = tuple(tuple(float(t != len(life) - 1) for life in self.rewards) for t in steps)
        lives = tuple(tuple(float(t < len(life)) for life in self.rewards) for t in steps)
        return pays, goes_on, lives

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> Outcome:
        """What this step of each life pays, and whose life it ends."""
        clock, (pays, goes_on, _) = state["clock"], self._steps
        reward, discount = self._scheduled(clock, pays), self._scheduled(clock, goes_on)
        return Outcome({"clock": clock + 1}, reward, discount, over=clock == self.longest - 1)

    def observe(self, state: State) -> Fields:
        """The number of the step, for who is alive."""
        clock = state["clock"]
        alive = self._scheduled(clock, self._steps[2])
        step = embedding(clock, unit_vectors(self.longest + 1, clock.device, alive.dtype))[:, None, :-1]
        return {"obs": step * alive[..., None], "agent_mask": alive > 0}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """The rewards of each life, this step framed."""
        clock = int(state["clock"][0])
        rows = [Row(f"agent {i}", life, clock) for i, life in enumerate(self.rewards)]
        return card("What each step of a life pays", rows, f"step {clock}")


@dataclass(frozen=True)
class ObservedReward:
    """One step that pays each agent the number, -1 or 1, which it sees: a critic must read its observation.

    Raises ConfigError for no agents.
    """

    agents: int = 2
    """How many agents."""

    def __post_init__(self) -> None:
        refuse_below(self, agents=1)

    @property
    def best_return(self) -> float:
        """The mean over episodes: no action changes it."""
        return 0.0

    def value(self, obs: Float[Tensor, "*batch agent 1"], gamma: float) -> Float[Tensor, "*batch agent"]:
        """V(obs) = obs."""
        return obs[..., 0]

    @property
    def team(self) -> TeamSpec:
        """Equals, with two actions that do nothing."""
        return equals(self.agents, Vector(1), Discrete(2))

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """`number` [env agent]."""
        coin = torch.randint(2, (envs, self.agents), generator=generator, device=generator.device)
        return {"number": (2 * coin - 1).to(torch.get_default_dtype())}

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> Outcome:
        """Pays the number."""
        return last(state, state["number"])

    def observe(self, state: State) -> Fields:
        """The number."""
        return {"obs": state["number"][..., None]}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """Each agent's number."""
        return card("You get what you see", rows_of_agents(state["number"][0, :, None]))


@dataclass(frozen=True)
class TimeLimit:
    """1 at every step, for ever; time limits cut it into episodes that nothing distinguishes.

    Only who bootstraps at the cut finds V = 1 / (1 - gamma); who takes the limit for an end finds less.

    Raises ConfigError for an option below its lowest value.
    """

    agents: int = 2
    """How many agents."""
    episode_limit: int = 5
    """Steps after which an episode is cut."""

    def __post_init__(self) -> None:
        refuse_below(self, agents=1, episode_limit=1)

    @property
    def best_return(self) -> float:
        """The only return there is, up to the cut."""
        return float(self.episode_limit)

    def value(self, obs: Float[Tensor, "*batch agent 1"], gamma: float) -> Float[Tensor, "*batch agent"]:
        """V = 1 / (1 - gamma)."""
        return obs[..., 0] / (1 - gamma)

    @property
    def team(self) -> TeamSpec:
        """Equals, with two actions that do nothing."""
        return equals(self.agents, Vector(1), Discrete(2), episode_limit=self.episode_limit)

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """`pay` [env agent], always 1."""
        return {"pay": torch.ones(envs, self.agents, device=generator.device)}

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> Outcome:
        """Pays 1."""
        return Outcome(state, state["pay"])

    def observe(self, state: State) -> Fields:
        """1: no clock is seen."""
        return {"obs": state["pay"][..., None]}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """What each agent earns."""
        rows = rows_of_agents(state["pay"][0, :, None])
        return card("1 at every step", rows, f"cut every {self.episode_limit} steps")
