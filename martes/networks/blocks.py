"""Layers with stacked parameters: features `slot row feature`, weights `slot ...`, no loop over slots or agents."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from martes.data import Image, Memory, Vector
from martes.errors import ConfigError
from martes.maths.statistics import Moments, empty_moments, merged_moments, normalised
from martes.networks.sharing import Slots
from martes.networks.temporal import Inputs

ACTIVATIONS = {"relu": torch.relu_, "tanh": torch.tanh_, "gelu": functional.gelu, "silu": functional.silu}
"""In place where the gradient needs the result alone: to allocate a large tensor costs as much as to compute it."""


@dataclass(frozen=True)
class Network:
    """The shape of one network: [convolutions for images] -> hidden layers -> [a GRU]."""

    hidden: tuple[int, ...] = (64, 64)
    """Widths of the fully connected layers."""
    activation: Literal["relu", "tanh", "gelu", "silu"] = "relu"
    """Non-linearity after every hidden layer."""
    layer_norm: bool = False
    """Normalise the features of every hidden layer (Ba et al. 2016)?"""
    memory: Literal["none", "gru"] = "none"
    """What carries information from step to step."""
    memory_size: int = 64
    """Width of the memory."""
    agent_id: bool = False
    """Tell agents that share parameters which of them they are (a learned vector added to the first layer)?"""
    normalise: bool = False
    """Standardise observations by running statistics, which move only when learning?"""
    channels: tuple[int, ...] = (16, 32)
    """Channels of the convolutions (3x3, stride 2) that read an image."""

    def __post_init__(self) -> None:
        for name in ("hidden", "channels"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ConfigError(f"network.{name} is {getattr(self, name)}: give at least one width, each at least 1")
        if self.memory_size < 1:
            raise ConfigError(f"network.memory_size is {self.memory_size}: it must be at least 1")


class StackedLinear(nn.Module):
    """y = x W_s + b_s for slot s, orthogonal at each slot's own fan-in; weights of padded inputs are 0 and stay 0."""

    def __init__(
        self, fan_ins: tuple[int, ...], fan_out: int, generator: torch.Generator, gain: float = 2**0.5
    ) -> None:
        super().__init__()
        weight = torch.zeros(len(fan_ins), fan_out, max(fan_ins), device=generator.device)
        for slot, fan_in in enumerate(fan_ins):
            nn.init.orthogonal_(weight[slot, :, :fan_in], gain, generator=generator)
        self.weight = nn.Parameter(weight)  # slot out in
        self.bias = nn.Parameter(torch.zeros(len(fan_ins), fan_out))

    def forward(self, x: Float[Tensor, "slot row fan_in"]) -> Float[Tensor, "slot row fan_out"]:
        """The image of every row under its slot's map."""
        if len(self.weight) == 1:
            return functional.linear(x, self.weight.squeeze(0), self.bias.squeeze(0))
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.transpose(1, 2))


class StackedNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) with gain and bias of each slot's own."""

    def __init__(self, slots: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(slots, width))
        self.bias = nn.Parameter(torch.zeros(slots, width))

    def forward(self, x: Float[Tensor, "slot row width"]) -> Float[Tensor, "slot row width"]:
        """Rows with mean 0 and variance 1, scaled and shifted."""
        return functional.layer_norm(x, x.shape[-1:]) * self.weight.unsqueeze(1) + self.bias.unsqueeze(1)


