"""Spread and speaker-listener are the games of mpe2: equal steps from equal states, starts drawn alike."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpe2 import simple_speaker_listener_v4, simple_spread_v3
from pettingzoo import ParallelEnv
from pettingzoo.utils.env_logger import EnvLogger
from torch import Tensor

from martes.data import Continuous, Discrete, TimeStep, Vector, VectorEnv
from martes.envs.batched.engine import BatchedEnv, State
from martes.envs.batched.mpe import RADIUS, SpeakerListener, Spread
from martes.errors import ConfigError

STAY, LEFT, RIGHT, DOWN, UP = range(5)
GENERATOR = torch.Generator()  # steps leave nothing to chance
Game = Spread | SpeakerListener


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    EnvLogger.suppress_output()  # mpe2 says each time that it clips an action
    yield
    EnvLogger.unsuppress_output()


def original(game: Game) -> ParallelEnv:
    options = {"continuous_actions": game.continuous, "max_cycles": game.episode_limit}
    if isinstance(game, SpeakerListener):
        return simple_speaker_listener_v4.parallel_env(**options)
    return simple_spread_v3.parallel_env(N=game.agents, local_ratio=game.local_ratio, **options)


def state_of(env: ParallelEnv) -> State:
    """The package's state as one environment of ours, in float64. The speaker's own place means nothing."""
    world = env.aec_env.unwrapped.world
    speaks = "speaker_0" in env.possible_agents
    movers = world.agents[1:] if speaks else world.agents
    entities = [*movers, *world.landmarks]
    state = {
        "position": torch.tensor(np.array([[entity.state.p_pos for entity in entities]])),
        "velocity": torch.tensor(np.array([[agent.state.p_vel for agent in movers]])),
    }
    if speaks:
        speaker = world.agents[0]
        state["goal"] = torch.tensor([world.landmarks.index(speaker.goal_b)])
        state["message"] = torch.tensor(speaker.state.c)[None]
    return state


def joined(states: list[State]) -> State:
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def restored(env: BatchedEnv, state: State) -> TimeStep:
    held = {**env.state_dict(), "state": state, "elapsed": torch.zeros(env.num_envs, dtype=torch.int32)}
    return env.load_state_dict(held)


def crowded(env: ParallelEnv, rng: np.random.Generator, seed: int) -> None:
    """A start where agents stand close to each other, moving, some beside a landmark."""
    env.reset(seed=seed)
    world = env.aec_env.unwrapped.world
    for agent in world.agents:
        agent.state.p_pos = rng.uniform(-0.3, 0.3, 2)
        if agent.movable:
            agent.state.p_vel = rng.uniform(-1, 1, 2)
    world.landmarks[0].state.p_pos = world.agents[-1].state.p_pos + 0.01


def drawn_actions(env: ParallelEnv, continuous: bool, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Anything, out of bounds too; who can move heads for the middle half of the time, to meet the others there."""
    actions = {}
    for agent in env.aec_env.unwrapped.world.agents:
        space = env.action_space(agent.name)
        action = rng.uniform(-0.3, 1.3, space.shape) if continuous else rng.integers(space.n)
        if agent.movable and rng.random() < 0.5:
            x, y = agent.state.p_pos
            sideways, upright = (LEFT if x > 0 else RIGHT), (DOWN if y > 0 else UP)
            home = sideways if abs(x) > abs(y) else upright
            action = 1.3 * np.eye(5)[home] if continuous else home
        actions[agent.name] = action
    return actions


def padded(rows: list[np.ndarray], width: int) -> np.ndarray:
    return np.stack([np.pad(row, (0, width - len(row))) for row in rows])


def observed(env: ParallelEnv) -> list[np.ndarray]:
    """The package's observations before it rounds them to float32."""
    inner = env.aec_env.unwrapped
    return [inner.scenario.observation(agent, inner.world) for agent in inner.world.agents]


def assert_seen_equal(fields: dict[str, Tensor], envs: list[ParallelEnv]) -> None:
    seen, width = [observed(env) for env in envs], fields["obs"].shape[-1]
    assert fields["obs"].dtype == fields["state"].dtype == torch.float64
    close = {"rtol": 0, "atol": 1e-9}
    np.testing.assert_allclose(fields["obs"].numpy(), np.stack([padded(rows, width) for rows in seen]), **close)
    np.testing.assert_allclose(fields["state"].numpy(), np.stack([np.concatenate(rows) for rows in seen]), **close)
    np.testing.assert_allclose(fields["state"].numpy(), np.stack([env.state() for env in envs]), rtol=1e-6, atol=1e-7)


def events(env: ParallelEnv) -> Counter:
    world = env.aec_env.unwrapped.world
    places = np.array([agent.state.p_pos for agent in world.agents])
    marks = np.array([mark.state.p_pos for mark in world.landmarks])
    apart = np.linalg.norm(places[:, None] - places, axis=-1)[np.triu_indices(len(places), 1)]
    covered = np.linalg.norm(marks[:, None] - places, axis=-1).min(1) < 0.1
    return Counter(
        contact=int((apart < 2 * RADIUS).sum()),
        grazing=int(((apart >= 2 * RADIUS) & (apart < 2 * RADIUS + 0.005)).sum()),
        covered=int(covered.sum()),
    )


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
]


