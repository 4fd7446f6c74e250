"""MAT, the Multi-Agent Transformer: agents of a step attend to each other, observe together and act in turn."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from martes.data import Memory
from martes.networks.autoregressive import StepTokens, TurnShape, WindowTokens, in_order, in_place
from martes.networks.layers import (
    LayerNorm,
    Perceptron,
    Residual,
    RMSNorm,
    SwiGLU,
    head_body,
    recomputed,
    small_linear,
)

Tokens = Float[Tensor, "row agent size"]
"""A row is one step of one environment."""
There = Bool[Tensor, "row agent"]
Heads = Float[Tensor, "row head agent feature"]
Attended = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query, key, value) -> the mean of the values, weighed by how well their keys answer the query."""

Norm = Literal["layer", "rms"]
FeedForward = Literal["mlp", "swiglu"]

QUERY, KNOWN = slice(0, 1), slice(1, 3)
"""Who asks needs queries; who is asked, keys and values."""


@dataclass(frozen=True)
class MATShape(TurnShape):
    """The shape of a Multi-Agent Transformer."""

    norm: Norm = "layer"
    """What follows each residual: layer normalisation, or division by the root mean square alone."""
    feed_forward: FeedForward = "mlp"
    """What follows each attention: two maps with a GELU between them, or a gated layer."""
    caches: bool = True
    """Keep keys and values from turn to turn? Without, each turn decodes the whole team again: only a comparison."""

    def norm_layer(self) -> nn.Module:
        """A norm of tokens, such as this network has."""
        return LayerNorm(self.size) if self.norm == "layer" else RMSNorm(self.size)

    def core(self, outputs: int, generator: torch.Generator) -> "MAT":
        """A network of this shape."""
        return MAT(self, outputs, generator)


def feed_forward(shape: MATShape, generator: torch.Generator) -> Residual:
    """norm(x + layer(x))."""
    layer = SwiGLU if shape.feed_forward == "swiglu" else Perceptron
    return Residual(layer(shape.size, generator, shape.feed_forward_size), shape.norm_layer())