class StackedConvolutions(nn.Module):
    """Features of an image: 3x3 convolutions of stride 2, slots as channel groups; bytes become [0, 1]."""

    def __init__(self, slots: int, image: Image, channels: tuple[int, ...], generator: torch.Generator) -> None:
        super().__init__()
        self.slots = slots
        weights, wide = [], image.shape[0]
        height, width = image.shape[1:]
        for out in channels:
            weight = torch.empty(slots * out, wide, 3, 3, device=generator.device)
            for part in weight.chunk(slots):
                nn.init.orthogonal_(part, 2**0.5, generator=generator)
            weights.append(nn.Parameter(weight))
            wide, height, width = out, (height + 1) // 2, (width + 1) // 2
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(len(weight))) for weight in weights)
        self.size = wide * height * width

    def forward(self, x: Tensor) -> Float[Tensor, "slot row feature"]:
        """Features of images `slot row channel height width`."""
        pixels = x if x.is_floating_point() else x.float() / 255
        x = pixels.transpose(0, 1).flatten(1, 2)  # row (slot channel) height width
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = functional.conv2d(x, weight, bias, stride=2, padding=1, groups=self.slots).relu()
        return x.unflatten(1, (self.slots, -1)).transpose(0, 1).flatten(2)


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


class StackedGRU(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) per slot, torch's variant of the candidate gate."""

    def __init__(self, slots: int, fan_in: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.size = size
        self.inward = StackedLinear((fan_in,) * slots, 3 * size, generator, gain=1.0)
        self.recurrent = StackedLinear((size,) * slots, 3 * size, generator, gain=1.0)

    def step(
        self, x: Float[Tensor, "slot row gates"], h: Float[Tensor, "slot row size"]
    ) -> Float[Tensor, "slot row size"]:
        """The next memory n + z (h - n), where r, z = s(x + U h) and n = tanh(x + r U h); x is `inward` of features."""
        return self._next(*self._split(x), h)

    def sequence(
        self,
        x: Float[Tensor, "slot time row gates"],
        h: Float[Tensor, "slot row size"],
        keep: Float[Tensor, "#slot time row 1"],
    ) -> Float[Tensor, "slot time row size"]:
        """The memory after each step, multiplied by `keep` before it: 0 starts afresh."""
        steps: list[Tensor] = []
        # Unbound at once: the gradient of a slice would fill the whole window with zeros at every step.
        for gates, candidate, kept in zip(*(each.unbind(1) for each in self._split(x)), keep.unbind(1), strict=True):
            h = self._next(gates, candidate, h * kept)
            steps.append(h)
        return torch.stack(steps, dim=1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates, candidate = x.split((2 * self.size, self.size), dim=-1)
        return gates, candidate

    def _next(self, gates: Tensor, candidate: Tensor, h: Tensor) -> Tensor:
        own_gates, own_candidate = self._split(self.recurrent(h))
        reset, update = torch.sigmoid(gates + own_gates).chunk(2, dim=-1)
        return torch.lerp(torch.tanh(torch.addcmul(candidate, reset, own_candidate)), h, update)


class Body(nn.Module):
    """Features of what each agent sees, by slot; with a GRU also of what it has seen. Two faces, as every module."""

    def __init__(
        self,
        parts: Mapping[str, Vector | Image],
        fan_ins: tuple[int, ...],
        slots: Slots,
        network: Network,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.slots = slots
        self.network = network
        self.vectors = tuple(name for name, part in parts.items() if isinstance(part, Vector))
        self.images = tuple(name for name, part in parts.items() if isinstance(part, Image))
        width = sum(part.size for part in parts.values() if isinstance(part, Vector))
        self.norm = ObservationNorm(slots.count, width) if network.normalise and self.vectors else None
        pictures = [part for part in parts.values() if isinstance(part, Image)]
        convolutions = [StackedConvolutions(slots.count, each, network.channels, generator) for each in pictures]
        self.convolutions = nn.ModuleList(convolutions)
        seen = sum(each.size for each in convolutions)
        own = tuple(seen + fan_in for fan_in in fan_ins)
        widths = network.hidden
        first = StackedLinear(own, widths[0], generator)
        rest = (StackedLinear((a,) * slots.count, b, generator) for a, b in pairwise(widths))
        self.layers = nn.ModuleList((first, *rest))
        self.norms = nn.ModuleList(StackedNorm(slots.count, width) for width in widths if network.layer_norm)
        self.identity = nn.Parameter(torch.zeros(slots.count, slots.width, widths[0])) if network.agent_id else None
        remembers = network.memory == "gru"
        self.gru = StackedGRU(slots.count, widths[-1], network.memory_size, generator) if remembers else None
        self.size = network.memory_size if remembers else widths[-1]

    @property
    def reads(self) -> tuple[str, ...]:
        """The observation fields that it takes."""
        return self.images + self.vectors

    def initial_memory(self, envs: int) -> Memory:
        """Zeros `env agent size`, or () without a GRU."""
        if self.gru is None:
            return ()
        weight = self.gru.recurrent.weight
        return weight.new_zeros(envs, len(self.slots.slot_of_agent), self.gru.size)

    def vector(self, inputs: Inputs) -> Float[Tensor, "slot row width"]:
        """All vector parts side by side, in the slots' layout."""
        parts = [inputs[name] for name in self.vectors]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return self.slots.stacked(joined.float())

    def observe(self, inputs: Inputs, mask: Bool[Tensor, "*lead agent"]) -> None:
        """Moves the statistics of normalisation by what living agents saw."""
        if self.norm is not None:
            self.norm.observe(self.vector(inputs), self.slots.stacked_mask(mask))

    def features(self, inputs: Inputs) -> Float[Tensor, "slot row hidden"]:
        """Features without memory, of any leading axes."""
        seen = [self._image(inputs[name], layer) for name, layer in zip(self.images, self.convolutions, strict=True)]
        if self.vectors:
            vector = self.vector(inputs)
            seen.append(vector if self.norm is None else self.norm(vector))
        x = seen[0] if len(seen) == 1 else torch.cat(seen, dim=-1)
        for depth, layer in enumerate(self.layers):
            x = layer(x)
            if depth == 0 and self.identity is not None:
                x = (x.unflatten(1, (-1, self.slots.width)) + self.identity.unsqueeze(1)).flatten(1, 2)
            x = self.norms[depth](x) if self.network.layer_norm else x
            x = ACTIVATIONS[self.network.activation](x)
        return x

    def _image(self, image: Tensor, layer: nn.Module) -> Tensor:
        flat = self.slots.stacked(image.flatten(-3))  # slot row (channel height width)
        return layer(flat.unflatten(-1, image.shape[-3:]))

    def _stacked(self, memory: Memory) -> Float[Tensor, "slot row size"]:
        assert isinstance(memory, Tensor), "the memory of a GRU is one tensor: begin with its initial_memory"
        return self.slots.stacked(memory)

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Float[Tensor, "slot row size"], Memory]:
        """Features of one step and the memory after it; absent agents keep none."""
        x = self.features(inputs)
        if self.gru is None:
            return x, ()
        h = self.gru.step(self.gru.inward(x), self._stacked(memory))
        after = self.slots.unstacked(h, inputs["agent_mask"].shape[:1])
        return h, after * inputs["agent_mask"].unsqueeze(-1)

    def sequence(
        self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]
    ) -> tuple[Float[Tensor, "slot row size"], Memory]:
        """Features of a window and the memory after it; all but the recurrence itself is done for all steps at once."""
        x = self.features(inputs)
        if self.gru is None:
            return x, ()
        time, envs = start.shape
        gates = self.gru.inward(x).unflatten(1, (time, -1))  # slot time (env member) gates
        alive = self.slots.stacked(inputs["agent_mask"].unsqueeze(-1)).unflatten(1, (time, -1))
        opens = start.unsqueeze(-1).expand(*start.shape, self.slots.width).reshape(1, time, -1, 1)
        # A fresh agent, and one that was absent, starts from zeros; the given memory holds none of the absent.
        there = torch.cat((torch.ones_like(alive[:, :1]), alive[:, :-1]), dim=1)
        states = self.gru.sequence(gates, self._stacked(memory), (there & ~opens).to(x.dtype))
        after = self.slots.unstacked(states[:, -1], (envs,)) * inputs["agent_mask"][-1].unsqueeze(-1)
        return states.flatten(1, 2), after
