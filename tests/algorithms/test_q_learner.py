"""The learner around the loss: numbers to watch, units of targets and exploration, rewards, state, refusals."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from martes.algorithms.off_policy import Store
from martes.algorithms.q_learning import QLearning
from martes.data import Workspace
from martes.envs.batched.engine import BatchedEnv
from martes.errors import ConfigError, DataError, NonFiniteError
from martes.networks.mixers import Mixing
from martes.networks.q_values import Exploration
from martes.training.evaluate import evaluate
from tests.algorithms.q_learners import ALONE, GRU, KINDS, QUICK, SMALL, begun, collecting, drawn
from tests.worlds import WORLDS, World


# ------------------------------------------------------------------------------------------------- numbers to watch
def test_twice_as_many_equal_agents_change_no_mean() -> None:
    """Neither the loss nor what is watched depends on how many agents there are."""
    seen = {}
    for agents in (1, 4):
        learner, batch = begun(World(agents=1), replace(QUICK, **ALONE))
        many, _ = begun(World(agents=agents), replace(QUICK, **ALONE))
        many.online.load_state_dict(learner.online.state_dict())
        many.target.load_state_dict(learner.target.state_dict())
        tensors = {
            name: batch[name].repeat_interleave(agents, 2)
            if batch.schema[name].axes == "time env agent"
            else batch[name]
            for name in batch.names
        }
        schema = type(batch.schema)(batch.schema, agents)
        loss, metrics = many.loss(Workspace.of(schema, tensors, batch._filled))
        seen[agents] = {"loss": loss.detach(), **metrics}
    assert {*seen[1]} >= {"loss", "td_error_abs", "q_taken_mean", "target_mean"}
    for name, one in seen[1].items():
        assert torch.allclose(one, seen[4][name], rtol=1e-4), name


def test_metrics_mean_what_they_say() -> None:
    learner, batch = begun(WORLDS["dying"], KINDS["none"])
    errors, (_, metrics) = learner.errors(batch), learner.loss(batch)
    for name, each in (
        ("q_taken_mean", errors.taken),
        ("target_mean", errors.target),
        ("td_error_abs", errors.td.abs()),
    ):
        assert torch.allclose(metrics[name], each[errors.mask].mean(), rtol=1e-4), name
    told = learner.update(batch)
    assert {"loss", "grad_norm", "td_error_abs", "q_taken_mean", "target_mean", "epsilon"} <= set(told)
    assert all(each.ndim == 0 for each in told.values())


def test_the_huber_loss_does_not_follow_far_errors() -> None:
    learner, batch = begun(WORLDS["masked"])
    errors = learner.errors(batch)
    far = errors.td.detach().abs()[errors.mask]
    limit = far.median().item()
    learner.config = replace(QUICK, huber=limit)
    by_hand = torch.where(far <= limit, far.square(), limit * (2 * far - limit)).mean()
    assert torch.allclose(learner.loss(batch)[0], by_hand, rtol=1e-4)
    assert by_hand < 0.95 * far.square().mean()


# ---------------------------------------------------------------------------------------------------------- units
def test_whole_copies_come_every_so_many_gradient_steps() -> None:
    for envs in (2, 6):  # whatever the number of environments
        learner, batch = begun(World(), replace(KINDS["monotone"], target_every=3), envs=envs)
        began = deepcopy(learner.target.state_dict())
        for step in range(1, 7):
            learner.update(batch)
            follows = [
                torch.equal(*pair)
                for pair in zip(learner.online.parameters(), learner.target.parameters(), strict=True)
            ]
            assert all(follows) == (step % 3 == 0)
            if step < 3:
                assert all(torch.equal(value, began[name]) for name, value in learner.target.state_dict().items())


def test_a_share_of_the_way_is_gone_at_every_gradient_step() -> None:
    learner, batch = begun(World(), replace(KINDS["monotone"], target_rate=0.1))
    before = [each.clone() for each in learner.target.parameters()]
    learner.update(batch)
    for old, new, online in zip(before, learner.target.parameters(), learner.online.parameters(), strict=True):
        assert torch.allclose(new, old + 0.1 * (online - old), atol=1e-6)


def test_exploration_goes_by_environment_steps_and_survives_resuming() -> None:
    config = replace(QUICK, exploration=Exploration(start=1.0, end=0.0, steps=480))
    learner, _ = collecting(World(), config)
    assert learner.policy.rate == 1.0
    for batch in learner.experience.due(48):
        assert learner.update(batch)["epsilon"].item() == pytest.approx(0.9)
    for batch in learner.experience.due(240):
        learner.update(batch)
    assert learner.policy.rate == pytest.approx(0.5)
    twin = config.learner(World().team, torch.Generator())
    twin.load_state_dict(learner.state_dict())
    assert twin.policy.rate == learner.policy.rate


def test_gradient_steps_follow_environment_steps_however_many_copies_there_are() -> None:
    for envs in (1, 3):
        learner, collector = collecting(World(), replace(QUICK, ratio=0.1, batch=2), windows=0, envs=envs)
        updates = 0
        for made in range(16 * envs, 145, 16 * envs):
            learner.experience.add(collector.collect(), collector.final)
            updates += sum(1 for _ in learner.experience.due(made))
        assert updates == 14  # of 144 steps a tenth


def test_evaluating_changes_nothing() -> None:
    learner, _ = collecting(World(), replace(QUICK, network=replace(GRU, normalise=True)))
    before, rate = deepcopy(learner.state_dict()), learner.policy.rate
    evaluate(learner.policy, BatchedEnv(World(), 2), 4, seed=0, greedy=False)
    assert learner.policy.rate == rate
    after = learner.state_dict()
    for name in ("policy", "target"):
        assert all(torch.equal(before[name][key], value) for key, value in after[name].items())  # pyright: ignore


# ------------------------------------------------------------------------------------------------- rewards and draws
def test_each_kind_of_reward() -> None:
    learner, batch = begun(WORLDS["dying"], replace(QUICK, gamma=0.0))
    reward, alive = batch["reward"], batch["agent_mask"][:-1]
    means = (reward * alive).sum(-1, keepdim=True) / alive.sum(-1, keepdim=True).clamp(min=1)
    for config, expected in (
        (replace(QUICK, gamma=0.0), means),
        (replace(QUICK, gamma=0.0, reward="sum"), reward.sum(-1, keepdim=True)),
        (replace(QUICK, gamma=0.0, **ALONE), reward),
        (replace(QUICK, gamma=0.0, mixer="none"), means.expand_as(reward)),
    ):
        learner = config.learner(WORLDS["dying"].team, torch.Generator())
        assert torch.allclose(learner.errors(batch).target, expected, atol=1e-6)


def test_unequal_pay_is_refused_where_one_reward_for_all_is_promised() -> None:
    learner, batch = begun(World(), replace(QUICK, reward="common"))
    with pytest.raises(DataError, match=r"paid unequally \(\{'big_0': .*take algorithm.reward=mean or sum"):
        learner.update(batch)
    batch["reward"] = batch["reward"][..., :1].expand_as(batch["reward"]).clone()
    batch["reward"][~batch["counted"]] = torch.randn(3)  # padding pays nobody
    learner.update(batch)


def test_likelier_draws_count_less_and_move_with_the_error() -> None:
    config = replace(QUICK, **ALONE, sequence=1, batch=8, store=Store(alpha=1.0, beta=1.0))
    learner, batch = begun(World(), config)
    batch["weight"] = torch.linspace(0.1, 1, 8)
    errors = learner.errors(batch)
    expected = (errors.td.square() * batch["weight"][:, None]).mean()
    assert torch.allclose(learner.loss(batch)[0], expected, rtol=1e-4)
    learner.update(batch)
    found = learner.experience._priorities.tree.weights[batch["place"]].float()  # pyright: ignore
    assert torch.allclose(found, errors.td.abs().mean((0, 2)) + 1e-6, rtol=1e-3)


# ------------------------------------------------------------------------------------------------------ state, errors
@pytest.mark.parametrize(("optimiser", "kind"), [("adam", "joint"), ("rmsprop", "monotone")])
def test_state_dict_continues_bit_for_bit(optimiser: str, kind: str) -> None:
    config = replace(KINDS[kind], optimiser=optimiser, target_every=2, network=replace(GRU, normalise=True))  # pyright: ignore
    learner, batch = begun(WORLDS["masked"], config)
    learner.update(batch)
    twin = config.learner(WORLDS["masked"].team, torch.Generator().manual_seed(99))
    twin.load_state_dict(deepcopy(learner.state_dict()))
    twin.experience.load_state_dict(deepcopy(learner.experience.state_dict()))
    assert all(
        torch.equal(learner.target.state_dict()[name], value) for name, value in twin.target.state_dict().items()
    )
    for _ in range(2):
        ours, theirs = (drawn(each, 400) for each in (learner, twin))
        one, other = learner.update(ours), twin.update(theirs)
        assert all(torch.equal(one[name], other[name]) for name in one)
    for a, b in ((learner.online, twin.online), (learner.target, twin.target)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_state_of_another_learner_is_refused() -> None:
    learner, _ = collecting(World(), QUICK)
    with pytest.raises(KeyError, match="no state of a Q-learner"):
        learner.load_state_dict({"policy": {}, "optimiser": {}})


def test_a_mixers_state_is_kept_where_it_needs_one() -> None:
    kept = {kind: collecting(WORLDS["masked"], KINDS[kind])[0].experience.schema for kind in ("sum", "monotone")}
    assert "state" in kept["monotone"] and "state" not in kept["sum"]


def test_what_a_narrow_kind_cannot_hold_is_refused() -> None:
    with pytest.raises(DataError, match=r"'obs' holds .*int8 cannot"):
        collecting(World(), replace(QUICK, store=Store(seen_as="int8")))


def test_statistics_of_observations_move_by_steps_that_count_alone() -> None:
    learner, batch = begun(World(), replace(QUICK, network=replace(SMALL, normalise=True)))
    norm = learner.policy.body.norm
    assert norm is not None and norm.seen.sum() == 0
    learner.update(batch)
    counted = batch["obs"][:-1][batch["counted"]]
    assert norm.seen.item() == counted[..., 0].numel()
    assert torch.allclose(norm.mean[0].float(), counted.flatten(0, 1).mean(0), atol=1e-5)


def test_gradients_are_cut_for_each_slot_and_for_the_mixer() -> None:
    learner, batch = begun(World(), replace(KINDS["monotone"], sharing="agent", max_grad_norm=1e-3))
    learner.loss(batch)[0].backward()
    whole = torch.cat([p.grad.flatten() for p in learner.online.parameters()]).norm()
    assert torch.allclose(learner.update(batch)["grad_norm"], whole, rtol=1e-4)
    parts = torch.stack([p.grad.view(3, -1).square().sum(1) for p in learner.policy.parameters()])
    assert torch.allclose(parts.sum(0).sqrt(), torch.full((3,), 1e-3), rtol=1e-2)
    mixer = torch.cat([p.grad.flatten() for p in learner.online.mixer.parameters()])
    assert mixer.norm().item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("kind", ["none", "joint"])
def test_a_loss_that_is_not_finite_stops_before_anything_is_learned(kind: str) -> None:
    learner, batch = begun(World(), KINDS[kind])
    before = [p.clone() for p in learner.online.parameters()]
    batch["reward"][0, 0] = torch.inf
    with pytest.raises(NonFiniteError) as caught:
        learner.update(batch)
    assert isinstance(caught.value.batch, Workspace)
    assert all(torch.equal(p, q) for p, q in zip(before, learner.online.parameters(), strict=True))


def test_learning_draws_from_no_global_generator(global_randomness_unused: None) -> None:
    learner, batch = begun(WORLDS["masked"], KINDS["joint"])
    learner.update(batch)


@pytest.mark.parametrize(
    "wrong",
    [
        {"gamma": 1.5},
        {"td_lambda": -0.1},
        {"n_step": 0},
        {"n_step": 2, "td_lambda": 0.5},
        {"rollout": 0},
        {"batch": 0},
        {"ratio": 0.0},
        {"warmup": -1},
        {"burn_in": -1},
        {"sequence": 0},
        {"target_every": 0},
        {"target_rate": 0.0},
        {"target_rate": 1.5},
        {"lr": 0.0},
        {"optimiser_eps": 0.0},
        {"max_grad_norm": 0.0},
        {"reward": "own", "mixer": "sum"},
        {"mixing": Mixing(sees_state=False), "mixer": "joint"},
    ],
)
def test_impossible_values_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=rf"algorithm\.{next(iter(wrong))}"):
        QLearning(**wrong)


def test_a_store_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="smaller than a batch"):
        collecting(World(), replace(QUICK, store=Store(capacity=3)))
