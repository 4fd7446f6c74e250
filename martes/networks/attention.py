"""Attention over time: to act, over a ring of the last keys and values; to learn, over a window all at once.

Token i of a row, one at each time step, is told the mean of the values of the tokens j that it sees, those of the last
`window` steps of its own segment, weighed by how well their keys answer its query:

    told_i = Σ_j p_ij v_j,    p_i = softmax_j (R^i q_i · R^j k_j / √d),    0 <= i − j < window,  g_i = g_j

where g is the segment, the number of episodes opened up to the token. R turns pairs of features by the time step, so
that a product knows how long ago the key was and nothing else of the time: a ring needs no clock.

Source: Vaswani et al. 2017, equation 1; Su et al. 2021, equation 16 (R); Beltagy et al. 2020, section 3.1 (windows).
"""

import math
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Bool, Complex, Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from martes.networks.layers import full_precision, without_autocast
from martes.networks.retention import Evaluation, Heads, even

CHUNKS = (24, 64)
"""How many tokens are evaluated at once, at least and at most, where a window is short."""
SMALL = 64
"""Up to so many keys at once a processor is faster by plain products of matrices than by a fused kernel."""
BLOCK = 128
"""Queries of a block where the past is long; flex attention saves nothing below a window of this many steps."""

Kept = Float[Tensor, "row 2 head slot feature"]
"""Keys and values of the last steps, the newest last; zeros where there is none."""
Lines = Float[Tensor, "row head token feature"]
Keys = Float[Tensor, "row head key feature"]
"""Of the tokens, and of steps before them."""
Attended = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query, key, value) -> what the tokens that asked are told, each `row head token feature`."""


def turns(first: int, count: int, feature: int, device: torch.device) -> Complex[Tensor, "token pair"]:
    """R of the time steps first, first + 1, …: e^(i w_m step), w_m = 10000^(−2m/d) for the m-th pair of features."""
    even = torch.arange(0, feature, 2, device=device, dtype=torch.float64)
    step = torch.arange(first, first + count, device=device, dtype=torch.float64)
    # In double precision: late in a long window the angle itself would be off by its rounding.
    angle = step.unsqueeze(1) * 10000 ** (-even / feature)
    return torch.complex(angle.cos().float(), angle.sin().float())


def turned(x: Float[Tensor, "*lead feature"], turn: Complex[Tensor, "*#lead pair"]) -> Float[Tensor, "*lead feature"]:
    """Queries or keys, each pair of features turned as a complex number; features stand side by side in memory."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)


def ring(is_there: Bool[Tensor, "row slot"], feature: int) -> Evaluation:
    """One step of acting: its token takes the place of the oldest, and sees those of `is_there` and itself.

    `is_there` tells which slots are filled once it is in. Nothing is computed anew but what it is told.
    """
    window = is_there.shape[1]
    ages = turns(1 - window, window, feature, is_there.device)

    def evaluate(query: Heads, key: Heads, value: Heads, kept: Tensor | None) -> tuple[Heads, Kept]:
        assert kept is not None
        query, key, value = (each.transpose(1, 2) for each in full_precision(query, key, value))
        # Written anew, not over: the memory before this step belongs to who gave it.
        kept = torch.cat((kept[:, :, :, 1:], torch.stack((key, value), dim=1)), dim=3)
        keys, values = kept.unbind(1)
        with without_autocast(query.device):
            told = functional.scaled_dot_product_attention(
                query, turned(keys, ages), values, attn_mask=is_there[:, None, None]
            )
        return told.transpose(1, 2), kept

    return evaluate


class Band:
    """A whole window of learning: the tokens of each row, after what was kept of the steps before it.

    Where the window of attention is short, in chunks: a chunk of queries sees the keys of its own and of `window` − 1
    steps before, at a cost that grows with the window, not with time. Else in blocks of queries that see all before
    them; where no episode opens on the way and nothing was before, by the causal order alone, without a mask.
    """

    def __init__(self, opens: Bool[Tensor, "time row"], is_there: Bool[Tensor, "row slot"], feature: int) -> None:
        self.tokens, self.window = len(opens), is_there.shape[1]
        was_before = bool(is_there.any())
        is_one = not was_before and not bool(opens[1:].any())
        before = torch.where(is_there, 0, -1)  # a segment that no token is of where there is nothing
        segment = torch.cat((before, opens.cumsum(0).T), dim=1)
        self.is_there = (segment == segment[:, -1:])[:, -self.window :]
        """Which slots are filled after the window."""
        size = min(max(self.window, CHUNKS[0]), CHUNKS[1])
        size = even(self.tokens, size) if size + self.window <= self.tokens else self.tokens
        self.past = self.window - 1 if was_before else 0
        if size < self.tokens:
            self.past = size * math.ceil((self.window - 1) / size)  # whole chunks: the line is copied once
        self.turns = turns(-self.past, self.past + self.tokens, feature, opens.device)
        segment = functional.pad(segment[: 1 if is_one else None], (self.past - self.window, 0), value=-1)
        if is_one and self.past == 0 and self.window >= self.tokens:
            self.attended: Attended = causal
        elif opens.is_cuda and self.window >= BLOCK:
            self.attended = Flexible(segment, self.window, self.past)
        elif size < self.tokens:
            self.attended = Chunked(segment, self.window, self.past, size)
        else:
            self.attended = Blocks(segment, self.window, self.past)

    def __call__(self, query: Heads, key: Heads, value: Heads, kept: Tensor | None) -> tuple[Heads, Kept]:
        """What each token is told, and what is kept after the last."""
        assert kept is not None
        query, key, value = (each.transpose(1, 2) for each in full_precision(query, key, value))
        last = torch.stack((key[:, :, -self.window :], value[:, :, -self.window :]), dim=1)
        after = torch.cat((kept[:, :, :, self.tokens :], last), dim=3) * self.is_there[:, None, None, :, None]
        if self.past:
            old = functional.pad(kept, (0, 0, self.past - self.window, 0)).unbind(1)
            key, value = (torch.cat((were, are), dim=2) for were, are in zip(old, (key, value), strict=True))
        with without_autocast(query.device):
            told = self.attended(turned(query, self.turns[self.past :]), turned(key, self.turns), value)
        return told.transpose(1, 2), after


