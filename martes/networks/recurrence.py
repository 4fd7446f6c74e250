"""The states of a gated recurrent unit over a whole window, with a gradient that is written out."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import BackwardCFunction, FunctionCtx


def gru_states(
    x: Float[Tensor, "slot time row gates"],
    h: Float[Tensor, "slot row size"],
    keep: Float[Tensor, "#slot time row 1"],
    weight: Float[Tensor, "slot gates size"],
    bias: Float[Tensor, "slot gates"],
) -> Float[Tensor, "slot time row size"]:
    """The states h_t after each step, h being the one before the first.

    With h' = keep_t h_{t-1} and u = U h' + b, all gates in three parts as those of x:
    r, z = s(x_rz + u_rz);  n = tanh(x_n + r u_n);  h_t = n + z (h' - n).

    Let g be the gradient of h_t. That of u is g K, where K = (n' u_n r (1 - r), (h' - n) z (1 - z), n' r) and
    n' = (1 - z)(1 - n^2) are known of all steps at once; so a step backwards is g_{t-1} += keep_t (g z + (g K) U), and
    the rest is done for the whole window. Automatic differentiation takes five times as many operations.
    Source: Cho et al. 2014, equations 5 to 8, in the form that torch gives them (n = tanh(x_n + r (U h + b)_n)).
    """
    return _States.apply(x, h, keep, weight, bias)


class _States(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, h: Tensor, keep: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, keep = x.transpose(0, 1), keep.transpose(0, 1)  # time slot row ...
        size = h.shape[-1]
        before, u, gates = x.new_empty(*x.shape[:-1], size), torch.empty_like(x), torch.empty_like(x)
        states = h.new_empty(len(h), len(x), *h.shape[1:])  # slot time row size
        sides = [side for each in (x, u, gates) for side in each.split((2 * size, size), -1)]
        r, z, _ = gates.chunk(3, -1)
        inward, offset = weight.transpose(1, 2), bias.unsqueeze(1)
        # All views at once: to cut a slice costs as much as to compute it.
        for kept, own, u_t, x_rz, x_n, u_rz, u_n, rz, n, r_t, z_t, state in zip(
            *(each.unbind() for each in (keep, before, u, *sides, r, z, states.transpose(0, 1))), strict=True
        ):
            torch.mul(h, kept, out=own)
            torch.baddbmm(offset, own, inward, out=u_t)
            torch.add(x_rz, u_rz, out=rz).sigmoid_()
            torch.addcmul(x_n, r_t, u_n, out=n).tanh_()
            h = torch.lerp(n, own, z_t, out=state)
        ctx.save_for_backward(keep, before, u, gates, weight)
        return states

    @staticmethod
    def backward(ctx: BackwardCFunction, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        keep, before, u, gates, weight = iter(ctx.saved_tensors)
        (r, z, n), u_n = gates.chunk(3, -1), u[..., -before.shape[-1] :]
        of_candidate, factor = _factors(r, z, n, before, u_n)
        of_u, of_state = torch.empty_like(factor), torch.empty_like(before)
        over_time = (grad_outputs[0].transpose(0, 1), keep, z, factor, of_u, of_u.flatten(-2), of_state)
        carried = torch.zeros_like(before[0])
        for given, kept, z_t, factor_t, of_u_t, of_gates, g in reversed(
            [*zip(*(each.unbind() for each in over_time), strict=True)]
        ):
            torch.add(given, carried, out=g)
            torch.mul(g.unsqueeze(-2), factor_t, out=of_u_t)
            carried = torch.baddbmm(g * z_t, of_gates, weight).mul_(kept)
        of_gates, rows = (each.transpose(0, 1).flatten(1, 2) for each in (of_u.flatten(-2), before))
        of_weight, of_bias = of_gates.transpose(1, 2) @ rows, of_gates.sum(1)
        torch.mul(of_state, of_candidate, out=of_u[..., 2, :])  # x_n is not multiplied by r; else x and u are alike
        return of_u.flatten(-2).transpose(0, 1), carried, None, of_weight, of_bias


def _factors(r: Tensor, z: Tensor, n: Tensor, before: Tensor, u_n: Tensor) -> tuple[Tensor, Tensor]:
    """n' and K [... 3 size], in as few passes over the window as there can be."""
    rest = 1 - z
    of_candidate = torch.addcmul(rest, rest * n, n, value=-1)
    factor = torch.stack((u_n, before - n, of_candidate), -2)
    of_r, of_z, of_n = factor.unbind(-2)
    of_z.mul_(z).mul_(rest)
    of_n.mul_(r)
    of_r.mul_(of_n)
    of_r.addcmul_(of_r, r, value=-1)
    return of_candidate, factor
