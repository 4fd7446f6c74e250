"""REINFORCE and SAC on games whose answer is known: a good policy, and soft values that are what they should be."""

from typing import Literal

import pytest
import torch

from martes.algorithms.reinforce import Reinforce
from martes.algorithms.soft_actor_critic import SAC
from martes.envs.catalogue import make_env
from martes.networks import Network
from martes.training.collect import Collector
from martes.training.evaluate import evaluate
from tests.learning.trained import trained_from_replay

QUICK = SAC(
    network=Network(hidden=(32,), agent_id=True),
    rollout=4,
    ratio=0.05,
    warmup=256,
    batch=128,
    lr=3e-3,
    critic_lr=3e-3,
    temperature_lr=1e-2,
    gamma=0.8,
    tau=0.05,
)


def return_of(collector: Collector, name: str) -> float:
    """Mean return of an agent."""
    scores = evaluate(collector.learner.policy, make_env(name, 32), 128, seed=1)
    return float(scores.returns.mean()) / collector.env.team.size


@pytest.mark.parametrize("baseline", ["mean", "critic"])
def test_reinforce_finds_what_pays(baseline: Literal["mean", "critic"], run_seed: int) -> None:
    network = Network(hidden=(32,), agent_id=True)
    config = Reinforce(network=network, sharing="group", baseline=baseline, lr=1e-2, episodes=64)
    collector = trained_from_replay("probe-unequal", 40, config, run_seed, copies=32)
    assert return_of(collector, "probe-unequal") >= 0.95 * collector.env.game.best_return


def test_soft_policies_find_their_target(run_seed: int) -> None:
    collector = trained_from_replay("probe-continuous", 400, QUICK, run_seed, copies=32)
    assert return_of(collector, "probe-continuous") > collector.env.game.best_return - 0.03


def test_soft_choices_find_what_pays(run_seed: int) -> None:
    config = SAC(**{**vars(QUICK), "sharing": "group", "choice_entropy": 0.1})
    collector = trained_from_replay("probe-unequal", 400, config, run_seed, copies=32)
    assert return_of(collector, "probe-unequal") >= 0.95 * collector.env.game.best_return


def test_soft_values_are_the_known_ones_where_entropy_is_worth_nothing(run_seed: int) -> None:
    """Time limits cut without ending: V = r / (1 - gamma) but for the worth of entropy."""
    config = SAC(**{**vars(QUICK), "temperature": 1e-6, "tuned": False})
    collector = trained_from_replay("probe-time-limit", 300, config, run_seed, copies=32)
    learner = collector.learner
    (batch,) = [next(iter(learner.experience.due(10**9)))]
    known = collector.env.game.value(batch["obs"][:1], 0.8)
    inputs = {name: batch[name][:1] for name in (*learner.critics.reads, "agent_mask")}
    q = learner.critics(inputs, learner.codes.of_actions(batch["action"])).amin(0)
    error = (q - known).abs()[batch.mask].max()
    assert error < 0.1 * max(1.0, float(known.abs().max())), f"off by {error:.3f} of {known.abs().max():.2f}"
    assert isinstance(error, torch.Tensor)
