"""Q-learning: errors by slow versions, padding, ends, time limits, long returns, sequences."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from martes.algorithms.q_learning import QLearner, QLearning
from martes.data import Workspace
from martes.networks.mixers import Joint
from tests.algorithms.q_learners import ALONE, GRU, KINDS, QUICK, begun, collecting, drawn
from tests.worlds import WORLDS, World, crossed


# ------------------------------------------------------------------------------------------------------- slow versions
def stepped(policy, batch: Workspace, env: int, rows: int) -> list[dict[str, Tensor]]:
    """What a policy makes of the rows of one episode, step by step."""
    memory, steps = policy.initial_memory(1), list[dict[str, Tensor]]()
    for t in range(rows):
        inputs = {name: batch[name][t, env : env + 1] for name in policy.reads}
        done = batch["action"][t, env : env + 1] if t + 1 < rows else torch.zeros(1, len(policy.legal)).long()
        outputs, memory = policy.step({**inputs, "action": done.long()}, memory)
        steps.append({**outputs, **inputs})
    return steps


def valued(mixer, batch: Workspace, env: int, t: int, step: dict[str, Tensor], action: Tensor) -> Tensor:
    """The value [1 value] of a joint action at one row."""
    fields = {name: batch[name][t : t + 1, env : env + 1] for name in (*mixer.view.reads, "agent_mask")}
    outputs = {name: step[name].unsqueeze(0) for name in ("q", "features")}
    return mixer(Joint.at(slice(0, 1), outputs, action[None, None], fields, mixer.view.seen(fields)))[0, 0]


def slow_errors(learner: QLearner, batch: Workspace) -> list[Tensor]:
    """The one-step errors of every step and of whoever learns there, episode by episode, in plain loops."""
    config, errors = learner.config, list[Tensor]()
    with torch.no_grad():
        for env in range(batch.envs):
            steps = int(batch["counted"][:, env].sum())
            own = stepped(learner.policy, batch, env, steps + 1)
            others = stepped(learner.target.agents, batch, env, steps + 1)
            for t in range(steps):
                alive = batch["agent_mask"][t, env]
                if not alive.any():
                    continue
                taken = valued(learner.online.mixer, batch, env, t, own[t], batch["action"][t, env])
                best = learner.policy.greedy((own if config.double else others)[t + 1]["q"], own[t + 1])[0]
                following = valued(learner.target.mixer, batch, env, t + 1, others[t + 1], best)
                reward, discount = batch["reward"][t, env], batch["discount"][t, env]
                goes_on = batch["agent_mask"][t + 1, env]
                if config.mixer == "none":
                    target = reward + 0.9 * discount * goes_on * following
                    errors.append((taken - target)[alive])
                else:
                    earned = reward[alive].mean() if config.reward == "mean" else reward.sum()
                    errors.append(taken - (earned + 0.9 * discount.max() * goes_on.any() * following))
    return errors


DISCRETE = [name for name, world in WORLDS.items() if world.kind == "discrete" and not world.has_image]


@pytest.mark.usefixtures("unchecked")  # the others, and the matrix of contracts, take the same ways with checks
@pytest.mark.parametrize(("world", "kind", "sharing"), crossed(DISCRETE, [*KINDS], ["shared", "group", "agent"]))
def test_errors_are_those_of_each_episode_alone(world: str, kind: str, sharing: str) -> None:
    learner, batch = begun(WORLDS[world], replace(KINDS[kind], sharing=sharing))  # pyright: ignore
    errors = learner.errors(batch)
    lengths = batch["counted"].sum(0)
    assert lengths.min() < batch.time, "a batch without padding tests little"
    slow = torch.cat([each.flatten() for each in slow_errors(learner, batch)])
    fast = errors.td.transpose(0, 1)[errors.mask.transpose(0, 1)]
    assert torch.allclose(fast, slow, atol=1e-4)
    loss, metrics = learner.loss(batch)
    td_loss = metrics.get("td_loss", loss)
    assert torch.allclose(td_loss, slow.square().mean(), rtol=1e-3)
    assert torch.allclose(metrics["td_error_abs"], slow.abs().mean(), rtol=1e-3)


def test_no_step_is_counted_that_was_not_made() -> None:
    learner, batch = begun(World(), replace(QUICK, batch=5))
    errors = learner.errors(batch)
    lengths = batch["cut"].int().argmax(0) + 1  # an episode ends where it is cut, padding or not
    assert len(set(lengths.tolist())) > 1
    assert errors.mask.shape == (batch.time, 5, 1)
    assert errors.mask[..., 0].sum(0).tolist() == lengths.tolist()


def test_what_stands_in_padding_changes_nothing() -> None:
    learner, batch = begun(WORLDS["dying"], KINDS["monotone"])

    def gradients() -> list[Tensor]:
        learner.optimiser.zero_grad()
        learner.loss(batch)[0].backward()
        return [p.grad.clone() for p in learner.online.parameters()]

    before = gradients()
    padding = ~batch["counted"]
    assert padding.any()
    for name in ("reward", "discount"):
        batch[name][padding] = 1e6
    batch["action"][padding] = 1
    after_end = batch["counted"].logical_not().cumsum(0) > 1  # the first row behind the last step was really seen
    for name in ("obs", "state"):
        batch[name][1:][after_end] = 1e6
    for one, other in zip(before, gradients(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("changes", [{}, {"n_step": 3}, {"td_lambda": 0.8}], ids=str)
def test_a_padded_batch_has_the_loss_of_its_episodes(changes: dict) -> None:
    learner, batch = begun(WORLDS["masked"], replace(KINDS["monotone"], **changes))
    batch["discount"] = torch.ones_like(batch["discount"])  # a time limit cut each of them
    lengths = batch["counted"].sum(0)
    alone = []
    for env in range(batch.envs):
        episode = batch.rows(torch.tensor([env])).window(0, int(lengths[env]))
        alone.append(learner.loss(episode)[0])
    assert len(set(lengths.tolist())) > 1
    assert torch.allclose(learner.loss(batch)[0], (torch.stack(alone) * lengths).sum() / lengths.sum(), rtol=1e-4)


def test_a_window_cut_at_an_episodes_end_is_two_episodes() -> None:
    """However collecting was cut into windows, the same episodes come out of it."""
    world = World(ends=0.0, limit=4)
    whole, parts = (
        collecting(world, replace(KINDS["sum"], rollout=rollout, batch=6), windows)[0]
        for rollout, windows in ((8, 1), (4, 2))
    )
    sums = []
    for learner in (whole, parts):
        batch = drawn(learner, 100)
        assert (batch.time, int(batch["counted"].sum())) == (4, 24)
        sums.append(learner.loss(batch)[0])
    assert torch.allclose(*sums, rtol=1e-5)


# -------------------------------------------------------------------------------------------------- targets and returns
def test_a_time_limit_bootstraps_from_the_real_last_observation_and_an_end_does_not() -> None:
    for world, is_end in ((World(ends=0.0, limit=4), False), (World(ends=1.0, limit=4), True)):
        learner, collector = collecting(world, replace(QUICK, **ALONE, rollout=4, batch=3, ratio=1.0))
        last = {name: value for name, value in (collector.final or {}).items()}
        window, batch = collector.window, drawn(learner)
        target = learner.errors(batch).target
        final_q = learner.target.agents.step(last, ())[0]["q"]
        online_q = learner.policy.step(last, ())[0]["q"]
        bootstrap = final_q.gather(-1, online_q.argmax(-1, keepdim=True)).squeeze(-1)
        reward = window["reward"][window["cut"]]
        expected = reward if is_end else reward + 0.9 * bootstrap
        found = target[batch["cut"] & batch["counted"]]
        assert len(found) == 3
        for row in found:
            assert (row - expected).abs().amax(-1).min() < 1e-5
        assert is_end == bool((batch["discount"][batch["cut"] & batch["counted"]] == 0).all())


def with_constant_values(config: QLearning, value: float, world: World) -> tuple[QLearner, Workspace]:
    """A learner whose target networks expect `value` of everything."""
    learner, batch = begun(world, config)
    with torch.no_grad():
        learner.target.agents.head.weight.zero_()
        learner.target.agents.head.bias.fill_(value)
    return learner, batch


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0.9, 0.9, 0.9, 0.0]),
        ({"n_step": 2}, [0.81, 0.81, 0.0, 0.0]),
        ({"n_step": 5}, [0.0, 0.0, 0.0, 0.0]),
        ({"td_lambda": 1.0}, [0.0, 0.0, 0.0, 0.0]),
        ({"td_lambda": 0.5}, [0.45 * (1 + 0.45 * (1 + 0.45)), 0.45 * (1 + 0.45), 0.45, 0.0]),
    ],
)
def test_nothing_is_expected_behind_an_end(changes: dict, expected: list[float]) -> None:
    """All rewards 0 and V = 1 everywhere: whatever is left of it comes from before the end, at the last step."""
    config = replace(QUICK, **ALONE, **changes, gamma=0.9)
    learner, batch = with_constant_values(config, 1.0, World(ends=0.0, limit=4))
    batch["reward"] = torch.zeros_like(batch["reward"])
    batch["discount"][3] = 0  # the fourth step ends it
    target = learner.errors(batch).target
    assert torch.allclose(target, torch.tensor(expected)[:, None, None].expand_as(target), atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "monotone"])
def test_behind_the_end_of_a_life_nothing_is_ones_own(kind: str) -> None:
    """Somebody, or the whole team, is gone from the third step on while the episode goes on and pays."""
    learner, batch = begun(World(ends=0.0, limit=6, has_state=True), replace(KINDS[kind], td_lambda=0.9))
    gone = slice(0, 1) if kind == "none" else slice(None)
    batch["agent_mask"][2:, :, gone] = False
    errors = learner.errors(batch)
    assert torch.allclose(errors.target[1][..., gone], batch["reward"][1][..., gone].mean(-1, keepdim=True), atol=1e-6)
    assert not errors.mask[2:, :, gone].any()


def test_long_returns_are_built_on_what_the_target_networks_expect() -> None:
    config = replace(QUICK, **ALONE, td_lambda=0.8)
    learner, batch = begun(World(ends=0.0, limit=6), config)
    long = learner.errors(batch).target
    learner.config = replace(config, td_lambda=0.0)
    short = learner.errors(batch).target
    value = (short - batch["reward"]) / 0.9  # V(next) of every step
    expected = short.clone()
    for t in reversed(range(5)):
        expected[t] = batch["reward"][t] + 0.9 * (0.2 * value[t] + 0.8 * expected[t + 1])
    assert torch.allclose(long, expected, atol=1e-4)


def test_sequences_teach_their_own_steps_and_only_complete_returns_with_the_rest() -> None:
    config = replace(QUICK, **ALONE, network=GRU, sequence=2, n_step=3, burn_in=3, batch=32, ratio=1.0)
    learner, batch = begun(World(ends=0.0, limit=7), config)
    errors = learner.errors(batch)
    counts = errors.mask[..., 0].sum(0)
    assert batch.time == 3 + 2 + 3 - 1
    assert set(counts.tolist()) == {1, 2}  # 1: the last step of an episode
    burnt = (~batch["counted"]).int().cumprod(0).sum(0)
    assert set(burnt.tolist()) == {0, 1, 2, 3}
    full = ((batch["counted"].sum(0) == 4) & (counts == 2)).nonzero()[:, 0]
    for env in full.tolist():
        t = int(burnt[env])
        learner.config = replace(config, n_step=1)
        one_step = learner.errors(batch).target
        learner.config = config
        reward = batch["reward"][:, env]
        expected = reward[t] + 0.9 * reward[t + 1] + 0.81 * one_step[t + 2, env]
        assert torch.allclose(errors.target[t, env], expected, atol=1e-5)


def test_single_steps_need_no_burning_in() -> None:
    _, batch = begun(World(), replace(QUICK, **ALONE, sequence=1, batch=16))
    assert batch.time == 1 and batch["counted"].all()


@pytest.mark.parametrize("double", [True, False])
def test_who_chooses_and_who_values_the_next_action(double: bool) -> None:
    learner, batch = begun(WORLDS["masked"], replace(QUICK, **ALONE, double=double))
    online, target = (each.unrolled(batch)["q"][1:] for each in (learner.policy, learner.target.agents))
    legal = batch["action_mask"][1:]
    best = (online if double else target).masked_fill(~legal, -1e9).argmax(-1, keepdim=True)
    assert not torch.equal(best, (target if double else online).masked_fill(~legal, -1e9).argmax(-1, keepdim=True))
    value = target.gather(-1, best).squeeze(-1)
    expected = batch["reward"] + 0.9 * batch["discount"] * batch["agent_mask"][1:] * value
    errors = learner.errors(batch)
    assert torch.allclose(errors.target[errors.mask], expected[errors.mask], atol=1e-5)


def test_what_the_environment_will_do_is_what_is_valued() -> None:
    learner, batch = begun(WORLDS["forced"], replace(QUICK, **ALONE))
    target = learner.target.agents.unrolled(batch)["q"][1:]
    forced = batch["forced"][1:]
    value = target.gather(-1, batch["forced_action"][1:].long().unsqueeze(-1)).squeeze(-1)
    expected = batch["reward"] + 0.9 * batch["discount"] * value
    at = forced & learner.errors(batch).mask
    assert at.any() and torch.allclose(learner.errors(batch).target[at], expected[at], atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "sum", "monotone", "joint"])
def test_targets_build_no_graph(kind: str) -> None:
    learner, batch = begun(WORLDS["masked"], KINDS[kind])
    errors = learner.errors(batch)
    assert errors.taken.requires_grad and not errors.target.requires_grad
    errors.taken.sum().backward()
    assert all(each.grad is None for each in learner.target.parameters())
