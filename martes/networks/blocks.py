"""Bodies: what agents make of what they see, and, with memory, of what they have seen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from martes.data import Image, Memory, Vector
from martes.errors import ConfigError
from martes.maths.statistics import Moments, empty_moments, merged_moments, normalised
from martes.networks.over_time import OverTime, OverTimeShape
from martes.networks.sharing import Slots
from martes.networks.stacked import StackedConvolutions, StackedGRU, StackedLinear, StackedNorm
from martes.networks.temporal import Inputs
from martes.networks.units import Place, Units
from martes.networks.widths import widths_of

ActivationName = Literal["relu", "tanh", "gelu", "silu"]
ACTIVATIONS = {"relu": torch.relu_, "tanh": torch.tanh_, "gelu": functional.gelu, "silu": functional.silu}
"""In place where the gradient needs the result alone: to allocate a large tensor costs as much as to compute it."""


@dataclass(frozen=True)
class Network:
    """The shape of one network: [convolutions for images] -> hidden layers -> [what remembers]."""

    hidden: tuple[int, ...] = (64, 64)
    """Widths of the fully connected layers."""
    activation: ActivationName = "relu"
    """Non-linearity after every hidden layer."""
    layer_norm: bool = False
    """Normalise the features of every hidden layer (Ba et al. 2016)?"""
    memory: Literal["none", "gru", "attention", "retention"] = "none"
    """What carries information from step to step: a GRU, or blocks of attention to the last steps, or of retention."""
    memory_size: int = 64
    """Width of the memory."""
    memory_layers: int = 1
    """Of attention and retention: blocks, one after the other."""
    memory_heads: int = 4
    """Of attention and retention: heads of each block; they share the width."""
    memory_window: int = 32
    """Of attention: how many steps it sees, the present one included."""
    memory_norm: bool = True
    """Of attention and retention: normalise what each block reads?"""
    agent_id: bool = False
    """Tell agents that share parameters which of them they are (a learned vector added to the first layer)?"""
    normalise: bool = False
    """Standardise observations by running statistics, which move only when learning?"""
    channels: tuple[int, ...] = (16, 32)
    """Channels of the convolutions (3x3, stride 2) that read an image."""
    added: tuple[int, ...] = ()
    """Widths of layers after the hidden ones that add to what they read; each begins by adding 0."""
    hidden_by_group: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """Hidden layers of some groups, or of agents by name, in place of `hidden`; those who share have the same."""

    def __post_init__(self) -> None:
        for name, widths in self.hidden_by_group.items():
            if not widths or min(widths) < 1:
                told = f"network.hidden_by_group.{name} is {list(widths)}"
                raise ConfigError(f"{told}: give at least one width, each at least 1")
        if any(width < 1 for width in self.added):
            raise ConfigError(f"network.added is {self.added}: each width must be at least 1")
        for name in ("hidden", "channels"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ConfigError(f"network.{name} is {getattr(self, name)}: give at least one width, each at least 1")
        if self.memory_size < 1:
            raise ConfigError(f"network.memory_size is {self.memory_size}: it must be at least 1")
        _ = self.over_time

    @property
    def over_time(self) -> OverTimeShape | None:
        """The blocks that remember, where there are such. Raises ConfigError for a shape that cannot be."""
        if self.memory not in ("attention", "retention"):
            return None
        sizes = (self.memory_size, self.memory_heads, self.memory_layers, self.memory_window)
        return OverTimeShape(self.memory, *sizes, norm=self.memory_norm)


class ObservationNorm(nn.Module):
    """Standardised features, by running statistics of each slot. Only `observe`, called in `update`, moves them."""

    seen: Tensor
    mean: Tensor
    m2: Tensor

    def __init__(self, slots: int, width: int) -> None:
        super().__init__()
        for name, value in empty_moments((slots,), (width,))._asdict().items():
            self.register_buffer(name, value)

    @property
    def moments(self) -> Moments:
        """What was seen so far."""
        return Moments(self.seen, self.mean, self.m2)

    @torch.no_grad()
    def observe(self, x: Float[Tensor, "slot row width"], mask: Bool[Tensor, "slot row"]) -> None:
        """Takes the rows where `mask` is true into the statistics."""
        for name, value in merged_moments(self.moments, x, mask)._asdict().items():
            getattr(self, name).copy_(value)

    def forward(self, x: Float[Tensor, "slot row width"]) -> Float[Tensor, "slot row width"]:
        """Features with mean 0 and variance 1 by the statistics so far, clipped to [-10, 10]."""
        return normalised(x, self.moments, 10.0)


class AddedLayer(nn.Module):
    """x + f(norm(x U + b)) W + c: a layer that begins as the identity, since W and c begin at 0.

    Source: He et al. 2016, section 3.1; the beginning, which lets a network deepen as it learns, Chen et al. 2016.
    """

    def __init__(self, sizes: tuple[int, ...], width: int, network: Network, generator: torch.Generator) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[network.activation]
        self.inward = StackedLinear(sizes, width, generator)
        self.norm = StackedNorm(len(sizes), width) if network.layer_norm else None
        self.outward = StackedLinear((width,) * len(sizes), sizes, generator, gain=0.0)

    def forward(self, x: Float[Tensor, "slot row size"]) -> Float[Tensor, "slot row size"]:
        """The features, and what this layer adds to them."""
        inner = self.inward(x)
        return x + self.outward(self.activation(inner if self.norm is None else self.norm(inner)))

    @property
    def inner(self) -> Units:
        """Its own units."""
        return layer_units(self.inward.outputs(), self.norm, (self.outward.inputs(),))


def layer_units(
    made: tuple[Place, ...], norm: StackedNorm | None, read: tuple[Place, ...], added: tuple[Place, ...] = ()
) -> Units:
    """The units of a layer with or without a norm; `added` makes what is added to them after it."""
    width = made[0].parameter.shape[1]
    return Units(width, (*made, *added), read) if norm is None else Units(width, added, read, norm.normed(made))


class Body(nn.Module):
    """Features of what each agent sees, by slot; with memory also of what it has seen. Two faces, as every module.

    The first `told` numbers are nothing that is observed (a last action), and are never standardised.
    """

    is_short: Tensor | None
    """[layer slot 1 1] Has the slot no such hidden layer? None: all have all."""

    def __init__(
        self,
        parts: Mapping[str, Vector | Image],
        fan_ins: tuple[int, ...],
        slots: Slots,
        network: Network,
        generator: torch.Generator,
        told: int = 0,
    ) -> None:
        super().__init__()
        self.slots = slots
        self.network = network
        self.told = told
        self.vectors = tuple(name for name, part in parts.items() if isinstance(part, Vector))
        self.images = tuple(name for name, part in parts.items() if isinstance(part, Image))
        width = sum(part.size for part in parts.values() if isinstance(part, Vector)) - told
        self.norm = ObservationNorm(slots.count, width) if network.normalise and width else None
        pictures = [part for part in parts.values() if isinstance(part, Image)]
        convolutions = [StackedConvolutions(slots.count, each, network.channels, generator) for each in pictures]
        self.convolutions = nn.ModuleList(convolutions)
        seen = sum(each.size for each in convolutions)
        own = tuple(seen + fan_in for fan_in in fan_ins)
        self.widths = widths = widths_of(network.hidden, network.hidden_by_group, slots)
        after = [widths.after(depth) for depth in range(widths.depth)]
        first = StackedLinear(own, widths.made(0), generator)
        rest = (
            StackedLinear(fan_ins, widths.made(i), generator, width=max(after[i]))
            for i, fan_ins in enumerate(after[:-1], 1)
        )
        self.layers = nn.ModuleList((first, *rest))
        self.norms = nn.ModuleList(
            StackedNorm(slots.count, max(each), () if widths.are_equal else widths.made(depth))
            for depth, each in enumerate(after)
            if network.layer_norm
        )
        deeper = (AddedLayer(after[-1], width, network, generator) for width in network.added)
        self.added = nn.ModuleList(deeper)
        self.identity = nn.Parameter(torch.zeros(slots.count, slots.width, max(after[0]))) if network.agent_id else None
        self.gru = StackedGRU(after[-1], network.memory_size, generator) if network.memory == "gru" else None
        shape = network.over_time
        self.over_time = None if shape is None else OverTime(after[-1], shape, generator)
        self.sizes = (network.memory_size,) * slots.count if self.remembers else after[-1]
        """Features of each slot."""
        self.size = max(self.sizes)
        is_short = torch.tensor([widths.made(depth) for depth in range(widths.depth)]) == 0
        self.register_buffer("is_short", is_short[..., None, None] if is_short.any() else None, persistent=False)

    @property
    def reads(self) -> tuple[str, ...]:
        """The observation fields that it takes."""
        return self.images + self.vectors

    @property
    def remembers(self) -> bool:
        """Does it carry anything from step to step?"""
        return self.network.memory != "none"

    def initial_memory(self, envs: int) -> Memory:
        """Zeros, `env agent size` of a GRU; or () without memory."""
        agents = len(self.slots.slot_of_agent)
        if self.over_time is not None:
            return {**self.over_time.initial_memory(envs, agents)}
        return () if self.gru is None else self.gru.recurrent.weight.new_zeros(envs, agents, self.gru.size)

    def vector(self, inputs: Inputs) -> Float[Tensor, "slot row width"]:
        """All vector parts side by side, in the slots' layout."""
        parts = [inputs[name] for name in self.vectors]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return self.slots.stacked(joined.float())

    def observe(self, inputs: Inputs, mask: Bool[Tensor, "*lead agent"]) -> None:
        """Moves the statistics of normalisation by what living agents saw."""
        if self.norm is not None:
            self.norm.observe(self.vector(inputs)[..., self.told :], self.slots.stacked_mask(mask))

    def features(self, inputs: Inputs) -> Float[Tensor, "slot row hidden"]:
        """Features without memory, of any leading axes."""
        seen = [self._image(inputs[name], layer) for name, layer in zip(self.images, self.convolutions, strict=True)]
        if self.vectors:
            seen.append(self._standardised(self.vector(inputs)))
        x, first = seen[0] if len(seen) == 1 else torch.cat(seen, dim=-1), self.layers[0]
        assert isinstance(first, StackedLinear)
        return self.deepened(first(x) if self.identity is None else first.moved(x, self.identity))

    def _standardised(self, vector: Float[Tensor, "slot row width"]) -> Float[Tensor, "slot row width"]:
        if self.norm is None:
            return vector
        told, seen = vector.tensor_split((self.told,), -1)
        return torch.cat((told, self.norm(seen)), -1) if self.told else self.norm(vector)

    def identified(self, x: Float[Tensor, "slot row #member hidden"]) -> Float[Tensor, "slot rows hidden"]:
        """What the first layer made of rows, told for each member of a slot which of them it is."""
        assert self.identity is not None
        # A copy, which `deepened` writes over: never x, and no view, whose gradient would be copied each time.
        return (x + self.identity.unsqueeze(1)).flatten(1, 2).clone()

    def deepened(self, x: Float[Tensor, "slot row width"]) -> Float[Tensor, "slot row hidden"]:
        """Features, from what the first layer gave before its activation; x may be written over."""
        for depth, layer in enumerate(self.layers):
            before, x = x, layer(x) if depth else x
            x = self.norms[depth](x) if self.network.layer_norm else x
            x = ACTIVATIONS[self.network.activation](x)
            if depth and self.is_short is not None:  # slots without this layer keep what they have
                kept = functional.pad(before, (0, x.shape[-1] - before.shape[-1]))
                x = torch.where(self.is_short[depth], kept, x)
        for layer in self.added:
            x = layer(x)
        return x

    def units_read_at(self, *readers: Place) -> dict[str, Units]:
        """Its hidden units by the network's fields; `readers` are where its features are read."""
        layers = [each for each in self.layers if isinstance(each, StackedLinear)]
        norms = [each for each in self.norms if isinstance(each, StackedNorm)] or [None] * len(layers)
        added = [each for each in self.added if isinstance(each, AddedLayer)]
        memory = self.gru or self.over_time
        after = readers if memory is None else (memory.inward.inputs(),)
        read = [(each.inputs(),) for each in layers[1:]] + [(*after, *(each.inward.inputs() for each in added))]
        made = [each.outputs() for each in layers]
        made[0] += () if self.identity is None else (Place(self.identity, 2),)
        last = tuple(place for each in added for place in each.outward.outputs())
        found = self._channels(layers[0])
        for depth, (makers, norm, reads) in enumerate(zip(made, norms, read, strict=True)):
            units = layer_units(makers, norm, reads, last if depth == len(made) - 1 else ())
            found[f"hidden.{depth}"] = units._replace(own=() if self.widths.are_equal else self.widths.made(depth))
        found |= {f"added.{depth}": each.inner for depth, each in enumerate(added)}
        if self.gru is not None:
            makers = (*self.gru.inward.outputs(3), *self.gru.recurrent.outputs(3))
            found["memory_size"] = Units(self.gru.size, makers, (self.gru.recurrent.inputs(), *readers))
        return found

    def _channels(self, first: StackedLinear) -> dict[str, Units]:
        """The channels of all images at each depth."""
        images = [each for each in self.convolutions if isinstance(each, StackedConvolutions)]
        starts = [sum(each.size for each in images[:index]) for index in range(len(images))]
        found: dict[str, Units] = {}
        for depth, width in enumerate(self.network.channels if images else ()):
            is_last = depth == len(self.network.channels) - 1
            made = tuple(place for each in images for place in each.outputs(depth))
            flat = (first.inputs(start, each.pixels) for start, each in zip(starts, images, strict=True))
            deep = (each.inputs(depth + 1) for each in images if not is_last)
            found[f"channels.{depth}"] = Units(width, made, tuple(flat if is_last else deep))
        return found

    def _image(self, image: Tensor, layer: nn.Module) -> Tensor:
        flat = self.slots.stacked(image.flatten(-3))  # slot row (channel height width)
        return layer(flat.unflatten(-1, image.shape[-3:]))

    def _stacked(self, memory: Memory) -> Float[Tensor, "slot row size"]:
        assert isinstance(memory, Tensor), "the memory of a GRU is one tensor: begin with its initial_memory"
        return self.slots.stacked(memory)

    def _by_slot(self, memory: Memory) -> dict[str, Tensor]:
        """Leaves `env agent ...` as `slot row ...`."""
        leaves = {name: leaf for name, leaf in (memory.items() if isinstance(memory, dict) else ())}
        tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
        assert tensors, f"a memory of {self.network.memory} is a dict: begin with its initial_memory"
        return {name: self.slots.stacked(x.flatten(2)).unflatten(2, x.shape[2:]) for name, x in tensors.items()}

    def _by_agent(self, memory: Mapping[str, Tensor], alive: Bool[Tensor, "env agent"]) -> Memory:
        """Leaves `slot row ...` as `env agent ...`; absent agents keep nothing."""

        def placed(leaf: Tensor) -> Tensor:
            found = self.slots.unstacked(leaf.flatten(2), alive.shape[:1]).unflatten(2, leaf.shape[2:])
            return found * alive.view(*alive.shape, *(1,) * (found.ndim - 2))

        return {name: placed(leaf) for name, leaf in memory.items()}

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Float[Tensor, "slot row size"], Memory]:
        """Features of one step and the memory after it; absent agents keep none."""
        x = self.features(inputs)
        if self.over_time is not None:
            h, kept = self.over_time.step(x, self._by_slot(memory))
            return h, self._by_agent(kept, inputs["agent_mask"])
        if self.gru is None:
            return x, ()
        h = self.gru.step(self.gru.inward(x), self._stacked(memory))
        after = self.slots.unstacked(h, inputs["agent_mask"].shape[:1])
        return h, after * inputs["agent_mask"].unsqueeze(-1)

    def sequence(
        self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"], every: int = 1
    ) -> tuple[Float[Tensor, "slot row size"], Memory]:
        """Features of a window and the memory after it; all but the recurrence itself is done for all steps at once.

        Of each `every` steps the features of the last are given.
        """
        x = self.features(inputs)
        time, envs = start.shape
        if not self.remembers:
            return x.unflatten(1, (time, -1))[:, every - 1 :: every].flatten(1, 2), ()
        alive = self.slots.stacked(inputs["agent_mask"].unsqueeze(-1)).unflatten(1, (time, -1))
        opens = start.unsqueeze(-1).expand(*start.shape, self.slots.width).reshape(1, time, -1, 1)
        # A fresh agent, and one that was absent, starts from zeros; the given memory holds none of the absent.
        there = torch.cat((torch.ones_like(alive[:, :1]), alive[:, :-1]), dim=1)
        keeps = there & ~opens
        if self.over_time is not None:
            line = x.unflatten(1, (time, -1))
            states, kept = self.over_time.sequence(line, self._by_slot(memory), ~keeps.squeeze(3), every)
            return states.flatten(1, 2), self._by_agent(kept, inputs["agent_mask"][-1])
        assert self.gru is not None
        gates = self.gru.inward(x).unflatten(1, (time, -1))  # slot time (env member) gates
        states = self.gru.sequence(gates, self._stacked(memory), keeps.to(x.dtype))
        after = self.slots.unstacked(states[:, -1], (envs,)) * inputs["agent_mask"][-1].unsqueeze(-1)
        return states[:, every - 1 :: every].flatten(1, 2), after
