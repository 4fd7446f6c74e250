"""Attention over time against a slow version that asks of each pair of tokens whether one sees the other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from martes.networks import attention
from martes.networks.attention import Band, Blocks, Chunked, Flexible, causal, ring, turned, turns
from martes.networks.retention import even

HEADS, FEATURE = 2, 4
Parts = tuple[Tensor, Tensor, Tensor]


def drawn(rows: int, tokens: int) -> Parts:
    query, key, value = torch.randn(3, rows, tokens, HEADS, FEATURE).unbind()
    return query, key, value


def at(x: Tensor, step: int) -> Tensor:
    """Turned by hand: each pair of features by its own angle."""
    first, second = x.double()[0::2], x.double()[1::2]
    angle = step * 10000 ** (-torch.arange(0, FEATURE, 2, dtype=torch.float64) / FEATURE)
    return torch.cat((first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()))


def slow(parts: Parts, opens: Tensor, window: int) -> Tensor:
    """What each token is told, one pair after the other; `opens` [time row]."""
    query, key, value = parts
    told = torch.zeros_like(value, dtype=torch.float64)
    for row in range(len(query)):
        for i in range(query.shape[1]):
            seen = [j for j in range(i + 1) if i - j < window and not opens[j + 1 : i + 1, row].any()]
            for head in range(HEADS):
                scores = torch.stack(
                    [at(query[row, i, head], i) @ at(key[row, j, head], j) / FEATURE**0.5 for j in seen]
                )
                told[row, i, head] = scores.softmax(0) @ torch.stack([value[row, j, head].double() for j in seen])
    return told


def empty(rows: int, window: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(rows, 2, HEADS, window, FEATURE), torch.zeros(rows, window, dtype=torch.bool)


def at_once(parts: Parts, opens: Tensor, kept: Tensor, is_there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    band = Band(opens, is_there, FEATURE)
    told, kept = band(*parts, kept)
    return told, kept, band.is_there


def part(parts: Parts, steps: slice) -> Parts:
    query, key, value = (each[:, steps] for each in parts)
    return query, key, value


def one_by_one(parts: Parts, opens: Tensor, kept: Tensor, is_there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    told = []
    for t in range(len(opens)):
        kept, is_there = kept * ~opens[t, :, None, None, None, None], is_there & ~opens[t, :, None]
        is_there = torch.cat((is_there[:, 1:], torch.ones_like(is_there[:, :1])), 1)
        each, kept = ring(is_there, FEATURE)(*part(parts, slice(t, t + 1)), kept)
        told.append(each)
    return torch.cat(told, 1), kept, is_there


@pytest.mark.parametrize("rate", [0.0, 0.15])
@pytest.mark.parametrize("window", [1, 3, 10, 23, 24, 60])
def test_at_once_and_one_by_one_are_the_slow_version(window: int, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNKS", (4, 6))
    monkeypatch.setattr(attention, "BLOCK", 10)
    parts, opens = drawn(3, 24), torch.rand(24, 3) < rate
    expected = slow(parts, opens, window)
    for way in (at_once, one_by_one):
        told = way(parts, opens, *empty(3, window))[0]
        assert torch.allclose(told.double(), expected, atol=1e-6), way.__name__


@given(
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(0, 30),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from([2, 5]),
)
def test_windows_join_without_a_seam(window: int, before: int, after: int, rate: float, chunk: int) -> None:
    """Two windows, the second from what the first kept, are one; and acting keeps the same."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(attention, "CHUNKS", (chunk, chunk + 2))
        patched.setattr(attention, "BLOCK", 2 * chunk)
        time = before + after
        parts, opens = drawn(2, time), torch.rand(time, 2) < rate
        whole = at_once(parts, opens, *empty(2, window))
        told, *carried = at_once(part(parts, slice(before)), opens[:before], *empty(2, window))
        if after:
            rest, *carried = at_once(part(parts, slice(before, None)), opens[before:], *carried)
            told = torch.cat((told, rest), 1)
        for joined in ((told, *carried), one_by_one(parts, opens, *empty(2, window))):
            for one, other in zip(joined, whole, strict=True):
                assert torch.allclose(one.float(), other.float(), atol=1e-5)


