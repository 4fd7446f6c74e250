"""One layer over time, forward and backward, against plain masked attention."""

import torch
from torch import Tensor, nn

from martes.bench.timing import Measurement, Side, rates, ratios
from martes.networks.over_time import Attending, Mixing, OverTimeShape, Retaining

STEPS, ROWS, SIZE, HEADS = 1000, 4, 64, 2
WINDOWS = {5: 4.0, 10: 4.0, 50: 4.0, 100: 3.0, STEPS: 3.0}
"""Steps that attention sees -> how many times faster than the plain layer it is to be."""
RETAINED = 8.0
"""The same of retention."""


def attention(repeats: int) -> list[Measurement]:
    """Passes of our layers to those of a plain layer, whose cost is that of all pairs of steps at every window.

    Retention is measured with the same maps as attention, and as its blocks have it, normed and gated.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, STEPS, SIZE, generator=generator)
    sides: dict[str, tuple[Side, float]] = {}
    for window, target in WINDOWS.items():
        seen = OverTimeShape("attention", SIZE, HEADS, window=window)
        name = f"attention, window {window if window < STEPS else 'all'}"
        sides[name] = ours(Attending(seen), Mixing(1, seen, generator), x), target
    retained = OverTimeShape("retention", SIZE, HEADS)
    ungated = OverTimeShape("attention", SIZE, HEADS)
    for name, each in (("retention", ungated), ("retention, normed and gated", retained)):
        sides[name] = ours(Retaining(retained), Mixing(1, each, generator), x), RETAINED
    speed = rates({"plain": plain(x, window=STEPS)} | {name: side for name, (side, _) in sides.items()}, repeats)
    told = f"{STEPS} steps x {ROWS}, width {SIZE}, {HEADS} heads, vs plain masked attention"
    return [
        Measurement(f"{name}: {told}", ratios(speed[name], speed["plain"]), target)
        for name, (_, target) in sides.items()
    ]


def plain(x: Tensor, window: int) -> Side:
    """torch's layer of attention under a dense mask, asked for its weights, as who shows them must ask."""
    layer = nn.MultiheadAttention(SIZE, HEADS, batch_first=True)
    gap = torch.arange(STEPS).unsqueeze(1) - torch.arange(STEPS)
    is_hidden = (gap < 0) | (gap >= window)

    def passes(count: int) -> int:
        for _ in range(count):
            told, _ = layer(x, x, x, attn_mask=is_hidden, need_weights=True)
            told.sum().backward()
        return count

    return passes


def ours(past: Attending | Retaining, layer: Mixing, x: Tensor) -> Side:
    """The layer of a block over time as it learns from whole sequences, masks and what is kept included."""
    opens = torch.zeros(STEPS, ROWS, dtype=torch.bool)
    opens[0] = True
    memory = past.initial((ROWS,), x.device)

    def passes(count: int) -> int:
        for _ in range(count):
            ways = past.learning(memory, opens)
            told, _ = layer(x.unsqueeze(0), ways.evaluate, memory["states"][:, 0])
            told.sum().backward()
        return count

    return passes
