"""Slots: the layout, stacked layers against one layer an agent, and gradients cut per slot."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from martes.data import Discrete, TeamSpec, Vector
from martes.networks import Network, Policy, clipped_by_slot
from martes.networks.sharing import Slots, slot_of_agents
from martes.networks.stacked import StackedLinear


@st.composite
def assignments(draw: st.DrawFn) -> tuple[int, ...]:
    slots = draw(st.integers(1, 4))
    rest = draw(st.lists(st.integers(0, slots - 1), max_size=6))
    return tuple(draw(st.permutations([*range(slots), *rest])))


@given(assignments(), st.sampled_from([(), (3,), (2, 3)]))
def test_unstacked_undoes_stacked(slot_of_agent: tuple[int, ...], lead: tuple[int, ...]) -> None:
    x = torch.randn(*lead, len(slot_of_agent), 5)
    slots = Slots(slot_of_agent)
    assert torch.equal(slots.unstacked(slots.stacked(x), lead), x)


@given(assignments())
def test_a_stacked_layer_is_one_layer_an_agent(slot_of_agent: tuple[int, ...]) -> None:
    slots = Slots(slot_of_agent)
    layer = StackedLinear((5,) * slots.count, 4, torch.Generator().manual_seed(0))
    nn.init.normal_(layer.bias)
    x = torch.randn(3, len(slot_of_agent), 5)
    loop = torch.stack([x[:, i] @ layer.weight[s].T + layer.bias[s] for i, s in enumerate(slot_of_agent)], dim=1)
    assert torch.allclose(slots.unstacked(layer(slots.stacked(x)), (3,)), loop, atol=1e-6)


@given(assignments())
def test_copies_that_fill_a_slot_count_nowhere(slot_of_agent: tuple[int, ...]) -> None:
    slots = Slots(slot_of_agent)
    mask = slots.stacked_mask(torch.ones(3, len(slot_of_agent), dtype=torch.bool))
    for slot in range(slots.count):
        assert mask[slot].sum() == 3 * slot_of_agent.count(slot)


def unequal_team() -> TeamSpec:
    names = ["small_0", "big_0", "big_1"]
    sizes = {"small": (2, 3), "big": (6, 5)}
    spaces = [sizes[name.split("_")[0]] for name in names]
    return TeamSpec.of_agents(
        {name: Vector(o) for name, (o, _) in zip(names, spaces, strict=True)},
        {name: Discrete(a) for name, (_, a) in zip(names, spaces, strict=True)},
    )


def test_who_shares_with_whom() -> None:
    team = unequal_team()
    assert slot_of_agents(team, "shared") == (0, 0, 0)
    assert slot_of_agents(team, "group") == (0, 1, 1)
    assert slot_of_agents(team, "agent") == (0, 1, 2)


def test_padded_weights_are_zero_and_stay_zero() -> None:
    team = unequal_team()
    policy = Policy(team, Network(hidden=(8,)), "group", torch.Generator().manual_seed(0))
    first = policy.body.layers[0].weight
    assert (first[0, :, 2:] == 0).all() and (first[1] != 0).all()
    # Each slot is orthogonal at its own fan-in: W^T W = gain^2 I over the real inputs.
    real = first[0, :, :2]
    assert torch.allclose(real.T @ real, 2 * torch.eye(2), atol=1e-5)
    optimiser = torch.optim.Adam(policy.parameters(), 0.1)
    obs = torch.randn(16, 3, 6)
    obs[:, 0, 2:] = 0
    inputs = {"obs": obs, "agent_mask": torch.ones(16, 3, dtype=torch.bool)}
    inputs["action"] = torch.zeros(16, 3, dtype=torch.int64)
    for _ in range(3):
        optimiser.zero_grad()
        policy.step(inputs, ())[0]["entropy"].sum().backward()
        optimiser.step()
    assert (first[0, :, 2:] == 0).all()
    assert (policy.head.bias[0, 3:] == 0).all(), "logits of actions that do not exist must not learn"


def test_each_slot_is_clipped_alone() -> None:
    gradients = [torch.randn(2, 3), torch.randn(2, 4, 5)]
    for each in gradients:
        each[0] *= 1e-3

    def length(of: Sequence[Tensor], slot: int) -> Tensor:
        return torch.cat([each[slot].flatten() for each in of]).norm()

    cut, norms = clipped_by_slot(gradients, 2, 1.0)
    assert torch.allclose(norms, torch.stack([length(gradients, 0), length(gradients, 1)]))
    assert torch.allclose(length(cut, 0), norms[0]) and torch.allclose(length(cut, 1), torch.tensor(1.0), atol=1e-4)
    assert all(map(torch.equal, clipped_by_slot(gradients, 2, None)[0], gradients))


@pytest.mark.parametrize("sharing", ["shared", "group", "agent"])
def test_kernels_do_not_multiply_with_agents(sharing: str) -> None:
    def kernels(agents: int) -> int:
        names = [f"{'ab'[i % 2]}_{i}" for i in range(agents)]
        team = TeamSpec.of_agents(dict.fromkeys(names, Vector(4)), dict.fromkeys(names, Discrete(3)))
        policy = Policy(team, Network(memory="gru"), sharing, torch.Generator())  # pyright: ignore
        inputs = {"obs": torch.randn(2, agents, 4), "agent_mask": torch.ones(2, agents, dtype=torch.bool)}
        with profile(activities=[ProfilerActivity.CPU]) as recorder:
            policy.step(inputs, policy.initial_memory(2))
        return sum(event.count for event in recorder.key_averages())

    assert kernels(16) <= kernels(4)
