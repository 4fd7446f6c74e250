"""The engine, driven with a game that makes every transition visible, and with the random worlds of other tests."""

import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from martes.data import Discrete, TeamSpec, TimeStep, Vector, VectorEnv
from martes.envs.batched import BatchedEnv, Game, Outcome, State
from martes.envs.batched.engine import AHEAD
from martes.errors import EnvError
from tests.worlds import WORLDS


@dataclass(frozen=True)
class Countdown:
    """Two agents see (episode number, steps so far); action 1 of the first ends the game, and kills with action 2."""

    limit: int | None = 4

    @property
    def team(self) -> TeamSpec:
        sees, acts = {"a": Vector(2)}, {"a": Discrete(3)}
        return TeamSpec(("a_0", "a_1"), {"a": (0, 1)}, sees, acts, episode_limit=self.limit)

    def initial(self, envs: int, generator: torch.Generator) -> State:
        episode = torch.rand(envs, generator=generator, device=generator.device)
        return {"episode": episode, "steps": torch.zeros(envs), "alive": torch.ones(envs, 2, dtype=torch.bool)}

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> Outcome:
        dies = (action == 2) & state["alive"]
        noise = torch.rand(len(action), 2, generator=generator)
        after = {**state, "steps": state["steps"] + 1, "alive": state["alive"] & ~dies}
        return Outcome(after, noise, (~dies).float(), action[:, 0] == 1)

    def observe(self, state: State) -> dict[str, Tensor]:
        seen = torch.stack((state["episode"], state["steps"]), 1)
        return {"obs": seen[:, None].expand(-1, 2, -1), "agent_mask": state["alive"]}

    def frame(self, state: State) -> np.ndarray:
        return np.full((2, 2, 3), int(state["steps"][0]), np.uint8)


def acts(*rows: int) -> Tensor:
    """The first agent's action in each copy; the second waits."""
    return torch.tensor([[row, 0] for row in rows])


def steps_of(fields: Any) -> list[float]:
    return fields["obs"][:, 0, 1].tolist()


def play(env: BatchedEnv, steps: int, seed: int) -> list[TimeStep]:
    generator = torch.Generator().manual_seed(seed)
    return [env.step(random_action(env, generator)) for _ in range(steps)]


def random_action(env: BatchedEnv, generator: torch.Generator) -> Tensor:
    legal = env.team.legal_actions
    if legal.dim() == 2 and env.team.action_kind is not Discrete:
        low, high = env.team.bounds
        return low + (high - low) * torch.rand(env.num_envs, *low.shape, generator=generator)
    chances = legal.flatten(0, -2).float()
    chances[chances.sum(1) == 0, 0] = 1  # a sub-action that this agent does not have
    drawn = chances.repeat(env.num_envs, 1).multinomial(1, generator=generator)
    return drawn.view(env.num_envs, *legal.shape[:-1])


