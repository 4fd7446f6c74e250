"""Layers with stacked parameters: features `slot row feature`, weights `slot ...`, no loop over slots or agents."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from martes.data import Image
from martes.networks.recurrence import gru_states
from martes.networks.units import Normed, Place

NARROW = 16
"""Outputs below which torch's plain linear map has the faster gradient than a batched product."""


EPSILON = 1e-5
"""What torch's layer norm adds to a variance."""


_ARE_DRAWN = ContextVar("_ARE_DRAWN", default=True)


@contextmanager
def undrawn() -> Iterator[None]:
    """Within it stacked layers begin with weights 0: for networks that are to take over those of others at once."""
    before = _ARE_DRAWN.set(False)
    try:
        yield
    finally:
        _ARE_DRAWN.reset(before)


def _draw(weight: Tensor, gain: float, generator: torch.Generator) -> None:
    """Writes an orthogonal matrix there. Source: Saxe et al. 2014."""
    if _ARE_DRAWN.get():
        nn.init.orthogonal_(weight, gain, generator=generator)


class StackedLinear(nn.Module):
    """y = x W_s + b_s for slot s, orthogonal at each slot's own size; weights of padding are 0 and stay 0.

    `fan_outs`: outputs of all slots alike, or of each; `width`: how many they are padded to, none: to the widest.
    """

    def __init__(
        self,
        fan_ins: tuple[int, ...],
        fan_outs: int | tuple[int, ...],
        generator: torch.Generator,
        gain: float = 2**0.5,
        width: int | None = None,
    ) -> None:
        super().__init__()
        sizes = (fan_outs,) * len(fan_ins) if isinstance(fan_outs, int) else fan_outs
        weight = torch.zeros(len(fan_ins), width or max(sizes), max(fan_ins), device=generator.device)
        for own, fan_in, fan_out in zip(weight, fan_ins, sizes, strict=True):
            if fan_out:
                _draw(own[:fan_out, :fan_in], gain, generator)
        self.weight = nn.Parameter(weight)  # slot out in
        self.bias = nn.Parameter(torch.zeros(weight.shape[:2]))
        own = sum(fan_out * (fan_in + 1) for fan_in, fan_out in zip(fan_ins, sizes, strict=True))
        self.padding = self.weight.numel() + self.bias.numel() - own
        """Entries that are 0 and stay 0."""

    def forward(self, x: Float[Tensor, "slot row fan_in"]) -> Float[Tensor, "slot row fan_out"]:
        """The image of every row under its slot's map."""
        weight, bias = self.weight, self.bias
        if len(weight) == 1 and weight.shape[1] < NARROW:
            return functional.linear(x, weight.squeeze(0), bias.squeeze(0))
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))

    def moved(
        self, x: Float[Tensor, "slot rows fan_in"], by: Float[Tensor, "slot member fan_out"]
    ) -> Float[Tensor, "slot rows fan_out"]:
        """The image of every row, moved by what is added for its member; rows are those of all members in turn."""
        offset = (self.bias.unsqueeze(1) + by).unsqueeze(1).expand(-1, x.shape[1] // by.shape[1], -1, -1)
        # A copy, which the product is added to: no view is written over, else its gradient would be copied thrice.
        return offset.flatten(1, 2).contiguous().baddbmm_(x, self.weight.transpose(1, 2))

    def outputs(self, blocks: int = 1) -> tuple[Place, ...]:
        """Where the units stand that it makes."""
        return Place(self.weight, 1, blocks), Place(self.bias, 1, blocks)

    def inputs(self, start: int = 0, each: int = 1) -> Place:
        """Where the units stand that it reads, from the input `start` on."""
        return Place(self.weight, 2, each=each, start=start)


class StackedNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) with gain and bias of each slot's own.

    `sizes`: units of each slot; what stands behind them is padding, counts in no mean and comes out as 0.
    """

    is_own: Tensor | None
    """[slot 1 width] 1 for a unit, 0 for padding; None: there is no padding."""

    def __init__(self, slots: int, width: int, sizes: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(slots, width))
        self.bias = nn.Parameter(torch.zeros(slots, width))
        self.padding = 2 * sum(width - size for size in sizes)
        """Entries that are 0 and stay 0."""
        is_own = None
        if self.padding:
            is_own = (torch.arange(width) < torch.tensor(sizes).view(-1, 1, 1)).float()
            self.weight.data.mul_(is_own.squeeze(1))
        self.register_buffer("is_own", is_own, persistent=False)

    def forward(self, x: Float[Tensor, "slot row width"]) -> Float[Tensor, "slot row width"]:
        """Rows with mean 0 and variance 1, scaled and shifted."""
        return self._standardised(x) * self.weight.unsqueeze(1) + self.bias.unsqueeze(1)

    def _standardised(self, x: Float[Tensor, "slot row width"]) -> Float[Tensor, "slot row width"]:
        own = self.is_own
        if own is None:
            return functional.layer_norm(x, x.shape[-1:])
        size = own.sum(-1, keepdim=True).clamp(min=1)  # of a slot without this layer nothing is read
        centred = (x - (x * own).sum(-1, keepdim=True) / size) * own
        return centred * torch.rsqrt(centred.square().sum(-1, keepdim=True) / size + EPSILON)

    def normed(self, before: tuple[Place, ...]) -> Normed:
        """The units that it goes through, made by `before`."""
        return Normed(before, Place(self.weight, 1), Place(self.bias, 1))


class StackedConvolutions(nn.Module):
    """Features of an image: 3x3 convolutions of stride 2, slots as channel groups; bytes become [0, 1]."""

    def __init__(self, slots: int, image: Image, channels: tuple[int, ...], generator: torch.Generator) -> None:
        super().__init__()
        self.slots = slots
        weights, wide = [], image.shape[0]
        height, width = image.shape[1:]
        for out in channels:
            weight = torch.zeros(slots, out, wide, 3, 3, device=generator.device)
            for part in weight:
                _draw(part, 2**0.5, generator)
            weights.append(nn.Parameter(weight))
            wide, height, width = out, (height + 1) // 2, (width + 1) // 2
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(weight.shape[:2])) for weight in weights)
        self.pixels = height * width
        """Of each channel of the last convolution."""
        self.size = wide * self.pixels

    def forward(self, x: Tensor) -> Float[Tensor, "slot row feature"]:
        """Features of images `slot row channel height width`."""
        pixels = x if x.is_floating_point() else x.float() / 255
        x = pixels.transpose(0, 1).flatten(1, 2)  # row (slot channel) height width
        for weight, bias in zip(self.weights, self.biases, strict=True):
            channels = weight.flatten(0, 1), bias.flatten()  # (slot channel) ...
            x = functional.conv2d(x, *channels, stride=2, padding=1, groups=self.slots).relu()
        return x.unflatten(1, (self.slots, -1)).transpose(0, 1).flatten(2)

    def outputs(self, depth: int) -> tuple[Place, ...]:
        """Where the channels stand that the convolution at this depth makes."""
        return Place(self.weights[depth], 1), Place(self.biases[depth], 1)

    def inputs(self, depth: int) -> Place:
        """Where the channels stand that the convolution at this depth reads."""
        return Place(self.weights[depth], 2)


class StackedGRU(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) per slot, torch's variant of the candidate gate."""

    def __init__(self, fan_ins: tuple[int, ...], size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.size = size
        self.inward = StackedLinear(fan_ins, 3 * size, generator, gain=1.0)
        self.recurrent = StackedLinear((size,) * len(fan_ins), 3 * size, generator, gain=1.0)

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
        return gru_states(x, h, keep, self.recurrent.weight, self.recurrent.bias)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates, candidate = x.split((2 * self.size, self.size), dim=-1)
        return gates, candidate

    def _next(self, gates: Tensor, candidate: Tensor, h: Tensor) -> Tensor:
        own_gates, own_candidate = self._split(self.recurrent(h))
        reset, update = torch.sigmoid(gates + own_gates).chunk(2, dim=-1)
        return torch.lerp(torch.tanh(torch.addcmul(candidate, reset, own_candidate)), h, update)
