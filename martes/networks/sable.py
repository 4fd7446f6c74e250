"""Sable: a team as one sequence, over agents and over time, by retention. Agents observe together and act in turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from martes.data import Memory
from martes.errors import ConfigError
from martes.networks.autoregressive import TurnShape, WindowTokens
from martes.networks.layers import Residual, RMSNorm, SwiGLU, head_body, recomputed, small_linear
from martes.networks.retention import Evaluation, Heads, MultiScaleRetention, Timing, chunkwise, decays, recurrent

Tokens = Float[Tensor, "env token size"]
State = Tensor | None
"""What a block has retained `env head key value`, or None where nothing was before."""
States = Sequence[State]
"""The state of each block."""


@dataclass(frozen=True)
class SableShape(TurnShape):
    """The shape of a Sable network."""

    memory: bool = True
    """Remember earlier steps? Without it each step stands alone (ff-Sable)."""
    decay_scale: float = 0.8
    """Scale s of the decays: at 1 the memory reaches over 32 to 512 steps, at 0.8 over about 5, at 0 over none."""
    chunk_size: int = 64
    """Tokens (agents times steps) evaluated at once when learning: speed and memory, never a result."""
    time_encoding: Literal["added", "rotary", "none"] = "added"
    """How tokens know the time (only with memory): the episode's steps are added to them, or turn their keys."""
    feed_forward: bool = True
    """Follow each retention by a gated layer?"""
    retention_init: Literal["faint", "full"] = "full"
    """Entries of retention begin at a deviation of 1/size (a block is near the identity), or of 1/√size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feed_forward_size is not None and not self.feed_forward:
            raise ConfigError("network.feed_forward_size is given, but network.feed_forward is false: give one of them")
        if self.chunk_size < 1:
            raise ConfigError(f"network.chunk_size is {self.chunk_size}: it must be an integer >= 1")
        if self.time_encoding == "rotary" and self.size // self.heads % 2:
            raise ConfigError(
                f"network.size is {self.size}: to be turned, each of {self.heads} heads needs an even share"
            )
        decays(self.heads, self.decay_scale)

    def core(self, outputs: int, generator: torch.Generator) -> "Sable":
        """A network of this shape."""
        return Sable(self, outputs, generator)

    def retention(self, generator: torch.Generator) -> MultiScaleRetention:
        """One retention of this shape."""
        std = self.size ** (-1.0 if self.retention_init == "faint" else -0.5)
        return MultiScaleRetention(self.size, self.heads, generator, std)


def feed_forward(shape: SableShape, generator: torch.Generator) -> nn.Module:
    """norm(x + gated layer(x)), or x itself where there is no such layer."""
    if not shape.feed_forward:
        return nn.Identity()
    return Residual(SwiGLU(shape.size, generator, shape.feed_forward_size), RMSNorm(shape.size))


class EncoderBlock(nn.Module):
    """Tokens of observations retain each other, and are transformed."""

    def __init__(self, shape: SableShape, generator: torch.Generator) -> None:
        super().__init__()
        self.retention = shape.retention(generator)
        self.norm = RMSNorm(shape.size)
        self.residual = feed_forward(shape, generator)

    def forward(self, x: Tokens, timing: Timing, evaluate: Evaluation, state: State) -> tuple[Tokens, State]:
        """The tokens after this block, and its state after the last of them."""
        retained, state = self.retention(x, timing, evaluate, state)
        return self.residual(self.norm(x + retained)), state


class Encoder(nn.Module):
    """Representations of what the agents observe; each step sees all of its agents and the steps before."""

    def __init__(self, shape: SableShape, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = RMSNorm(shape.size)
        self.blocks = nn.ModuleList(EncoderBlock(shape, generator) for _ in range(shape.layers))
        self.recompute = shape.recompute

    def forward(self, x: Tokens, timing: Timing, evaluate: Evaluation, states: States) -> tuple[Tokens, list[State]]:
        """The representation of every token, and the states after the last. One norm precedes every block."""
        after: list[State] = []
        for block, before in zip(self.blocks, states, strict=True):
            x, state = recomputed(block, self.recompute)(self.norm(x), timing, evaluate, before)
            after.append(state)
        return x, after


class Seen(NamedTuple):
    """What the decoder knows of the agents' observations before anybody acts."""

    tokens: Tokens
    queries: tuple[Heads, ...]
    """What these tokens ask of the actions, a block."""
    timing: Timing

    def of(self, turn: slice) -> "Seen":
        """The part of some turns of one step."""
        return Seen(self.tokens[:, turn], tuple(each[:, turn] for each in self.queries), self.timing)


