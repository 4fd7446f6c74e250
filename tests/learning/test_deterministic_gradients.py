"""MADDPG and MATD3 on games whose answer is known, seconds each: values for the critics, returns for the policies."""

from dataclasses import replace

import pytest
import torch

from martes.algorithms.maddpg import MADDPG
from martes.envs.catalogue import make_env
from martes.networks import Network
from martes.networks.deterministic import ActionNoise
from martes.training.collect import Collector
from martes.training.evaluate import evaluate
from tests.learning.trained import trained_from_replay

QUICK = MADDPG(
    network=Network(hidden=(32,)),
    rollout=8,
    ratio=0.25,
    batch=64,
    warmup=256,
    lr=3e-3,
    critic_lr=1e-2,
    tau=0.1,
    gamma=0.8,
    regularisation=0.01,
    noise=ActionNoise(start=0.3, end=0.3),
)
KINDS = {
    "maddpg": QUICK,
    "matd3": replace(QUICK, twin_critics=True, policy_delay=2, target_noise=0.2),
}


def values(collector: Collector) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the first critic of each agent expects of what was done in a window [time env agent]; the window's mask."""
    window, learner = collector.collect(), collector.learner
    rows = slice(0, window.time)
    inputs = {name: window[name][rows] for name in (*learner.critics.reads, "agent_mask")}
    codes = learner.codes.of_actions(window["action"])
    return learner.critics(learner.critics.joint(inputs, codes))[:, :, 0].detach(), window["obs"][rows], window.mask


def earned(collector: Collector, name: str, **options: object) -> float:
    """What a greedy team earns, for each agent."""
    scores = evaluate(collector.learner.policy, make_env(name, 32, options=options), 128, seed=1)
    return float(scores.returns.mean()) / collector.env.team.size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["probe-constant", "probe-delayed", "probe-death", "probe-time-limit"])
def test_values_are_the_known_ones(name: str, kind: str, run_seed: int) -> None:
    collector = trained_from_replay(name, 300, KINDS[kind], run_seed)
    found, obs, mask = values(collector)
    known = collector.env.game.value(obs, 0.8)
    error = (found - known).abs()[mask].max()
    assert error < 0.07 * max(1.0, known.abs().max()), f"value is off by {error:.3f} of {known.abs().max():.2f}"


def test_members_of_a_group_who_share_a_critic_are_told_apart(run_seed: int) -> None:
    """Paid +1 and -1 for the same sight and deed: without knowing who is who both would be worth 0."""
    collector = trained_from_replay("probe-constant", 300, QUICK, run_seed, rewards=((1.0,), (-1.0,)))
    found, _, _ = values(collector)
    assert torch.allclose(found, torch.tensor([1.0, -1.0]).expand_as(found), atol=0.07)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "least"),
    [("probe-continuous", -0.03), ("probe-unequal", 0.95), ("probe-multi-discrete", 0.9), ("probe-image", 0.9)],
)
def test_policies_reach_the_best_return(name: str, least: float, kind: str, run_seed: int) -> None:
    collector = trained_from_replay(name, 500 if kind == "maddpg" else 1000, KINDS[kind], run_seed)
    best = collector.env.game.best_return
    assert earned(collector, name) >= (least * best if best > 0 else least)


def test_drifting_noise_explores_too(run_seed: int) -> None:
    noise = ActionNoise("ou", start=0.3, end=0.3)
    collector = trained_from_replay("probe-continuous", 500, replace(QUICK, noise=noise), run_seed)
    assert earned(collector, "probe-continuous") >= -0.03
