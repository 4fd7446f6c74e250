"""Retention over a team's time: one definition, evaluated at once, in chunks, or token by token.

A window is a line of tokens, one for each agent of each time step, time first. With decay κ a head, token i retains

    ret_i = Σ_j w_ij (q_i·k_j) v_j + w_i0 q_i S_0,    w_ij = κ^(τ_i − τ_j) [g_i = g_j] [token j is there] [i sees j]

where τ is the time step of a token and g its segment, the number of episodes opened in the window up to it. S_0 is the
state [key, value] that was carried in: a token at time −1 of segment 0. Decay counts steps, not tokens. Who acts in
turn sees the tokens before it and itself; who observes sees all tokens up to the end of its own step.

Source: Mahjoub et al. 2025 (Sable), after Sun et al. 2023 (RetNet), equations 5 to 7.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from martes.errors import ConfigError
from martes.networks.layers import full_precision, normed, without_autocast

Heads = Float[Tensor, "env token head feature"]
States = Float[Tensor, "env head key value"]
Evaluation = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""(query, key, value, state) -> (retained, state after): one of the ways to compute retention.

Without a state nothing was before; where nothing need be carried on, none comes back."""

NEVER = -1e4
"""The logarithm of a decay of 0: exp(0 · NEVER) = 1 and exp(NEVER) = 0, as 0^0 and 0^1 should be."""

MIXED = 64
"""How many states are joined by one matrix product; more are joined in levels."""


def decays(heads: int, scale: float) -> Float[Tensor, "head"]:
    """The decay κ of each head a time step, s (1 − 2^−x) with x evenly from 5 to 9: a memory of about 1/(1 − κ) steps.

    Raises ConfigError unless 0 <= s <= 1. Source: Sun et al. 2023, equation 8, with the range and scale of Sable.
    """
    if not 0 <= scale <= 1:
        raise ConfigError(f"decay_scale is {scale}: it must be between 0 (no memory) and 1 (the longest)")
    return scale * (1 - torch.exp2(-torch.linspace(5, 9, heads, dtype=torch.float64))).float()


class Points(NamedTuple):
    """Where tokens, or ends of chunks, stand: their time step, their segment, and whether they are there at all.

    Whole numbers in floating point, exact to 2^24: compiled for a processor, integers would be taken one by one.
    """

    time: Float[Tensor, "point"]
    segment: Float[Tensor, "env point"]
    is_there: Bool[Tensor, "env point"]

    def padded(self, count: int) -> "Points":
        """These points and copies of the last that are not there: the end of the line stays where it was."""
        if count == 0:
            return self
        envs = len(self.segment)
        return Points(
            torch.cat((self.time, self.time[-1:].expand(count))),
            torch.cat((self.segment, self.segment[:, -1:].expand(envs, count)), dim=1),
            functional.pad(self.is_there, (0, count)),
        )


class Weights(NamedTuple):
    """What points weigh for each other once their line is cut into chunks of equal length."""

    within: Float[Tensor, "env head chunk point point"]
    """w_ij of two points of one chunk."""
    since: Float[Tensor, "env head chunk point"]
    """The weight that the state at the end of the chunk before (for the first: the one carried in) has for a point."""
    ends: Points
    """The last point of each chunk."""


def _weights(points: Points, rate: Float[Tensor, "head"], size: int, sees_step: bool) -> Weights:
    """The weights in chunks of `size` points, the last padded; κ^gap = exp(gap · rate), and no gap is negative."""
    points = points.padded(-len(points.time) % size)
    time = points.time.view(-1, size)
    segment, is_there = (each.unflatten(1, time.shape) for each in points[1:])
    gap = time.unsqueeze(2) - time.unsqueeze(1)  # chunk i j
    order = torch.arange(size, device=time.device)
    is_seen = gap >= 0 if sees_step else (order.unsqueeze(1) >= order).expand_as(gap)
    counts = is_seen & (segment.unsqueeze(3) == segment.unsqueeze(2)) & is_there.unsqueeze(2)  # env chunk i j
    ends = Points(time[:, -1], segment[:, :, -1], torch.ones_like(is_there[:, :, -1]))
    end_before = functional.pad(ends.time[:-1], (1, 0), value=-1)
    segment_before = functional.pad(ends.segment[:, :-1], (1, 0))
    continues = segment == segment_before.unsqueeze(2)
    return Weights(
        torch.where(counts.unsqueeze(1), torch.exp(rate[:, None, None, None] * gap.clamp(min=0)), 0),
        torch.where(continues.unsqueeze(1), torch.exp(rate[:, None, None] * (time - end_before.unsqueeze(1))), 0),
        ends,
    )


def _in_chunks(
    line: Float[Tensor, "env head point feature"], size: int
) -> Float[Tensor, "env head chunk place feature"]:
    """The line, cut; what fills up the last chunk is 0."""
    padding = -line.shape[2] % size
    return (functional.pad(line, (0, 0, 0, padding)) if padding else line).unflatten(2, (-1, size))