class DecoderBlock(nn.Module):
    """Actions are retained; then what was observed asks what was retained, and its outcome takes their place."""

    def __init__(self, shape: SableShape, generator: torch.Generator) -> None:
        super().__init__()
        self.own = shape.retention(generator)
        self.crossed = shape.retention(generator)
        self.own_norm = RMSNorm(shape.size)
        self.crossed_norm = RMSNorm(shape.size)
        self.residual = feed_forward(shape, generator)

    def forward(
        self, x: Tokens, seen: Seen, evaluate: Evaluation, own: State, crossed: State
    ) -> tuple[Tokens, State, State]:
        """The tokens after this block, and both its states after the last of them; `seen` has this block's queries."""
        retained, own = self.own(x, seen.timing, evaluate, own)
        context = self.own_norm(x + retained)
        answered, crossed = self.crossed(context, seen.timing, evaluate, crossed, seen.queries[0])
        return self.residual(self.crossed_norm(seen.tokens + answered)), own, crossed


class Decoder(nn.Module):
    """Scores of the actions of each agent, from what was observed and from the actions of the agents before it."""

    def __init__(self, shape: SableShape, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = RMSNorm(shape.size)
        self.blocks = nn.ModuleList(DecoderBlock(shape, generator) for _ in range(shape.layers))
        self.head = head_body(shape.norm_layer(), shape.size, generator)
        self.scores = small_linear(shape.size, outputs, generator)
        self.recompute = shape.recompute

    def seen(self, tokens: Tokens, timing: Timing) -> Seen:
        """What is known before anybody acts; the queries of all agents and blocks at once."""
        blocks = (each for each in self.blocks if isinstance(each, DecoderBlock))
        return Seen(tokens, tuple(each.crossed.queries(tokens, timing) for each in blocks), timing)

    def forward(
        self, x: Tokens, seen: Seen, evaluate: Evaluation, states: Sequence[States]
    ) -> tuple[Float[Tensor, "env token output"], Sequence[States]]:
        """Scores of each token's agent, and the states (own, crossed) of each block after the last token."""
        x = self.norm(x)
        after: tuple[list[State], list[State]] = ([], [])
        for block, query, own, crossed in zip(self.blocks, seen.queries, *states, strict=True):
            asked = seen._replace(queries=(query,))
            x, *left = recomputed(block, self.recompute)(x, asked, evaluate, own, crossed)
            for states_after, state in zip(after, left, strict=True):
                states_after.append(state)
        return self.scores(self.head(x)), after


class Clock(nn.Module):
    """What tokens are told of the steps since their episode began. Source: Vaswani et al. 2017, section 3.5."""

    frequency: Tensor

    def __init__(self, shape: SableShape) -> None:
        super().__init__()
        self.turns = shape.time_encoding == "rotary"
        self.size = shape.size // shape.heads if self.turns else shape.size
        even = torch.arange(0, self.size, 2, dtype=torch.float64)
        self.register_buffer("frequency", (10000 ** (-even / self.size)).float(), persistent=False)

    def forward(self, elapsed: Int64[Tensor, "env time"], agents: int) -> Timing:
        """Timing of the tokens of each step: sin(p w_m) and cos(p w_m) in turn, w_m = 10000^(−2m/E), after p steps.

        Computed, not looked up, so that an episode may last.
        """
        angle = elapsed.unsqueeze(2) * self.frequency  # env time half
        if self.turns:
            angle = angle.repeat_interleave(agents, dim=1).unsqueeze(2)
            return Timing(cos_sin=(angle.cos(), angle.sin()))
        added = torch.stack((angle.sin(), angle.cos()), dim=3).flatten(2)[:, :, : self.size]
        return Timing(added.repeat_interleave(agents, dim=1))


class Sable(nn.Module):
    """Encoder and decoder that retain instead of attend.

    To act is recurrent, at a cost that does not grow with the episode; to learn is chunkwise.
    Source: Mahjoub et al. 2025, on the encoder and decoder of Wen et al. 2022.
    """

    decay: Tensor
    turns_alike = True

    def __init__(self, shape: SableShape, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(shape, generator)
        self.decoder = Decoder(shape, outputs, generator)
        self.clock = Clock(shape) if shape.memory and shape.time_encoding != "none" else None
        self.register_buffer("decay", decays(shape.heads, shape.decay_scale), persistent=False)

    def initial_memory(self, envs: int) -> Memory:
        """Zero states `env layer head key value` of encoder and decoder, and 0 steps `env`; () without memory."""
        if not self.shape.memory:
            return ()
        feature = self.shape.size // self.shape.heads
        sizes = (envs, self.shape.layers, self.shape.heads, feature, feature)
        zeros = torch.zeros(3, *sizes, device=self.decay.device).unbind()
        elapsed = torch.zeros(envs, dtype=torch.int64, device=self.decay.device)
        return {"encoder": zeros[0], "own": zeros[1], "crossed": zeros[2], "elapsed": elapsed}

    def observed(self, x: Tokens, there: Bool[Tensor, "env agent"], memory: Memory) -> Tokens:
        """Representations of what the agents observe in one step."""
        return self.encoder(x, self._timing(memory), recurrent(there), self._states(memory, self._step)["encoder"])[0]

    def step(self, x: Tokens, there: Bool[Tensor, "env agent"], memory: Memory) -> "SableTurns":
        """One step of acting."""
        states, timing = self._states(memory, self._step), self._timing(memory)
        tokens, encoder = self.encoder(x, timing, recurrent(there), states["encoder"])
        seen = self.decoder.seen(tokens, timing)
        return SableTurns(self, Turn(seen, there), encoder, (states["own"], states["crossed"]), memory)

    def turn(
        self, told: Tokens, seen: object, carried: object
    ) -> tuple[Float[Tensor, "env turn output"], Sequence[States]]:
        """Scores of the actions of who is next, and the decoder's states, which grow by one token a turn."""
        assert isinstance(seen, Turn) and isinstance(carried, tuple)
        return self.decoder(told, seen.seen, recurrent(seen.there), carried)

    def sequence(
        self,
        x: WindowTokens,
        there: Bool[Tensor, "time env agent"],
        memory: Memory,
        start: Bool[Tensor, "time env"],
    ) -> "SableWindow":
        """A window to learn from, chunk by chunk."""
        rows = self.in_rows(there).unflatten(1, (-1, there.shape[2]))
        opens = start if self.shape.memory else start.new_zeros(1, len(rows))
        ways = chunkwise(opens, rows, self.decay, self.shape.chunk_size)
        elapsed = self._elapsed(memory, start)
        timing = Timing() if self.clock is None else self.clock(elapsed, there.shape[2])
        states = self._states(memory, 1.0)
        tokens, encoder = self.encoder(self.in_rows(x), timing, ways.observing, states["encoder"])
        before = (encoder, states["own"], states["crossed"])
        return SableWindow(self, self.decoder.seen(tokens, timing), ways.acting, before, (there, elapsed))

    @property
    def _step(self) -> Tensor:
        return self.decay[:, None, None]

    def in_rows(self, x: Tensor) -> Tensor:
        """`time env agent ...` as `row token ...`: a row is an environment's window, or without memory one step."""
        return x.transpose(0, 1).flatten(1, 2) if self.shape.memory else x.flatten(0, 1)

    def in_window(self, x: Tensor, there: Tensor) -> Float[Tensor, "time env agent feature"]:
        """The inverse of `in_rows`; `there` has the axes of the window."""
        time, envs, agents = there.shape
        return x.unflatten(1, (time, agents)).transpose(0, 1) if self.shape.memory else x.unflatten(0, (time, envs))

    def _timing(self, memory: Memory) -> Timing:
        """What all tokens of one step are told."""
        return Timing() if self.clock is None else self.clock(_leaf(memory, "elapsed").unsqueeze(1), 1)

    def _elapsed(self, memory: Memory, start: Tensor) -> Int64[Tensor, "env time"]:
        """Steps since each environment's last episode opened."""
        if not self.shape.memory:
            return torch.zeros(start.T.shape, dtype=torch.int64, device=start.device)
        steps = torch.arange(len(start), device=start.device).unsqueeze(1)
        opened = torch.where(start, steps, -_leaf(memory, "elapsed")).cummax(0).values
        return (steps - opened).T

    def _states(self, memory: Memory, scale: Tensor | float) -> dict[str, States]:
        """The states of each block, scaled; None for each where there is no memory."""
        parts = ("encoder", "own", "crossed")
        if not self.shape.memory:
            return {name: (None,) * self.shape.layers for name in parts}
        return {name: (_leaf(memory, name) * scale).unbind(1) for name in parts}

    def remembered(self, states: Sequence[States], elapsed: Tensor) -> Memory:
        """The memory after the step that led to these states, `elapsed` steps after the episode began."""
        if not self.shape.memory:
            return ()
        encoder, own, crossed = (torch.stack([each for each in part if each is not None], 1) for part in states)
        return {"encoder": encoder, "own": own, "crossed": crossed, "elapsed": elapsed + 1}


class Turn(NamedTuple):
    """What is known of who is next, or of the whole team: what it observed, and whether it is there."""

    seen: Seen
    there: Bool[Tensor, "env turn"]


class SableTurns:
    """One step in which agents act one after the other."""

    def __init__(self, sable: Sable, team: Turn, encoder: States, carried: Sequence[States], memory: Memory) -> None:
        self.sable, self.team, self.encoder, self.carried, self.before = sable, team, encoder, carried, memory
        self.tokens = team.seen.tokens

    def seen(self, turn: int) -> Turn:
        """What was observed by who is next."""
        now = slice(turn, turn + 1)
        return Turn(self.team.seen.of(now), self.team.there[:, now])

    def memory(self, carried: object) -> Memory:
        """The memory after the last turn."""
        assert isinstance(carried, tuple)
        elapsed = _leaf(self.before, "elapsed") if self.sable.shape.memory else self.team.there
        return self.sable.remembered((self.encoder, *carried), elapsed)


class SableWindow:
    """Many steps, all choices known: the decoder reads them as one line of tokens."""

    def __init__(
        self, sable: Sable, seen: Seen, ways: Evaluation, states: Sequence[States], steps: tuple[Tensor, Tensor]
    ) -> None:
        self.sable, self.seen, self.ways = sable, seen, ways
        self.there, self.elapsed = steps
        self.tokens = sable.in_window(seen.tokens, self.there)
        self.encoder, *self.states = states

    def scores(self, told: WindowTokens) -> Float[Tensor, "time env agent output"]:
        """Scores of the actions of every agent, after tokens that tell of the actions before."""
        scores, self.states = self.sable.decoder(self.sable.in_rows(told), self.seen, self.ways, self.states)
        return self.sable.in_window(scores, self.there)

    def memory(self) -> Memory:
        """The memory after the last step."""
        return self.sable.remembered((self.encoder, *self.states), self.elapsed[:, -1])


def _leaf(memory: Memory, name: str) -> Tensor:
    leaf = memory.get(name) if isinstance(memory, dict) else None
    assert isinstance(leaf, Tensor), f"this memory has no {name!r}: begin with the module's initial_memory"
    return leaf