def assert_same(one: TimeStep, other: TimeStep) -> None:
    for name in ("start", "reward", "discount", "cut"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert (one.final is None) == (other.final is None)
    for fields, others in ((one.seen, other.seen), (one.final or {}, other.final or {})):
        assert set(fields) == set(others)
        for name in fields:
            assert torch.equal(fields[name], others[name]), name


def test_the_contracts_are_met():
    env = BatchedEnv(Countdown(), 2)
    assert isinstance(env, VectorEnv)
    assert isinstance(Countdown(), Game)


def test_a_reset_opens_an_episode_in_every_copy():
    step = BatchedEnv(Countdown(), 3).reset(0)
    assert step.start.all()
    assert not step.cut.any()
    assert step.discount.eq(1).all()
    assert not step.reward.any()
    assert step.final is None
    assert step.seen["agent_mask"].all()
    assert steps_of(step.seen) == [0, 0, 0]


def test_a_time_limit_cuts_with_discount_one_and_shows_the_real_last_observation():
    env = BatchedEnv(Countdown(limit=3), 2)
    first = env.reset(0)
    for t in (1, 2):
        step = env.step(acts(0, 0))
        assert not step.cut.any()
        assert not step.start.any()
        assert step.final is None
        assert steps_of(step.seen) == [t, t]
    step = env.step(acts(0, 0))
    assert step.cut.all()
    assert step.start.all()
    assert step.discount.eq(1).all()  # no agent has terminated
    assert step.final is not None
    assert steps_of(step.final) == [3, 3]
    assert torch.equal(step.final["obs"][:, 0, 0], first.seen["obs"][:, 0, 0])  # still the old episode
    assert steps_of(step.seen) == [0, 0]
    assert not torch.equal(step.seen["obs"][:, 0, 0], first.seen["obs"][:, 0, 0])  # a new one


def test_the_end_of_a_game_zeroes_every_discount():
    env = BatchedEnv(Countdown(), 3)
    env.reset(0)
    step = env.step(acts(0, 1, 0))
    assert step.cut.tolist() == [False, True, False]
    assert step.discount.tolist() == [[1, 1], [0, 0], [1, 1]]
    assert step.final is not None
    assert steps_of(step.final) == [1, 1, 1]
    assert steps_of(step.seen) == [1, 0, 1]


def test_an_end_at_the_time_limit_is_an_end():
    env = BatchedEnv(Countdown(limit=1), 2)
    env.reset(0)
    step = env.step(acts(0, 1))
    assert step.cut.all()
    assert step.discount.tolist() == [[1, 1], [0, 0]]


def test_an_agent_that_dies_alone_is_discounted_once_and_then_masked():
    env = BatchedEnv(Countdown(), 2)
    env.reset(0)
    step = env.step(torch.tensor([[0, 2], [0, 0]]))
    assert step.discount.tolist() == [[1, 0], [1, 1]]
    assert step.seen["agent_mask"].tolist() == [[True, False], [True, True]]
    assert not step.cut.any()
    step = env.step(torch.tensor([[0, 2], [0, 0]]))
    assert step.discount.eq(1).all()  # once
    assert step.seen["agent_mask"].tolist() == [[True, False], [True, True]]
    step = env.step(acts(1, 0))
    assert step.final is not None
    assert step.final["agent_mask"].tolist() == [[True, False], [True, True]]
    assert step.seen["agent_mask"].all()  # alive again in the next episode


def test_a_partial_reset_touches_only_the_copies_that_were_cut():
    env = BatchedEnv(Countdown(), 4)
    env.reset(0)
    before = env.state_dict()["state"]
    step = env.step(acts(0, 1, 0, 1))
    after = env.state_dict()
    assert isinstance(before, dict)
    assert isinstance(after["state"], dict)
    assert isinstance(after["elapsed"], Tensor)
    kept = torch.tensor([True, False, True, False])
    assert torch.equal(after["state"]["episode"][kept], before["episode"][kept])
    assert not after["state"]["episode"][~kept].eq(before["episode"][~kept]).any()
    assert after["state"]["steps"].tolist() == [1, 0, 1, 0]
    assert after["elapsed"].tolist() == [1, 0, 1, 0]
    assert step.final is not None
    assert torch.equal(step.final["obs"][kept], step.seen["obs"][kept])
    for _ in range(3):  # the clocks differ from here on
        step = env.step(acts(0, 0, 0, 0))
    assert step.cut.tolist() == [True, False, True, False]


def test_a_game_without_a_time_limit_goes_on():
    env = BatchedEnv(Countdown(limit=None), 1)
    env.reset(0)
    assert not any(env.step(acts(0)).cut.any() for _ in range(50))
    assert env.step(acts(1)).cut.all()


def test_what_was_handed_out_is_not_written_to_afterwards():
    env = BatchedEnv(Countdown(), 3)
    step = env.reset(0)
    for t in range(9):
        copies = [tensor.clone() for tensor in (step.start, step.reward, step.discount, step.cut, step.seen["obs"])]
        after = env.step(acts(t % 3 == 1, 0, t % 2))
        for tensor, copy in zip(
            (step.start, step.reward, step.discount, step.cut, step.seen["obs"]), copies, strict=True
        ):
            assert torch.equal(tensor, copy)
        step = after


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("copies", [1, 5])
def test_equal_seeds_give_equal_futures(world: str, copies: int):
    one, other = (BatchedEnv(WORLDS[world], copies) for _ in range(2))
    play_first = one.reset(7), *play(one, 12, seed=1)
    other.reset(99)
    play(other, 3, seed=5)  # a past leaves nothing behind
    for step, again in zip(play_first, (other.reset(7), *play(other, 12, seed=1)), strict=True):
        assert_same(step, again)
    assert not torch.equal(
        one.reset(8).reward + one.step(random_action(one, torch.Generator())).reward, play_first[1].reward
    )


@pytest.mark.parametrize("world", WORLDS)
def test_a_restored_environment_goes_on_bit_for_bit(world: str):
    env, other = (BatchedEnv(WORLDS[world], 4) for _ in range(2))
    env.reset(0)
    seen = play(env, 5, seed=1)[-1]
    saved = env.state_dict()
    future = play(env, 10, seed=2)
    assert any(step.cut.any() for step in future)
    restored = other.load_state_dict(saved)
    assert torch.equal(restored.start, seen.start)
    for name in seen.seen:
        assert torch.equal(restored.seen[name], seen.seen[name])
    for step, again in zip(future, play(other, 10, seed=2), strict=True):
        assert_same(step, again)
    env.load_state_dict(saved)  # the dict is still what it was
    for step, again in zip(future, play(env, 10, seed=2), strict=True):
        assert_same(step, again)


@pytest.mark.parametrize("world", WORLDS)
def test_shapes_are_those_of_the_team(world: str):
    env = BatchedEnv(WORLDS[world], 3)
    names = set(env.team.parts) | {"agent_mask"}
    names |= {"state"} if env.team.state else set()
    names |= {"action_mask"} if env.team.masks_actions else set()
    names |= {"forced", "forced_action"} if env.team.forces_actions else set()
    for step in (env.reset(0), *play(env, 9, seed=0)):
        assert set(step.seen) == names
        for name, part in env.team.parts.items():
            assert step.seen[name].shape[:2] == (3, env.team.size)
            assert step.seen[name].shape[2:] == (part.shape if hasattr(part, "shape") else (part.size,))
        assert step.reward.shape == step.discount.shape == (3, env.team.size)


def test_no_drawn_episode_is_played_twice():
    env = BatchedEnv(Countdown(limit=1), 3)
    first = env.reset(0)
    episodes = [first.seen["obs"][:, 0, 0]]
    for _ in range(3 * AHEAD):  # so that stocks end in the middle of a step
        episodes.append(env.step(torch.zeros(3, 2, dtype=torch.long)).seen["obs"][:, 0, 0])
    played = torch.cat(episodes)
    assert len(played.unique()) == len(played)


def test_a_state_of_before_there_were_stocks_is_refused():
    env = BatchedEnv(Countdown(), 2)
    env.reset(0)
    older = env.state_dict()
    del older["stock"]
    with pytest.raises(EnvError, match=r"of an older version: `stock` or `used` is missing"):
        env.load_state_dict(older)


COMPILED = """
import torch
from martes.envs.catalogue import environment
from martes.envs.settings import Environment
for name in ("lbf-2s-8x8-2p-2f-coop", "mpe-spread"):
    plain, fast = (environment(Environment(name, 3, compile=each)) for each in (False, True))
    shown = plain.reset(0), fast.reset(0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        action = torch.randint(5, (3, plain.team.size), generator=generator)
        one, other = plain.step(action), fast.step(action)
        assert torch.equal(one.cut, other.cut) and torch.equal(one.discount, other.discount)
        torch.testing.assert_close(other.reward, one.reward)
        torch.testing.assert_close(dict(other.seen), dict(one.seen))
        assert (one.final is None) == (other.final is None)
        if one.final is not None:
            torch.testing.assert_close(dict(other.final), dict(one.final))
"""


def test_compiled_rules_are_the_same_rules():
    # In a process of its own: here every call is checked at run time, which a graph cannot hold.
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", COMPILED], check=True)


def test_nothing_is_drawn_from_global_generators(global_randomness_unused: None):
    env = BatchedEnv(Countdown(), 3)
    env.reset(0)
    for t in range(9):
        env.step(acts(t % 2, 0, 0))


def test_one_copy_is_drawn_as_it_stands():
    env = BatchedEnv(Countdown(), 3)
    env.reset(0)
    env.step(acts(0, 0, 1))
    assert [int(env.render(index).max()) for index in range(3)] == [1, 1, 0]


# ------------------------------------------------------------------------------------------------------------- errors
def test_no_copies_are_refused():
    with pytest.raises(EnvError, match=r"env\.copies is 0"):
        BatchedEnv(Countdown(), 0)


def test_a_step_before_the_reset_and_after_the_close_is_refused():
    env = BatchedEnv(Countdown(), 1)
    with pytest.raises(EnvError, match=r"call reset\(seed\) first"):
        env.step(acts(0))
    env.reset(0)
    env.close()
    with pytest.raises(EnvError, match=r"call reset\(seed\) first"):
        env.step(acts(0))


@pytest.mark.parametrize(
    ("world", "shape"),
    [("discrete", (3, 3)), ("discrete", (4, 3, 1)), ("multi-discrete", (4, 3)), ("continuous", (4, 3, 2))],
)
def test_actions_of_another_shape_are_refused(world: str, shape: tuple[int, ...]):
    env = BatchedEnv(WORLDS[world], 4)
    env.reset(0)
    with pytest.raises(EnvError, match=r"actions have the shape .*this task takes \[4, 3"):
        env.step(torch.zeros(shape))


def test_a_foreign_state_is_refused_and_nothing_is_lost():
    env = BatchedEnv(Countdown(), 2)
    env.reset(0)
    saved = env.state_dict()
    other = BatchedEnv(WORLDS["discrete"], 2)
    other.reset(0)
    larger = BatchedEnv(Countdown(), 3)
    larger.reset(0)
    more = BatchedEnv(replace(WORLDS["discrete"], agents=4), 2)
    more.reset(0)
    with pytest.raises(EnvError, match="another game or other options"):
        env.load_state_dict(other.state_dict())
    with pytest.raises(EnvError, match="another game or other options"):
        other.load_state_dict(more.state_dict())
    with pytest.raises(EnvError, match="has 3 copies, this one 2"):
        env.load_state_dict(larger.state_dict())
    for name in saved:
        with pytest.raises(EnvError, match="is missing"):
            env.load_state_dict({each: value for each, value in saved.items() if each != name})
    assert env.step(acts(0, 0)).seen["obs"][:, 0, 1].tolist() == [1, 1]
