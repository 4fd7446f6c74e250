"""Growth of networks: outputs stay for any shape, what is new learns, what shrinks loses the least; maps by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from martes.errors import ConfigError
from martes.networks import Critic, Network, Policy
from martes.networks.growth import Wiring, importance, transfer
from martes.networks.mat import MATShape
from martes.networks.sable import SableShape
from martes.networks.stacked import StackedGRU, StackedLinear, StackedNorm
from martes.networks.targets import followed, still_copy
from martes.networks.units import Place, Units
from tests.worlds import WORLDS, World

widths = st.integers(1, 9)
shapes = st.fixed_dictionaries(
    dict(
        hidden=st.lists(widths, min_size=1, max_size=3).map(tuple),
        activation=st.sampled_from(["relu", "tanh", "gelu", "silu"]),
        layer_norm=st.booleans(),
        memory=st.sampled_from(["none", "gru"]),
        memory_size=widths,
        agent_id=st.booleans(),
        channels=st.lists(st.integers(1, 4), min_size=1, max_size=2).map(tuple),
        added=st.lists(widths, max_size=2).map(tuple),
    )
)


def policy(world: World, network: Network, sharing: str = "group", seed: int = 0) -> Policy:
    made = Policy(world.team, network, sharing, torch.Generator().manual_seed(seed))  # pyright: ignore
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for each in made.parameters():
            each.add_(0.5 * torch.randn(each.shape, generator=generator))
    return made


def scores(net: Policy, world: World) -> Tensor:
    """What it says of three steps, with memory."""
    state = world.initial(5, torch.Generator().manual_seed(3))
    inputs = {"agent_mask": torch.ones(5, world.agents, dtype=torch.bool), **world.observe(state)}
    inputs |= {"action": torch.zeros(5, world.agents, dtype=torch.int64)}
    memory, said = net.initial_memory(5), []
    for _ in range(3):
        outputs, memory = net.step(inputs, memory)
        said += [outputs["log_prob"], outputs["entropy"]]
    return torch.stack(said)


@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])
@given(shapes, st.data(), st.sampled_from(["discrete", "unequal", "image"]), st.sampled_from(["shared", "agent"]))
def test_growth_of_any_shape_keeps_every_output(
    shape: dict[str, Any], data: st.DataObject, world: str, sharing: str
) -> None:
    old = Network(**shape)
    more = {
        name: tuple(width + data.draw(st.integers(0, 5)) for width in getattr(old, name))
        for name in ("hidden", "channels", "added")
    }
    more["added"] += tuple(data.draw(st.lists(widths, max_size=2)))
    new = replace(old, **more, memory_size=old.memory_size + data.draw(st.integers(0, 5)))
    before, after = policy(WORLDS[world], old, sharing), policy(WORLDS[world], new, sharing, seed=5)
    for each in list(after.body.added)[len(old.added) :]:  # as they begin
        nn.init.zeros_(each.outward.weight)
        nn.init.zeros_(each.outward.bias)
    transfer({"net": before}, {"net": after})
    assert torch.allclose(scores(before, WORLDS[world]), scores(after, WORLDS[world]), atol=1e-4, rtol=1e-5)


@settings(max_examples=10, phases=[Phase.explicit, Phase.generate])
@given(shapes, st.sampled_from(["discrete", "image"]))
def test_what_grew_shrinks_to_what_it_was(shape: dict[str, Any], world: str) -> None:
    old = Network(**shape | {"layer_norm": False})
    new = replace(old, hidden=tuple(width + 2 for width in old.hidden), memory_size=old.memory_size + 3)
    before, grown, again = policy(WORLDS[world], old), policy(WORLDS[world], new, seed=5), policy(WORLDS[world], old)
    transfer({"net": before}, {"net": grown})
    transfer({"net": grown}, {"net": again}, accepts_change=True)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "silu"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_new_units_learn(activation: str, layer_norm: bool) -> None:
    small = Network(hidden=(4, 5), activation=activation, layer_norm=layer_norm)  # pyright: ignore
    large = replace(small, hidden=(7, 8), added=(6,))
    world = WORLDS["discrete"]
    before, after = policy(world, small), Policy(world.team, large, "shared", torch.Generator().manual_seed(5))
    transfer({"net": before}, {"net": after})
    fresh = {name: each.detach().clone() for name, each in after.named_parameters()}
    optimiser = torch.optim.SGD(after.parameters(), 0.1)  # Adam would make steps of what is but rounding
    for _ in range(30):
        optimiser.zero_grad()
        scores(after, world).square().mean().backward()
        optimiser.step()
    for name, each in after.named_parameters():
        rows = ((each - fresh[name]).abs() > 1e-5).squeeze(0).flatten(1 if each.ndim > 2 else 0)
        is_moved = rows.any(1) if each.ndim > 2 else rows
        # Some units of a ReLU are silent from the start.
        assert is_moved.float().mean() >= (0.5 if activation == "relu" else 1.0), name
    new_columns = after.head.weight[0, :, 5:]
    assert (new_columns.abs() > 1e-5).any(0).float().mean() > 0.6, new_columns


def test_growth_of_a_gru_by_hand() -> None:
    """A unit has an entry in each of the three gates."""
    old, new = (StackedGRU((2,), size, torch.Generator().manual_seed(size)) for size in (2, 3))
    transfer({"gru": _Gru(old)}, {"gru": _Gru(new)})
    rows = [0, 1, 3, 4, 6, 7]  # of gates r, z, n with three units each
    assert torch.equal(new.inward.weight[0, rows], old.inward.weight[0])
    assert torch.equal(new.recurrent.weight[0][rows][:, :2], old.recurrent.weight[0])
    assert torch.equal(new.recurrent.bias[0, rows], old.recurrent.bias[0])
    assert (new.recurrent.weight[0, :, 2] == 0).all() and (new.inward.weight[0, [2, 5, 8]] != 0).all()


class _Gru(nn.Module):
    def __init__(self, gru: StackedGRU) -> None:
        super().__init__()
        self.gru = gru

    def units(self) -> dict[str, Units]:
        made = (*self.gru.inward.outputs(3), *self.gru.recurrent.outputs(3))
        return {"memory_size": Units(self.gru.size, made, (self.gru.recurrent.inputs(),))}


class _Line(nn.Module):
    """One hidden layer, and two inputs of its reader beside it."""

    def __init__(self, slots: int, width: int, norm: bool = False, readers: int | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(width)
        self.first = StackedLinear((2,) * slots, width, generator)
        self.norm = StackedNorm(slots, width) if norm else None
        self.last = StackedLinear((width + 2,) * (readers or slots), 1, generator)

    def units(self) -> dict[str, Units]:
        made, read = self.first.outputs(), (self.last.inputs(start=1),)
        width = self.first.weight.shape[1]
        return {"hidden.0": Units(width, (), read, self.norm.normed(made)) if self.norm else Units(width, made, read)}


def test_a_layer_loses_the_units_that_weigh_least_slot_by_slot() -> None:
    old, new = _Line(2, 3), _Line(2, 2)
    with torch.no_grad():
        old.first.weight.copy_(
            torch.tensor([[[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
        )
        old.first.bias.copy_(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]))
        old.last.weight.copy_(torch.tensor([[[9.0, 1.0, 1.0, -4.0, 8.0]], [[9.0, -0.1, 0.3, 0.2, 8.0]]]))
    assert torch.allclose(importance(old.units()["hidden.0"]), torch.tensor([[5.0, 2.0, 4.0], [0.1, 0.3, 0.2]]))
    transfer({"net": old}, {"net": new}, accepts_change=True)
    assert new.first.bias.tolist() == [[0, 0], [0, 0]] and new.first.weight[0].tolist() == [[3, 4], [0, 1]]
    assert torch.equal(new.last.weight, torch.tensor([[[9.0, 1.0, -4.0, 8.0]], [[9.0, 0.3, 0.2, 8.0]]]))


def test_where_one_reader_serves_all_slots_they_lose_the_same_units() -> None:
    old, new = _Line(2, 3, readers=1), _Line(2, 2, readers=1)
    with torch.no_grad():
        old.last.weight.fill_(1.0)
        sizes = torch.tensor([[1.0, 0.2, 0.1], [1.0, 0.2, 5.0]])  # the first slot alone would lose its last unit
        old.first.weight.copy_(sizes.unsqueeze(2).expand_as(old.first.weight))
    transfer({"net": old}, {"net": new}, accepts_change=True)
    assert torch.equal(new.first.weight, old.first.weight[:, [0, 2]])
    assert torch.equal(new.last.weight, old.last.weight[..., [0, 1, 3, 4]])


def test_under_a_norm_gain_and_shift_say_what_a_unit_weighs() -> None:
    line = _Line(1, 3, norm=True)
    nn.init.constant_(line.last.weight, 2.0)
    with torch.no_grad():
        line.norm.weight.copy_(torch.tensor([[3.0, 0.0, 1.0]]))
        line.norm.bias.copy_(torch.tensor([[4.0, 0.5, 0.0]]))
    assert torch.allclose(importance(line.units()["hidden.0"]), torch.tensor([[10.0, 1.0, 2.0]]))


def test_a_target_loses_what_the_network_that_it_follows_loses() -> None:
    def pair(width: int) -> dict[str, nn.Module]:
        online = _Line(1, width)
        return {"online": online, "target": still_copy(online)}

    old, new = pair(4), pair(2)
    assert followed(old["target"]) is old["online"] and followed(old["online"]) is None
    with torch.no_grad():
        for each in old["target"].parameters():
            each.copy_(torch.randn(each.shape))
    kept = importance(old["online"].units()["hidden.0"]).topk(2).indices.sort().values[0]
    transfer(old, new, accepts_change=True)
    for name in ("online", "target"):
        assert torch.equal(new[name].first.weight[0], old[name].first.weight[0, kept])


def test_a_removed_layer_is_folded_into_its_reader() -> None:
    deep, flat = Network(hidden=(4, 3)), Network(hidden=(4,))
    world = WORLDS["unequal"]
    before, after = policy(world, deep), policy(world, flat, seed=5)
    transfer({"net": before}, {"net": after}, accepts_change=True)
    last, head = before.body.layers[1], before.head
    assert torch.allclose(after.head.weight, head.weight @ last.weight)
    assert torch.allclose(after.head.bias, head.bias + (head.weight @ last.bias.unsqueeze(-1)).squeeze(-1))
    assert torch.equal(after.body.layers[0].weight, before.body.layers[0].weight)


def test_moments_follow_their_parameters() -> None:
    old, new = _Line(1, 3), _Line(1, 5)
    optimisers = [torch.optim.Adam(net.parameters(), fused=True) for net in (old, new)]
    for each in old.parameters():
        each.grad = torch.randn(each.shape)
    optimisers[0].step()
    transfer({"net": old, "opt": optimisers[0]}, {"net": new, "opt": optimisers[1]})
    for name in ("exp_avg", "exp_avg_sq"):
        before, after = (each.state for each in optimisers)
        first = after[new.first.weight][name]
        assert torch.equal(first[:, :3], before[old.first.weight][name]) and (first[:, 3:] == 0).all()
        last = after[new.last.weight][name]
        assert torch.equal(last[..., [0, 1, 2, 3, 6]], before[old.last.weight][name]) and (last[..., 4:6] == 0).all()
        assert after[new.last.bias]["step"] == 1


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"hidden": (3, 5)}, "hidden.0 would go from 4 units to 3"),
        ({"hidden": (4,)}, "hidden.1 would go from 5 units to 0"),
        ({"hidden": (4, 5, 5)}, "hidden.2 would be a new layer"),
        ({"memory": "gru"}, "memory_size would be a new layer"),
    ],
)
def test_what_moves_outputs_is_refused(change: dict[str, object], error: str) -> None:
    network = Network(hidden=(4, 5))
    before, after = (policy(World(), each) for each in (network, replace(network, **change)))
    with pytest.raises(ConfigError, match=error):
        transfer({"net": before}, {"net": after})


def test_a_size_of_no_layer_is_refused_or_taken_over_as_far_as_it_goes() -> None:
    before, after = (
        Critic(World(agents=n, has_state=True).team, Network(hidden=(4,)), "central", "shared", torch.Generator())
        for n in (3, 2)
    )
    with pytest.raises(ConfigError, match=r"net\.head\.linear\.weight goes from \[1, 3, 4\] to \[1, 2, 4\]"):
        transfer({"net": before}, {"net": after})
    transfer({"net": before}, {"net": after}, accepts_change=True)
    assert torch.equal(after.head.linear.weight, before.head.linear.weight[:, :2])


def test_what_two_parts_share_is_one_parameter() -> None:
    line = _Line(1, 2)
    wiring = Wiring.of({"whole": nn.Sequential(line), "part": line})
    assert list(wiring.units) == ["whole.0/hidden.0"] and all(name.startswith("whole.0.") for name in wiring.tensors)
    assert wiring.name(Place(line.last.weight, 2)) == "whole.0.last.weight"


def test_an_added_layer_begins_as_the_identity_and_is_counted_by_the_formula() -> None:
    plain, deep = Network(hidden=(6,), layer_norm=True), Network(hidden=(6,), layer_norm=True, added=(4, 5))
    world = World()
    made = [Policy(world.team, each, "agent", torch.Generator().manual_seed(0)) for each in (plain, deep)]
    made[1].head.load_state_dict(made[0].head.state_dict())
    assert torch.equal(*(scores(each, world) for each in made))
    plain_count, deep_count = (sum(each.numel() for each in net.parameters()) for net in made)
    assert deep_count - plain_count == world.agents * sum(2 * 6 * width + width + 6 + 2 * width for width in (4, 5))
    with pytest.raises(ConfigError, match=r"network\.added is \(3, 0\)"):
        Network(added=(3, 0))


@pytest.mark.parametrize("width", [None, 3, 8])
def test_the_layer_after_attention_has_the_width_that_it_is_told(width: int | None) -> None:
    for shape, weights in (
        (SableShape(size=8), 3),
        (MATShape(size=8, feed_forward="swiglu"), 3),
        (MATShape(size=8), 2),
    ):
        core = replace(shape, feed_forward_size=width).core(2, torch.Generator().manual_seed(0))
        for each in (core.encoder, core.decoder):
            layer = each.blocks[0].residual.layer
            biases = 0 if weights == 3 else (width or 8) + 8
            assert sum(weight.numel() for weight in layer.parameters()) == weights * 8 * (width or 8) + biases
            assert layer(torch.randn(3, 8)).shape == (3, 8)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"feed_forward_size": 0}, "must be an integer >= 1"),
        ({"feed_forward_size": 8, "feed_forward": False}, "one of"),
    ],
)
def test_a_width_that_cannot_be_is_refused(values: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=f"network.feed_forward_size is .*{error}"):
        SableShape(**values)
