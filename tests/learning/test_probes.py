"""IPPO and MAPPO on games whose answer is known, seconds each: values for the critics, returns for the policies."""

from typing import Literal

import pytest
import torch

from martes.algorithms.ppo import PPO
from martes.data import Workspace
from martes.envs.catalogue import make_env
from martes.networks import Network
from martes.training.collect import Collector
from martes.training.evaluate import evaluate
from martes.training.seeding import generator_of
from tests.learning.trained import trained

View = Literal["local", "central"]
QUICK = PPO(
    network=Network(hidden=(32,), agent_id=True),
    rollout=16,
    epochs=4,
    minibatches=2,
    lr=1e-2,
    gamma=0.8,
    entropy=0.003,
)


def learned(
    name: str, updates: int, config: PPO = QUICK, seed: int = 0, **options: object
) -> tuple[Collector, Workspace]:
    """A collector whose learner made `updates` updates, and a window of the final policy."""
    collector = trained(name, updates, config, seed, **options)
    return collector, collector.collect()


def with_view(critic: View, **changes: object) -> PPO:
    return PPO(**{**vars(QUICK), "critic": critic, **changes})


@pytest.mark.parametrize("critic", ["local", "central"])
@pytest.mark.parametrize(
    "name", ["probe-constant", "probe-delayed", "probe-death", "probe-observed", "probe-time-limit"]
)
def test_values_are_the_known_ones(name: str, critic: View, run_seed: int) -> None:
    collector, window = learned(name, 30, with_view(critic), run_seed)
    game = collector.env.game
    known = game.value(window["obs"][: window.time], 0.8)
    error = (window["value"] - known).abs()[window.mask].max()
    assert error < 0.05 * max(1.0, known.abs().max()), f"value is off by {error:.3f} of {known.abs().max():.2f}"


@pytest.mark.parametrize(
    ("name", "critic", "updates", "lr", "share"),
    [
        ("probe-unequal", "local", 30, 1e-2, 0.98),
        ("probe-unequal", "central", 30, 1e-2, 0.98),
        ("probe-multi-discrete", "local", 30, 1e-2, 0.98),
        ("probe-multi-discrete", "central", 30, 1e-2, 0.98),
        # A picture has no central view: networks/test_critics.py proves that it is refused.
        ("probe-image", "local", 30, 1e-3, 0.95),
        ("probe-parts", "local", 40, 3e-3, 0.95),
    ],
)
def test_policies_reach_the_best_return(
    name: str, critic: View, updates: int, lr: float, share: float, run_seed: int
) -> None:
    collector, _ = learned(name, updates, with_view(critic, sharing="group", lr=lr), run_seed)
    scores = evaluate(collector.learner.policy, make_env(name, 32), 128, seed=1)
    best = collector.env.game.best_return * collector.env.team.size
    assert scores.returns.mean() >= share * best


@pytest.mark.parametrize("critic", ["local", "central"])
def test_a_continuous_policy_finds_its_target(critic: View, run_seed: int) -> None:
    collector, _ = learned("probe-continuous", 60, with_view(critic), run_seed)
    scores = evaluate(collector.learner.policy, make_env("probe-continuous", 32), 128, seed=1)
    per_agent = scores.returns.mean() / collector.env.team.size
    assert per_agent > collector.env.game.best_return - 0.03


@pytest.mark.parametrize("critic", ["local", "central"])
@pytest.mark.parametrize(("name", "options", "share"), [("penalty", {"k": 0.0}, 1.0), ("two-step", {}, 7 / 8)])
def test_matrix_games_are_played_well(
    name: str, options: dict[str, float], share: float, critic: View, run_seed: int
) -> None:
    collector, _ = learned(name, 30, with_view(critic, entropy=0.03, gamma=0.99), run_seed, **options)
    scores = evaluate(collector.learner.policy, make_env(name, 8, options=options), 8, seed=1)
    assert scores.returns.mean() >= share * collector.env.game.best_return * collector.env.team.size


def test_a_time_limit_taken_for_an_end_would_be_seen() -> None:
    """The probe can fail: without the bootstrap V is (1 - gamma^5) / (1 - gamma) at the most."""
    _, window = learned("probe-time-limit", 30, with_view("local"))
    assert window["value"].min() > (1 - 0.8**5) / (1 - 0.8) * 1.1


def test_only_memory_answers_the_cue(run_seed: int) -> None:
    options = {"cues": 2, "delay": 2, "agents": 1}
    share: dict[str, float] = {}
    for memory in ("none", "gru"):
        network = Network(hidden=(32,), memory=memory, memory_size=32)
        collector, _ = learned("memory-cue", 40, PPO(**{**vars(QUICK), "network": network}), run_seed, **options)
        scores = evaluate(collector.learner.policy, make_env("memory-cue", 64, options=options), 512, seed=1)
        share[memory] = float(scores.returns.mean()) / collector.env.game.best_return
    assert share["gru"] >= 0.95
    assert share["none"] <= 0.5 + 0.1  # half of the cues are guessed; 512 episodes leave a deviation of 0.022


@pytest.mark.parametrize("memory", ["attention", "retention"])
def test_blocks_over_time_answer_the_cue(memory: Literal["attention", "retention"], run_seed: int) -> None:
    options = {"cues": 2, "delay": 3, "agents": 1}
    network = Network(hidden=(32,), memory=memory, memory_size=32, memory_window=8)
    config = PPO(**{**vars(QUICK), "network": network, "lr": 3e-3})
    collector, _ = learned("memory-cue", 30, config, run_seed, **options)
    scores = evaluate(collector.learner.policy, make_env("memory-cue", 64, options=options), 512, seed=1)
    assert scores.returns.mean() >= 0.95 * collector.env.game.best_return


def test_runs_with_one_seed_are_one_run() -> None:
    def weights(seed: int) -> torch.Tensor:
        env = make_env("probe-observed", 8)
        learner = QUICK.learner(env.team, generator_of(seed, "learning"))
        collector = Collector(env, learner, generator_of(seed, "acting"))
        collector.start(seed)
        for _ in range(3):
            learner.update(collector.collect())
        return torch.cat([p.flatten() for p in learner.policy.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
