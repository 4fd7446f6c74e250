"""What a collector hands to an experience that keeps rows: the real last observations, in the order of their cuts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from martes.algorithms.ppo import PPO
from martes.data import Schema, TimeStep
from martes.data.experience import Episodes, Replayed
from martes.envs.batched.engine import BatchedEnv
from martes.networks import Network
from martes.training.collect import Collector
from tests.worlds import WORLDS, World

COPIES, STEPS = 5, 6


class Recording(BatchedEnv):
    """A batched environment that keeps every step it made."""

    def reset(self, seed: int) -> TimeStep:
        self.made = [super().reset(seed)]
        return self.made[0]

    def step(self, action: Tensor) -> TimeStep:
        self.made.append(super().step(action))
        return self.made[-1]


def collecting(world: World, is_kept: bool = True) -> tuple[Collector, Recording]:
    """A collector whose experience draws whole episodes from a store, or learns from windows."""
    env = Recording(world, COPIES)
    config = PPO(
        critic="local", network=Network(hidden=(8,), channels=(4,), memory="gru", memory_size=4), rollout=STEPS
    )
    learner = config.learner(env.team, torch.Generator().manual_seed(0))
    if is_kept:
        schema = Schema.from_team(env.team).extended(**learner.fields)
        of = Episodes(batch=4)
        learner.experience = Replayed(schema, torch.Generator().manual_seed(1), of, capacity=400, steps=STEPS)
    collector = Collector(env, learner, torch.Generator().manual_seed(2))
    collector.start(3)
    return collector, env


@pytest.mark.parametrize("name", ["masked", "dying", "image", "continuous"])
def test_final_is_what_was_really_seen_last(name: str):
    collector, env = collecting(replace(WORLDS[name], ends=0.3))
    for number in range(4):
        window, final = collector.collect(), collector.final
        steps, cuts = env.made[1 + number * STEPS :], window["cut"].nonzero().tolist()
        assert len(cuts) > 1
        assert final is not None
        assert final.keys() == steps[0].seen.keys()
        for field, values in final.items():
            last = torch.stack([steps[t].final[field][copy] for t, copy in cuts])
            assert torch.equal(values, last), field
            if field.startswith(("obs", "state")):
                first = torch.stack([steps[t].seen[field][copy] for t, copy in cuts])
                assert not torch.equal(last, first), "what is seen then belongs to the next episode"


def test_a_store_is_given_what_ends_its_episodes():
    collector, env = collecting(WORLDS["masked"])
    experience = collector.learner.experience
    for _ in range(5):
        experience.add(collector.collect(), collector.final)
    ends = {tuple(step.final["state"][copy].tolist()) for step in env.made for copy in step.cut.nonzero()[:, 0]}
    batch = next(experience.due(5 * STEPS * COPIES))
    lengths = batch["counted"].sum(0).tolist()
    assert len(set(lengths)) > 1
    assert {tuple(batch["state"][length, place].tolist()) for place, length in enumerate(lengths)} <= ends


def test_nothing_is_handed_over_where_nothing_was_cut_or_nobody_keeps_it():
    endless = replace(WORLDS["masked"], ends=0.0, limit=1000)
    collector, _ = collecting(endless)
    collector.collect()
    assert collector.final is None
    collector, env = collecting(WORLDS["masked"], is_kept=False)
    assert collector.collect()["cut"].any()
    assert any(step.final is not None for step in env.made)
    assert collector.final is None
