"""Sable: a team as one sequence, over agents and over time, by retention. Agents observe together and act in turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from martes.data import Field, Memory, TeamSpec
from martes.errors import ConfigError
from martes.networks.actions import ActionTokens, Choices
from martes.networks.blocks import Body, Network, StackedLinear
from martes.networks.critics import ValueHead
from martes.networks.retention import (
    Evaluation,
    Heads,
    MultiScaleRetention,
    RMSNorm,
    chunkwise,
    decays,
    recurrent,
    without_autocast,
)
from martes.networks.sharing import Sharing, Slots, slot_of_agents
from martes.networks.temporal import Inputs, Outputs, TemporalModule

Tokens = Float[Tensor, "env token size"]
Times = Float[Tensor, "env #token size"]
"""The encoding of time of each token, or of all tokens of a step."""


@dataclass(frozen=True)
class SableShape:
    """The shape of a Sable network."""

    size: int = 64
    """Width of the tokens."""
    heads: int = 1
    """Retention heads, each with a decay of its own; they share the width."""
    layers: int = 1
    """Blocks of the encoder, and of the decoder."""
    memory: bool = True
    """Remember earlier steps? Without it each step stands alone (ff-Sable)."""
    decay_scale: float = 0.8
    """Scale s of the decays: at 1 the memory reaches over 32 to 512 steps, at 0.8 over about 5, at 0 over none."""
    chunk_size: int = 64
    """Tokens (agents times steps) evaluated at once when learning: speed and memory, never a result."""
    time_encoding: bool = True
    """Tell the network how many steps the episode has lasted? (Only with memory.)"""
    feed_forward: bool = True
    """Follow each retention by a gated layer?"""
    agent_id: bool = True
    """Tell agents that share parameters which of them they are?"""
    names_actions: bool = False
    """Does the token of an action say whose it was?"""
    normalise: bool = False
    """Standardise observations by running statistics, which move only when learning?"""
    channels: tuple[int, ...] = (16, 32)
    """Channels of the convolutions (3x3, stride 2) that read an image."""

    def __post_init__(self) -> None:
        for name in ("size", "heads", "layers", "chunk_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"network.{name} is {getattr(self, name)}: it must be an integer >= 1")
        if self.size % self.heads:
            raise ConfigError(f"network.size is {self.size}, which {self.heads} heads cannot share: make it a multiple")
        decays(self.heads, self.decay_scale)


class SwiGLU(nn.Module):
    """(swish(x W_g) ⊙ x W_l) W_o: a gated layer of the tokens' own width. Source: Shazeer 2020, equation 6.

    The last map begins small, so a block begins near the identity; at 0 all three would stay there for ever.
    """

    def __init__(self, size: int, generator: torch.Generator) -> None:
        super().__init__()
        weights = torch.empty(3, size, size, device=generator.device)
        for weight, gain in zip(weights, (1.0, 1.0, 0.1), strict=True):
            nn.init.orthogonal_(weight, gain, generator=generator)
        self.inward = nn.Parameter(weights[:2].flatten(0, 1))
        self.outward = nn.Parameter(weights[2])

    def forward(self, x: Tokens) -> Tokens:
        """The image of every token."""
        gate, linear = functional.linear(x, self.inward).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * linear, self.outward)


class Residual(nn.Module):
    """norm(x + feed-forward(x)), or x itself where there is no such layer."""

    def __init__(self, shape: SableShape, generator: torch.Generator) -> None:
        super().__init__()
        self.layer = SwiGLU(shape.size, generator) if shape.feed_forward else None
        self.norm = RMSNorm(shape.size) if shape.feed_forward else None

    def forward(self, x: Tokens) -> Tokens:
        """The tokens, transformed."""
        return x if self.layer is None or self.norm is None else self.norm(x + self.layer(x))


def head_body(size: int, generator: torch.Generator) -> nn.Sequential:
    """Linear, GELU, RMSNorm: what comes before the last map of values and of scores."""
    linear = nn.Linear(size, size, device=generator.device)
    nn.init.orthogonal_(linear.weight, 2**0.5, generator=generator)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.GELU(), RMSNorm(size))


class Seen(NamedTuple):
    """What the decoder knows of the agents' observations before anybody acts."""

    tokens: Tokens
    queries: tuple[Heads, ...]
    """What these tokens ask of the actions, a block."""
    clock: Times | None
    """The encoding of time, which is added wherever tokens ask or are remembered."""

    def of(self, agents: slice) -> "Seen":
        """The part of some agents of one step."""
        return Seen(self.tokens[:, agents], tuple(each[:, agents] for each in self.queries), self.clock)


