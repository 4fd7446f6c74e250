"""Evaluation counts the right episodes, whole, and leaves everything else alone."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from martes.algorithms.ppo import PPO
from martes.data import Discrete, TeamSpec, TimeStep, Vector
from martes.envs.batched.engine import BatchedEnv
from martes.errors import EnvError
from martes.networks import Network, TemporalModule
from martes.training import evaluate as module
from martes.training.evaluate import evaluate
from tests.training.walks import Walk


@dataclass
class Scripted:
    """Copy i plays episodes of i + 1 steps; the k-th pays agent 0 100 i + k at its end, and agent 1 -1 a step."""

    num_envs: int = 3
    limit: int | None = None
    nan_at: int = -1

    def __post_init__(self) -> None:
        self.team = TeamSpec(("a_0", "a_1"), {"a": (0, 1)}, {"a": Vector(1)}, {"a": Discrete(3)}, None, self.limit)
        self.seeds: list[int] = []
        self.steps = 0

    def reset(self, seed: int) -> TimeStep:
        self.seeds.append(seed)
        self.clock, self.episode = (torch.zeros(self.num_envs, dtype=torch.int64) for _ in range(2))
        return self._told(torch.ones(self.num_envs, dtype=torch.bool), torch.zeros(self.num_envs, 2))

    def _told(self, cut: torch.Tensor, reward: torch.Tensor) -> TimeStep:
        seen = {"obs": torch.zeros(self.num_envs, 2, 1), "agent_mask": torch.ones(self.num_envs, 2, dtype=torch.bool)}
        won = {"won": (self.episode % 2).float()}
        return TimeStep(seen, cut, reward, torch.ones(self.num_envs, 2), cut, seen if cut.any() else None, won)

    def step(self, action: torch.Tensor) -> TimeStep:
        self.steps += 1
        self.clock += 1
        which = torch.arange(self.num_envs)
        cut = self.clock == which + 1
        reward = torch.stack([torch.where(cut, 100.0 * which + self.episode, 0.0), -torch.ones(self.num_envs)], 1)
        if self.steps == self.nan_at:
            reward[1, 0] = torch.nan
        step = self._told(cut, reward)
        self.episode = self.episode + cut.long()
        self.clock = self.clock * ~cut
        return step

    def render(self, index: int = 0):
        raise NotImplementedError

    def close(self) -> None: ...

    def state_dict(self) -> dict[str, object]:
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, object]) -> TimeStep:
        raise NotImplementedError


class Idle(TemporalModule):
    """Does nothing, but counts the steps of each episode: it does action 1 at the third."""

    reads = ("agent_mask",)
    writes = ("action",)

    def initial_memory(self, envs):
        return torch.zeros(envs, dtype=torch.int64)

    def step(self, inputs, memory):
        acts = (memory == 2).long()
        return {"action": acts[:, None].expand(-1, 2)}, memory + 1


def test_every_copy_plays_its_share_however_long_its_episodes_are():
    scores = evaluate(Idle(), Scripted(), episodes=7, seed=5)  # 3 of copy 0, 2 of copy 1, 2 of copy 2
    by_copy = {0: [0.0, 1.0, 2.0], 1: [100.0, 101.0], 2: [200.0, 201.0]}
    expected = sorted((earned, copy + 1) for copy, paid in by_copy.items() for earned in paid)
    first = scores.agent_returns[:, 0].tolist()
    assert sorted(zip(first, scores.lengths.tolist(), strict=True)) == expected
    assert torch.equal(scores.agent_returns[:, 1], -scores.lengths.double())
    assert torch.equal(scores.returns, scores.agent_returns.sum(1))
    assert scores.stats == {"won": pytest.approx(3 / 7)}


class Silent(Scripted):
    """Tells how late it is after every second episode of a copy alone, and one thing never."""

    def _told(self, cut: torch.Tensor, reward: torch.Tensor) -> TimeStep:
        step = super()._told(cut, reward)
        late = torch.where(self.episode % 2 == 1, 10.0 * self.episode, torch.nan)
        step.stats = {"late": late, "never": torch.full_like(late, torch.nan)}
        return step


def test_a_statistic_is_averaged_over_the_episodes_that_tell_it():
    assert evaluate(Idle(), Silent(num_envs=2), episodes=8, seed=0).stats == {"late": (10 + 30) / 2}
    assert evaluate(Idle(), Silent(num_envs=2), episodes=2, seed=0).stats == {}


@pytest.mark.parametrize("episodes", [1, 2, 3, 50])
def test_exactly_as_many_episodes_as_asked_for(episodes):
    assert len(evaluate(Idle(), Scripted(), episodes, seed=0).returns) == episodes


def test_more_copies_than_episodes_is_no_harm():
    assert len(evaluate(Idle(), Scripted(num_envs=9), episodes=4, seed=0).returns) == 4


class Marked(Scripted):
    """Pays 1 for action 1, in episodes of 50 steps: longer than the windows in which evaluation acts."""

    def step(self, action):
        self.steps += 1
        cut = torch.full((self.num_envs,), self.steps % 50 == 0)
        return self._told(cut, (action == 1).float())


def test_memory_lasts_an_episode_and_no_longer():
    assert evaluate(Idle(), Marked(), episodes=9, seed=0).returns.tolist() == [2.0] * 9


def test_every_step_is_told():
    env = Scripted(limit=5)
    told: list[TimeStep] = []
    evaluate(Idle(), env, 3, seed=11, on_step=told.append)
    assert len(told) == env.steps == 5
    assert env.seeds == [11]


@pytest.mark.usefixtures("global_randomness_unused")
def test_greedy_and_sampled_episodes_are_repeatable_and_differ():
    learner = PPO(network=Network((8,))).learner(Walk().team, torch.Generator().manual_seed(1))
    learner.policy.actor.head.weight.data.mul_(30)
    random = learner.generator.get_state()

    def returns(seed: int, greedy: bool) -> list[float]:
        return evaluate(learner.policy, BatchedEnv(Walk(), 4), 12, seed, greedy).returns.tolist()

    assert returns(1, True) == returns(1, True) != returns(2, True)
    assert returns(1, False) == returns(1, False) != returns(2, False)
    assert returns(1, True) != returns(1, False)
    assert torch.equal(learner.generator.get_state(), random)


def test_greedy_takes_the_most_probable_action():
    learner = PPO(network=Network((8,))).learner(Walk().team, torch.Generator().manual_seed(1))
    learner.policy.actor.head.weight.data.zero_()
    hardly_better = torch.tensor([0.0, 0.1, 0.0])  # only greedy always takes it
    learner.policy.actor.head.bias.data.copy_(hardly_better)
    taken: list[torch.Tensor] = []

    class Watched(BatchedEnv):
        def step(self, action):
            taken.append(action.clone())
            return super().step(action)

    evaluate(learner.policy, Watched(Walk(), 4), 12, 0, greedy=True)
    assert bool((torch.stack(taken) == 1).all())
    taken.clear()
    evaluate(learner.policy, Watched(Walk(), 4), 12, 0, greedy=False)
    assert torch.stack(taken).unique().tolist() == [0, 1, 2]


def test_a_reward_that_is_no_number_is_refused():
    with pytest.raises(EnvError, match="nan in 'reward': environment 1, agent 0, step 2"):
        evaluate(Idle(), Scripted(nan_at=3), 5, 0)


def test_an_episode_without_end_is_refused(monkeypatch):
    class Endless(Scripted):
        def step(self, action):
            return self._told(torch.zeros(self.num_envs, dtype=torch.bool), torch.zeros(self.num_envs, 2))

    monkeypatch.setattr(module, "LONGEST", 100)
    with pytest.raises(EnvError, match="no end after 100 steps: give the environment a time limit"):
        evaluate(Idle(), Endless(), 5, 0)


class Doubting(Idle):
    """Takes down in which mode it acts."""

    def __init__(self) -> None:
        super().__init__()
        self.doubt, self.still, self.modes = nn.Dropout(0.5), nn.Dropout(0.5).eval(), list[bool]()

    def step(self, inputs, memory):
        self.modes.append(self.training or self.doubt.training)
        return super().step(inputs, memory)


def test_nothing_is_dropped_out_and_what_trained_trains_afterwards():
    policy = Doubting()
    evaluate(policy, Scripted(), 2, seed=1)
    assert policy.modes and not any(policy.modes)
    assert policy.training and policy.doubt.training and not policy.still.training
    with pytest.raises(EnvError, match="nan"):
        evaluate(policy, Scripted(nan_at=1), 2, seed=1)
    assert policy.training and policy.doubt.training
