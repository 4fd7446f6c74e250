"""Mixers: their equations by slow versions, monotony, and what absent agents bring: nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from martes.data import TeamSpec
from martes.errors import ConfigError
from martes.networks.mixers import Joint, JointValue, Layers, Mixing, Monotone, Separate, Sum, TeamView, mixer_of
from tests.worlds import World

TEAM = World(has_state=True).team


def joint(team: TeamSpec = TEAM, lead: tuple[int, ...] = (4, 2), seed: int = 0, dead: float = 0.3) -> Joint:
    generator = torch.Generator().manual_seed(seed)
    alive = torch.rand(*lead, team.size, generator=generator) >= dead
    q = torch.randn(*lead, team.size, generator=generator).masked_fill(~alive, 0)
    action = torch.randint(5, alive.shape, generator=generator)
    features = torch.randn(*lead, team.size, 7, generator=generator)
    return Joint(q, action, features, alive, torch.randn(*lead, 9, generator=generator))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_sum_and_each_for_itself() -> None:
    given = joint()
    assert torch.equal(Sum()(given), given.q.sum(-1, keepdim=True))
    assert torch.equal(Separate()(given), given.q)
    assert (Sum.is_of_team, Separate.is_of_team) == (True, False)


def linear(layers: Layers, x: Tensor) -> Tensor:
    """What the layers make of one row, with plain matrices."""
    for depth, each in enumerate(layers.maps):
        if depth:
            x = x.clamp(min=0)
        x = each.weight[0] @ x + each.bias[0]
    return x


@pytest.mark.parametrize("hypernet", [(), (64,), (8, 8)])
@pytest.mark.parametrize("positive", ["abs", "softplus"])
def test_the_monotone_network_is_the_papers(hypernet: tuple[int, ...], positive: str) -> None:
    mixer = Monotone(TEAM, Mixing(5, hypernet, positive), generator())  # pyright: ignore
    given = joint()
    for layers in (mixer.inward, mixer.bias, mixer.outward, mixer.value):
        for each in layers.maps:
            nn.init.normal_(each.bias)
    found = mixer(given)
    magnitude = {"abs": Tensor.abs, "softplus": nn.functional.softplus}[positive]
    for t in range(4):
        for env in range(2):
            state = given.state[t, env]
            first = magnitude(linear(mixer.inward, state)).view(TEAM.size, 5)
            hidden = nn.functional.elu(given.q[t, env] @ first + linear(mixer.bias, state))
            expected = hidden @ magnitude(linear(mixer.outward, state)) + linear(mixer.value, state)
            assert torch.allclose(found[t, env], expected, atol=1e-4)


@given(st.integers(0, 2**31), st.sampled_from(["abs", "softplus"]), st.floats(0.01, 100))
def test_the_teams_value_never_falls_where_an_agents_rises(seed: int, positive: str, scale: float) -> None:
    mixer = Monotone(TEAM, Mixing(4, (6,), positive), generator(seed))  # pyright: ignore
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=scale, generator=generator(seed))
    given_ = joint(seed=seed)
    q = (given_.q * scale).requires_grad_()
    (slope,) = torch.autograd.grad(mixer(given_._replace(q=q)).sum(), q)
    assert (slope >= 0).all() and (slope > 0).any()


def test_without_a_state_the_monotone_network_is_one_everywhere() -> None:
    mixer = Monotone(TEAM, Mixing(sees_state=False), generator())
    given = joint(lead=(1, 1))
    assert mixer.view == TeamView()
    assert torch.equal(mixer(given), mixer(given._replace(state=torch.zeros(1, 1, 0))))


def test_a_joint_value_adds_up_what_agents_do() -> None:
    mixer = JointValue(TEAM, Mixing(16), 7, generator())
    given = joint(dead=0.0)
    order = torch.tensor([2, 0, 1])
    swapped = given._replace(action=given.action[..., order], features=given.features[..., order, :])
    assert torch.allclose(mixer(given), mixer(swapped), atol=1e-6)
    for agent in range(TEAM.size):
        action = given.action.clone()
        action[..., agent] = (action[..., agent] + 1) % 5
        assert not torch.allclose(mixer(given), mixer(given._replace(action=action)), atol=1e-5)


@pytest.mark.parametrize("kind", ["monotone", "joint"])
def test_who_is_absent_brings_nothing(kind: str) -> None:
    mixer = mixer_of(kind, TEAM, Mixing(), 7, generator())  # pyright: ignore
    given = joint()
    dead = ~given.alive
    assert dead.any()
    other = given._replace(
        action=torch.where(dead, (given.action + 1) % 5, given.action),
        features=torch.where(dead.unsqueeze(-1), 99.0, given.features),
    )
    assert torch.equal(mixer(given), mixer(other))


def test_a_joint_action_is_looked_up_in_its_rows() -> None:
    q = torch.arange(24.0).view(3, 1, 2, 4)
    fields = {"agent_mask": torch.tensor([[[True, True]], [[True, False]], [[True, True]]])}
    outputs = {"q": q, "features": torch.zeros(3, 1, 2, 1)}
    action = torch.tensor([[[1, 2]], [[3, 3]]], dtype=torch.uint8)
    found = Joint.at(slice(0, 2), outputs, action, fields, torch.zeros(3, 1, 0))
    assert found.q.tolist() == [[[1.0, 6.0]], [[11.0, 0.0]]]


def test_joined_observations_stand_in_for_a_state() -> None:
    team = World().team
    mixer = Monotone(team, Mixing(), generator())
    assert mixer.view == TeamView("obs", 18)
    fields = {"obs": torch.ones(2, 3, 6), "agent_mask": torch.tensor([[True, False, True]] * 2)}
    assert mixer.view.seen(fields).tolist() == [[1.0] * 6 + [0.0] * 6 + [1.0] * 6] * 2
    assert Sum().view.seen(fields).shape == (2, 0)
    assert Monotone(TEAM, Mixing(), generator()).view == TeamView("state", 9)


@pytest.mark.parametrize("kind", ["monotone", "joint"])
def test_pictures_without_a_state_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="Give the TeamSpec a state"):
        mixer_of(kind, World(has_image=True).team, Mixing(), 7, generator())  # pyright: ignore
    mixer_of("sum", World(has_image=True).team, Mixing(), 7, generator())


@pytest.mark.parametrize("wrong", [{"width": 0}, {"hypernet": (0,)}, {"lambda_opt": -1.0}, {"lambda_nopt": -0.1}])
def test_impossible_forms_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="mixing"):
        Mixing(**wrong)


def test_mixers_begin_as_their_generator_says(global_randomness_unused: None) -> None:
    one, other, third = (Monotone(TEAM, Mixing(), generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(one.inward.maps[0].weight, third.inward.maps[0].weight)