States = Sequence[Tensor | None]
"""The state of each block [env head key value], or None where nothing was before."""


class Encoder(nn.Module):
    """Representations of what the agents observe; each step sees all of its agents and the steps before."""

    def __init__(self, shape: SableShape, generator: torch.Generator) -> None:
        super().__init__()
        blocks = range(shape.layers)
        self.norm = RMSNorm(shape.size)
        self.retentions = nn.ModuleList(MultiScaleRetention(shape.size, shape.heads, generator) for _ in blocks)
        self.norms = nn.ModuleList(RMSNorm(shape.size) for _ in blocks)
        self.residuals = nn.ModuleList(Residual(shape, generator) for _ in blocks)

    def forward(
        self, x: Tokens, clock: Times | None, evaluate: Evaluation, states: States
    ) -> tuple[Tokens, list[Tensor | None]]:
        """The representation of every token, and the states after the last. One norm precedes every block."""
        after: list[Tensor | None] = []
        for retention, norm, residual, before in zip(self.retentions, self.norms, self.residuals, states, strict=True):
            x = self.norm(x)
            retained, state = retention(_timed(x, clock), evaluate, before)
            x = residual(norm(x + retained))
            after.append(state)
        return x, after


class Decoder(nn.Module):
    """Scores of the actions of each agent, from what was observed and from the actions of the agents before it."""

    def __init__(self, shape: SableShape, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        blocks = range(shape.layers)
        self.norm = RMSNorm(shape.size)
        self.own = nn.ModuleList(MultiScaleRetention(shape.size, shape.heads, generator) for _ in blocks)
        self.crossed = nn.ModuleList(MultiScaleRetention(shape.size, shape.heads, generator) for _ in blocks)
        self.own_norms = nn.ModuleList(RMSNorm(shape.size) for _ in blocks)
        self.crossed_norms = nn.ModuleList(RMSNorm(shape.size) for _ in blocks)
        self.residuals = nn.ModuleList(Residual(shape, generator) for _ in blocks)
        self.head = head_body(shape.size, generator)
        self.scores = nn.Linear(shape.size, outputs, device=generator.device)
        # A small last layer starts the policy near uniform.
        nn.init.orthogonal_(self.scores.weight, 0.01, generator=generator)
        nn.init.zeros_(self.scores.bias)

    def seen(self, tokens: Tokens, clock: Times | None) -> Seen:
        """What is known before anybody acts; the queries of all agents and blocks at once."""
        timed = _timed(tokens, clock)
        queries = tuple(each.queries(timed) for each in self.crossed if isinstance(each, MultiScaleRetention))
        return Seen(tokens, queries, clock)

    def forward(
        self, x: Tokens, seen: Seen, evaluate: Evaluation, states: Sequence[States]
    ) -> tuple[Float[Tensor, "env token output"], tuple[list[Tensor | None], ...]]:
        """Scores of each token's agent, and the states (own, crossed) of each block after the last token.

        A block retains the actions, then lets the observations ask what was retained; its outcome takes the place of
        the actions in the next block.
        """
        x = self.norm(x)
        after: tuple[list[Tensor | None], ...] = ([], [])
        for block, (own, crossed) in enumerate(zip(*states, strict=True)):
            retained, state = self.own[block](_timed(x, seen.clock), evaluate, own)
            after[0].append(state)
            context = self.own_norms[block](x + retained)
            asked = self.crossed[block](_timed(context, seen.clock), evaluate, crossed, seen.queries[block])
            after[1].append(asked[1])
            x = self.residuals[block](self.crossed_norms[block](seen.tokens + asked[0]))
        return self.scores(self.head(x)), after


class Clock(nn.Module):
    """The sinusoid of the steps since an episode began. Source: Vaswani et al. 2017, section 3.5."""

    frequency: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        even = torch.arange(0, size, 2, dtype=torch.float64)
        self.register_buffer("frequency", (10000 ** (-even / size)).float(), persistent=False)
        self.size = size

    def forward(self, elapsed: Int64[Tensor, "env time"]) -> Float[Tensor, "env time size"]:
        """sin(p w_m) and cos(p w_m) in turn, w_m = 10000^(−2m/E), after p steps; computed, so an episode may last."""
        angle = elapsed.unsqueeze(2) * self.frequency
        return torch.stack((angle.sin(), angle.cos()), dim=3).flatten(2)[:, :, : self.size]


class Sable(TemporalModule):
    """Policy and value of a whole team: an encoder that all agents share, and a decoder in which they act in turn.

    π(a | o) = Π_i π(a_i | o, a_1 … a_{i−1}); `log_prob` is that of each agent given the agents before it. To act is
    recurrent, at a cost that does not grow with the episode; to learn is chunkwise. Absent agents are as if they were
    not in the team. An action that the environment forces is what the later agents know of.
    Source: Mahjoub et al. 2025, on the encoder and decoder of Wen et al. 2022.
    """

    decay: Tensor

    def __init__(self, team: TeamSpec, shape: SableShape, sharing: Sharing, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
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
        self.encoder = Encoder(shape, generator)
        self.value_body = head_body(shape.size, generator)
        self.head = ValueHead(StackedLinear((shape.size,), 1, generator, gain=0.01))
        self.choices = Choices(team, self.slots)
        speakers = Slots(tuple(range(team.size))) if shape.names_actions else self.slots
        self.tokens = ActionTokens(team, speakers, shape.size, generator)
        self.decoder = Decoder(shape, self.choices.outputs, generator)
        self.clock = Clock(shape.size) if shape.memory and shape.time_encoding else None
        self.register_buffer("decay", decays(shape.heads, shape.decay_scale), persistent=False)
        self.choice = self.choices.choice
        self.reads = (*self.body.reads, *self.choices.reads)
        self.writes = (*self.choices.writes, "value")

    def fields(self) -> dict[str, Field]:
        """What it adds to a team's schema."""
        doc = "V of this step when it was recorded, in units of the return"
        return {**self.choices.fields(), "value": Field(writer="the policy", doc=doc)}

    def initial_memory(self, envs: int) -> Memory:
        """Zero states `env layer head key value` of encoder and decoder, and 0 steps `env`; () without memory."""
        if not self.shape.memory:
            return ()
        feature = self.shape.size // self.shape.heads
        sizes = (envs, self.shape.layers, self.shape.heads, feature, feature)
        zeros = torch.zeros(3, *sizes, device=self.decay.device).unbind()
        elapsed = torch.zeros(envs, dtype=torch.int64, device=self.decay.device)
        return {"encoder": zeros[0], "own": zeros[1], "crossed": zeros[2], "elapsed": elapsed}

    def noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """What one drawn step consumes."""
        return self.choices.noise(envs, generator)

    def observe(self, inputs: Inputs) -> None:
        """Moves the statistics of observation normalisation."""
        self.body.observe(inputs, inputs["agent_mask"])

    # -------------------------------------------------------------------------------------------------------- acting
    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """Choices of one step, drawn or scored agent by agent, and the value."""
        there = inputs["agent_mask"]
        states, clock = self._decayed(memory)
        tokens, encoder = self.encoder(self._observed(inputs), clock, recurrent(there), states["encoder"])
        seen = self.decoder.seen(tokens, clock)
        after: Sequence[States] = (states["own"], states["crossed"])
        told = self.tokens.first((len(there), 1))
        turns: list[tuple[Tensor, ...]] = []
        wanted = [name for name in inputs if name not in self.body.reads]
        for agent in range(self.agents):  # the one loop that is the algorithm: each knows what the others chose
            turn = slice(agent, agent + 1)
            mine = {name: inputs[name][:, turn] for name in wanted}
            scores, after = self.decoder(self.tokens(told), seen.of(turn), recurrent(there[:, turn]), after)
            sample = self.choices.sample(scores, mine, turn)
            action = self.choices.action(sample, mine, turn)
            told = torch.where(there[:, turn].unsqueeze(2), self.tokens.content(action, turn), told)
            turns.append((scores, sample, action))
        scores, sample, action = (torch.cat(each, dim=1) for each in zip(*turns, strict=True))
        outputs = self.choices.scored(scores, sample, inputs) | {"action": action}
        outputs["value"] = self._values(tokens, there)
        elapsed = _leaf(memory, "elapsed") if self.shape.memory else there.new_zeros(0)
        return outputs, self._remembered((encoder, *after), elapsed)

    def value(self, inputs: Inputs, memory: Memory) -> Float[Tensor, "env agent"]:
        """V of one time step: of the encoder alone."""
        states, clock = self._decayed(memory)
        there = inputs["agent_mask"]
        tokens, _ = self.encoder(self._observed(inputs), clock, recurrent(there), states["encoder"])
        return self._values(tokens, there)

    # ------------------------------------------------------------------------------------------------------ learning
    def sequence(self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]) -> tuple[Outputs, Memory]:
        """Scores of the recorded choices of a window and its values, chunk by chunk; without choices, a loop."""
        if self.choice not in inputs:
            return super().sequence(inputs, memory, start)
        time, envs = start.shape
        there = inputs["agent_mask"]
        rows = self._in_rows(there).unflatten(1, (-1, self.agents))
        opens = start if self.shape.memory else start.new_zeros(1, len(rows))
        ways = chunkwise(opens, rows, self.decay, self.shape.chunk_size)
        elapsed, clock = self._timed_window(memory, start)
        states = self._states(memory, 1.0)
        tokens, encoder = self.encoder(self._in_rows(self._observed(inputs)), clock, ways.observing, states["encoder"])
        action = self.choices.action(inputs[self.choice], inputs)
        told = self._in_rows(self.tokens.previous(action, there))
        seen = self.decoder.seen(tokens, clock)
        scores, after = self.decoder(self.tokens(told), seen, ways.acting, (states["own"], states["crossed"]))
        outputs = self.choices.scored(self._in_window(scores, time, envs), inputs[self.choice], inputs)
        outputs |= {"action": action, "value": self._values(self._in_window(tokens, time, envs), there)}
        return outputs, self._remembered((encoder, *after), elapsed)

    def _in_rows(self, x: Tensor) -> Tensor:
        """`time env agent ...` as `row token ...`: a row is an environment's window, or without memory one step."""
        return x.transpose(0, 1).flatten(1, 2) if self.shape.memory else x.flatten(0, 1)

    def _in_window(self, x: Tensor, time: int, envs: int) -> Float[Tensor, "time env agent feature"]:
        if self.shape.memory:
            return x.unflatten(1, (time, self.agents)).transpose(0, 1)
        return x.unflatten(0, (time, envs))

    def _timed_window(self, memory: Memory, start: Tensor) -> tuple[Tensor, Times | None]:
        """Steps since each environment's last episode opened at the end of the window, and the clock of its tokens."""
        if not self.shape.memory:
            return start.new_zeros(0), None
        steps = torch.arange(len(start), device=start.device).unsqueeze(1)
        opened = torch.where(start, steps, -_leaf(memory, "elapsed")).cummax(0).values
        elapsed = (steps - opened).T  # env time
        clock = None if self.clock is None else self.clock(elapsed).repeat_interleave(self.agents, dim=1)
        return elapsed[:, -1], clock

    # -------------------------------------------------------------------------------------------------- both of them
    def _observed(self, inputs: Inputs) -> Float[Tensor, "*lead agent size"]:
        """Features of what the agents observe."""
        return self.slots.unstacked(self.body.features(inputs), tuple(inputs["agent_mask"].shape[:-1]))

    def _values(self, tokens: Float[Tensor, "*lead agent size"], there: Tensor) -> Float[Tensor, "*lead agent"]:
        flat = self.value_body(tokens).flatten(0, -2).unsqueeze(0)
        with without_autocast(flat.device):
            return self.head(flat).view(there.shape) * there  # what an absent agent may still expect is 0

    def _decayed(self, memory: Memory) -> tuple[dict[str, States], Times | None]:
        """The states one step on, and the clock of this step."""
        clock = None if self.clock is None else self.clock(_leaf(memory, "elapsed").unsqueeze(1))
        return self._states(memory, self.decay[:, None, None]), clock

    def _states(self, memory: Memory, scale: Tensor | float) -> dict[str, States]:
        """The states of each block, scaled; None for each where there is no memory."""
        parts = ("encoder", "own", "crossed")
        if not self.shape.memory:
            return {name: (None,) * self.shape.layers for name in parts}
        return {name: (_leaf(memory, name) * scale).unbind(1) for name in parts}

    def _remembered(self, states: Sequence[States], elapsed: Tensor) -> Memory:
        """The memory after the steps that led to these states."""
        if not self.shape.memory:
            return ()
        encoder, own, crossed = (torch.stack([each for each in part if each is not None], 1) for part in states)
        return {"encoder": encoder, "own": own, "crossed": crossed, "elapsed": elapsed + 1}


def _timed(x: Tokens, clock: Times | None) -> Tokens:
    return x if clock is None else x + clock


def _leaf(memory: Memory, name: str) -> Tensor:
    leaf = memory.get(name) if isinstance(memory, dict) else None
    assert isinstance(leaf, Tensor), f"this memory has no {name!r}: begin with the module's initial_memory"
    return leaf