class Line:
    """Joins what was added at the points of a line: S_i = Σ_{j <= i} w_ij U_j + w_i0 S_0, without a loop over points.

    Points are joined in groups by one product of matrices, the ends of groups by a line of their own.
    """

    def __init__(self, points: Points, rate: Float[Tensor, "head"]) -> None:
        self.count = len(points.time)
        self.size = min(MIXED, self.count)
        self.within, self.since, ends = _weights(points, rate, self.size, sees_step=False)
        self.above = Line(ends, rate) if len(ends.time) > 1 else None

    def states(
        self, added: Float[Tensor, "env head point key value"], state: States | None
    ) -> Float[Tensor, "env head point key value"]:
        """The state at each point, all that was added there included."""
        state = torch.zeros_like(added[:, :, 0]) if state is None else state
        flat = _in_chunks(added.flatten(3), self.size)
        local = self.within @ flat  # env head group point (key value)
        before = state.flatten(2).unsqueeze(2)
        if self.above is not None:
            ends = self.above.states(local[:, :, :, -1].unflatten(3, state.shape[2:]), state).flatten(3)
            before = torch.cat((before, ends[:, :, :-1]), dim=2)
        joined = torch.addcmul(local, self.since.unsqueeze(4), before.unsqueeze(3))
        return joined.flatten(2, 3)[:, :, : self.count].unflatten(3, state.shape[2:])


def _shifted(
    state: States | None, ends: Float[Tensor, "env head point key value"]
) -> Float[Tensor, "env head point key value"]:
    """The state before each chunk, from those at their ends."""
    first = torch.zeros_like(ends[:, :, :1]) if state is None else state.unsqueeze(2)
    return torch.cat((first, ends[:, :, :-1]), dim=2)


class Chunks:
    """Retention in chunks of tokens; one chunk as long as the window is the parallel form.

    Within a chunk by scores, from before it by the state at the end of the chunk before.
    """

    def __init__(self, points: Points, rate: Float[Tensor, "head"], size: int, sees_step: bool) -> None:
        self.tokens, self.size = len(points.time), size
        self.within, self.since, ends = _weights(points, rate, size, sees_step)
        self.line = Line(ends, rate)

    def __call__(self, query: Heads, key: Heads, value: Heads, state: States | None) -> tuple[Heads, States | None]:
        """What each token retains, and the state after the last."""
        query, key, value = (self._cut(each) for each in full_precision(query, key, value))
        with without_autocast(query.device):
            retained = query @ key.mT * self.within @ value
            if state is None and self.line.count == 1:
                return self._joined(retained), None
            to_end = self.within[:, :, :, -1].unsqueeze(4)  # the last token of a chunk sees all of it
            ends = self.line.states((key * to_end).mT @ value, state)
            before = _shifted(state, ends)
            retained = torch.addcmul(retained, query @ before, self.since.unsqueeze(4))
        return self._joined(retained), ends[:, :, -1]

    def _joined(self, x: Float[Tensor, "env head chunk place feature"]) -> Heads:
        return x.flatten(2, 3)[:, :, : self.tokens].transpose(1, 2)

    def _cut(self, x: Tensor) -> Float[Tensor, "env head chunk place feature"]:
        return _in_chunks(x.transpose(1, 2), self.size).contiguous()  # once, not at every product


class Steps:
    """Retention of whole time steps by their states alone, where all agents of a step see each other.

    No product of agents with agents is ever formed: the cost is linear in the number of agents, and no step is cut.
    """

    def __init__(self, points: Points, rate: Float[Tensor, "head"], mask: Bool[Tensor, "env token"]) -> None:
        self.line = Line(points, rate)
        self.mask = mask[:, :, None, None]

    def __call__(self, query: Heads, key: Heads, value: Heads, state: States | None) -> tuple[Heads, States]:
        """What each token retains, and the state after the last step."""
        query, key, value = full_precision(query, key, value)
        time = self.line.count
        query, key, value = (
            each.unflatten(1, (time, -1)).permute(0, 3, 1, 2, 4) for each in (query, key * self.mask, value)
        )
        with without_autocast(query.device):
            states = self.line.states(key.mT @ value, state)
            retained = query @ states
        return retained.flatten(2, 3).transpose(1, 2), states[:, :, -1]


def recurrent(mask: Bool[Tensor, "env token"]) -> Evaluation:
    """Retention of the tokens at hand, which see each other and all that was before: S += Σ k v^T, ret = q S.

    To act, call it for all agents of a step where they observe, for one after the other where they act, on states that
    were multiplied by their decay once a step. Tokens where `mask` is false add nothing.
    """
    there = mask[:, None, :, None]

    def evaluate(query: Heads, key: Heads, value: Heads, state: States | None) -> tuple[Heads, States]:
        query, key, value = (each.transpose(1, 2) for each in full_precision(query, key, value))
        with without_autocast(query.device):
            added = (key * there).mT @ value
            state = added if state is None else state + added
            retained = query @ state
        return retained.transpose(1, 2), state

    return evaluate