def causal(query: Lines, key: Lines, value: Lines) -> Lines:
    """What tokens are told that see all before them and themselves."""
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True)


def _added(is_seen: Bool[Tensor, "*lead query key"]) -> Float[Tensor, "*lead query key"]:
    """What scores are moved by: 0, or −∞ where a key is not seen."""
    return torch.zeros(is_seen.shape, device=is_seen.device).masked_fill_(~is_seen, -torch.inf)


def _weighed(query: Lines, key: Keys, value: Keys, bias: Float[Tensor, "#row #head token key"]) -> Lines:
    """What tokens are told under a mask."""
    if key.shape[2] > SMALL or query.is_cuda:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    scores = (query * query.shape[-1] ** -0.5) @ key.mT + bias
    return scores.softmax(-1) @ value


class Blocks:
    """Attention in blocks of queries, each with all keys up to its last; exact. What comes after costs nothing.

    `segment` is that of the `past` tokens before the line and of the line; one row where all rows have the same.
    """

    def __init__(self, segment: Int64[Tensor, "row token"], window: int, past: int) -> None:
        place = torch.arange(segment.shape[1], device=segment.device)
        self.biases: list[Float[Tensor, "row 1 query key"]] = []
        for first in range(past, len(place), BLOCK):
            asking, known = slice(first, first + BLOCK), slice(first + BLOCK)
            gap = place[asking, None] - place[known]
            is_one = segment[:, asking, None] == segment[:, None, known]
            self.biases.append(_added(is_one & (gap >= 0) & (gap < window)).unsqueeze(1))

    def __call__(self, query: Lines, key: Keys, value: Keys) -> Lines:
        """What the tokens of the line are told."""
        told = [
            _weighed(asking, key[:, :, : bias.shape[3]], value[:, :, : bias.shape[3]], bias)
            for asking, bias in zip(query.split(BLOCK, dim=2), self.biases, strict=True)
        ]
        return torch.cat(told, dim=2)


class Chunked:
    """Attention in chunks of `size` queries, each with the keys of `window` − 1 steps before it; exact.

    `segment` is as in `Blocks`; `past` is a multiple of `size`, or the line is copied once more.
    """

    def __init__(self, segment: Int64[Tensor, "row token"], window: int, past: int, size: int) -> None:
        self.past, self.size, self.seen = past, size, min(past, window - 1)
        self.length = segment.shape[1] - past
        i = torch.arange(size, device=segment.device).unsqueeze(1)
        gap = i - torch.arange(-self.seen, size, device=segment.device)
        keys = self._overlapping(segment[:, None, :, None]).squeeze(4)  # row 1 chunk key
        is_seen = (keys[..., self.seen :, None] == keys.unsqueeze(3)) & (gap >= 0) & (gap < window)
        self.bias = _added(is_seen)

    def __call__(self, query: Lines, key: Keys, value: Keys) -> Lines:
        """What the tokens of the line are told."""
        parts = self._cut(query), self._overlapping(key), self._overlapping(value)
        bias = self.bias if len(self.bias) == 1 else self.bias.expand(*parts[0].shape[:3], -1, -1)
        told = _weighed(*(each.flatten(0, 1) for each in (*parts, bias)))  # (row head) chunk place feature
        return told.view(parts[0].shape).flatten(2, 3)[:, :, : self.length]

    def _cut(
        self, line: Shaped[Tensor, "row head token feature"], front: int = 0
    ) -> Shaped[Tensor, "row head chunk place feature"]:
        padding = -self.length % self.size
        line = functional.pad(line, (0, 0, front, padding)) if padding or front else line
        return line.unflatten(2, (-1, self.size))

    def _overlapping(
        self, line: Shaped[Tensor, "row head token feature"]
    ) -> Shaped[Tensor, "row head chunk key feature"]:
        """The tokens of each chunk, after those before it that it may see."""
        reach = math.ceil(self.seen / self.size)
        chunks = self._cut(line, reach * self.size - self.past)
        parts = [chunks[:, :, first : chunks.shape[2] - reach + first] for first in range(reach + 1)]
        return torch.cat((parts[0][:, :, :, reach * self.size - self.seen :], *parts[1:]), dim=3)


class Flexible:
    """The same by one kernel that leaves out blocks of tokens which do not see each other. Source: Dong et al. 2024."""

    def __init__(self, segment: Int64[Tensor, "row token"], window: int, past: int) -> None:
        rows, length = segment.shape
        sizes = (None if rows == 1 else rows, None, length - past, length)
        self.blocks = create_block_mask(
            lambda row, head, query, key: (
                (query + past >= key)
                & (query + past - key < window)
                & (segment[row % rows, query + past] == segment[row % rows, key])
            ),
            *sizes,
            device=str(segment.device),
        )

    def __call__(self, query: Lines, key: Keys, value: Keys) -> Lines:
        """What the tokens of the line are told."""
        attended = compiled_flex() if query.is_cuda else flex_attention
        told = attended(query, key, value, block_mask=self.blocks)
        assert isinstance(told, Tensor)
        return told


@cache
def compiled_flex() -> Callable[..., object]:
    """Flex attention as one kernel."""
    return torch.compile(flex_attention, dynamic=False)