def test_the_cheapest_way_is_taken() -> None:
    def way(time: int, window: int, breaks: bool = False, is_filled: bool = False) -> object:
        opens = torch.zeros(time, 2, dtype=torch.bool)
        opens[0], opens[time // 2] = True, breaks
        return Band(opens, torch.full((2, window), is_filled), FEATURE).attended

    assert way(200, 200) is causal and way(200, 300) is causal
    short = way(1000, 10)
    assert isinstance(short, Chunked) and (short.size, short.seen, short.past) == (20, 9, 20), "no token is filled up"
    assert len(short.bias) == 1, "rows without breaks share one mask"
    for dense in (way(200, 200, breaks=True), way(200, 200, is_filled=True), way(50, 40)):
        assert isinstance(dense, Blocks)
    dense = way(200, 200, breaks=True)
    assert isinstance(dense, Blocks) and [bias.shape[2:] for bias in dense.biases] == [(128, 128), (72, 200)]


def test_chunks_share_a_line_evenly() -> None:
    assert [even(*each) for each in ((1000, 32), (128, 64), (97, 32), (7, 64), (9, 4))] == [25, 64, 25, 7, 3]


def lines(rows: int, tokens: int) -> Tensor:
    return torch.randn(rows, HEADS, tokens, FEATURE)


@pytest.mark.parametrize("rows", [1, 3])
def test_plain_products_are_the_fused_kernel(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = (torch.rand(rows, 200) < 0.05).cumsum(1)
    way, query, key, value = Chunked(segment, 7, 6, 20), lines(3, 194), lines(3, 200), lines(3, 200)
    found = []
    for small in (0, 1000):
        monkeypatch.setattr(attention, "SMALL", small)
        found.append(way(query, key, value))
    assert torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize(("rows", "past"), [(1, 0), (3, 5)])
def test_flex_attention_is_the_same(rows: int, past: int) -> None:
    """As plain torch runs it: compiled, it is for GPUs."""
    segment = (torch.rand(rows, 40 + past) < 0.1).cumsum(1)
    query, key, value = lines(3, 40), lines(3, 40 + past), lines(3, 40 + past)
    told = Flexible(segment, 6, past)(query, key, value)
    assert torch.allclose(told, Chunked(segment, 6, past, 40)(query, key, value), atol=1e-6)


def test_a_product_knows_how_long_ago_a_key_was_and_nothing_else() -> None:
    query, key = torch.randn(2, 1, FEATURE)

    def product(first: int, gap: int) -> Tensor:
        steps = (turns(step, 1, FEATURE, query.device) for step in (first + gap, first))
        return turned(query, next(steps)) @ turned(key, next(steps)).mT

    near, far, other = product(0, 3), product(100_000, 3), product(0, 4)
    assert torch.allclose(near, far, atol=1e-5) and not torch.allclose(near, other, atol=1e-3)


def test_gradients_of_all_ways_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK", 8)
    parts, opens = drawn(2, 30), torch.rand(30, 2) < 0.1
    weights, found = torch.randn(2, 30, HEADS, FEATURE), []
    for chunk, way in ((4, at_once), (50, at_once), (4, one_by_one)):
        monkeypatch.setattr(attention, "CHUNKS", (chunk, chunk))
        leaves = tuple(each.clone().requires_grad_() for each in parts)
        (way(leaves, opens, *empty(2, 7))[0] * weights).sum().backward()
        found.append(torch.stack([each.grad for each in leaves]))
    assert torch.allclose(found[0], found[1], atol=1e-5) and torch.allclose(found[0], found[2], atol=1e-5)
    assert found[0].abs().sum() > 0
