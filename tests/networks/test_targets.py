"""Copies that stay behind: no gradient reaches them, and they follow by a share, buffers at once."""

from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from martes.networks.targets import copied_with, follow, still_copy


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


@dataclass(frozen=True)
class Settings:
    """What never changes."""

    names: tuple[str, ...] = ("a", "b")


class Tied(nn.Module):
    """All that a module may hold: what is tied, shared or written to, other modules, and itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.again = self.first
        self.rows = nn.ModuleList([nn.Linear(2, 2)])
        self.memory = nn.GRU(2, 2)
        """It has a way of its own to be made from what is saved."""
        self.settings, self.count, self.seen = Settings(), 3, [torch.zeros(1)]
        self.parts = (self.first, *self.rows)
        self.me = [self]


def test_a_still_copy_is_what_deepcopy_makes_and_shares_settings_alone() -> None:
    module = Tied()
    slow, still = deepcopy(module), still_copy(module)
    assert still.state_dict().keys() == slow.state_dict().keys()
    assert all(torch.equal(each, still.state_dict()[name]) for name, each in slow.state_dict().items())
    assert vars(still).keys() - vars(slow).keys() == {"_followed"}
    for copy in (slow, still):
        assert copy.second.weight is copy.first.weight and copy.again is copy.first
        assert copy.parts == (copy.first, *copy.rows) and copy.me == [copy]
    assert still.settings is module.settings
    own = {id(each) for each in (*module.parameters(), module.seen[0], module.seen, *module.modules())}
    assert not own & {id(each) for each in (*still.parameters(), still.seen[0], still.seen, *still.modules())}
    known = {each.data_ptr() for each in module.parameters()}
    assert not known & {each.data_ptr() for each in still.parameters()}
    assert torch.equal(still.memory(torch.ones(1, 2))[0], module.memory(torch.ones(1, 2))[0])


def test_a_copy_has_the_tensors_that_it_is_given() -> None:
    module = nn.Linear(2, 2)
    copy = copied_with(module, {id(module.weight): nn.Parameter(module.weight.detach())})
    assert copy.weight.data_ptr() == module.weight.data_ptr() and copy.weight is not module.weight
    assert copy.bias.data_ptr() != module.bias.data_ptr()
