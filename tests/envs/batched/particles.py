"""Plays the particle games of mpe2 beside ours, from equal states, and counts what happens."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mpe2 import (
    simple_adversary_v3,
    simple_reference_v3,
    simple_speaker_listener_v4,
    simple_spread_v3,
    simple_tag_v3,
)
from pettingzoo import ParallelEnv
from pettingzoo.utils.env_logger import EnvLogger
from torch import Tensor

from martes.data import Continuous, Discrete, TimeStep, Vector
from martes.envs.batched.engine import BatchedEnv, State
from martes.envs.batched.mpe import Reference, SpeakerListener, Spread
from martes.envs.batched.mpe_rivals import Adversary, Tag

STAY, LEFT, RIGHT, DOWN, UP = range(5)
GENERATOR = torch.Generator()  # steps leave nothing to chance
ParticleGame = Spread | SpeakerListener | Reference | Tag | Adversary


@contextmanager
def quiet() -> Iterator[None]:
    """mpe2 says each time that it clips an action."""
    logger = EnvLogger.get_logger()
    logger.disabled = True
    yield
    logger.disabled = False


def original(game: ParticleGame) -> ParallelEnv:
    options: dict = {"continuous_actions": game.continuous, "max_cycles": game.episode_limit}
    match game:
        case Spread():
            return simple_spread_v3.parallel_env(N=game.agents, local_ratio=game.local_ratio, **options)
        case SpeakerListener():
            return simple_speaker_listener_v4.parallel_env(**options)
        case Reference():
            return simple_reference_v3.parallel_env(local_ratio=game.local_ratio, **options)
        case Adversary():
            return simple_adversary_v3.parallel_env(N=game.good, **options)
        case Tag():
            sizes = {f"num_{name}": getattr(game, name) for name in ("good", "adversaries", "obstacles")}
            env = simple_tag_v3.parallel_env(**sizes, terminate_on_success=game.ends_when_caught, **options)
            for agent in env.aec_env.unwrapped.world.agents[game.adversaries :]:
                # As its curriculum would, if mpe2 1.1.1 ever left the first stage.
                agent.max_speed, agent.accel = 1.3 * game.prey_speed, 4.0 * game.prey_speed
            return env


def state_of(env: ParallelEnv) -> State:
    """The package's state as one environment of ours, in float64. A speaker's own place means nothing."""
    world = env.aec_env.unwrapped.world
    movers = [agent for agent in world.agents if agent.movable]
    entities = [*movers, *world.landmarks]
    state = {
        "position": torch.tensor(np.array([[entity.state.p_pos for entity in entities]])),
        "velocity": torch.tensor(np.array([[agent.state.p_vel for agent in movers]])),
    }
    name = env.aec_env.unwrapped.metadata["name"]
    if "adversary" in name:
        state["goal"] = torch.tensor([world.landmarks.index(world.agents[0].goal_a)])
    if "speaker" in name:
        state["goal"] = torch.tensor([world.landmarks.index(world.agents[0].goal_b)])
        state["message"] = torch.tensor(world.agents[0].state.c)[None]
    if "reference" in name:
        state["goal"] = torch.tensor([[world.landmarks.index(agent.goal_b) for agent in world.agents]])
        state["message"] = torch.tensor(np.array([[agent.state.c for agent in world.agents]]))
    return state


def joined(states: list[State]) -> State:
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def restored(env: BatchedEnv, state: State) -> TimeStep:
    held = {**env.state_dict(), "state": state, "elapsed": torch.zeros(env.num_envs, dtype=torch.int32)}
    return env.load_state_dict(held)


def crowded(env: ParallelEnv, rng: np.random.Generator, seed: int, within: float = 0.3) -> None:
    """A start where agents stand close to each other, moving, some beside a landmark."""
    env.reset(seed=seed)
    world = env.aec_env.unwrapped.world
    for agent in world.agents:
        agent.state.p_pos = rng.uniform(-within, within, 2)
        if agent.movable:
            agent.state.p_vel = rng.uniform(-1, 1, 2)
    for mark in world.landmarks[:1]:
        mark.state.p_pos = world.agents[-1].state.p_pos + 0.01


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
            if continuous:
                action[:5] = 1.3 * np.eye(5)[home]
            else:
                action += home - action % 5
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


def joint_action(actions: list[dict[str, np.ndarray]], continuous: bool) -> Tensor:
    rows = [list(action.values()) for action in actions]
    if not continuous:
        return torch.tensor(np.array(rows))
    width = max(len(action) for action in rows[0])
    return torch.tensor(np.stack([padded(row, width) for row in rows]))


def events(env: ParallelEnv) -> Counter:
    """Who touches whom, who is where, who said something."""
    world = env.aec_env.unwrapped.world
    places = np.array([agent.state.p_pos for agent in world.agents])
    marks = np.array([mark.state.p_pos for mark in world.landmarks]).reshape(-1, 2)
    size = np.array([agent.size for agent in world.agents])
    apart = np.linalg.norm(places[:, None] - places, axis=-1) - size[:, None] - size  # between the rims
    covered = np.linalg.norm(marks[:, None] - places, axis=-1)
    hunts = np.array([getattr(agent, "adversary", False) for agent in world.agents])
    pairs = np.triu_indices(len(places), 1)
    speed = [np.linalg.norm(agent.state.p_vel) / agent.max_speed for agent in world.agents if agent.max_speed]
    out = np.abs(places[~hunts]) - 0.9
    return Counter(
        contact=int((apart[pairs] < 0).sum()),
        grazing=int(((apart[pairs] >= 0) & (apart[pairs] < 0.005)).sum()),
        covered=int((covered.min(1) < 0.1).sum()) if len(marks) else 0,
        bumped=int((covered < size + [[mark.size] for mark in world.landmarks]).sum()) if len(marks) else 0,
        caught=int((apart[hunts][:, ~hunts] < 0).sum()),
        at_top_speed=int((np.array(speed) > 1 - 1e-9).sum()),
        near_the_edge=int(((out > 0) & (out < 0.1)).sum()),
        outside=int(((out >= 0.1) & (out < 1.15)).sum()),
        far_outside=int((out > 1.25).sum()),  # where the penalty stays at 10
        said=int(sum(agent.state.c.any() for agent in world.agents)),
    )


def followed(game: ParticleGame, copies: int = 4, steps: int = 125) -> Counter:
    """Plays whole episodes of both, started alike and never set right again; compares all; counts the events."""
    rng = np.random.default_rng(7)
    theirs, ours = [original(game) for _ in range(copies)], BatchedEnv(game, copies)
    counted: Counter = Counter()
    for first in range(0, steps, game.episode_limit):
        for index, env in enumerate(theirs):
            crowded(env, rng, first + index, within=3.5 if index == 0 and isinstance(game, Tag) else 0.3)
        step = restored(ours, joined([state_of(env) for env in theirs]))
        assert_seen_equal(dict(step.seen), theirs)
        for t in range(1, game.episode_limit + 1):
            actions = [drawn_actions(env, game.continuous, rng) for env in theirs]
            with quiet():
                answers = [env.step(action) for env, action in zip(theirs, actions, strict=True)]
            step = ours.step(joint_action(actions, game.continuous))
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
    return counted


def assert_team_is_declared(game: ParticleGame) -> None:
    """Names, spaces, state and time limit are those that the package tells."""
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


def assert_starts_are_alike(game: ParticleGame) -> None:
    """States at the start are drawn as the package draws them; places are anywhere and have nothing in common."""
    env = original(game)
    env.reset(seed=0)
    package: list[State] = []
    for _ in range(1000):
        env.reset()
        package.append(state_of(env))
    theirs, ours = joined(package), game.initial(4000, torch.Generator().manual_seed(1))
    assert theirs.keys() == ours.keys()
    at = torch.linspace(0.0, 1.0, 11)
    for name, tensor in theirs.items():
        assert tensor.shape[1:] == ours[name].shape[1:]
        one, other = (each.reshape(len(each), -1).double() for each in (tensor, ours[name]))
        torch.testing.assert_close(one.mean(0), other.mean(0), rtol=0, atol=0.08)
        if tensor.is_floating_point():
            torch.testing.assert_close(one.quantile(at.double(), 0), other.quantile(at.double(), 0), rtol=0, atol=0.13)
    assert -1 <= ours["position"].min() < -0.99 and 0.99 < ours["position"].max() <= 1
    assert ours["position"].dtype == torch.get_default_dtype()
    assert ours["position"].flatten(1).T.corrcoef().fill_diagonal_(0).abs().max() < 0.08  # all drawn apart
    if "goal" in ours:
        count = int(theirs["goal"].max()) + 1
        for goal in ours["goal"].view(4000, -1).T:
            assert (goal.bincount() / 4000 - 1 / count).abs().max() < 0.035
