"""Hidden layers by group: one padded stack computes and learns what separate networks of those sizes would."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from martes.data import Vector
from martes.errors import ConfigError
from martes.networks import Critic, Network, Policy
from martes.networks.blocks import Body
from martes.networks.growth import transfer
from martes.networks.sharing import Slots, slots_of
from martes.networks.stacked import StackedNorm
from martes.networks.widths import widths_of
from tests.worlds import WORLDS

AGENTS = (("ant_0", "ant"), ("bee_0", "bee"), ("bee_1", "bee"), ("cat", "cat"))
SLOTS = (0, 1, 1, 2)
TEAM = WORLDS["unequal"].team  # small_0, big_1, small_2, big_3, small_4


class Exact(Body):
    """In double precision, since a norm of units that are nearly equal makes much of rounding."""

    def vector(self, inputs: Any) -> Tensor:
        return super().vector(inputs).double()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stacked(network: Network) -> Body:
    return Exact({"obs": Vector(3)}, (3, 3, 3), Slots(SLOTS, AGENTS), network, generator()).double()


def alone(network: Network, slot: int) -> Body:
    """A network of one slot's own sizes, its weights drawn by chance."""
    own = network.hidden_by_group.get(["ant", "bee", "cat"][slot], network.hidden)
    settled = {name: value for name, value in vars(network).items() if name not in ("hidden", "hidden_by_group")}
    slots = Slots((0,) * SLOTS.count(slot))
    made = Exact({"obs": Vector(3)}, (3,), slots, Network(own, **settled), generator(slot)).double()
    with torch.no_grad():
        for each in made.parameters():
            each.add_(0.4 * torch.randn(each.shape, generator=generator(slot + 7)))
    return made


def corner(slot: int, shape: torch.Size) -> tuple[slice, ...]:
    return slice(slot, slot + 1), *(slice(size) for size in shape[1:])


def part(whole: Tensor, slot: int, shape: torch.Size) -> Tensor:
    """What of a stacked parameter is the slot's own."""
    return whole[corner(slot, shape)]


def joined(network: Network) -> tuple[Body, list[Body], dict[str, Tensor]]:
    """One stack that holds the weights of separate networks, these, and where in the stack nothing of theirs stands."""
    whole, singles = stacked(network), [alone(network, slot) for slot in range(3)]
    of_whole = dict(whole.named_parameters())
    is_padding = {name: torch.ones_like(each, dtype=torch.bool) for name, each in of_whole.items()}
    with torch.no_grad():
        for each in of_whole.values():
            each.zero_()
        for slot, single in enumerate(singles):
            for name, each in single.named_parameters():
                of_whole[name][corner(slot, each.shape)] = each
                is_padding[name][corner(slot, each.shape)] = False
    return whole, singles, is_padding


def features(body: Body, obs: Tensor, members: list[int]) -> Tensor:
    """Features of a window [slot row size] of these agents."""
    inputs = {"obs": obs[:, :, members], "agent_mask": torch.ones(*obs.shape[:2], len(members), dtype=torch.bool)}
    start = torch.zeros(obs.shape[:2], dtype=torch.bool)
    return body.sequence(inputs, body.initial_memory(obs.shape[1]), start)[0]


layers = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)
shapes: Any = st.fixed_dictionaries(
    dict(
        hidden=layers,
        hidden_by_group=st.dictionaries(st.sampled_from(["ant", "bee", "cat"]), layers, min_size=1),
        activation=st.sampled_from(["relu", "tanh", "gelu", "silu"]),
        layer_norm=st.booleans(),
        memory=st.sampled_from(["none", "gru", "attention"]),
        memory_size=st.just(8),
        memory_heads=st.just(2),
        agent_id=st.booleans(),
        added=st.lists(st.integers(1, 5), max_size=1).map(tuple),
    )
)


@settings(max_examples=25)
@given(shapes)
def test_a_padded_stack_is_separate_networks_gradients_included(shape: dict[str, Any]) -> None:
    network = Network(**shape)
    whole, singles, is_padding = joined(network)
    obs = torch.randn(4, 5, 4, 3, generator=generator())
    # Slots with fewer members are filled up with copies of their first: only the genuine rows are compared.
    found = features(whole, obs, list(range(4))).unflatten(1, (4, 5, 2))
    total = torch.zeros((), dtype=torch.float64)
    for slot, single in enumerate(singles):
        members = [agent for agent, each in enumerate(SLOTS) if each == slot]
        wanted = features(single, obs, members).unflatten(1, (4, 5, -1))[0]
        own = found[slot, ..., : len(members), :]
        assert single.size == whole.sizes[slot]
        torch.testing.assert_close(own[..., : single.size], wanted, rtol=1e-9, atol=1e-10)
        assert not own[..., single.size :].any(), "padding stays 0"
        weight = torch.randn(wanted.shape, generator=generator(slot)).double()
        (wanted * weight).sum().backward()
        total = total + (own[..., : single.size] * weight).sum()
    total.backward()
    for name, parameter in whole.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert not gradient[is_padding[name]].any(), f"padding of {name} has a gradient"
        for slot, single in enumerate(singles):
            theirs = dict(single.named_parameters()).get(name)
            if theirs is not None and theirs.grad is not None:
                torch.testing.assert_close(part(gradient, slot, theirs.shape), theirs.grad, rtol=1e-8, atol=1e-9)