@pytest.mark.parametrize("game", GAMES, ids=str)
def test_steps_equal_the_package(game: Game) -> None:
    """Whole episodes, started alike and never set right again."""
    copies, steps, rng = 4, 125, np.random.default_rng(7)
    theirs, ours = [original(game) for _ in range(copies)], BatchedEnv(game, copies)
    counted: Counter = Counter()
    for first in range(0, steps, game.episode_limit):
        for index, env in enumerate(theirs):
            crowded(env, rng, seed=first + index)
        step = restored(ours, joined([state_of(env) for env in theirs]))
        assert_seen_equal(dict(step.seen), theirs)
        for t in range(1, game.episode_limit + 1):
            actions = [drawn_actions(env, game.continuous, rng) for env in theirs]
            answers = [env.step(action) for env, action in zip(theirs, actions, strict=True)]
            rows = [list(action.values()) for action in actions]
            joint = np.stack([padded(row, 5) for row in rows]) if game.continuous else np.array(rows)
            step = ours.step(torch.tensor(joint))
            assert step.reward.dtype == torch.float64
            rewards = [list(answer[1].values()) for answer in answers]
            np.testing.assert_allclose(step.reward.numpy(), rewards, rtol=0, atol=1e-9)
            assert not any(terminated for answer in answers for terminated in answer[2].values())
            assert step.discount.min() == 1
            assert (
                step.cut.tolist()
                == [all(answer[3].values()) for answer in answers]
                == [t == game.episode_limit] * copies
            )
            assert_seen_equal(dict(step.final or step.seen), theirs)
            counted += sum((events(env) for env in theirs), Counter())
    assert counted["covered"] > 5, counted
    if isinstance(game, Spread) and game.agents > 1:
        assert counted["contact"] > 50 and counted["grazing"] > 0, counted


@pytest.mark.parametrize("game", [Spread(agents=4), SpeakerListener()], ids=str)
def test_starts_are_drawn_like_the_package(game: Game) -> None:
    env = original(game)
    env.reset(seed=0)
    package: list[State] = []
    for _ in range(1000):
        env.reset()
        package.append(state_of(env))
    theirs, ours = joined(package), game.initial(4000, torch.Generator().manual_seed(1))
    at = torch.linspace(0.0, 1.0, 11)
    for name, tensor in theirs.items():
        assert tensor.shape[1:] == ours[name].shape[1:]
        one, other = (each.reshape(len(each), -1).double() for each in (tensor, ours[name]))
        torch.testing.assert_close(one.quantile(at.double(), 0), other.quantile(at.double(), 0), rtol=0, atol=0.13)
        torch.testing.assert_close(one.mean(0), other.mean(0), rtol=0, atol=0.08)
    assert -1 <= ours["position"].min() < -0.99 and 0.99 < ours["position"].max() <= 1
    assert ours["position"].dtype == torch.get_default_dtype()
    assert ours["position"].flatten(1).T.corrcoef().fill_diagonal_(0).abs().max() < 0.08  # all drawn apart
    if isinstance(game, SpeakerListener):
        assert ours["goal"].bincount().tolist() == pytest.approx([4000 / 3] * 3, rel=0.1)


@pytest.mark.parametrize("game", GAMES, ids=str)
def test_team_is_what_the_package_declares(game: Game) -> None:
    env, team = original(game), game.team
    assert team.agents == tuple(env.possible_agents)
    assert team.episode_limit == game.episode_limit
    assert team.state == Vector(*env.state_space.shape)
    for agent, group in zip(team.agents, team.group_of, strict=True):
        assert team.observation[group] == Vector(*env.observation_space(agent).shape)
        space = env.action_space(agent)
        if game.continuous:
            assert team.action[group] == Continuous(tuple(space.low.tolist()), tuple(space.high.tolist()))
        else:
            assert team.action[group] == Discrete(int(space.n))


def test_default_teams() -> None:
    assert Spread().team.state == Vector(54) and dict(Spread().team.groups) == {"agent": (0, 1, 2)}
    assert dict(SpeakerListener().team.groups) == {"speaker": (0,), "listener": (1,)}
    assert SpeakerListener().team.observation_sizes == (3, 11)


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


@pytest.mark.parametrize("game", [Spread(agents=5), SpeakerListener(continuous=True)], ids=str)
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
        (Spread, {"agents": 0}, "Spread.agents is 0: give it at least 1"),
        (Spread, {"local_ratio": 1.5}, "Spread.local_ratio is 1.5: .* between 0 and 1"),
        (Spread, {"local_ratio": float("nan")}, "Spread.local_ratio is nan"),
        (Spread, {"episode_limit": 0}, "Spread.episode_limit is 0: give it at least 1 step"),
        (SpeakerListener, {"episode_limit": -1}, "SpeakerListener.episode_limit is -1"),
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
