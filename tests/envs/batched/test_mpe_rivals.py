"""Tag and adversary are the games of mpe2: equal steps from equal states, starts drawn alike."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from martes.envs.batched.engine import BatchedEnv, State
from martes.envs.batched.mpe_rivals import Adversary, Tag
from martes.errors import ConfigError
from tests.envs.batched.particles import (
    GENERATOR,
    RIGHT,
    STAY,
    UP,
    assert_seen_equal,
    assert_starts_are_alike,
    assert_team_is_declared,
    crowded,
    drawn_actions,
    followed,
    joint_action,
    original,
    restored,
    state_of,
)
from tests.envs.contract import Promise, check

Game = Tag | Adversary

GAMES = [
    Tag(),
    Tag(continuous=True),
    Tag(adversaries=1, obstacles=0),
    Tag(adversaries=2, good=3, obstacles=1, episode_limit=40),
    Tag(adversaries=4, good=2, obstacles=4, continuous=True, prey_speed=0.5),
    Tag(adversaries=1, good=2, prey_speed=0.75, episode_limit=9),
    Adversary(),
    Adversary(continuous=True, episode_limit=40),
    Adversary(good=1),
    Adversary(good=5, episode_limit=6),
]


@pytest.mark.parametrize("game", GAMES, ids=str)
def test_steps_equal_the_package(game: Game) -> None:
    counted = followed(game, steps=200)
    assert counted["contact"] > 20, counted
    if isinstance(game, Adversary):
        assert counted["covered"] > 20, counted
        return
    for event in ("caught", "at_top_speed", "near_the_edge", "outside", "far_outside"):
        assert counted[event] > 5, (event, counted)
    assert game.obstacles == 0 or counted["bumped"] > 20, counted


@pytest.mark.parametrize("good", [1, 2])
def test_the_end_of_the_hunt_equals_the_package(good: int) -> None:
    """It ends where all prey is caught at once, but at the time limit, where the package says that time is up."""
    game, rng = Tag(good=good, ends_when_caught=True), np.random.default_rng(3)
    theirs, ours, ends = original(game), BatchedEnv(game, 1), 0
    for seed in range(60):
        crowded(theirs, rng, seed, within=0.2)
        restored(ours, state_of(theirs))
        for _ in range(5):
            actions = drawn_actions(theirs, False, rng)
            _, rewards, terminated, truncated, _ = theirs.step(actions)
            step = ours.step(joint_action([actions], False))
            assert not any(truncated.values())
            np.testing.assert_allclose(step.reward[0].numpy(), list(rewards.values()), rtol=0, atol=1e-9)
            assert (step.discount[0] == 0).tolist() == list(terminated.values())
            assert bool(step.cut) == all(terminated.values())
            assert_seen_equal(dict(step.final or step.seen), [theirs])
            if step.cut:
                ends += 1
                break
    assert 5 < ends < 60, ends


@pytest.mark.parametrize("game", [Tag(), Adversary(good=3)], ids=str)
def test_starts_are_drawn_like_the_package(game: Game) -> None:
    assert_starts_are_alike(game)


def test_obstacles_start_off_the_edge() -> None:
    start = Tag(obstacles=3).initial(2000, torch.Generator().manual_seed(0))["position"]
    assert start[:, :4].abs().max() > 0.99 and 0.89 < start[:, 4:].abs().max() <= 0.9


@pytest.mark.parametrize("game", GAMES, ids=str)
def test_team_is_what_the_package_declares(game: Game) -> None:
    assert_team_is_declared(game)


def test_default_teams() -> None:
    assert dict(Tag().team.groups) == {"adversary": (0, 1, 2), "agent": (3,)}
    assert Tag().team.observation_sizes == (16, 16, 16, 14)
    assert dict(Adversary().team.groups) == {"adversary": (0,), "agent": (1, 2)}
    assert Adversary().team.observation_sizes == (8, 10, 10)


@pytest.mark.parametrize("game", [Tag(), Tag(good=2, ends_when_caught=True, continuous=True), Adversary()], ids=str)
def test_keeps_the_laws(game: Game) -> None:
    check(Promise(lambda copies, limit: BatchedEnv(game, copies, limit=limit), tells_state=True, steps=60))


# ------------------------------------------------------------------------------------------------ worked by hand
def placed(places: list[list[float]], agents: int) -> State:
    return {"position": torch.tensor([places]), "velocity": torch.zeros(1, agents, 2)}


def test_a_catch_by_hand() -> None:
    """Two of three adversaries overlap the prey, which stands at x = 0.95: 20 to all three, -20 - 0.5 to the prey."""
    state = placed([[0.95, 0.1], [0.95, -0.1], [-0.5, 0.0], [0.95, 0.0], [-0.9, -0.9], [-0.9, 0.9]], 4)
    outcome = Tag().advance(state, torch.tensor([[STAY, STAY, RIGHT, UP]]), GENERATOR)
    torch.testing.assert_close(outcome.reward, torch.tensor([[20.0, 20.0, 20.0, -20.5]]))
    # Each pair overlaps by 0.025, so pushes with 2.5, which adds 0.25; the prey is pushed from both sides, and goes up.
    expected = torch.tensor([[[0.0, 0.25], [0.0, -0.25], [0.3, 0.0], [0.0, 0.4]]])
    torch.testing.assert_close(outcome.state["velocity"], expected, rtol=0, atol=1e-5)


def test_speed_has_a_top() -> None:
    state = placed([[-0.9, 0.0], [0.9, 0.0]], 2) | {"velocity": torch.tensor([[[3.0, 4.0], [0.0, -9.0]]])}
    outcome = Tag(adversaries=1, obstacles=0).advance(state, torch.full((1, 2), STAY), GENERATOR)
    torch.testing.assert_close(outcome.state["velocity"], torch.tensor([[[0.6, 0.8], [0.0, -1.3]]]))
    slow = Tag(adversaries=1, obstacles=0, prey_speed=0.5)
    assert slow.advance(state, torch.full((1, 2), STAY), GENERATOR).state["velocity"][0, 1, 1] == pytest.approx(-0.65)


@pytest.mark.parametrize(("x", "loss"), [(0.9, 0.0), (0.95, 0.5), (1.0, 1.0), (1.5, np.e), (2.2, 10.0), (1e6, 10.0)])
def test_leaving_costs(x: float, loss: float) -> None:
    state = placed([[0.0, 0.0], [x, -x]], 2)
    outcome = Tag(adversaries=1, obstacles=0).advance(state, torch.full((1, 2), STAY), GENERATOR)
    assert outcome.reward[0].tolist() == pytest.approx([0.0, -2 * loss], abs=1e-5)


def test_observations_of_tag_by_hand() -> None:
    """An adversary sees the velocities of both prey, a prey that of the other; nobody sees an adversary's."""
    game = Tag(adversaries=1, good=2, obstacles=1)
    state = placed([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.5, 0.5]], 3)
    state["velocity"] = torch.tensor([[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]])
    seen = game.observe(state)
    adversary = [0.1, 0.2, 0, 0, 0.5, 0.5, 1, 0, 0, 2, 0.3, 0.4, 0.5, 0.6]
    prey = [0.3, 0.4, 1, 0, -0.5, 0.5, -1, 0, -1, 2, 0.5, 0.6]
    assert seen["obs"][0, 0].tolist() == pytest.approx(adversary)
    assert seen["obs"][0, 1].tolist() == pytest.approx([*prey, 0, 0])
    assert seen["state"][0, :26].tolist() == pytest.approx(adversary + prey)


