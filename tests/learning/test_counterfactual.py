"""COMA on games whose answer is known, seconds each: values for the critic, returns for the policy."""

from dataclasses import replace

import pytest

from martes.algorithms.coma import COMA
from martes.envs.catalogue import make_env
from martes.networks import Network
from martes.networks.counterfactual import chosen_q
from martes.training.collect import Collector
from martes.training.evaluate import evaluate
from tests.learning.trained import trained

QUICK = COMA(
    network=Network(hidden=(32,), agent_id=True),
    rollout=16,
    lr=1e-2,
    critic_lr=1e-2,
    target_every=5,
    entropy=0.01,
    reward="mean",
)


def share_of_best(collector: Collector, name: str, **options: object) -> float:
    scores = evaluate(collector.learner.policy, make_env(name, 32, options=options), 64, seed=1)
    return float(scores.returns.mean()) / (collector.env.game.best_return * collector.env.team.size)


@pytest.mark.parametrize("network", [QUICK.network, Network(hidden=(32,), agent_id=True, memory="gru", memory_size=32)])
def test_the_two_step_game_is_won(network: Network, run_seed: int) -> None:
    """The safe table pays 7; only who coordinates in the other one is paid 8."""
    collector = trained("two-step", 60, replace(QUICK, network=network, reward="common"), run_seed)
    assert share_of_best(collector, "two-step") == 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"critic_by": "step"},
        {"sharing": "agent"},
        {"epsilon_start": 0.5, "epsilon_end": 0.02, "epsilon_steps": 10_000},
    ],
)
def test_the_penalty_game_is_won(changes: dict[str, object], run_seed: int) -> None:
    collector = trained("penalty", 60, replace(QUICK, **changes), run_seed, k=0.0)  # pyright: ignore
    assert share_of_best(collector, "penalty", k=0.0) == 1


def test_unequal_members_find_their_targets(run_seed: int) -> None:
    collector = trained("probe-unequal", 120, replace(QUICK, sharing="group", reward="own"), run_seed)
    assert share_of_best(collector, "probe-unequal") >= 0.95


@pytest.mark.parametrize(
    "name", ["probe-constant", "probe-delayed", "probe-death", "probe-observed", "probe-time-limit"]
)
def test_values_are_the_known_ones(name: str, run_seed: int) -> None:
    collector = trained(name, 150, replace(QUICK, reward="own", gamma=0.8, critic_epochs=2), run_seed)
    window, learner = collector.collect(), collector.learner
    known = collector.env.game.value(window["obs"][: window.time], 0.8)
    value = chosen_q(learner.critic(learner._inputs(window)), window["action"])
    error = (value - known).abs()[window.mask].max()
    assert error < 0.05 * max(1.0, known.abs().max()), f"value is off by {error:.3f} of {known.abs().max():.2f}"
