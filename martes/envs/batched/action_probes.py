"""Games of one step whose right action can be read off the observation: they examine policies and their bodies."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import embedding

from martes.data import Continuous, Discrete, Fields, Image, MultiDiscrete, TeamSpec, Vector
from martes.envs.batched.cards import Row, card, numbers, photograph, rows_of_agents
from martes.envs.batched.engine import Outcome, State
from martes.envs.batched.rules import equals, last, refuse_below, table, unit_vectors
from martes.errors import ConfigError


@dataclass(frozen=True)
class UnequalTeam:
    """Scouts and haulers see and do different things: 1 for each agent that reads its own signal right.

    A scout sees one of 2 signals and has 4 actions, of which 3 · signal is right. A hauler sees one of 5 signals and
    has 3 actions, of which signal mod 3 is right. Signals are one-hot.

    Raises ConfigError where a group is empty.
    """

    scouts: int = 1
    """How many scouts."""
    haulers: int = 2
    """How many haulers."""

    RIGHT = ((0.0, 3.0, 0.0, 0.0, 0.0), (0.0, 1.0, 2.0, 0.0, 1.0))
    """The right action of scouts and of haulers for each signal."""

    def __post_init__(self) -> None:
        refuse_below(self, scouts=1, haulers=1)

    @property
    def best_return(self) -> float:
        """Every action is right."""
        return 1.0

    @property
    def chance_return(self) -> float:
        """The mean over agents that choose evenly among the actions they have."""
        return (self.scouts / 4 + self.haulers / 3) / (self.scouts + self.haulers)

    @property
    def team(self) -> TeamSpec:
        """Two groups that are unequal in everything."""
        agents = self.scouts + self.haulers
        names = *(f"scout_{i}" for i in range(self.scouts)), *(f"hauler_{i}" for i in range(self.haulers))
        return TeamSpec(
            agents=names,
            groups={"scout": tuple(range(self.scouts)), "hauler": tuple(range(self.scouts, agents))},
            observation={"scout": Vector(2), "hauler": Vector(5)},
            action={"scout": Discrete(4), "hauler": Discrete(3)},
        )

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """`signal` [env agent]."""
        drawn = torch.rand(envs, self.scouts + self.haulers, generator=generator, device=generator.device)
        signal = torch.cat((2 * drawn[:, : self.scouts], 5 * drawn[:, self.scouts :]), 1).long()
        return {"signal": signal}

    def advance(self, state: State, action: Int[Tensor, "env agent"], generator: torch.Generator) -> Outcome:
        """1 where the action is right."""
        signal = state["signal"]
        scouts, haulers = table(self.RIGHT, signal.device, torch.get_default_dtype())
        right = torch.cat((scouts[signal[:, : self.scouts]], haulers[signal[:, self.scouts :]]), 1)
        return last(state, (action == right).to(right.dtype))

    def observe(self, state: State) -> Fields:
        """The signal, padded to the haulers' five."""
        return {"obs": embedding(state["signal"], unit_vectors(5, state["signal"].device, torch.get_default_dtype()))}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """The signals."""
        seen, sizes = self.observe(state)["obs"][0], self.team.observation_sizes
        rows = [Row(name, numbers(seen[i, : sizes[i]])) for i, name in enumerate(self.team.agents)]
        return card("Each reads its own signal", rows)


@dataclass(frozen=True)
class Aim:
    """A vector of real numbers should hit a target: reward = -mean_k ((a_k - target_k) / h_k)².

    The observation o is drawn evenly from [-1, 1] in each dimension; with the middle m and half the width h of the
    actions' box, target = m + h · o / 2. The best policy earns 0.

    Raises ConfigError where the box is empty.
    """

    agents: int = 1
    """How many agents."""
    low: tuple[float, ...] = (-1.0, 0.0)
    """The least action, for each dimension."""
    high: tuple[float, ...] = (1.0, 4.0)
    """The greatest action, for each dimension."""

    def __post_init__(self) -> None:
        refuse_below(self, agents=1)
        if (
            len(self.low) != len(self.high)
            or not self.low
            or any(a >= b for a, b in zip(self.low, self.high, strict=True))
        ):
            raise ConfigError(
                f"Aim.low is {self.low}, Aim.high {self.high}: give as many of both, each low below its high"
            )

    @property
    def best_return(self) -> float:
        """Every target is hit."""
        return 0.0

    @property
    def chance_return(self) -> float:
        """Actions spread evenly over the box: E (u - o / 2)² with u, o even on [-1, 1]."""
        return -(1 / 3 + 1 / 12)

    def target(self, obs: Float[Tensor, "*batch dimension"]) -> Float[Tensor, "*batch dimension"]:
        """The action that earns 0."""
        low, high = table((self.low, self.high), obs.device, obs.dtype)
        return (low + high) / 2 + obs * (high - low) / 4

    @property
    def team(self) -> TeamSpec:
        """Equals."""
        return equals(self.agents, Vector(len(self.low)), Continuous(self.low, self.high))

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """`seen` [env agent dimension]."""
        drawn = torch.rand(envs, self.agents, len(self.low), generator=generator, device=generator.device)
        return {"seen": 2 * drawn - 1}

    def advance(
        self, state: State, action: Float[Tensor, "env agent dimension"], generator: torch.Generator
    ) -> Outcome:
        """Pays minus the square of the miss."""
        low, high = table((self.low, self.high), action.device, state["seen"].dtype)
        miss = (action - self.target(state["seen"])) / ((high - low) / 2)
        return last(state, -miss.square().mean(-1))

    def observe(self, state: State) -> Fields:
        """What the target depends on."""
        return {"obs": state["seen"]}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """The targets."""
        return card("Hit these numbers", rows_of_agents(self.target(state["seen"])[0]))