@settings(max_examples=10)
@given(shapes)
def test_a_fresh_stack_is_zero_where_nobody_is_and_knows_how_much_that_is(shape: dict[str, Any]) -> None:
    whole, _, is_padding = joined(Network(**shape))
    fresh = dict(stacked(Network(**shape)).named_parameters())
    assert not any(fresh[name][padding].any() for name, padding in is_padding.items())
    told = sum(getattr(each, "padding", 0) for each in whole.modules())
    parameters = {name: padding for name, padding in is_padding.items() if name != "identity"}
    assert told == sum(int(padding.sum()) for padding in parameters.values())


def test_equal_layers_by_group_are_the_plain_network() -> None:
    plain, named = (
        stacked(Network((5, 4))),
        stacked(Network((9,), hidden_by_group=dict.fromkeys(("ant", "bee", "cat"), (5, 4)))),
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), named.parameters(), strict=True))
    assert named.is_short is None and all(units.own == () for units in named.units_read_at().values())


def test_who_has_which_layers() -> None:
    slots = slots_of(TEAM, "agent")
    widths = widths_of((9, 9), {"small": (4,), "small_2": (5, 6, 7)}, slots)
    assert widths.of_slot == ((4,), (9, 9), (5, 6, 7), (9, 9), (4,)), "an agent's own name goes before its group's"
    assert (widths.depth, widths.made(1), widths.after(2)) == (3, (0, 9, 6, 9, 0), (4, 9, 7, 9, 4))
    assert widths_of((9,), {"small": (4,)}, slots_of(TEAM, "group")).of_slot == ((4,), (9,))
    assert widths_of((9,), dict.fromkeys(("small", "big"), (4,)), slots_of(TEAM, "shared")).of_slot == ((4,),)


@pytest.mark.parametrize(
    ("by_group", "sharing", "told"),
    [
        ({"smal": (4,)}, "group", r"no group or agent is named 'smal'.*'small'"),
        ({"small": (4,)}, "shared", r"gives small_0 \[4\] and big_1 \[8\], who share.*sharing=group"),
        ({"small_2": (4,)}, "group", r"gives small_0 \[8\] and small_2 \[4\], who share"),
    ],
)
def test_what_cannot_be_is_refused(by_group: dict[str, tuple[int, ...]], sharing: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Policy(TEAM, Network((8,), hidden_by_group=by_group), sharing, generator())


def test_a_network_for_the_whole_team_has_no_sizes_by_group() -> None:
    with pytest.raises(ConfigError, match="not divided by group"):
        Critic(TEAM, Network(hidden_by_group={"small": (4,)}), "central", "group", generator())
    with pytest.raises(ConfigError, match=r"hidden_by_group\.small is \[0\]: give at least one"):
        Network(hidden_by_group={"small": (0,)})


def test_a_norm_of_equal_slots_and_one_that_leaves_padding_out() -> None:
    x = torch.randn(2, 3, 6, generator=generator())
    padded = StackedNorm(2, 6, (6, 4))
    x[1, :, 4:] = 0
    found = padded(x)
    torch.testing.assert_close(found[0], torch.nn.functional.layer_norm(x[0], (6,)))
    torch.testing.assert_close(found[1, :, :4], torch.nn.functional.layer_norm(x[1, :, :4], (4,)))
    assert not found[1, :, 4:].any()
    assert "is_own" not in padded.state_dict(), "a checkpoint holds what is learned"


def test_layers_by_group_keep_their_sizes_when_others_grow() -> None:
    def made(by_group: dict[str, tuple[int, ...]], **more: Any) -> Policy:
        network = Network((8, 6), hidden_by_group=by_group, memory="gru", memory_size=5, layer_norm=True, **more)
        return Policy(TEAM, network, "group", generator())

    old, grown = made({"small": (4,)}), made({"small": (4,)}, added=(3,))
    transfer({"policy": old}, {"policy": grown})
    inputs = {"obs": torch.randn(7, 5, 6), "agent_mask": torch.ones(7, 5, dtype=torch.bool)}
    before, after = (each.body.step(inputs, each.initial_memory(7))[0] for each in (old, grown))
    torch.testing.assert_close(before, after)
    for other in ({"small": (5,)}, {"small": (4, 6)}, {}):
        for accepts in (False, True):
            with pytest.raises(ConfigError, match=r"hidden\.\d would go from .* keep their sizes"):
                transfer({"policy": old}, {"policy": made(other)}, accepts_change=accepts)