class Evaluations(NamedTuple):
    """How the tokens of a window are evaluated: where agents observe all at once, and where they act in turn."""

    observing: Evaluation
    acting: Evaluation


def chunkwise(
    start: Bool[Tensor, "time env"],
    mask: Bool[Tensor, "env time agent"],
    decay: Float[Tensor, "head"],
    chunk_size: int,
) -> Evaluations:
    """Both ways to see, in chunks of at most `chunk_size` tokens; its size changes speed and memory, never a result.

    `start` opens a segment: nothing is retained over it. Chunks are of equal length but for the last. Where agents
    observe they hold whole time steps; where not even one step fits, steps are evaluated by their states.
    Raises ConfigError where chunk_size is below 1.
    """
    if chunk_size < 1:
        raise ConfigError(f"chunk_size is {chunk_size}: it counts tokens and must be at least 1")
    time, agents = mask.shape[1:]
    steps = torch.arange(time, device=decay.device, dtype=decay.dtype)
    segment = start.cumsum(0, dtype=decay.dtype).T
    tokens = Points(steps.repeat_interleave(agents), segment.repeat_interleave(agents, dim=1), mask.flatten(1))
    rate = decay.log().clamp(min=NEVER)
    in_turn = Chunks(tokens, rate, even(time * agents, chunk_size), sees_step=False)
    if agents == 1:
        return Evaluations(in_turn, in_turn)  # who is alone observes as it acts
    if agents > chunk_size:
        points = Points(steps, segment, torch.ones_like(segment, dtype=torch.bool))
        return Evaluations(Steps(points, rate, tokens.is_there), in_turn)
    size = agents * even(time, chunk_size // agents)
    return Evaluations(Chunks(tokens, rate, size, sees_step=True), in_turn)


def even(length: int, limit: int) -> int:
    """The length of chunks that share `length` evenly: exactly, if one of at least half the `limit` does, else nearly.

    Tokens that fill up the last chunk would be copied and computed for nothing.
    """
    nearly = math.ceil(length / math.ceil(length / limit))
    return next((size for size in range(min(limit, length), limit // 2, -1) if length % size == 0), nearly)


class Timing(NamedTuple):
    """What tokens are told of the time: an encoding, added to what asks and is remembered, or angles to turn both by.

    Turned heads know how long ago something was (Su et al. 2021, RoPE), told ones also how long the episode has lasted.
    """

    added: Float[Tensor, "env #token size"] | None = None
    cos_sin: tuple[Float[Tensor, "env #token 1 half"], Float[Tensor, "env #token 1 half"]] | None = None

    def told(self, x: Float[Tensor, "env token size"]) -> Float[Tensor, "env token size"]:
        """Tokens that know the time."""
        return x if self.added is None else x + self.added

    def turned(self, heads: Heads) -> Heads:
        """Queries or keys, turned: their products depend on how far apart they are."""
        if self.cos_sin is None:
            return heads
        (cos, sin), (first, second) = self.cos_sin, heads.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class MultiScaleRetention(nn.Module):
    """(swish(y W_g) ⊙ norm(ret(x W_q, y W_k, y W_v))) W_o with a decay for each head; x asks, y is remembered.

    The norm is taken for each token and head over the head's own features, so the scale of values cannot matter.
    Entries begin at N(0, std²), 1/E² if not told. Source: Sun et al. 2023, equation 8; Mahjoub et al. 2025.
    """

    def __init__(self, size: int, heads: int, generator: torch.Generator, std: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        drawn = torch.randn(5, size, size, generator=generator, device=generator.device) * (std or 1 / size)
        self.inward = nn.Parameter(drawn[:4].flatten(0, 1))  # (query key value gate) of all heads
        self.outward = nn.Parameter(drawn[4])

    def queries(self, x: Float[Tensor, "env token size"], timing: Timing) -> Heads:
        """What asks, by head."""
        return timing.turned(self._split(timing.told(x), self.inward[: len(self.outward)], 1)[0])

    def forward(
        self,
        y: Float[Tensor, "env token size"],
        timing: Timing,
        evaluate: Evaluation,
        state: States | None,
        queries: Heads | None = None,
    ) -> tuple[Float[Tensor, "env token size"], States | None]:
        """What the tokens retain and the state after them; `queries` default to those of y."""
        y = timing.told(y)
        if queries is None:
            own, key, value, gate = self._split(y, self.inward, 4)
            queries = timing.turned(own)
        else:
            key, value, gate = self._split(y, self.inward[len(self.outward) :], 3)
        retained, state = evaluate(queries, timing.turned(key), value, state)
        gated = functional.silu(gate) * normed(retained)
        return functional.linear(gated.flatten(2), self.outward), state

    def _split(self, x: Tensor, weight: Tensor, parts: int) -> tuple[Tensor, ...]:
        return functional.linear(x, weight).unflatten(2, (parts, self.heads, -1)).unbind(2)
