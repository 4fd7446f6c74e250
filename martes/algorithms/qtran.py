"""QTRAN-base: agents' values need not make up the joint value, but must agree with it on which actions are best."""

import torch
from jaxtyping import Float
from torch import Tensor

from martes.networks.mixers import Joint, JointValue


def consistency(
    mixer: JointValue, chosen: Joint, greedy: Joint, taken: Float[Tensor, "*lead 1"]
) -> dict[str, Float[Tensor, "*lead 1"]]:
    """The losses of the conditions under which the agents' greedy actions are the jointly best one.

    With Q_jt without gradient, a the actions that were taken, a* the agents' greedy ones, and V(s) a bound to learn:
    `opt_loss` = (sum_i Q_i(a*_i) - Q_jt(s, a*) + V(s))^2;  `nopt_loss` = min(sum_i Q_i(a_i) - Q_jt(s, a) + V(s), 0)^2.
    `taken` is Q_jt(s, a). Source: Son et al. 2019, equations 4, 7 and 8.
    """
    value = mixer.v(chosen.state)
    with torch.no_grad():
        best = mixer(greedy)
    opt = greedy.q.sum(-1, keepdim=True) - best + value
    nopt = chosen.q.sum(-1, keepdim=True) - taken.detach() + value
    return {"opt_loss": opt.square(), "nopt_loss": nopt.clamp(max=0).square()}
