"""Whatever an algorithm learns or computes with is registered: moves to a device, saves and compiles with the rest."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from martes.algorithms.registry import BUILT_IN, algorithm_named
from martes.networks.targets import followed
from tests.worlds import World

TORCHS = {"_parameters", "_buffers", "_modules"}


def held(value: object) -> Iterator[Tensor | nn.Module]:
    """Modules and tensors in what a module keeps beside what it has registered."""
    if isinstance(value, Tensor | nn.Module):
        yield value
    elif isinstance(value, Mapping):
        yield from held(list(value.values()))
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from held(each)


def hidden(*roots: nn.Module) -> list[str]:
    """What modules hold that none of them has registered."""
    modules = [part for root in roots for part in root.modules()]
    known = {id(each) for each in modules} | {
        id(each) for root in roots for each in (*root.parameters(), *root.buffers())
    }
    return [
        f"{type(part).__name__}.{name}"
        for part in modules
        for name, value in vars(part).items()
        if name not in TORCHS and any(id(each) not in known and each is not followed(part) for each in held(value))
    ]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("sharing", ["shared", "agent"])
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_network_and_tensor_is_registered(name: str, sharing: str) -> None:
    config: Any = algorithm_named(name)
    team = World(is_unequal=True, has_state=True).team
    learner = replace(config, sharing=sharing).learner(team, torch.Generator().manual_seed(0))
    roots = [each for each in vars(learner).values() if isinstance(each, nn.Module)]
    assert learner.policy in roots
    assert hidden(*roots) == []


def test_what_is_hidden_is_found() -> None:
    hiding = nn.Linear(2, 2)
    vars(hiding)["critics"] = [nn.Linear(2, 2)]
    vars(hiding)["scale"] = torch.ones(2)
    assert hidden(nn.Sequential(hiding)) == ["Linear.critics", "Linear.scale"]