@dataclass(frozen=True)
class Combination:
    """A lock with several dials: the share of dials that are set to the digit shown.

    An agent sees one digit for each dial (each one-hot, joined) and sets all dials in one multi-discrete action.

    Raises ConfigError for a dial with fewer than 2 digits.
    """

    agents: int = 1
    """How many agents, each with a lock of its own."""
    dials: tuple[int, ...] = (2, 3)
    """How many digits each dial has."""

    def __post_init__(self) -> None:
        refuse_below(self, agents=1)
        if not self.dials or min(self.dials) < 2:
            raise ConfigError(f"Combination.dials is {self.dials}: give one dial or more, each with 2 digits or more")

    @property
    def best_return(self) -> float:
        """Every dial is right."""
        return 1.0

    @property
    def chance_return(self) -> float:
        """The mean over dials of 1 / digits."""
        return sum(1 / digits for digits in self.dials) / len(self.dials)

    @property
    def team(self) -> TeamSpec:
        """Equals."""
        return equals(self.agents, Vector(sum(self.dials)), MultiDiscrete(self.dials))

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """`digit` [env agent dial]."""
        drawn = torch.rand(envs, self.agents, len(self.dials), generator=generator, device=generator.device)
        return {"digit": (drawn * drawn.new_tensor(self.dials)).long()}

    def advance(self, state: State, action: Int[Tensor, "env agent dial"], generator: torch.Generator) -> Outcome:
        """Pays the share of right dials."""
        return last(state, (action == state["digit"]).to(torch.get_default_dtype()).mean(-1))

    def observe(self, state: State) -> Fields:
        """The digits."""
        digit, dtype = state["digit"], torch.get_default_dtype()
        shown = [embedding(digit[..., k], unit_vectors(n, digit.device, dtype)) for k, n in enumerate(self.dials)]
        return {"obs": torch.cat(shown, -1)}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """The digits."""
        return card("Set the dials", rows_of_agents(state["digit"][0]))


@dataclass(frozen=True)
class Picture:
    """A picture of bytes with one bright quarter: 1 for naming it (0 top left, 1 top right, 2 and 3 below).

    With `compass`, the picture shows a bright top or bottom half only, and a number beside it (-1 left, 1 right) tells
    the rest: the observation has two parts, `obs/camera` and `obs/vector`, and needs both.

    Raises ConfigError where the picture is too small or cannot be cut in halves.
    """

    agents: int = 1
    """How many agents, each with a picture of its own."""
    size: int = 16
    """Height and width in pixels, an even number."""
    compass: bool = False
    """Is half of the answer told by a number beside the picture?"""

    def __post_init__(self) -> None:
        refuse_below(self, agents=1, size=2)
        if self.size % 2:
            raise ConfigError(f"Picture.size is {self.size}: it must be even, to be cut in halves")

    @property
    def best_return(self) -> float:
        """Every quarter is named."""
        return 1.0

    @property
    def chance_return(self) -> float:
        """One answer in four is right."""
        return 0.25

    @property
    def team(self) -> TeamSpec:
        """Equals."""
        camera = Image((1, self.size, self.size))
        return equals(self.agents, {"camera": camera, "vector": Vector(1)} if self.compass else camera, Discrete(4))

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """`quarter` [env agent]."""
        return {"quarter": torch.randint(4, (envs, self.agents), generator=generator, device=generator.device)}

    def advance(self, state: State, action: Int[Tensor, "env agent"], generator: torch.Generator) -> Outcome:
        """1 where the quarter is named."""
        return last(state, (action == state["quarter"]).to(torch.get_default_dtype()))

    def observe(self, state: State) -> Fields:
        """The picture, and with `compass` the number."""
        quarter = state["quarter"]
        half = torch.arange(self.size, device=quarter.device) >= self.size // 2
        row = half == (quarter >= 2)[..., None]
        if self.compass:
            bright = row[..., None].expand(-1, -1, -1, self.size)
            side = (2 * (quarter % 2) - 1).to(torch.get_default_dtype())
            return {"obs/camera": 255 * bright[:, :, None].to(torch.uint8), "obs/vector": side[..., None]}
        column = half == (quarter % 2 == 1)[..., None]
        bright = row[..., None] & column[..., None, :]  # env agent height width
        return {"obs": 255 * bright[:, :, None].to(torch.uint8)}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """What the first agent sees."""
        seen = self.observe(state)
        if not self.compass:
            return photograph("Which quarter is bright?", seen["obs"][0, 0, 0].numpy())
        side = "right" if seen["obs/vector"][0, 0, 0] > 0 else "left"
        return photograph("Which quarter is it?", seen["obs/camera"][0, 0, 0].numpy(), f"the number says {side}")
