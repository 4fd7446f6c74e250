"""IQL, VDN, QMIX, QTRAN and DQN on games whose answer is known, seconds each: what each can represent and what not."""

from dataclasses import replace

import pytest
import torch

from martes.algorithms.q_learning import QLearner, QLearning
from martes.data import Workspace
from martes.envs.catalogue import make_env
from martes.networks import Network
from martes.networks.mixers import Joint, Mixing
from martes.networks.q_values import Exploration
from martes.training.collect import Collector
from martes.training.evaluate import evaluate
from tests.learning.trained import trained_from_replay

EVERYTHING = Exploration(start=1.0, end=1.0)  # every joint action is tried: what is learned is what can be represented
QUICK = QLearning(
    network=Network(hidden=(32,), agent_id=True),
    mixing=Mixing(width=16, hypernet=(16,)),
    exploration=EVERYTHING,
    rollout=8,
    ratio=0.1,
    batch=32,
    lr=5e-3,
    target_every=20,
)
KINDS = {
    "iql": replace(QUICK, mixer="none", reward="own"),
    "vdn": replace(QUICK, mixer="sum"),
    "qmix": replace(QUICK, mixer="monotone"),
    "qtran": replace(QUICK, mixer="joint", mixing=Mixing(width=32)),
}


def learned(name: str, config: QLearning, updates: int, seed: int, **options: object) -> tuple[QLearner, Collector]:
    """A learner after so many updates, and where its experience came from."""
    collector = trained_from_replay(name, updates, config, seed, **options)
    learner = collector.learner
    assert isinstance(learner, QLearner)
    return learner, collector


def earned(learner: QLearner, name: str, **options: object) -> float:
    """What a greedy team earns, for each agent."""
    scores = evaluate(learner.policy, make_env(name, 8, options=options), 64, seed=1)
    return float(scores.returns.mean()) / learner.team.size


def values(learner: QLearner, window: Workspace) -> torch.Tensor:
    """What the team, or each agent, expects of its greedy action at each step [time env value]."""
    mixer, fields = learner.online.mixer, {name: window[name] for name in learner.online.reads}
    outputs = learner.policy.unrolled(window)
    best = learner.policy.greedy(outputs["q"], fields)
    rows = slice(0, window.time)
    return mixer(Joint.at(rows, outputs, best[rows], fields, mixer.view.seen(fields))).detach()


@pytest.mark.parametrize("name", ["iql", "vdn", "qmix"])
@pytest.mark.parametrize("game", ["probe-constant", "probe-delayed", "probe-death", "probe-time-limit"])
def test_values_are_the_known_ones(game: str, name: str, run_seed: int) -> None:
    config = replace(KINDS[name], gamma=0.8, target_every=5, reward="own" if name == "iql" else "sum")
    learner, collector = learned(game, config, 250, run_seed)
    window = collector.collect()
    known = collector.env.game.value(window["obs"][: window.time], 0.8)
    found, mask = values(learner, window), window.mask
    if name != "iql":
        known, mask = known.sum(-1, keepdim=True), mask.any(-1, keepdim=True)
    error = (found - known).abs()[mask].max()
    assert error < 0.05 * max(1.0, known.abs().max()), f"value is off by {error:.3f} of {known.abs().max():.2f}"


@pytest.mark.parametrize(("name", "best"), [("iql", 7), ("vdn", 7), ("qmix", 8), ("qtran", 8)])
def test_two_steps_show_who_can_represent_the_second_table(name: str, best: float, run_seed: int) -> None:
    """A sum cannot tell B's table apart from a worse one and settles for 7 (Rashid et al. 2018, section 6.1)."""
    learner, collector = learned("two-step", KINDS[name], 500, run_seed)
    assert earned(learner, "two-step") == best
    if name == "vdn":  # table B as a sum of two values, fitted to pay 0, 1, 1 and 8: 6.5 at its best, less than 7
        window = collector.collect()
        in_b = window["state"][: window.time, :, 2] == 1
        assert values(learner, window)[in_b].mean().item() == pytest.approx(6.5, abs=0.45)


@pytest.mark.parametrize(
    ("name", "updates", "best"),
    [
        ("iql", 400, {5}),
        ("vdn", 400, {5}),
        ("qmix", 400, {5, 6}),
        pytest.param("qtran", 1200, {11}, marks=pytest.mark.slow),
    ],
)
def test_the_climb_past_the_abyss_needs_a_value_that_is_not_monotone(
    name: str, updates: int, best: set[float], run_seed: int
) -> None:
    """Where all joint actions are tried alike, whose values are sums or monotone shuns the row of -30."""
    learner, _ = learned("climbing", KINDS[name], updates, run_seed)
    assert earned(learner, "climbing") in best


@pytest.mark.parametrize("name", ["iql", "vdn"])
def test_a_penalty_makes_who_adds_up_play_safe(name: str, run_seed: int) -> None:
    learner, _ = learned("penalty", KINDS[name], 400, run_seed, k=-100.0)
    assert earned(learner, "penalty", k=-100.0) == 2


@pytest.mark.parametrize("name", ["iql", "vdn", "qmix"])
def test_of_two_best_joint_actions_one_is_agreed_upon(name: str, run_seed: int) -> None:
    """What they agree on was tried more often by chance, and then on purpose: here exploration has to fall."""
    falls = Exploration(start=1.0, end=0.05, steps=1500)
    learner, _ = learned("penalty", replace(KINDS[name], exploration=falls), 400, run_seed, k=0.0)
    assert earned(learner, "penalty", k=0.0) == 10


def test_only_memory_answers_the_cue(run_seed: int) -> None:
    options = {"cues": 2, "delay": 2, "agents": 1}
    share: dict[str, float] = {}
    for memory in ("none", "gru"):
        network = Network(hidden=(32,), memory=memory, memory_size=32)  # pyright: ignore
        learner, collector = learned("memory-cue", replace(KINDS["iql"], network=network), 400, run_seed, **options)
        share[memory] = earned(learner, "memory-cue", **options) / collector.env.game.best_return
    assert share["gru"] >= 0.95
    assert share["none"] <= 0.75


@pytest.mark.parametrize(
    "changes",
    [{"sequence": 1}, {"sequence": 1, "n_step": 3, "dueling": True}, {"sequence": 4, "td_lambda": 0.6}],
    ids=["single steps", "three steps, dueling", "sequences, lambda"],
)
def test_sequences_teach_what_episodes_teach(changes: dict, run_seed: int) -> None:
    config = replace(KINDS["iql"], **changes, gamma=0.8, batch=64)
    learner, collector = learned("probe-delayed", config, 250, run_seed)
    window = collector.collect()
    known = collector.env.game.value(window["obs"][: window.time], 0.8)
    assert (values(learner, window) - known).abs().max() < 0.05


def test_unequal_teams_share_by_group(run_seed: int) -> None:
    learner, collector = learned("probe-unequal", replace(KINDS["vdn"], sharing="group", reward="sum"), 250, run_seed)
    assert earned(learner, "probe-unequal") >= 0.98 * collector.env.game.best_return


def test_runs_with_one_seed_are_one_run() -> None:
    def weights(seed: int) -> torch.Tensor:
        learner, _ = learned("two-step", KINDS["qmix"], 10, seed)
        return torch.cat([p.flatten() for p in learner.online.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
