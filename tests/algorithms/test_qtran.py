"""The conditions of QTRAN-base by hand, and which parameters each of its losses may move."""

import pytest
import torch

from martes.algorithms.qtran import consistency
from martes.networks.mixers import Joint, JointValue, Mixing
from tests.worlds import World

TEAM = World(has_state=True).team


def joint(q: torch.Tensor, action: int) -> Joint:
    lead = q.shape[:-1]
    generator = torch.Generator().manual_seed(action)
    features = torch.randn(*q.shape, 4, generator=generator)
    return Joint(q, torch.full(q.shape, action), features, torch.ones_like(q).bool(), torch.ones(*lead, 9))


@pytest.mark.parametrize(("offset", "nopt"), [(-5.0, 25.0), (5.0, 0.0)])
def test_losses_by_hand(offset: float, nopt: float) -> None:
    mixer = JointValue(TEAM, Mixing(8), 4, torch.Generator().manual_seed(0))
    greedy = joint(torch.tensor([[[1.0, 2.0, 3.0]]]), 1)
    chosen = joint(torch.tensor([[[0.5, 0.5, 0.5]]]), 2)
    value, best = mixer.v(chosen.state).item(), mixer(greedy).item()
    taken = torch.tensor([[[1.5 + value - offset]]])  # sum_i Q_i - Q_jt + V = offset
    losses = consistency(mixer, chosen, greedy, taken)
    assert losses["nopt_loss"].item() == pytest.approx(nopt, rel=1e-4)
    assert losses["opt_loss"].item() == pytest.approx((6.0 - best + value) ** 2, rel=1e-4)


def test_the_joint_value_is_not_moved_towards_what_agents_expect() -> None:
    mixer = JointValue(TEAM, Mixing(8), 4, torch.Generator().manual_seed(0))
    q = torch.full((1, 1, 3), -9.0, requires_grad=True)
    chosen = joint(q, 2)
    losses = consistency(mixer, chosen, joint(q, 1), mixer(chosen))
    (losses["opt_loss"] + losses["nopt_loss"]).sum().backward()
    assert q.grad is not None and q.grad.abs().sum() > 0
    assert all(each.grad is None for part in (mixer.q, mixer.code) for each in part.parameters())
    assert all(each.grad is not None for each in mixer.v.parameters())