def test_adversary_by_hand() -> None:
    """The goal is the second landmark: 5 from the adversary, 1 and 2 from the good agents."""
    state = placed([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [9.0, 9.0], [0.0, 0.0]], 3) | {"goal": torch.tensor([1])}
    outcome = Adversary().advance(state, torch.full((1, 3), STAY), GENERATOR)
    torch.testing.assert_close(outcome.reward, torch.tensor([[-5.0, 4.0, 4.0]]))
    seen = Adversary().observe(state)["obs"][0].tolist()
    assert seen[0] == [6, 5, -3, -4, -2, -4, -3, -2, 0, 0]  # no word of the goal
    assert seen[1] == [-1, 0, 8, 9, -1, 0, 2, 4, -1, 2]


# ---------------------------------------------------------------------------------------------------- properties
@given(hunters=st.integers(1, 4), good=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_what_hunters_win_prey_loses(hunters: int, good: int, seed: int) -> None:
    """Each hunter gets what all prey together pays for catches."""
    game, drawn = Tag(hunters, good), torch.Generator().manual_seed(seed)
    state = {name: tensor * 0.2 for name, tensor in game.initial(5, drawn).items()}
    reward = game.advance(state, torch.full((5, hunters + good), STAY), drawn).reward
    torch.testing.assert_close(reward[:, 0], -reward[:, hunters:].sum(1))
    assert (reward[:, :hunters] == reward[:, :1]).all()


@pytest.mark.parametrize("game", [Tag(good=2), Adversary(good=4)], ids=str)
def test_the_future_does_not_depend_on_how_a_state_lies_in_memory(game: Game) -> None:
    state = game.initial(33, torch.Generator().manual_seed(0))
    packed = {name: tensor.contiguous() for name, tensor in state.items()}
    action = torch.randint(5, (33, game.team.size))
    for _ in range(30):
        one, other = game.advance(state, action, GENERATOR), game.advance(packed, action, GENERATOR)
        state, packed = one.state, {name: tensor.contiguous() for name, tensor in other.state.items()}
        assert torch.equal(one.reward, other.reward)
        assert torch.equal(game.observe(state)["state"], game.observe(packed)["state"])


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        (Tag, {"adversaries": 0}, "Tag.adversaries is 0: it must be 1 or more"),
        (Tag, {"good": 0}, "Tag.good is 0"),
        (Tag, {"obstacles": -1}, "Tag.obstacles is -1"),
        (Tag, {"prey_speed": 0.0}, "Tag.prey_speed is 0.0: give it a share above 0"),
        (Tag, {"prey_speed": float("nan")}, "Tag.prey_speed is nan"),
        (Tag, {"episode_limit": 0}, "Tag.episode_limit is 0"),
        (Adversary, {"good": 0}, "Adversary.good is 0"),
        (Adversary, {"episode_limit": 0}, "Adversary.episode_limit is 0"),
    ],
)
def test_impossible_options_are_refused(kind: type[Game], options: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        kind(**options)


# ------------------------------------------------------------------------------------------------------- frames
def test_frame_of_tag_shows_who_is_caught() -> None:
    apart = placed([[0.0, 0.0], [0.5, 0.0], [-0.7, 0.7]], 2)
    near = placed([[0.0, 0.0], [0.1, 0.0], [-0.7, 0.7]], 2)
    pictures = [Tag(adversaries=1, obstacles=1).frame(state) for state in (apart, near)]
    assert all(picture.shape == (400, 400, 3) and picture.dtype == np.uint8 for picture in pictures)
    is_dark = [(picture < 60).all(-1).sum() for picture in pictures]  # only rings are
    assert is_dark[1] > is_dark[0] + 100


def test_frame_of_adversary_shows_the_goal() -> None:
    state = placed([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [-0.5, -0.5], [0.7, 0.7]], 3)
    one, other = (Adversary().frame(state | {"goal": torch.tensor([goal])}) for goal in (0, 1))
    is_other = (one != other).any(-1)
    assert is_other[:200, 200:].any() and is_other[200:, :200].any()
