"""Layers that a line of tokens goes through: norms at full precision, a gated layer, what precedes a last map."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from martes.networks.units import Place, Units

Features = Float[Tensor, "*lead feature"]
Returned = TypeVar("Returned")


def full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in float32 at least: sums over a long past and norms of small numbers need its digits and range."""
    return tuple(each if each.dtype in (torch.float32, torch.float64) else each.float() for each in tensors)


def without_autocast(device: torch.device) -> torch.autocast:
    """A context in which nothing is cast down."""
    return torch.autocast(device.type, enabled=False)


class RMSNorm(nn.Module):
    """x g / sqrt(mean x² + ε), at full precision. Source: Zhang and Sennrich 2019."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Features) -> Features:
        """Features with mean square 1, scaled."""
        return normed(x) * self.weight


class LayerNorm(nn.Module):
    """(x − mean x) g / sqrt(var x + ε) + b, at full precision. Source: Ba et al. 2016, equation 4."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Features) -> Features:
        """Features with mean 0 and variance 1, scaled and shifted."""
        (x,) = full_precision(x)
        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias)


EPS = 1e-6
"""ε of the norms: retained values begin small, and a larger one would dampen them."""


def normed(x: Features) -> Features:
    """x / sqrt(mean x² + ε), at full precision."""
    (x,) = full_precision(x)
    return _RootMeanSquare.apply(x)[0] if torch.is_grad_enabled() else x * _inverse_root(x)


def _inverse_root(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().mul_(1 / x.shape[-1]).add_(EPS).rsqrt_()


class _RootMeanSquare(torch.autograd.Function):
    """y = x r with r = 1 / sqrt(mean x² + ε), and dx = r (dy − y mean(y dy)).

    On a CPU torch makes the gradient of its own norm from many small ones: 5 to 7 times slower, where norms are a
    large part of what a gradient costs.
    """

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        r = _inverse_root(x)
        return x * r, r

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: BackwardCFunction, *grad_outputs: Tensor) -> Tensor:
        dy, (y, r) = grad_outputs[0], list(ctx.saved_tensors)
        return torch.addcmul(dy, y, (y * dy).mean(-1, keepdim=True), value=-1).mul_(r)


class SwiGLU(nn.Module):
    """(swish(x W_g) ⊙ x W_l) W_o: a gated layer of the tokens' own width. Source: Shazeer 2020, equation 6.

    The last map begins small, so a block begins near the identity; at 0 all three would stay there for ever.
    """

    def __init__(self, size: int, generator: torch.Generator, width: int | None = None) -> None:
        super().__init__()
        self.width = width or size
        inward = torch.empty(2, self.width, size, device=generator.device)
        for weight in inward:
            nn.init.orthogonal_(weight, 1.0, generator=generator)
        outward = torch.empty(size, self.width, device=generator.device)
        self.inward = nn.Parameter(inward.flatten(0, 1))  # (gate linear) size
        self.outward = nn.Parameter(nn.init.orthogonal_(outward, 0.1, generator=generator))

    def units(self) -> dict[str, Units]:
        """What stands between its maps."""
        made, read = (Place(self.inward, 1, blocks=2),), (Place(self.outward, 2),)
        return {"feed_forward_size": Units(self.width, made, read, is_stacked=False)}

    def forward(self, x: Features) -> Features:
        """The image of every token."""
        gate, linear = functional.linear(x, self.inward).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * linear, self.outward)


class Perceptron(nn.Sequential):
    """Two maps with a GELU between them; the last begins small."""

    def __init__(self, size: int, generator: torch.Generator, width: int | None = None) -> None:
        inward = orthogonal_linear(size, width or size, generator, 2**0.5)
        super().__init__(inward, nn.GELU(), small_linear(width or size, size, generator))

    def units(self) -> dict[str, Units]:
        """What stands between its maps."""
        inward, _, outward = self
        assert isinstance(inward, nn.Linear) and isinstance(outward, nn.Linear)
        made, read = (Place(inward.weight, 1), Place(inward.bias, 1)), (Place(outward.weight, 2),)
        return {"feed_forward_size": Units(inward.out_features, made, read, is_stacked=False)}


class Residual(nn.Module):
    """norm(x + layer(x))."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.norm = norm

    def forward(self, x: Features) -> Features:
        """The tokens, transformed."""
        return self.norm(x + self.layer(x))


def head_body(norm: nn.Module, size: int, generator: torch.Generator) -> nn.Sequential:
    """Linear, GELU, norm: what precedes the last map of values and of scores."""
    return nn.Sequential(orthogonal_linear(size, size, generator, 2**0.5), nn.GELU(), norm)


def small_linear(size: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A last map so small that a policy begins near uniform."""
    return orthogonal_linear(size, outputs, generator, 0.01)


def orthogonal_linear(size: int, outputs: int, generator: torch.Generator, gain: float) -> nn.Linear:
    """A map whose weight begins orthogonal and whose bias begins at 0. Source: Saxe et al. 2014."""
    linear = nn.Linear(size, outputs, device=generator.device)
    nn.init.orthogonal_(linear.weight, gain, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear


def recomputed(block: Callable[..., Returned], is_wanted: bool) -> Callable[..., Returned]:
    """The block itself, or one that keeps only its inputs for the backward pass and computes the rest again there."""
    if not (is_wanted and torch.is_grad_enabled()):
        return block
    return partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
