"""Blocks against torch's own and against closed formulas."""

import pytest
import torch
from torch import nn

from martes.data import Image, Vector
from martes.errors import ConfigError
from martes.networks.blocks import Body, Network, ObservationNorm
from martes.networks.sharing import Slots
from martes.networks.stacked import StackedConvolutions, StackedGRU, StackedLinear, StackedNorm


def body(network: Network, parts: dict | None = None, slot_of_agent: tuple[int, ...] = (0, 0)) -> Body:
    slots = Slots(slot_of_agent)
    return Body(parts or {"obs": Vector(3)}, (3,) * slots.count, slots, network, torch.Generator().manual_seed(0))


def test_gru_is_torchs() -> None:
    ours, theirs = StackedGRU((3, 3), 5, torch.Generator().manual_seed(0)), nn.GRUCell(3, 5)
    nn.init.normal_(ours.inward.bias)
    nn.init.normal_(ours.recurrent.bias)
    x, h = torch.randn(2, 4, 3), torch.randn(2, 4, 5)
    for slot in range(2):
        state = {
            "weight_ih": ours.inward.weight[slot],
            "weight_hh": ours.recurrent.weight[slot],
            "bias_ih": ours.inward.bias[slot],
            "bias_hh": ours.recurrent.bias[slot],
        }
        theirs.load_state_dict(state)
        assert torch.allclose(ours.step(ours.inward(x), h)[slot], theirs(x[slot], h[slot]), atol=1e-6)


@pytest.mark.parametrize("hidden", [(8,), (8, 8), (8, 6, 4), (5, 5, 5, 5)])
@pytest.mark.parametrize("slot_of_agent", [(0, 0), (0, 1)])
def test_parameters_are_counted_by_the_formula(hidden: tuple[int, ...], slot_of_agent: tuple[int, ...]) -> None:
    layers = sum((a + 1) * b for a, b in zip((3, *hidden), hidden, strict=False))
    gru = 3 * 7 * (hidden[-1] + 1) + 3 * 7 * (7 + 1)
    network = Network(hidden=hidden, memory="gru", memory_size=7, layer_norm=True, agent_id=True)
    made = body(network, None, slot_of_agent)
    identity = 2 * hidden[0]
    slots = max(slot_of_agent) + 1
    assert sum(p.numel() for p in made.parameters()) == slots * (layers + gru + 2 * sum(hidden)) + identity


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_map_moved_for_each_member_is_the_map_and_what_is_added(members: int, rows: int) -> None:
    made = StackedLinear((5, 5), 6, torch.Generator().manual_seed(0))
    by, x = torch.randn(2, members, 6, requires_grad=True), torch.randn(2, rows * members, 5)
    moved, apart = made.moved(x, by), (made(x).unflatten(1, (rows, members)) + by.unsqueeze(1)).flatten(1, 2)
    assert torch.allclose(moved, apart, atol=1e-6)
    given, learned = torch.randn_like(moved), (by, made.weight, made.bias)
    ours, theirs = (torch.autograd.grad(each, learned, given) for each in (moved, apart))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_norm_is_torchs() -> None:
    x = torch.randn(2, 4, 6)
    assert torch.allclose(StackedNorm(2, 6)(x), nn.functional.layer_norm(x, (6,)), atol=1e-6)


def test_convolutions_are_torchs_and_take_bytes() -> None:
    made = StackedConvolutions(2, Image((3, 9, 7)), (4, 5), torch.Generator().manual_seed(0))
    x = torch.randint(256, (2, 6, 3, 9, 7), dtype=torch.uint8)
    out = made(x)
    assert out.shape == (2, 6, made.size) and made.size == 5 * 3 * 2
    for slot in range(2):
        h = x[slot].float() / 255
        for weight, bias in zip(made.weights, made.biases, strict=True):
            h = nn.functional.conv2d(h, weight[slot], bias[slot], stride=2, padding=1).relu()
        assert torch.allclose(out[slot], h.flatten(1), atol=1e-5)


def test_agent_identity_tells_twins_apart() -> None:
    made = body(Network(agent_id=True))
    inputs = {"obs": torch.ones(1, 2, 3), "agent_mask": torch.ones(1, 2, dtype=torch.bool)}
    assert torch.equal(*made.features(inputs)[0])
    nn.init.normal_(made.identity)
    assert not torch.equal(*made.features(inputs)[0])


def test_observation_statistics_move_only_when_told_and_by_the_living() -> None:
    made = body(Network(normalise=True), None, (0, 1))
    obs, alive = torch.randn(50, 2, 3) * 5 + 2, torch.rand(50, 2) < 0.5
    obs[~alive] = torch.nan
    inputs = {"obs": obs, "agent_mask": alive}
    before = made.norm.mean.clone()
    made.features({"obs": torch.randn(5, 2, 3), "agent_mask": alive[:5]})
    assert torch.equal(made.norm.mean, before)
    made.observe(inputs, alive)
    for agent in range(2):
        seen = obs[alive[:, agent], agent].double()
        assert torch.allclose(made.norm.mean[agent], seen.mean(0))
        assert torch.allclose(made.norm.moments.variance()[agent], seen.var(0, correction=0))
    assert set(dict(made.named_buffers())) >= {"norm.seen", "norm.mean", "norm.m2"}, "saved with the weights"


def test_normalised_features_have_unit_moments() -> None:
    norm = ObservationNorm(1, 2)
    x = torch.randn(1, 4000, 2) * torch.tensor([3.0, 0.1]) + 7
    norm.observe(x, torch.ones(1, 4000, dtype=torch.bool))
    y = norm(x)
    assert y.mean((0, 1)).abs().max() < 1e-3 and (y.std((0, 1)) - 1).abs().max() < 1e-2
    assert norm(x * 1e9).abs().max() == 10


def test_a_gru_begins_with_its_initial_memory() -> None:
    made = body(Network(memory="gru"))
    inputs = {"obs": torch.randn(1, 2, 3), "agent_mask": torch.ones(1, 2, dtype=torch.bool)}
    with pytest.raises(AssertionError, match="begin with its initial_memory"):
        made.step(inputs, ())


@pytest.mark.parametrize("kind", ["attention", "retention"])
@pytest.mark.parametrize(
    "wrong",
    [{"memory_size": 12}, {"memory_heads": 64}, *({f"memory_{each}": 0} for each in ("heads", "layers", "window"))],
)
def test_impossible_blocks_over_time_are_refused(kind, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=rf"network\.{next(iter(wrong))}"):
        Network(memory=kind, **wrong)


@pytest.mark.parametrize("wrong", [{"hidden": ()}, {"hidden": (0,)}, {"memory_size": 0}, {"channels": (-1,)}])
def test_impossible_networks_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=rf"network\.{next(iter(wrong))}"):
        Network(**wrong)
