"""Pictures of a real task, PettingZoo's pistonball: kept as bytes, and learned from through convolutions."""

from contextlib import closing

import pytest
import torch

from martes.algorithms.maddpg import MADDPG
from martes.data import Continuous, Image
from martes.envs.adapters.pettingzoo import pettingzoo
from martes.envs.catalogue import environment
from martes.envs.settings import Environment
from martes.envs.wrappers import Wrap
from martes.networks import Network
from martes.training.collect import Collector
from tests.envs.adapters.played import check_single

pytestmark = pytest.mark.extras
TASK = "pettingzoo.butterfly.pistonball_v6"
SMALL = {"n_pistons": 3, "max_cycles": 8, "state": False}


def test_the_contract_is_kept() -> None:
    check_single(lambda: pettingzoo(TASK, **SMALL), draws=True, steps=12)


@pytest.mark.parametrize("twin_critics", [False, True])
def test_deterministic_policies_learn_from_its_pictures(twin_critics: bool) -> None:
    config = MADDPG(
        twin_critics=twin_critics, network=Network((16,), channels=(4, 8)), rollout=8, ratio=0.5, batch=8, warmup=0
    )
    wrap = Wrap(shrink=8, frame_stack=2)
    with closing(
        environment(Environment(f"pettingzoo:{TASK}", 2, options=SMALL, wrap=wrap, workers=0), 2, "cpu")
    ) as env:
        assert env.team.observation["piston"] == Image((6, 57, 15), torch.uint8)
        assert isinstance(env.team.action["piston"], Continuous)
        learner = config.learner(env.team, torch.Generator().manual_seed(0))
        collector = Collector(env, learner, torch.Generator().manual_seed(1))
        collector.start(0)
        bodies = {"policy": learner.policy.body, "critics": learner.critics.body}
        before = {
            name: [each.detach().clone() for each in body.convolutions.parameters()] for name, body in bodies.items()
        }
        steps, told = 0, []
        for _ in range(2):
            window = collector.collect()
            assert window["obs"].dtype == torch.uint8 and window["obs"].float().std() > 1, "a picture of something"
            steps += window.time * window.envs
            learner.experience.add(window, collector.final)
            for batch in learner.experience.due(steps):
                assert batch["obs"].dtype == torch.uint8, "the replay keeps bytes"
                told.append(learner.update(batch))
    assert len(told) == 16
    assert all(torch.isfinite(each["critic_loss"]) and torch.isfinite(each["policy_loss"]) for each in told)
    for name, body in bodies.items():
        moved = [not torch.equal(a, b) for a, b in zip(before[name], body.convolutions.parameters(), strict=True)]
        assert len(moved) == 4 and all(moved), f"convolutions of {name}"
