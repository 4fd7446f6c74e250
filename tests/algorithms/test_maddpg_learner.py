"""The learner around the losses of MADDPG: state, statistics, memory, refusals, kernels."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from martes.algorithms.maddpg import MADDPG
from martes.data import Discrete, TeamSpec, Vector
from martes.envs.batched.engine import BatchedEnv
from martes.errors import ConfigError, DataError, NonFiniteError
from martes.networks import Network
from martes.networks.deterministic import ActionNoise
from martes.training.evaluate import evaluate
from tests.algorithms.deterministic_learners import QUICK, SMALL, TD3, begun, collecting, flat
from tests.worlds import WORLDS, World

GRU = Network(hidden=(8,), memory="gru", memory_size=6, normalise=True)


@pytest.mark.parametrize("name", ["dying", "continuous", "image"])
def test_state_dict_continues_bit_for_bit(name: str) -> None:
    noise = ActionNoise("ou", start=0.5, end=0.1, steps=200)
    config = replace(QUICK, **TD3, network=GRU, noise=noise, normalise_reward=True)
    learner, batch = begun(WORLDS[name], config)
    learner.update(batch)
    twin = config.learner(WORLDS[name].team, torch.Generator().manual_seed(99))
    twin.load_state_dict(deepcopy(learner.state_dict()))
    twin.experience.load_state_dict(deepcopy(learner.experience.state_dict()))
    for _ in range(3):
        ours, theirs = (next(iter(each.experience.due(600))) for each in (learner, twin))
        one, other = learner.update(ours), twin.update(theirs)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    for part, module in learner.parts.items():
        if isinstance(module, torch.nn.Module):
            assert all(
                torch.equal(a, b)
                for a, b in zip(module.state_dict().values(), twin.parts[part].state_dict().values(), strict=True)
            )
    assert torch.equal(flat(twin.judge), flat(learner.judge))
    first = flat(replace(config, twin_critics=False).learner(WORLDS[name].team, torch.Generator()).critics)
    assert len(flat(learner.judge)) == len(first)


def test_the_state_of_another_learner_is_refused() -> None:
    learner, _ = collecting(World(), QUICK)
    with pytest.raises(KeyError):
        learner.load_state_dict({"policy": learner.policy.state_dict(), "mixer": {}})


def test_memory_is_filled_by_the_steps_before_and_nothing_else_counts() -> None:
    config = replace(QUICK, network=replace(GRU, normalise=False), burn_in=3, sequence=2, batch=30)
    learner, batch = begun(World("continuous", ends=0.0), config)
    counted = learner._taken(batch).counted.squeeze(-1)
    assert batch.time == 5 and counted.sum(0).max() == 2
    learner.policy_loss(batch)[0].backward()
    before = [each.grad.clone() for each in learner.policy.parameters()]  # pyright: ignore
    learner.policy.zero_grad()
    batch["obs"][0] += 1.0  # seen before what counts, in most entries
    learner.policy_loss(batch)[0].backward()
    assert any(not torch.equal(a, b.grad) for a, b in zip(before, learner.policy.parameters(), strict=True))  # pyright: ignore


def test_statistics_of_observations_move_by_steps_that_count_alone() -> None:
    learner, batch = begun(World("continuous"), replace(QUICK, network=replace(SMALL, normalise=True)))
    norm, joint = learner.policy.body.norm, learner.critics.norm
    assert norm is not None and joint is not None and norm.seen.sum() == joint.seen.sum() == 0
    learner.update(batch)
    assert norm.seen.item() == batch["obs"][0, ..., 0].numel() and joint.seen.item() == batch.envs
    assert torch.allclose(joint.mean[0].float(), batch["obs"][0].flatten(1).mean(0), atol=1e-5)
    assert learner.judge.norm is not None and torch.equal(learner.judge.norm.mean, joint.mean)
    target = learner.target_critics.norm
    assert target is not None and target.seen.item() == 0, "what the targets see by follows with the next update"
    learner.update(batch)
    assert target.seen.item() == batch.envs


def test_rewards_of_a_team() -> None:
    learner, batch = begun(WORLDS["dying"], replace(QUICK, gamma=0.0))
    reward, alive = batch["reward"], batch["agent_mask"][:-1]
    mean = (reward * alive).sum(-1, keepdim=True) / alive.sum(-1, keepdim=True).clamp(min=1)
    for kind, expected in (("own", reward), ("mean", mean), ("sum", reward.sum(-1, keepdim=True))):
        learner = replace(QUICK, gamma=0.0, reward=kind).learner(WORLDS["dying"].team, torch.Generator())
        assert torch.allclose(learner.targets(batch), expected.expand_as(reward), atol=1e-6)
    with pytest.raises(DataError, match="paid unequally"):
        replace(QUICK, reward="common").learner(WORLDS["dying"].team, torch.Generator()).update(batch)


def test_gradients_are_cut_for_each_slot() -> None:
    learner, batch = begun(World("continuous"), replace(QUICK, sharing="agent", max_grad_norm=1e-4, **TD3))
    learner.update(batch)
    for module, slots in ((learner.critics, 6),):
        parts = torch.stack([each.grad.view(slots, -1).square().sum(1) for each in module.parameters()])  # pyright: ignore
        assert torch.allclose(parts.sum(0).sqrt(), torch.full((slots,), 1e-4), rtol=2e-2)


def test_evaluating_changes_nothing_and_repeats() -> None:
    learner, _ = collecting(World("continuous"), replace(QUICK, network=GRU, noise=ActionNoise("ou")))
    before = deepcopy(learner.state_dict())
    scores = [evaluate(learner.policy, BatchedEnv(World("continuous"), 2), 4, seed=0).returns for _ in range(2)]
    assert torch.equal(*scores)
    drawn = evaluate(learner.policy, BatchedEnv(World("continuous"), 2), 4, seed=0, greedy=False).returns
    assert torch.equal(drawn, scores[0]), "evaluations know no noise"
    after = learner.state_dict()
    for name in ("policy", "critics", "target_policy", "target_critics"):
        assert all(torch.equal(before[name][key], value) for key, value in after[name].items())  # pyright: ignore


def test_a_loss_that_is_not_finite_stops_before_anything_is_learned() -> None:
    learner, batch = begun(World("continuous"), QUICK)
    before = flat(learner.critics)
    batch["reward"][0, 0] = torch.inf
    with pytest.raises(NonFiniteError):
        learner.update(batch)
    assert torch.equal(before, flat(learner.critics))


def test_learning_draws_from_no_global_generator(global_randomness_unused: None) -> None:
    for name in ("masked", "continuous"):
        learner, batch = begun(WORLDS[name], replace(QUICK, **TD3, policy_delay=1) if name == "" else QUICK)
        learner.update(batch)


@pytest.mark.parametrize("sharing", ["group", "agent"])
@pytest.mark.usefixtures("unchecked")
def test_kernels_of_an_update_do_not_multiply_with_agents(sharing: str) -> None:
    def kernels(agents: int) -> int:
        names = [f"{'ab'[i % 2]}_{i}" for i in range(agents)]
        team = TeamSpec.of_agents(dict.fromkeys(names, Vector(4)), dict.fromkeys(names, Discrete(3)))
        config = replace(QUICK, **TD3 | {"policy_delay": 1}, sharing=sharing)  # pyright: ignore
        learner = config.learner(team, torch.Generator().manual_seed(0))
        _, donor = begun(World(agents=2))
        tensors = {
            name: donor[name][:, :, :1].expand(*donor[name].shape[:2], agents, *donor[name].shape[3:])
            if donor.schema[name].axes == "time env agent"
            else donor[name]
            for name in donor.names
        }
        tensors["obs"] = torch.randn(*tensors["obs"].shape[:3], 4)
        tensors["action"] = torch.zeros_like(tensors["action"])
        batch = type(donor).of(type(donor.schema)(donor.schema, agents), tensors, donor._filled)
        learner.update(batch)
        with profile(activities=[ProfilerActivity.CPU]) as recorder:
            learner.update(batch)
        return sum(event.count for event in recorder.key_averages())

    assert kernels(16) <= kernels(4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy_delay": 0},
        {"target_noise": -0.1},
        {"target_clip": -1.0},
        {"regularisation": -1.0},
        {"gamma": 1.5},
        {"n_step": 0},
        {"rollout": 0},
        {"ratio": 0.0},
        {"warmup": -1},
        {"batch": 0},
        {"sequence": 0},
        {"burn_in": -1},
        {"tau": 0.0},
        {"tau": 1.5},
        {"lr": 0.0},
        {"critic_lr": 0.0},
        {"adam_eps": 0.0},
        {"max_grad_norm": 0.0},
    ],
)
def test_impossible_values_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"algorithm.{next(iter(wrong))} is"):
        MADDPG(**wrong)
