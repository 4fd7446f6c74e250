"""Copies that stay behind: no gradient reaches them, and they follow by a share, buffers at once."""

import pytest
import torch
from torch import nn

from martes.networks.targets import follow, still_copy


def network(value: float) -> nn.Module:
    made = nn.BatchNorm1d(2)
    for each in (*made.parameters(), made.running_mean, made.running_var):
        nn.init.constant_(each, value)
    return made


@pytest.mark.parametrize(("share", "expected"), [(1.0, 3.0), (0.25, 1.5)])
def test_following_by_a_share(share: float, expected: float) -> None:
    target, online = network(1.0), network(3.0)
    follow(target, online, share)
    assert all((each == expected).all() for each in target.parameters())
    assert (target.running_mean == 3).all() and (target.running_var == 3).all()
    assert all((each == 3).all() for each in online.parameters())


def test_a_still_copy_is_apart() -> None:
    online = network(1.0)
    target = still_copy(online)
    assert not any(each.requires_grad for each in target.parameters())
    assert all(each.requires_grad for each in online.parameters())
    with torch.no_grad():
        online.weight.add_(1)
    assert (target.weight == 1).all()
    assert not target(torch.randn(3, 2)).requires_grad


def test_hooks_of_a_copy_are_its_own() -> None:
    called: list[str] = []
    module = nn.Linear(2, 2)
    module.register_forward_hook(lambda *_: called.append("both"))
    still = still_copy(module)
    still.register_forward_pre_hook(lambda *_: called.append("copy"))
    module.register_forward_pre_hook(lambda *_: called.append("module"))
    module(torch.zeros(2))
    still(torch.zeros(2))
    assert called == ["module", "both", "copy", "both"]
