"""Blocks over time, by attention or by retention: what an agent makes of what it has seen, in both faces."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from martes.errors import ConfigError
from martes.networks.attention import Band, ring, turned, turns
from martes.networks.layers import full_precision, normed
from martes.networks.retention import Evaluation, Heads, chunkwise, decays, recurrent
from martes.networks.stacked import StackedLinear, StackedNorm

CHUNK = 32
"""Tokens that retention evaluates at once: speed, never a result."""

Kept = Mapping[str, Tensor]
"""The memory, all of a row's leaves `row ...`; `states` [row layer ...] are those of the blocks."""
Rows = Float[Tensor, "slot row token size"]


@dataclass(frozen=True)
class OverTimeShape:
    """The shape of blocks over time. Raises ConfigError for one that cannot be."""

    kind: Literal["attention", "retention"] = "attention"
    """What steps know of those before: the best of a window, or all, fading."""
    size: int = 64
    """Width of the tokens."""
    heads: int = 4
    """Heads of each block; they share the width."""
    layers: int = 1
    """Blocks, one after the other."""
    window: int = 32
    """Steps that attention sees, its own included."""
    norm: bool = True
    """Normalise what each block reads (Ba et al. 2016)?"""

    def __post_init__(self) -> None:
        for name in ("size", "heads", "layers", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"network.memory_{name} is {getattr(self, name)}: it must be at least 1")
        if self.size % (2 * self.heads):
            told = f"network.memory_size is {self.size}, and network.memory_heads {self.heads}"
            raise ConfigError(f"{told}: heads take an even share each, so make the size a multiple of {2 * self.heads}")


class Evaluated(NamedTuple):
    """How the tokens at hand are evaluated, by all blocks alike, and what of the memory after them is known already."""

    evaluate: Evaluation
    known: Kept
    """Leaves of the memory after the tokens that need no block."""


