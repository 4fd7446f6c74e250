"""Spread, speaker-listener and reference are the games of mpe2: equal steps from equal states, starts drawn alike."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from martes.data import Discrete, Vector, VectorEnv
from martes.envs.batched.engine import BatchedEnv, State
from martes.envs.batched.mpe import Reference, SpeakerListener, Spread
from martes.errors import ConfigError
from tests.envs.batched.particles import (
    DOWN,
    GENERATOR,
    LEFT,
    RIGHT,
    STAY,
    UP,
    assert_starts_are_alike,
    assert_team_is_declared,
    followed,
)
from tests.envs.contract import Promise, check

Game = Spread | SpeakerListener | Reference

GAMES = [
    Spread(),
    Spread(continuous=True),
    Spread(agents=1, local_ratio=0.2),
    Spread(agents=2, local_ratio=1.0, continuous=True),
    Spread(agents=2, local_ratio=0.0, episode_limit=7),
    Spread(agents=5, local_ratio=0.9),
    Spread(agents=5, continuous=True, episode_limit=40),
    SpeakerListener(),
    SpeakerListener(continuous=True),
    SpeakerListener(episode_limit=3),
    Reference(),
    Reference(continuous=True),
    Reference(local_ratio=0.1, episode_limit=8),
    Reference(local_ratio=1.0, continuous=True, episode_limit=60),
]


@pytest.mark.parametrize("game", GAMES, ids=str)
def test_steps_equal_the_package(game: Game) -> None:
    counted = followed(game)
    assert counted["covered"] > 5, counted
    if isinstance(game, Spread) and game.agents > 1:
        assert counted["contact"] > 50 and counted["grazing"] > 0, counted
    if not isinstance(game, Spread):
        assert counted["said"] > 400, counted


@pytest.mark.parametrize("game", [Spread(agents=4), SpeakerListener(), Reference()], ids=str)
def test_starts_are_drawn_like_the_package(game: Game) -> None:
    assert_starts_are_alike(game)


@pytest.mark.parametrize("game", GAMES, ids=str)
def test_team_is_what_the_package_declares(game: Game) -> None:
    assert_team_is_declared(game)


def test_default_teams() -> None:
    assert Spread().team.state == Vector(54) and dict(Spread().team.groups) == {"agent": (0, 1, 2)}
    assert dict(SpeakerListener().team.groups) == {"speaker": (0,), "listener": (1,)}
    assert SpeakerListener().team.observation_sizes == (3, 11)
    assert Reference().team.action["agent"] == Discrete(50) and Reference().team.state == Vector(42)


@pytest.mark.parametrize("game", [Spread(), SpeakerListener(True), Reference(), Reference(True)], ids=str)
def test_keeps_the_laws(game: Game) -> None:
    check(Promise(lambda copies, limit: BatchedEnv(game, copies, limit=limit), tells_state=True, steps=60))


# ------------------------------------------------------------------------------------------------ worked by hand
def placed(agents: list[list[float]], landmarks: list[list[float]], velocity: list[list[float]] | None = None) -> State:
    speed = torch.tensor([velocity]) if velocity else torch.zeros(1, len(agents), 2)
    return {"position": torch.tensor([agents + landmarks]), "velocity": speed}


def test_motion_by_hand() -> None:
    """The position follows the velocity of before: 0 + 0.1 · 0.4; the velocity becomes 0.75 · 0.4 + 0.1 · 5."""
    state = placed([[0.0, 0.0]], [[0.04, 0.3]], [[0.4, 0.0]])
    outcome = Spread(agents=1).advance(state, torch.tensor([[RIGHT]]), GENERATOR)
    torch.testing.assert_close(outcome.state["position"][0, 0], torch.tensor([0.04, 0.0]))
    torch.testing.assert_close(outcome.state["velocity"][0, 0], torch.tensor([0.8, 0.0]))
    torch.testing.assert_close(outcome.reward, torch.tensor([[-0.15]]))  # half of the distance to the landmark
    assert state["position"][0, 0].tolist() == [0, 0], "the given state was written to"


@pytest.mark.parametrize(("action", "pushed"), [(STAY, (0, 0)), (LEFT, (-1, 0)), (DOWN, (0, -1)), (UP, (0, 1))])
def test_directions(action: int, pushed: tuple[float, float]) -> None:
    state = placed([[0.0, 0.0]], [[0.0, 0.0]])
    chosen = Spread(agents=1).advance(state, torch.tensor([[action]]), GENERATOR).state["velocity"]
    strengths = torch.nn.functional.one_hot(torch.tensor([[action]]), 5) * 0.5
    blended = Spread(agents=1, continuous=True).advance(state, strengths, GENERATOR).state["velocity"]
    torch.testing.assert_close(chosen[0, 0], 0.5 * torch.tensor(pushed, dtype=torch.float32))
    torch.testing.assert_close(blended, chosen / 2)


def test_contact_by_hand() -> None:
    """Two agents overlap by 0.1: each is pushed with 100 · 0.1, so gains 0.1 · 10. A third, out of reach, is not."""
    state = placed([[0.0, 0.0], [0.0, 0.2], [0.31, 0.0]], [[0.0, 0.0], [0.0, 0.2], [0.31, 0.0]])
    outcome = Spread(local_ratio=0.3).advance(state, torch.full((1, 3), STAY), GENERATOR)
    expected = torch.tensor([[[0.0, -1.0], [0.0, 1.0], [0.0, 0.0]]])
    torch.testing.assert_close(outcome.state["velocity"], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(outcome.reward, torch.tensor([[-0.3, -0.3, 0.0]]))  # all landmarks are covered
    after = Spread().advance(outcome.state, torch.full((1, 3), STAY), GENERATOR)
    torch.testing.assert_close(after.state["position"][0, 0], torch.tensor([0.0, -0.1]), rtol=0, atol=1e-5)


def test_agents_in_one_place_are_not_pushed() -> None:
    """mpe2 divides by zero here."""
    state = placed([[0.5, 0.5], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0]])
    outcome = Spread(agents=2).advance(state, torch.full((1, 2), STAY), GENERATOR)
    assert outcome.state["velocity"].abs().max() == 0


def test_observation_by_hand() -> None:
    state = placed([[0.1, 0.2], [0.4, 0.9]], [[0.0, 0.0], [1.0, 1.0]], [[3.0, 4.0], [5.0, 6.0]])
    seen = Spread(agents=2).observe(state)
    expected = torch.tensor([[5.0, 6.0, 0.4, 0.9, -0.4, -0.9, 0.6, 0.1, -0.3, -0.7, 0.0, 0.0]])
    torch.testing.assert_close(seen["obs"][:, 1], expected)
    torch.testing.assert_close(seen["state"][:, 12:], expected)


@pytest.mark.parametrize("continuous", [False, True])
def test_speech_by_hand(continuous: bool) -> None:
    """What the speaker says is heard one step later; the listener goes up; both lose the squared distance."""
    state = placed([[0.0, 0.0]], [[1.0, 0.0], [0.0, 2.0], [0.5, 0.5]])
    state |= {"goal": torch.tensor([1]), "message": torch.tensor([[0.0, 1.0, 0.0]])}
    said, loud = ([0.0, 0.25, 1.5, 9.0, 9.0], [0.0, 0.25, 1.0]) if continuous else (2, [0.0, 0.0, 1.0])
    action = torch.tensor([[said, [9.0, 0, 0, 0, 1.0]]]) if continuous else torch.tensor([[said, UP]])
    game = SpeakerListener(continuous)
    before = game.observe(state)
    assert before["obs"][0, 0].tolist() == pytest.approx([0.15, 0.65, 0.15] + [0] * 8)
    assert before["obs"][0, 1].tolist() == [0, 0, 1, 0, 0, 2, 0.5, 0.5, 0, 1, 0]
    outcome = game.advance(state, action, GENERATOR)
    assert outcome.reward.tolist() == [[-4, -4]]
    assert game.observe(outcome.state)["obs"][0, 1].tolist() == [0, 0.5, 1, 0, 0, 2, 0.5, 0.5, *loud]


@pytest.mark.parametrize("continuous", [False, True])
def test_reference_by_hand(continuous: bool) -> None:
    """Agent 1 stands 1 from where agent 0 wants it, agent 0 stands 3 from where agent 1 wants it; agent 0 goes up and
    says the fourth word, agent 1 stays and says the last."""
    state = placed([[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 3.0], [5.0, 5.0]])
    state |= {"goal": torch.tensor([[0, 1]]), "message": torch.zeros(1, 2, 10)}
    state["message"][0, 0, 2] = 1.0
    game, eye = Reference(continuous, local_ratio=0.25), torch.eye(15)
    action = torch.stack((eye[UP] + 7 * eye[5 + 3], eye[14]))[None] if continuous else torch.tensor([[UP + 15, 45]])
    before = game.observe(state)
    motion, colour = [0, 0, -1, 0, -1, 3, 4, 5], [0.25, 0.75, 0.25]
    assert before["obs"][0, 1].tolist() == [*motion, *colour, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert before["state"][0, 21:].tolist() == before["obs"][0, 1].tolist()
    outcome = game.advance(state, action, GENERATOR)
    torch.testing.assert_close(outcome.reward, torch.tensor([[-0.25 - 0.75 * 2, -0.75 - 0.75 * 2]]))
    torch.testing.assert_close(outcome.state["velocity"], torch.tensor([[[0.0, 0.5], [0.0, 0.0]]]))
    heard = game.observe(outcome.state)["obs"][0, :, 11:]
    assert heard.argmax(1).tolist() == [9, 3] and heard.sum(1).tolist() == [1, 1]


# ---------------------------------------------------------------------------------------------------- properties
@given(agents=st.integers(2, 6), seed=st.integers(0, 2**31), spread=st.floats(0.01, 1.0))
def test_contacts_keep_the_momentum(agents: int, seed: int, spread: float) -> None:
    game, drawn = Spread(agents=agents), torch.Generator().manual_seed(seed)
    state = {name: tensor.double() * spread for name, tensor in game.initial(3, drawn).items()}
    state["velocity"] = torch.randn(3, agents, 2, dtype=torch.float64, generator=drawn)
    after = game.advance(state, torch.full((3, agents), STAY), drawn).state["velocity"]
    torch.testing.assert_close(after.sum(1), 0.75 * state["velocity"].sum(1))


@given(agents=st.integers(2, 6), seed=st.integers(0, 2**31))
def test_agents_are_alike(agents: int, seed: int) -> None:
    """Renumbered agents move, and are rewarded, as before."""
    game, drawn = Spread(agents=agents), torch.Generator().manual_seed(seed)
    state = {name: tensor.double() * 0.3 for name, tensor in game.initial(3, drawn).items()}
    action = torch.randint(5, (3, agents), generator=drawn)
    order = torch.randperm(agents, generator=drawn)
    everyone = torch.cat((order, torch.arange(agents, 2 * agents)))
    renumbered = {"position": state["position"][:, everyone], "velocity": state["velocity"][:, order]}
    one, other = game.advance(state, action, drawn), game.advance(renumbered, action[:, order], drawn)
    torch.testing.assert_close(one.reward[:, order], other.reward)
    torch.testing.assert_close(one.state["velocity"][:, order], other.state["velocity"])


@pytest.mark.parametrize("game", [Spread(agents=5), SpeakerListener(continuous=True), Reference()], ids=str)
def test_the_future_does_not_depend_on_how_a_state_lies_in_memory(game: Game) -> None:
    """A state that comes back from a file goes on bit for bit."""
    state = game.initial(33, torch.Generator().manual_seed(0))
    action = torch.rand(33, 2, 5) if game.continuous else torch.randint(5, (33, game.team.size))
    lies = [state, {name: tensor.contiguous() for name, tensor in state.items()}]
    assert lies[0]["position"].stride() != lies[1]["position"].stride()
    for _ in range(30):
        one, other = (game.advance(each, action, GENERATOR) for each in lies)
        lies = [one.state, {name: tensor.contiguous() for name, tensor in other.state.items()}]
        assert torch.equal(one.reward, other.reward)
        assert torch.equal(game.observe(lies[0])["state"], game.observe(lies[1])["state"])


def test_equal_seeds_give_equal_futures(global_randomness_unused: None) -> None:
    envs = [BatchedEnv(SpeakerListener(episode_limit=4), 5) for _ in range(2)]
    assert isinstance(envs[0], VectorEnv)
    runs = [[env.reset(3), *(env.step(torch.ones(5, 2, dtype=torch.long)) for _ in range(9))] for env in envs]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one.seen["obs"], other.seen["obs"])
    assert not torch.equal(envs[0].reset(4).seen["obs"], runs[0][0].seen["obs"])


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        (Spread, {"agents": 0}, "Spread.agents is 0: it must be 1 or more"),
        (Spread, {"local_ratio": 1.5}, "Spread.local_ratio is 1.5: .* between 0 and 1"),
        (Spread, {"local_ratio": float("nan")}, "Spread.local_ratio is nan"),
        (Spread, {"episode_limit": 0}, "Spread.episode_limit is 0: it must be 1 or more"),
        (SpeakerListener, {"episode_limit": -1}, "SpeakerListener.episode_limit is -1"),
        (Reference, {"episode_limit": 0}, "Reference.episode_limit is 0"),
        (Reference, {"local_ratio": -0.1}, "Reference.local_ratio is -0.1: .* between 0 and 1"),
    ],
)
def test_impossible_options_are_refused(kind: type[Game], options: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        kind(**options)


# ------------------------------------------------------------------------------------------------------- frames
def test_frame_of_spread_shows_who_collides_and_stays_in_sight() -> None:
    landmarks = [[1.0, 1.0], [1.0, 1.0]]
    apart = placed([[0.0, 0.0], [0.5, 0.0]], landmarks)
    near, far = placed([[0.0, 0.0], [0.2, 0.0]], landmarks), placed([[0.0, 0.0], [9.0, -9.0]], landmarks)
    pictures = [Spread(agents=2).frame(state) for state in (apart, near, far)]
    assert all(picture.shape == (400, 400, 3) and picture.dtype == np.uint8 for picture in pictures)
    is_dark = [(picture < 60).all(-1) for picture in pictures]  # only rings and landmarks are
    assert is_dark[1].sum() > is_dark[0].sum() + 100
    orange = (pictures[2].astype(int) - (219, 116, 38))[-40:, -40:]  # the second agent, low on the right
    assert (np.abs(orange).max(-1) < 8).sum() > 10


def test_frame_of_speaker_listener_shows_goal_and_message() -> None:
    state = placed([[0.0, 0.0]], [[0.5, 0.5], [-0.5, 0.5], [0.5, -0.5]])
    state |= {"goal": torch.tensor([0]), "message": torch.tensor([[0.0, 1.0, 0.0]])}
    game = SpeakerListener()
    picture = game.frame(state)
    other_goal = game.frame(state | {"goal": torch.tensor([2])}) != picture
    other_word = game.frame(state | {"message": torch.tensor([[1.0, 0.0, 0.0]])}) != picture
    assert other_goal.any() and other_word[:50].any() and not other_word[50:].any()


def test_frame_of_reference_shows_who_says_what() -> None:
    game = Reference()
    state = game.initial(1, torch.Generator().manual_seed(0))
    silent, loud = game.frame(state), game.frame(state | {"message": torch.eye(10)[None, 3:5]})
    is_other = (silent != loud).any(-1)
    assert is_other[:50].any() and is_other[-50:].any() and is_other[50:-50].any()
    swapped = game.frame(state | {"goal": (state["goal"] + 1) % 3})
    assert (swapped != silent).any(-1).sum() > 500