class Attention(nn.Module):
    """softmax(x W_q (y W_k)ᵀ / √d) y W_v W_o + b, in heads of width d; x asks, y is asked.

    Keys have no bias, for a softmax would not see it; values none, whose mean would only move b; queries none, since
    the layer norm before them has one. Source: Vaswani et al. 2017, equation 1; begun as MAT begins.
    """

    def __init__(self, size: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        weights = torch.empty(4, size, size, device=generator.device)
        for weight in weights:
            nn.init.orthogonal_(weight, 0.01, generator=generator)
        self.inward = nn.Parameter(weights[:3])  # query key value
        self.outward = nn.Parameter(weights[3])
        self.bias = nn.Parameter(torch.zeros(size))

    def parts(self, x: Tokens, which: slice = slice(None)) -> tuple[Heads, ...]:
        """Queries, keys and values of the tokens, or those that are wanted."""
        weight = self.inward[which]
        parts = functional.linear(x, weight.flatten(0, 1)).unflatten(2, (len(weight), self.heads, -1))
        return parts.transpose(1, 3).unbind(2)

    def forward(self, attended: Attended, query: Heads, key: Heads, value: Heads) -> Tokens:
        """What the tokens that asked are told."""
        told = attended(query, key, value).transpose(1, 2).flatten(2)
        return functional.linear(told, self.outward, self.bias)


class EncoderBlock(nn.Module):
    """Tokens of observations attend to each other, and are transformed."""

    def __init__(self, shape: MATShape, generator: torch.Generator) -> None:
        super().__init__()
        self.attention = Attention(shape.size, shape.heads, generator)
        self.norm = shape.norm_layer()
        self.residual = feed_forward(shape, generator)

    def forward(self, x: Tokens, attended: Attended) -> Tokens:
        """The tokens after this block."""
        return self.residual(self.norm(x + self.attention(attended, *self.attention.parts(x))))


class Encoder(nn.Module):
    """Representations of what the agents observe: each sees all agents of its step."""

    def __init__(self, shape: MATShape, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = shape.norm_layer()
        self.blocks = nn.ModuleList(EncoderBlock(shape, generator) for _ in range(shape.layers))
        self.recompute = shape.recompute

    def forward(self, x: Tokens, there: There) -> Tokens:
        """The representation of every token. Where nobody is there, attention gives 0."""
        attended = partial(functional.scaled_dot_product_attention, attn_mask=there[:, None, None])
        x = self.norm(x)
        for block in self.blocks:
            x = recomputed(block, self.recompute)(x, attended)
        return x


class DecoderBlock(nn.Module):
    """Actions attend to those before; then what was observed asks them, and its outcome takes their place."""

    def __init__(self, shape: MATShape, generator: torch.Generator) -> None:
        super().__init__()
        self.own = Attention(shape.size, shape.heads, generator)
        self.crossed = Attention(shape.size, shape.heads, generator)
        self.own_norm = shape.norm_layer()
        self.crossed_norm = shape.norm_layer()
        self.residual = feed_forward(shape, generator)

    def forward(
        self, x: Tokens, tokens: Tokens, own: Attended, crossed: Attended, query: Heads | None = None
    ) -> Tokens:
        """The tokens after this block; `tokens` are the encoder's, `query` what they ask if that is known already."""
        context = self.own_norm(x + self.own(own, *self.own.parts(x)))
        if query is None:
            (query,) = self.crossed.parts(tokens, QUERY)
        answered = self.crossed(crossed, query, *self.crossed.parts(context, KNOWN))
        return self.residual(self.crossed_norm(tokens + answered))


class Decoder(nn.Module):
    """Scores of the actions of each agent, from what was observed and from the actions of the agents before it."""

    def __init__(self, shape: MATShape, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = shape.norm_layer()
        self.blocks = nn.ModuleList(DecoderBlock(shape, generator) for _ in range(shape.layers))
        self.head = head_body(shape.norm_layer(), shape.size, generator)
        self.scores = small_linear(shape.size, outputs, generator)
        self.recompute = shape.recompute

    def forward(self, told: Tokens, tokens: Tokens, there: There) -> Float[Tensor, "row agent output"]:
        """Scores of all agents at once.

        Who is absent is put behind all others: so a causal order alone hides it, and fused attention needs no mask,
        which would cost memory for every pair of agents, and on a GPU the fastest kernel.
        """
        order = (~there).byte().argsort(dim=1, stable=True)
        x, tokens = self.norm(in_order(told, order)), in_order(tokens, order)
        in_turn = partial(functional.scaled_dot_product_attention, is_causal=True)
        for block in self.blocks:
            x = recomputed(block, self.recompute)(x, tokens, in_turn, in_turn)
        return in_place(self.scores(self.head(x)), order)


class MAT(nn.Module):
    """Encoder and decoder that attend, and remember no earlier step.

    To learn, all agents of all steps are decoded at once; to act, agent by agent over the keys and values of those
    before. Source: Wen et al. 2022, section 3.2.
    """

    def __init__(self, shape: MATShape, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.caches = shape.caches
        self.turns_alike = False  # what is cached grows
        self.encoder = Encoder(shape, generator)
        self.decoder = Decoder(shape, outputs, generator)

    def initial_memory(self, envs: int) -> Memory:
        """None: each step stands alone."""
        return ()

    def observed(self, x: StepTokens, there: Bool[Tensor, "env agent"], memory: Memory) -> StepTokens:
        """Representations of what the agents observe in one step."""
        return self.encoder(x, there)

    def step(self, x: StepTokens, there: Bool[Tensor, "env agent"], memory: Memory) -> "CachedTurns | RepeatedTurns":
        """One step of acting."""
        turns = CachedTurns if self.caches else RepeatedTurns
        return turns(self.decoder, self.encoder(x, there), there)

    def turn(self, told: StepTokens, seen: object, carried: object) -> tuple[Float[Tensor, "env turn output"], object]:
        """Scores of the actions of who is next, over what is kept of the turns before, which grows by one token."""
        assert isinstance(seen, CachedTurn | RepeatedTurn)
        return seen.scores(self.decoder, told, carried)

    def sequence(
        self, x: WindowTokens, there: Bool[Tensor, "time env agent"], memory: Memory, start: Bool[Tensor, "time env"]
    ) -> "MATWindow":
        """A window to learn from: its steps know nothing of each other."""
        return MATWindow(self, x, there)


class MATWindow:
    """Many steps, all choices known."""

    def __init__(self, mat: MAT, x: WindowTokens, there: Bool[Tensor, "time env agent"]) -> None:
        self.decoder, self.there = mat.decoder, there
        self.rows = mat.encoder(x.flatten(0, 1), there.flatten(0, 1))
        self.tokens = self.rows.unflatten(0, there.shape[:2])

    def scores(self, told: WindowTokens) -> Float[Tensor, "time env agent output"]:
        """Scores of the actions of every agent, after tokens that tell of the actions before."""
        scores = self.decoder(told.flatten(0, 1), self.rows, self.there.flatten(0, 1))
        return scores.unflatten(0, self.there.shape[:2])

    def memory(self) -> Memory:
        """None: each step stands alone."""
        return ()


class Cache:
    """Keys and values of the turns so far, in room that is taken once a step."""

    def __init__(self, queries: Heads) -> None:
        self.keys, self.values = torch.empty_like(queries), torch.empty_like(queries)

    def attended(self, query: Heads, key: Heads, value: Heads, is_seen: Bool[Tensor, "env 1 1 turn"]) -> Heads:
        """What the last turn is told by all so far, itself included, which this keeps."""
        last = is_seen.shape[3] - 1
        if torch.is_grad_enabled():  # the backward pass needs what was attended to as it was
            self.keys = torch.cat((self.keys[:, :, :last], key), dim=2)
            self.values = torch.cat((self.values[:, :, :last], value), dim=2)
        else:
            self.keys[:, :, last : last + 1] = key
            self.values[:, :, last : last + 1] = value
        keys, values = self.keys[:, :, : last + 1], self.values[:, :, : last + 1]
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=is_seen)


class CachedTurn(NamedTuple):
    """What is known of who is next."""

    tokens: StepTokens
    queries: tuple[Heads, ...]
    """What these tokens ask of the actions, a block."""
    is_seen: Bool[Tensor, "env 1 1 turn"]

    def scores(self, decoder: Decoder, told: StepTokens, carried: object) -> tuple[Tensor, object]:
        """Scores from one token, over the caches of the blocks."""
        assert isinstance(carried, tuple)
        x = decoder.norm(told)
        for block, query, caches in zip(decoder.blocks, self.queries, carried, strict=True):
            own, crossed = (partial(each.attended, is_seen=self.is_seen) for each in caches)
            x = block(x, self.tokens, own, crossed, query)
        return decoder.scores(decoder.head(x)), carried


class CachedTurns:
    """One step in which agents act one after the other; each turn decodes one token, over what is known of the last."""

    def __init__(self, decoder: Decoder, tokens: StepTokens, there: Bool[Tensor, "env agent"]) -> None:
        self.tokens, self.there = tokens, there
        blocks = [each for each in decoder.blocks if isinstance(each, DecoderBlock)]
        self.queries = [each.crossed.parts(tokens, QUERY)[0] for each in blocks]  # of all agents, before any acts
        self.carried = tuple((Cache(each), Cache(each)) for each in self.queries)

    def seen(self, turn: int) -> CachedTurn:
        """What is known of who is next, and who of those before is there."""
        now = slice(turn, turn + 1)
        is_seen = functional.pad(self.there[:, :turn], (0, 1), value=True)[:, None, None]
        return CachedTurn(self.tokens[:, now], tuple(each[:, :, now] for each in self.queries), is_seen)

    def memory(self, carried: object) -> Memory:
        """None: each step stands alone."""
        return ()


class RepeatedTurn(NamedTuple):
    """What is known of the team."""

    tokens: StepTokens
    there: Bool[Tensor, "env agent"]

    def scores(self, decoder: Decoder, told: StepTokens, carried: object) -> tuple[Tensor, object]:
        """Scores from the whole team, of whom those after who is next are told nothing yet."""
        assert isinstance(carried, Tensor)
        carried, turn = torch.cat((carried, told), dim=1), carried.shape[1]
        whole = functional.pad(carried, (0, 0, 0, self.tokens.shape[1] - turn - 1))
        return decoder(whole, self.tokens, self.there)[:, turn : turn + 1], carried


class RepeatedTurns:
    """One step in which each turn decodes the whole team again, as the published code does."""

    def __init__(self, decoder: Decoder, tokens: StepTokens, there: Bool[Tensor, "env agent"]) -> None:
        self.tokens, self.there = tokens, there
        self.carried = tokens[:, :0]

    def seen(self, turn: int) -> RepeatedTurn:
        """What is known of the whole team."""
        return RepeatedTurn(self.tokens, self.there)

    def memory(self, carried: object) -> Memory:
        """None: each step stands alone."""
        return ()
