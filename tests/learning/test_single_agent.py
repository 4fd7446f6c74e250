"""REINFORCE and SAC on games whose answer is known: a good policy, and soft values that are what they should be."""

from typing import Any, Literal

import pytest
import torch

from martes.algorithms.reinforce import Reinforce
from martes.algorithms.soft_actor_critic import SAC
from martes.envs.catalogue import make_env
from martes.networks import Network
from martes.training.collect import Collector
from martes.training.evaluate import evaluate
from martes.training.seeding import generator_of, seed_of

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


def learned(name: str, config: Any, updates: int, seed: int) -> Collector:
    env = make_env(name, 32)
    learner = config.learner(env.team, generator_of(seed, "learning"))
    collector = Collector(env, learner, generator_of(seed, "acting"))
    collector.start(seed_of(seed, "environment"))
    steps = 0
    while learner.updates < updates:
        window = collector.collect()
        steps += window.time * window.envs
        learner.experience.add(window, collector.final)
        for batch in learner.experience.due(steps):
            learner.update(batch)
    return collector


def return_of(collector: Collector, name: str) -> float:
    """Mean return of an agent."""
    scores = evaluate(collector.learner.policy, make_env(name, 32), 128, seed=1)
    return float(scores.returns.mean()) / collector.env.team.size


@pytest.mark.parametrize("baseline", ["mean", "critic"])
def test_reinforce_finds_what_pays(baseline: Literal["mean", "critic"], run_seed: int) -> None:
    network = Network(hidden=(32,), agent_id=True)
    config = Reinforce(network=network, sharing="group", baseline=baseline, lr=1e-2, episodes=64)
    collector = learned("probe-unequal", config, 40, run_seed)
    assert return_of(collector, "probe-unequal") >= 0.95 * collector.env.game.best_return


def test_soft_policies_find_their_target(run_seed: int) -> None:
    collector = learned("probe-continuous", QUICK, 400, run_seed)
    assert return_of(collector, "probe-continuous") > collector.env.game.best_return - 0.03


def test_soft_choices_find_what_pays(run_seed: int) -> None:
    config = SAC(**{**vars(QUICK), "sharing": "group", "choice_entropy": 0.1})
    collector = learned("probe-unequal", config, 400, run_seed)
    assert return_of(collector, "probe-unequal") >= 0.95 * collector.env.game.best_return


def test_soft_values_are_the_known_ones_where_entropy_is_worth_nothing(run_seed: int) -> None:
    """Time limits cut without ending: V = r / (1 - gamma) but for the worth of entropy."""
    config = SAC(**{**vars(QUICK), "temperature": 1e-6, "tuned": False})
    collector = learned("probe-time-limit", config, 300, run_seed)
    learner = collector.learner
    (batch,) = [next(iter(learner.experience.due(10**9)))]
    known = collector.env.game.value(batch["obs"][:1], 0.8)
    inputs = {name: batch[name][:1] for name in (*learner.critics.reads, "agent_mask")}
    q = learner.critics(inputs, learner.codes.of_actions(batch["action"])).amin(0)
    error = (q - known).abs()[batch.mask].max()
    assert error < 0.1 * max(1.0, float(known.abs().max())), f"off by {error:.3f} of {known.abs().max():.2f}"
    assert isinstance(error, torch.Tensor)
