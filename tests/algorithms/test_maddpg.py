"""MADDPG and MATD3: targets, losses and gradients against numbers by hand and slow versions."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from martes.algorithms.maddpg import MADDPGLearner
from martes.algorithms.off_policy import Store
from martes.data import Workspace
from martes.maths.distributions import gumbel
from tests.algorithms.deterministic_learners import LOUD, QUICK, TD3, begun, collecting, flat
from tests.worlds import WORLDS, World

KINDS = {"maddpg": QUICK, "matd3": replace(QUICK, **TD3)}


def at(learner: MADDPGLearner, batch: Workspace, t: int) -> dict[str, Tensor]:
    names = dict.fromkeys((*learner.critics.reads, *learner.codes.reads, *learner.policy.reads, "agent_mask"))
    return {name: batch[name][t] for name in names}


# ------------------------------------------------------------------------------------------------------------ targets
def constant(learner: MADDPGLearner, *values: float) -> None:
    """Target critics that know these values alone, one a critic."""
    head = learner.target_critics.head
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(values).repeat_interleave(len(head.bias) // len(values)).unsqueeze(1))


@pytest.mark.parametrize("name", ["dying", "unequal", "continuous"])
def test_targets_by_hand(name: str) -> None:
    learner, batch = begun(WORLDS[name], replace(QUICK, **TD3, batch=40))
    constant(learner, 3.0, 2.0)
    expected = batch["reward"] + 0.9 * batch["discount"] * 2.0
    assert torch.allclose(learner.targets(batch), expected, atol=1e-6)
    assert (batch["discount"] == 0).any() and (batch["cut"]).any()
    constant(learner, -3.0, 2.0)
    assert torch.allclose(learner.targets(batch), batch["reward"] - 0.9 * batch["discount"] * 3.0, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 0.4])
@pytest.mark.parametrize("name", ["continuous", "forced-continuous"])
def test_target_actions_are_smoothed_clipped_and_valued_by_the_lower_critic(name: str, sigma: float) -> None:
    learner, batch = begun(WORLDS[name], replace(QUICK, **TD3 | {"target_noise": sigma}, target_clip=0.3))
    with torch.no_grad():
        learner.target_policy.head.weight.mul_(100)
        twin = torch.Generator()
        twin.set_state(learner.generator.get_state())
        found = learner.targets(batch)
        inputs = at(learner, batch, 1)
        scores = learner.target_policy.step(inputs, ())[0]["scores"]
        action = scores.tanh()
        if sigma:
            noise = sigma * torch.randn(scores[None].shape, generator=twin)[0]
            assert (noise.abs() > 0.3).any()
            action = (action + noise.clamp(-0.3, 0.3)).clamp(-1, 1)
        action = action * learner.codes.legal
        if "forced" in inputs:
            there = learner.codes.of_actions(inputs["forced_action"])
            action = torch.where(inputs["forced"].unsqueeze(-1), there, action)
        q = learner.target_critics(learner.target_critics.joint(inputs, action))
        expected = batch["reward"][0] + 0.9 * batch["discount"][0] * torch.minimum(q[:, 0], q[:, 1])
    assert torch.allclose(found[0], expected, atol=1e-5)
    learner.generator.manual_seed(1)
    assert torch.equal(found, learner.targets(batch)) == (sigma == 0)


def test_target_choices_are_legal_draws_of_the_target_policy() -> None:
    learner, batch = begun(WORLDS["unequal"], QUICK)
    twin = torch.Generator()
    twin.set_state(learner.generator.get_state())
    with torch.no_grad():
        found, inputs = learner.targets(batch), at(learner, batch, 1)
        scores = learner.target_policy.step(inputs, ())[0]["scores"] + gumbel((*batch["action"].shape, 5), twin)[0]
        mask = inputs["action_mask"] & learner.codes.legal
        action = learner.codes.of_actions(scores.masked_fill(~mask, -torch.inf).argmax(-1))
        q = learner.target_critics(learner.target_critics.joint(inputs, action))[:, 0]
    assert torch.allclose(found[0], batch["reward"][0] + 0.9 * batch["discount"][0] * q, atol=1e-5)


def test_a_time_limit_bootstraps_from_what_was_really_seen_last() -> None:
    learner, collector = collecting(World(ends=0.0, limit=3), replace(QUICK, batch=60))
    window, final = collector.window, collector.final
    assert final is not None
    cut = [*map(tuple, window["cut"].nonzero().tolist())]
    follows = {}
    for t in range(window.time):
        for env in range(window.envs):
            after = final["obs"][cut.index((t, env))] if (t, env) in cut else window["obs"][t + 1, env]
            follows[tuple(window["obs"][t, env].flatten().tolist())] = after
    batch = next(iter(learner.experience.due(48)))
    assert batch["cut"].any() and (batch["discount"] == 1).all()
    for env in range(batch.envs):
        assert torch.equal(batch["obs"][1, env], follows[tuple(batch["obs"][0, env].flatten().tolist())])
    constant(learner, 2.0)
    assert torch.allclose(learner.targets(batch), batch["reward"] + 1.8)


def test_long_returns_stop_at_ends() -> None:
    learner, batch = begun(World(), replace(QUICK, n_step=3, batch=40))
    constant(learner, 2.0)
    assert batch.time == 3 and learner._taken(batch).counted.sum() == 40
    target, lengths = learner.targets(batch)[0], batch["counted"].sum(0)
    for env in range(40):
        value = torch.full((3,), 2.0)
        for t in reversed(range(int(lengths[env]))):
            value = batch["reward"][t, env] + 0.9 * batch["discount"][t, env] * value
        assert torch.allclose(target[env], value, atol=1e-5)
    assert lengths.min() < 3


# ------------------------------------------------------------------------------------------------------------- losses
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["dying", "unequal", "continuous"])
def test_critic_loss_is_the_mean_over_the_agents_of_living_teams(name: str, kind: str) -> None:
    learner, batch = begun(WORLDS[name], replace(KINDS[kind], batch=30))
    batch["weight"] = torch.linspace(0.1, 1, 30)
    twin = deepcopy(learner.generator.get_state())
    loss, metrics, _ = learner.critic_loss(batch)
    learner.generator.set_state(twin)
    target, inputs = learner.targets(batch)[0], at(learner, batch, 0)
    q = learner.critics(learner.critics.joint(inputs, learner.codes.of_actions(batch["action"][0]))).detach()
    squares, errors = list[Tensor](), list[Tensor]()
    for env in range(30):
        if batch["agent_mask"][0, env].any():
            error = q[env] - target[env]
            squares.append(batch["weight"][env] * error.square().sum(0))
            errors.append(error.abs().mean(0))
    assert torch.allclose(loss, torch.stack(squares).mean(), rtol=1e-4)
    assert torch.allclose(metrics["td_error_abs"], torch.stack(errors).mean(), rtol=1e-4)
    loss.backward()
    assert all(each.grad is None for each in learner.policy.parameters())


@pytest.mark.parametrize("sharing", ["shared", "group", "agent"])
@pytest.mark.parametrize("name", ["dying", "continuous", "multi-discrete-masked", "forced"])
def test_policy_loss_lets_each_agent_climb_its_own_critic_alone(name: str, sharing: str) -> None:
    config = replace(QUICK, **TD3, sharing=sharing, regularisation=0.5)  # pyright: ignore
    learner, batch = begun(WORLDS[name], config)
    twin = torch.Generator()
    twin.set_state(learner.generator.get_state())
    loss, _ = learner.policy_loss(batch)
    loss.backward()
    found = [each.grad.clone() for each in learner.policy.parameters()]  # pyright: ignore
    assert all(each.grad is None for each in learner.critics.parameters())
    learner.policy.zero_grad()

    inputs, codes = at(learner, batch, 0), learner.codes
    done = codes.of_actions(batch["action"][0])
    scores = learner.policy.step(inputs, ())[0]["scores"]
    noise = None if codes.is_continuous else gumbel((1, *scores.shape), twin)[0]
    own, terms = codes.of_scores(scores, inputs, noise), list[Tensor]()
    for agent in range(learner.team.size):
        joint = done.clone()
        joint[:, agent] = own[:, agent]
        q = learner.critics(learner.critics.joint(inputs, joint))[:, 0, agent]
        size = scores[:, agent][:, learner.codes.legal[agent]].square().mean(-1)
        terms.append((0.5 * size - q)[batch.decided[0, :, agent]])
    slow = torch.cat(terms).mean()
    assert torch.allclose(loss, slow, atol=1e-5)
    slow.backward()
    for one, other in zip(found, (each.grad for each in learner.policy.parameters()), strict=True):
        assert torch.allclose(one, other, atol=1e-5)  # pyright: ignore


@pytest.mark.parametrize("sharing", ["shared", "agent"])
def test_what_stands_where_nobody_is_moves_no_gradient(sharing: str) -> None:
    config = replace(QUICK, sharing=sharing, batch=20, critic_sees="observations")  # pyright: ignore
    learner, batch = begun(World("continuous", has_deaths=True), config)
    gradients = list[list[Tensor]]()
    for _ in range(2):
        for loss, *_ in (learner.critic_loss(batch), learner.policy_loss(batch)):
            loss.backward()
        learned = (*learner.policy.parameters(), *learner.critics.parameters())
        gradients.append([each.grad.clone() for each in learned])  # pyright: ignore
        for each in learned:
            each.grad = None
        absent = ~batch["agent_mask"]
        assert absent.any()
        batch["obs"][absent] += 7.0
        batch["action"][absent[:-1]] += 0.3
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_who_is_acted_for_learns_nothing_of_it(kind: str) -> None:
    learner, batch = begun(World(kind, has_forced=True), QUICK)  # pyright: ignore
    batch["forced"].fill_(True)
    learner.policy_loss(batch)[0].backward()
    assert all((each.grad == 0).all() for each in learner.policy.parameters())  # pyright: ignore


# ------------------------------------------------------------------------------------------------------------ updates
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_policies_and_targets_move_once_in_so_many_updates_whatever_the_group(size: int) -> None:
    learner, batch = begun(World(agents=size), replace(KINDS["matd3"], policy_delay=3))
    moved = list[tuple[bool, bool, bool]]()
    for _ in range(10):
        before = [flat(each) for each in (learner.policy, learner.target_policy, learner.target_critics)]
        critics = flat(learner.critics)
        learner.update(batch)
        assert not torch.equal(critics, flat(learner.critics))
        after = [flat(each) for each in (learner.policy, learner.target_policy, learner.target_critics)]
        moved.append(tuple(not torch.equal(a, b) for a, b in zip(before, after, strict=True)))  # pyright: ignore
    assert moved == [(turn % 3 == 0,) * 3 for turn in range(1, 11)]


def test_every_member_of_a_group_moves_its_policy() -> None:
    learner, batch = begun(World("continuous"), QUICK)
    for agent in range(3):
        alone = deepcopy(batch["agent_mask"])
        batch["agent_mask"][..., [each for each in range(3) if each != agent]] = False
        learner.policy.zero_grad()
        learner.policy_loss(batch)[0].backward()
        assert learner.policy.head.weight.grad.abs().sum() > 0  # pyright: ignore
        batch["agent_mask"] = alone


def test_targets_go_a_share_of_the_way() -> None:
    learner, batch = begun(World(), replace(QUICK, tau=0.1))
    before = flat(learner.target_policy), flat(learner.target_critics)
    learner.update(batch)
    for old, target, online in zip(
        before, (learner.target_policy, learner.target_critics), (learner.policy, learner.critics), strict=True
    ):
        assert torch.allclose(flat(target), old + 0.1 * (flat(online) - old), atol=1e-6)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("envs", [1, 3])
@pytest.mark.parametrize("ratio", [1.0, 1 / 3, 0.07])
def test_updates_follow_environment_steps_exactly(envs: int, ratio: float) -> None:
    config = replace(QUICK, rollout=5, ratio=ratio, warmup=30, batch=2)
    learner, collector = collecting(World(), config, windows=0, envs=envs)
    made = updates = 0
    while made < 120:
        learner.experience.add(collector.collect(), collector.final)
        made += 5 * envs
        updates += sum(1 for _ in learner.experience.due(made))
    assert updates == int((made - 30) * ratio + 1e-9)


def test_exploration_begins_at_random_and_goes_by_environment_steps() -> None:
    config = replace(QUICK, noise=replace(LOUD, start=1.0, end=0.0, steps=480), warmup=48)
    learner, _ = collecting(World(), config)
    assert learner.policy.is_random and learner.policy.rate == 1.0
    assert not any(True for _ in learner.experience.due(48)) and learner.policy.is_random
    for batch in learner.experience.due(240):
        assert learner.update(batch)["noise"].item() == pytest.approx(0.5)
    assert not learner.policy.is_random
    twin = config.learner(World().team, torch.Generator())
    assert twin.policy.is_random
    twin.load_state_dict(learner.state_dict())
    assert twin.policy.rate == 0.5 and not twin.policy.is_random
    assert not replace(config, random_start=False).learner(World().team, torch.Generator()).policy.is_random


def test_what_is_stored_is_what_was_done() -> None:
    learner, collector = collecting(World(has_forced=True), replace(QUICK, noise=LOUD), windows=1)
    window = collector.window
    forced = window["forced"][:-1]
    assert torch.equal(window["action"][forced], window["forced_action"][:-1][forced]) and forced.any()
    batch = next(iter(learner.experience.due(48)))
    codes = learner.codes.of_actions(batch["action"])
    assert torch.equal(codes.argmax(-1), batch["action"].long()) and (codes.sum(-1) == 1).all()


def test_likelier_draws_move_with_the_error_and_rewards_are_divided_by_their_deviation() -> None:
    config = replace(QUICK, store=Store(alpha=1.0, beta=1.0), normalise_reward=True)
    learner, batch = begun(World("continuous"), config)
    earned = learner.experience.earned
    assert earned is not None
    deviation = earned.scale().float()
    assert deviation.shape == (3,)
    constant(learner, 0.0)
    assert torch.allclose(learner.targets(batch), batch["reward"] / deviation, rtol=1e-4)
    learner, batch = begun(World("continuous"), replace(config, normalise_reward=False))
    errors = learner.errors(batch, learner._taken(batch)).td.abs().mean((0, 2, 3))
    learner.update(batch)
    found = learner.experience._priorities.tree.weights[batch["place"]].float()  # pyright: ignore
    assert torch.allclose(found, errors + 1e-6, rtol=1e-3)


def test_the_deviation_of_rewards_counts_each_once_of_who_is_there_however_often_it_is_drawn() -> None:
    config = replace(QUICK, normalise_reward=True)
    learner, collector = collecting(World(has_deaths=True), config, windows=0)
    paid, there = [], []
    for count in range(1, 4):
        window = collector.collect()
        paid.append(window["reward"].flatten(0, 1).clone())  # the window is only lent
        there.append(window.mask.flatten(0, 1))
        learner.experience.add(window, collector.final)
        for batch in learner.experience.due(48 * count):
            learner.update(batch)
    reward, mask, earned = torch.cat(paid), torch.cat(there), learner.experience.earned
    assert learner.updates > 0 and earned is not None
    assert earned.seen.tolist() == mask.sum(0).tolist()
    for agent, scale in enumerate(earned.scale().float()):
        assert torch.allclose(scale, reward[mask[:, agent], agent].std(correction=0), rtol=1e-4)