class Attending(nn.Module):
    """Keys and values of the last steps."""

    def __init__(self, shape: OverTimeShape) -> None:
        super().__init__()
        self.shape = shape

    def initial(self, lead: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
        """An empty ring a block."""
        shape = self.shape
        sizes = (shape.layers, 2, shape.heads, shape.window, shape.size // shape.heads)
        is_there = torch.zeros(*lead, shape.window, dtype=torch.bool, device=device)
        return {"states": torch.zeros(*lead, *sizes, device=device), "is_there": is_there}

    def acting(self, memory: Kept) -> Evaluated:
        """By the ring."""
        is_there = functional.pad(memory["is_there"][:, 1:], (0, 1), value=True)
        return Evaluated(ring(is_there, memory["states"].shape[-1]), {"is_there": is_there})

    def learning(self, memory: Kept, opens: Bool[Tensor, "time row"]) -> Evaluated:
        """All at once."""
        band = Band(opens, memory["is_there"], memory["states"].shape[-1])
        return Evaluated(band, {"is_there": band.is_there})


class Retaining(nn.Module):
    """One matrix a head, S_t = κ R⁻¹ S_{t−1} + k_t v_tᵀ, which fades and turns: it tells how long ago a key was.

    Keys stand in it turned back by their age, so it needs no clock. Source: Sun et al. 2023, equations 3 and 6.
    """

    decay: Tensor

    def __init__(self, shape: OverTimeShape) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("decay", decays(shape.heads, 1.0), persistent=False)

    def initial(self, lead: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
        """Zeros."""
        feature = self.shape.size // self.shape.heads
        return {"states": torch.zeros(*lead, self.shape.layers, self.shape.heads, feature, feature, device=device)}

    def acting(self, memory: Kept) -> Evaluated:
        """Recurrent."""
        states = memory["states"]
        evaluate = recurrent(states.new_ones(len(states), 1, dtype=torch.bool))
        older = turns(-1, 1, states.shape[-1], states.device)

        def evaluated(query: Tensor, key: Tensor, value: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
            assert state is not None
            return evaluate(query, key, value, _aged(state, older) * self.decay[:, None, None])

        return Evaluated(evaluated, {})

    def learning(self, memory: Kept, opens: Bool[Tensor, "time row"]) -> Evaluated:
        """Chunkwise; rows whose episodes open together share the weights of their steps."""
        time, feature = len(opens), memory["states"].shape[-1]
        opens = opens[:, :1] if bool((opens == opens[:, :1]).all()) else opens
        is_there = torch.ones_like(opens).T.unsqueeze(2)
        evaluate = chunkwise(opens, is_there, self.decay, CHUNK).acting
        now = turns(0, time, feature, opens.device).unsqueeze(1)  # token head pair
        before, after = (turns(step, 1, feature, opens.device) for step in (-1, 1 - time))

        def evaluated(query: Tensor, key: Tensor, value: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
            assert state is not None
            query, key = (turned(each, now) for each in full_precision(query, key))
            retained, state = evaluate(query, key, value, _aged(state, before))
            assert state is not None
            return retained, _aged(state, after)

        return Evaluated(evaluated, {})


def _aged(state: Tensor, turn: Tensor) -> Float[Tensor, "row head key value"]:
    """A state, the keys in it turned."""
    return turned(state.mT.contiguous(), turn).mT


class Mixing(nn.Module):
    """Tokens of a row told of those before: (heads of) what `evaluate` makes of query, key and value, mapped back.

    Gated, as retention is: swish(x W_g) ⊙ norm(head), so that the scale of values cannot matter.
    """

    def __init__(self, slots: int, shape: OverTimeShape, generator: torch.Generator) -> None:
        super().__init__()
        self.heads, self.is_gated = shape.heads, shape.kind == "retention"
        parts = (3 + self.is_gated) * shape.size
        self.inward = StackedLinear((shape.size,) * slots, parts, generator, gain=1.0)
        self.outward = StackedLinear((shape.size,) * slots, shape.size, generator, gain=0.1)

    def forward(self, x: Rows, evaluate: Evaluation, state: Tensor | None) -> tuple[Rows, Tensor | None]:
        """What the tokens are told, and the state after the last."""
        line = self.inward(x.flatten(1, 2)).view(-1, x.shape[2], 3 + self.is_gated, x.shape[3])
        parts = line.unflatten(3, (self.heads, -1)).permute(2, 0, 3, 1, 4).contiguous()  # once, not at every product
        query, key, value, *gate = (each.transpose(1, 2) for each in parts)  # (slot row) token head feature
        told, state = evaluate(query, key, value, state)
        told = self.gated(told, *gate).flatten(2)  # (slot row) token size
        return self.outward(told.unflatten(0, x.shape[:2]).flatten(1, 2)).view(x.shape), state

    def gated(self, told: Heads, gate: Heads | None = None) -> Heads:
        """What passes the gate; without one, all."""
        return told if gate is None else functional.silu(gate) * normed(told)


class Block(nn.Module):
    """x + mixing(norm(x)), then x + f(norm(x)) with a layer f four times as wide.

    Both add little at first, so that a policy begins with what it sees now. Source: Xiong et al. 2020 (norms before),
    Parisotto et al. 2020 (the beginning).
    """

    def __init__(self, slots: int, shape: OverTimeShape, generator: torch.Generator) -> None:
        super().__init__()
        size, wide = (shape.size,) * slots, (4 * shape.size,) * slots
        self.norms = nn.ModuleList(StackedNorm(slots, shape.size) for _ in range(2 * shape.norm))
        self.mixing = Mixing(slots, shape, generator)
        self.inward = StackedLinear(size, wide[0], generator)
        self.outward = StackedLinear(wide, shape.size, generator, gain=0.1)

    def forward(
        self, x: Rows, evaluate: Evaluation, state: Tensor | None, every: int = 1
    ) -> tuple[Float[Tensor, "slot row read size"], Tensor | None]:
        """The tokens after this block, the last of each `every` alone, and its state after the last of all."""
        told, state = self.mixing(self._normed(0, x), evaluate, state)
        x = (x + told)[:, :, every - 1 :: every]
        wide = functional.gelu(self.inward(self._normed(1, x).flatten(1, 2)))
        return x + self.outward(wide).view(x.shape), state

    def _normed(self, which: int, x: Rows) -> Rows:
        return self.norms[which](x.flatten(1, 2)).view(x.shape) if len(self.norms) else x


class OverTime(nn.Module):
    """Features of what was seen up to each step, with stacked parameters; `step` and `sequence` agree to rounding."""

    def __init__(self, fan_ins: tuple[int, ...], shape: OverTimeShape, generator: torch.Generator) -> None:
        super().__init__()
        slots, self.shape = len(fan_ins), shape
        self.past = Attending(shape) if shape.kind == "attention" else Retaining(shape)
        self.inward = StackedLinear(fan_ins, shape.size, generator, gain=1.0)
        self.blocks = nn.ModuleList(Block(slots, shape, generator) for _ in range(shape.layers))
        self.norm = StackedNorm(slots, shape.size) if shape.norm else None

    def initial_memory(self, *lead: int) -> dict[str, Tensor]:
        """What is kept before an episode, `*lead ...`."""
        return self.past.initial(lead, self.inward.weight.device)

    def step(
        self, x: Float[Tensor, "slot row feature"], memory: Kept
    ) -> tuple[Float[Tensor, "slot row size"], dict[str, Tensor]]:
        """Features of one step, and the memory after it; leaves of the memory are `slot row ...`."""
        rows = {name: leaf.flatten(0, 1) for name, leaf in memory.items()}
        return self._through(x.unsqueeze(2), rows, self.past.acting(rows))

    def sequence(
        self,
        x: Float[Tensor, "slot time row feature"],
        memory: Kept,
        opens: Bool[Tensor, "slot time row"],
        every: int = 1,
    ) -> tuple[Float[Tensor, "slot read row size"], dict[str, Tensor]]:
        """Features of a window, and the memory after it; nothing is known over a step where `opens` is true.

        Of each `every` steps the last is read: those of the others are not made, as far as nobody needs them.
        """
        rows = {name: leaf.flatten(0, 1) for name, leaf in memory.items()}
        ways = self.past.learning(rows, opens.transpose(0, 1).flatten(1))
        features, after = self._through(x.transpose(1, 2), rows, ways, every)
        return features.unflatten(1, (x.shape[2], -1)).transpose(1, 2), after

    def _through(
        self, x: Float[Tensor, "slot row token feature"], memory: Kept, ways: Evaluated, every: int = 1
    ) -> tuple[Float[Tensor, "slot line size"], dict[str, Tensor]]:
        """`slot (row token) size` of the last block, and the memory, `slot row ...`."""
        slots, rows, tokens = x.shape[:3]
        line = self.inward(x.flatten(1, 2)).unflatten(1, (rows, tokens))
        after: list[Tensor] = []
        for depth, (block, before) in enumerate(zip(self.blocks, memory["states"].unbind(1), strict=True), 1):
            line, state = block(line, ways.evaluate, before, every if depth == len(self.blocks) else 1)
            after.append(state)
        features = line.flatten(1, 2)
        left = {"states": torch.stack(after, dim=1), **ways.known}
        shaped = {name: leaf.unflatten(0, (slots, rows)) for name, leaf in left.items()}
        return features if self.norm is None else self.norm(features), shaped
