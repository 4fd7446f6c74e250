"""A team that acts in turn: an encoder that all agents share, and a decoder that knows what those before chose."""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args, get_origin, get_type_hints, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from martes.data import Field, Memory, TeamSpec, Workspace
from martes.errors import ConfigError, DataError
from martes.networks.actions import ActionTokens, Choices
from martes.networks.blocks import Body, Network
from martes.networks.critics import ValueHead
from martes.networks.layers import RMSNorm, head_body, without_autocast
from martes.networks.sharing import Sharing, Slots, slot_of_agents
from martes.networks.stacked import StackedLinear
from martes.networks.temporal import Inputs, Outputs, TemporalModule
from martes.networks.units import Units

UNROLLED = 16
"""Members of the largest team whose whole step is compiled; in larger ones it is a turn, since compiling takes long."""

StepTokens = Float[Tensor, "env agent size"]
WindowTokens = Float[Tensor, "time env agent size"]


@dataclass(frozen=True)
class TurnShape:
    """What every network of a team that acts in turn is told."""

    size: int = 64
    """Width of the tokens."""
    heads: int = 1
    """Heads of each attention or retention; they share the width."""
    layers: int = 1
    """Blocks of the encoder, and of the decoder."""
    agent_id: bool = True
    """Tell agents that share parameters which of them they are?"""
    names_actions: bool = False
    """Does the token of an action say whose it was?"""
    order: Literal["fixed", "drawn"] = "fixed"
    """Who acts first: always the team's first, or, whenever actions are drawn, an order that is drawn and recorded."""
    normalise: bool = False
    """Standardise observations by running statistics, which move only when learning?"""
    channels: tuple[int, ...] = (16, 32)
    """Channels of the convolutions (3x3, stride 2) that read an image."""
    recompute: bool = False
    """Compute each block again in the backward pass rather than keep what it computed? Less memory, more time."""
    feed_forward_size: int | None = None
    """Units of the layer after each attention or retention; none: as many as the tokens are wide."""

    def __post_init__(self) -> None:
        if self.feed_forward_size is not None and self.feed_forward_size < 1:
            raise ConfigError(f"network.feed_forward_size is {self.feed_forward_size}: it must be an integer >= 1")
        for name in ("size", "heads", "layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"network.{name} is {getattr(self, name)}: it must be an integer >= 1")
        if self.size % self.heads:
            raise ConfigError(f"network.size is {self.size}, which {self.heads} heads cannot share: make it a multiple")
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise ConfigError(f"network.{name} is {value!r}: it must be {' or '.join(get_args(kind))}")

    def norm_layer(self) -> nn.Module:
        """A norm of tokens, such as this network has."""
        return RMSNorm(self.size)

    def core(self, outputs: int, generator: torch.Generator) -> "EncoderDecoder":
        """The network itself, with `outputs` scores an agent."""
        raise NotImplementedError(f"{type(self).__name__} must define core")


@runtime_checkable
class Turns(Protocol):
    """One time step, in which agents act one after the other."""

    tokens: StepTokens
    """Representations of what the agents observe."""

    @property
    def carried(self) -> object:
        """What the first turn is told of turns before it: a tree of tensors, as is what the others are told."""
        ...

    def seen(self, turn: int) -> object:
        """What is known of who is next, before anybody acts: a tree of tensors; turns go 0, 1, …"""
        ...

    def memory(self, carried: object) -> Memory:
        """The memory after the last turn."""
        ...


@runtime_checkable
class Window(Protocol):
    """Many time steps, all choices known."""

    tokens: WindowTokens
    """Representations of what the agents observe."""

    def scores(self, told: WindowTokens) -> Float[Tensor, "time env agent output"]:
        """Scores of the actions of every agent, after tokens that tell of the actions before."""
        ...

    def memory(self) -> Memory:
        """The memory after the last step."""
        ...


@runtime_checkable
class EncoderDecoder(Protocol):
    """What a team thinks with: Sable's retention, or MAT's attention. Agents stand in the order in which they act."""

    turns_alike: bool
    """Has what goes from turn to turn the same shape in all of them?"""

    def initial_memory(self, envs: int) -> Memory:
        """The memory at the start of an episode."""
        ...

    def observed(self, x: StepTokens, there: Bool[Tensor, "env agent"], memory: Memory) -> StepTokens:
        """Representations of what the agents observe in one step: all that a value needs."""
        ...

    def step(self, x: StepTokens, there: Bool[Tensor, "env agent"], memory: Memory) -> Turns:
        """One step of acting."""
        ...

    def turn(self, told: StepTokens, seen: object, carried: object) -> tuple[Float[Tensor, "env turn output"], object]:
        """Scores of the actions of who is next, after a token that tells of the action before, and what goes on."""
        ...

    def sequence(
        self, x: WindowTokens, there: Bool[Tensor, "time env agent"], memory: Memory, start: Bool[Tensor, "time env"]
    ) -> Window:
        """A window to learn from."""
        ...


class AutoregressiveTeam(TemporalModule):
    """Policy and value of a whole team, whose agents act in turn: π(a | o) = Π_i π(a_i | o, a_1 … a_{i−1}).

    `log_prob` is that of each agent given the agents before it; a value depends on observations alone. Absent agents
    are as if they were not in the team. An action that the environment forces is what the later agents know of.
    Source: Wen et al. 2022 (MAT), equations 4 to 6; Mahjoub et al. 2025 (Sable).
    """

    natural: Tensor

    def __init__(self, team: TeamSpec, shape: TurnShape, sharing: Sharing, generator: torch.Generator) -> None:
        super().__init__()
        self.agents = team.size
        self.slots = Slots(slot_of_agents(team, sharing))
        entry = Network(
            hidden=(shape.size,),
            activation="gelu",
            agent_id=shape.agent_id,
            normalise=shape.normalise,
            channels=shape.channels,
        )
        self.body = Body(team.parts, self.slots.widest(team.observation_sizes), self.slots, entry, generator)
        self.choices = Choices(team, self.slots)
        speakers = Slots(tuple(range(team.size))) if shape.names_actions else self.slots
        self.tokens = ActionTokens(team, speakers, shape.size, generator)
        self.core = shape.core(self.choices.outputs, generator)
        self.value_body = head_body(shape.norm_layer(), shape.size, generator)
        self.head = ValueHead(StackedLinear((shape.size,), 1, generator, gain=0.01))
        self.order = ("order",) if shape.order == "drawn" else ()
        self.given = (self.choices.choice, *self.order)
        self.hot = ("step",) if team.size <= UNROLLED else ("turn",) if self.core.turns_alike else ()
        self.register_buffer("natural", torch.arange(team.size), persistent=False)
        self.reads = (*self.body.reads, *self.choices.reads)
        self.writes = (*self.choices.writes, *self.order, "value")

    def units(self) -> dict[str, Units]:
        """The channels that read images; the width of the tokens is no layer's own."""
        return {name: each for name, each in self.body.units_read_at().items() if name.startswith("channels")}

    def fields(self) -> dict[str, Field]:
        """What it adds to a team's schema."""
        value = Field(writer="the policy", doc="V of this step when it was recorded, in units of the return")
        order = Field(writer="the policy", dtype=torch.int64, doc="who acts first, second, … in this step")
        return {**self.choices.fields(), **dict.fromkeys(self.order, order), "value": value}

    def initial_memory(self, envs: int) -> Memory:
        """That of the encoder and decoder."""
        return self.core.initial_memory(envs)

    def noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """What one drawn step consumes."""
        drawn = self.choices.noise(envs, generator)
        for name in self.order:
            drawn[name] = torch.rand(envs, self.agents, generator=generator, device=generator.device).argsort(1)
        return drawn

    def observe(self, inputs: Inputs) -> None:
        """Moves the statistics of observation normalisation."""
        self.body.observe(inputs, inputs["agent_mask"])

    def valued(self, batch: Workspace) -> Bool[Tensor, "time env agent"]:
        """Where values are learned: an agent's own steps."""
        return batch.mask

    def clipped_together(self) -> dict[str, tuple[nn.Module, int]]:
        """All of it: what the team shares is learned jointly."""
        return {"team": (self, 1)}

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """Choices of one step, drawn or scored agent by agent, and the value."""
        order = inputs.get("order")
        there = in_order(inputs["agent_mask"], order)
        turns = self.core.step(in_order(self._observed(inputs), order), there, memory)
        told, carried = self.tokens.first((len(there), 1)), turns.carried
        taken: list[tuple[Tensor, ...]] = []
        wanted = {
            name: in_order(each, order) for name, each in inputs.items() if name not in (*self.body.reads, "order")
        }
        places = self.natural if order is None else order
        for turn in range(self.agents):  # the one loop that is the algorithm: each knows what the others chose
            now = slice(turn, turn + 1)
            mine = {name: each[:, now] for name, each in wanted.items()}
            told, chosen, carried = self.turn(told, turns.seen(turn), carried, mine, places[..., now])
            taken.append(chosen)
        scores, sample, action = (in_place(torch.cat(each, dim=1), order) for each in zip(*taken, strict=True))
        outputs = self.choices.scored(scores, sample, inputs) | {"action": action}
        outputs["value"] = self._values(in_place(turns.tokens, order), inputs["agent_mask"])
        for name in self.order:
            outputs[name] = places.expand_as(there)
        return outputs, turns.memory(carried)

    def turn(
        self, told: Tensor, seen: object, carried: object, mine: Inputs, who: Int64[Tensor, "*each turn"]
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], object]:
        """What is told of the action of who is next; its scores, choice and action; and what goes on to later turns."""
        scores, carried = self.core.turn(self.tokens(told), seen, carried)
        sample = self.choices.sample(scores, mine, who)
        action = self.choices.action(sample, mine, who)
        told = torch.where(mine["agent_mask"].unsqueeze(2), self.tokens.content(action, who), told)
        return told, (scores, sample, action), carried

    def value(self, inputs: Inputs, memory: Memory) -> Float[Tensor, "env agent"]:
        """V of one time step: of the encoder alone, in which nobody is before another."""
        there = inputs["agent_mask"]
        return self._values(self.core.observed(self._observed(inputs), there, memory), there)

    def sequence(self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]) -> tuple[Outputs, Memory]:
        """Scores of the recorded choices of a window and its values, all at once; without choices, a loop.

        Raises DataError where choices were recorded in an order that is not given.
        """
        choice = self.choices.choice
        if choice not in inputs:
            return super().sequence(inputs, memory, start)
        if self.order and "order" not in inputs:
            raise DataError("these agents act in an order that is drawn: replay it with given=(…, 'order')")
        order = inputs.get("order")
        there = in_order(inputs["agent_mask"], order)
        window = self.core.sequence(in_order(self._observed(inputs), order), there, memory, start)
        action = self.choices.action(inputs[choice], inputs)
        told = self.tokens.previous(in_order(self.tokens.content(action), order), there)
        scores = in_place(window.scores(self.tokens(told)), order)
        outputs = self.choices.scored(scores, inputs[choice], inputs)
        outputs |= {"action": action, "value": self._values(in_place(window.tokens, order), inputs["agent_mask"])}
        return outputs, window.memory()

    def _observed(self, inputs: Inputs) -> Float[Tensor, "*lead agent size"]:
        """Features of what the agents observe."""
        return self.slots.unstacked(self.body.features(inputs), tuple(inputs["agent_mask"].shape[:-1]))

    def _values(self, tokens: Float[Tensor, "*lead agent size"], there: Tensor) -> Float[Tensor, "*lead agent"]:
        flat = self.value_body(tokens).flatten(0, -2).unsqueeze(0)
        with without_autocast(flat.device):
            return self.head(flat).view(there.shape) * there  # what an absent agent may still expect is 0


def in_order(x: Tensor, order: Tensor | None) -> Tensor:
    """What belongs to agents, `*lead agent ...`, as they act: first the one who is first in `order`."""
    if order is None:
        return x
    axis = order.ndim - 1
    index = order.reshape(*order.shape, *(1,) * (x.ndim - order.ndim)).expand(*order.shape, *x.shape[axis + 1 :])
    return x.gather(axis, index)


def in_place(x: Tensor, order: Tensor | None) -> Tensor:
    """The inverse of `in_order`."""
    return x if order is None else in_order(x, order.argsort(-1))
