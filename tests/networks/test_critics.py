"""Critics: what each view reads, absent agents, and PopArt's promise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from martes.data import Discrete, Image, TeamSpec, Vector
from martes.errors import ConfigError
from martes.networks import Critic, Network
from martes.networks.critics import ValueHead
from martes.networks.stacked import StackedLinear
from tests.worlds import World


def critic(view: str, world: World | None = None) -> Critic:
    team = (world or World()).team
    return Critic(team, Network(hidden=(8,)), view, "shared", torch.Generator().manual_seed(0))  # pyright: ignore


@given(st.floats(-100, 100), st.floats(0.01, 100), st.integers(1, 5))
def test_rescale_moves_no_value(mean: float, deviation: float, times: int) -> None:
    head = ValueHead(StackedLinear((4, 4), 1, torch.Generator().manual_seed(0)))
    x = torch.randn(2, 6, 4)
    for _ in range(times):
        before = head(x)
        head.rescale(torch.randn(50) * deviation + mean, torch.ones(50, dtype=torch.bool))
        assert torch.allclose(head(x), before, rtol=1e-3, atol=1e-3 * (abs(mean) + deviation + 1))


def test_statistics_reach_those_of_the_targets() -> None:
    head = ValueHead(StackedLinear((4,), 1, torch.Generator()))
    for _ in range(200):
        target = torch.randn(500) * 3 + 20
        mask = torch.rand(500) < 0.7
        head.rescale(target.masked_fill(~mask, torch.nan), mask)
    assert abs(head.mean - 20) < 0.1 and abs(head.deviation - 3) < 0.1


def test_central_reads_the_state_local_its_own_view() -> None:
    world = World(has_state=True)
    inputs = {"obs": torch.randn(2, 3, 6), "state": torch.randn(2, 9), "agent_mask": torch.ones(2, 3, dtype=torch.bool)}
    other = {**inputs, "obs": torch.randn(2, 3, 6)}
    assert torch.equal(critic("central", world).value(inputs, ()), critic("central", world).value(other, ()))
    changed = {**inputs, "obs": inputs["obs"].clone()}
    changed["obs"][:, 1] += 1
    before, after = critic("local", world).value(inputs, ()), critic("local", world).value(changed, ())
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]]) and not torch.equal(before[:, 1], after[:, 1])


def test_without_a_state_the_living_stand_in() -> None:
    inputs = {"obs": torch.randn(2, 3, 6), "agent_mask": torch.tensor([[True, True, False]] * 2)}
    other = {**inputs, "obs": inputs["obs"].clone()}
    other["obs"][:, 2] = 1e6
    assert torch.equal(critic("central").value(inputs, ()), critic("central").value(other, ()))
    other["obs"][:, 0] = 1.0
    assert not torch.equal(critic("central").value(inputs, ()), critic("central").value(other, ()))


def test_an_absent_agent_expects_nothing() -> None:
    inputs = {"obs": torch.randn(2, 3, 6), "agent_mask": torch.tensor([[True, False, True]] * 2)}
    value = critic("local").value(inputs, ())
    assert (value[:, 1] == 0).all() and (value[:, [0, 2]] != 0).all()


def test_images_without_a_state_have_no_central_critic() -> None:
    team = TeamSpec.of_agents({"a_0": {"camera": Image((1, 8, 8)), "vector": Vector(2)}}, {"a_0": Discrete(2)})
    with pytest.raises(ConfigError, match="Give the TeamSpec a state, or take critic=local"):
        Critic(team, Network(), "central", "shared", torch.Generator())
