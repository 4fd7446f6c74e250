"""PPO: the ratio before the first step, losses by hand, masks, bootstraps, and every switch."""

from dataclasses import replace

import pytest
import torch

from martes.algorithms.ppo import PPO, PPOLearner
from martes.data import Workspace
from martes.envs.batched.engine import BatchedEnv
from martes.errors import ConfigError, NonFiniteError
from martes.networks import Network
from tests.algorithms.rollouts import collected, collecting
from tests.worlds import WORLDS, World, crossed

SMALL = Network(hidden=(16,), layer_norm=True)
GRU = replace(SMALL, memory="gru", memory_size=12, normalise=True)
NETWORKS = {"mlp": SMALL, "gru": GRU}


@pytest.mark.usefixtures("unchecked")  # the next test, and the matrix of contracts, take the same ways with checks
@pytest.mark.parametrize(("world", "network", "critic"), crossed([*WORLDS], [*NETWORKS], ["local", "central"]))
def test_ratio_is_one_on_every_sample_before_the_first_step(world: str, network: str, critic: str) -> None:
    view = "local" if WORLDS[world].has_image else critic  # joined pictures have no central critic
    config = PPO(critic=view, network=NETWORKS[network], sharing="group", rollout=9, normalise_value=False)  # pyright: ignore
    learner, window = collected(WORLDS[world], config, windows=3)
    learner._score(window)
    taught = window.subset((*learner.policy.reads, *learner.policy.writes, "start", "advantage", "target"))
    for part in taught.minibatches(3, learner.by, learner.generator):
        _, metrics = learner.loss(part)
        assert abs(metrics["kl"]) < 1e-6 and metrics["clip_fraction"] == 0
        # Standardised advantages have mean 0, and so has the policy loss at ratio 1; the value loss is that of V.
        assert abs(metrics["policy_loss"]) < 1e-4
        error = (part["value"] - part["target"]).square()[learner.policy.valued(part)].mean() / 2
        assert torch.allclose(metrics["value_loss"], error, rtol=1e-3)


@pytest.mark.parametrize(("world", "sharing", "network"), crossed([*WORLDS], ["shared", "group", "agent"], [*NETWORKS]))
def test_two_updates_move_every_parameter(world: str, sharing: str, network: str) -> None:
    told = replace(NETWORKS[network], agent_id=True)
    config = PPO(critic="local", sharing=sharing, network=told, rollout=8, minibatches=2)  # pyright: ignore
    learner, window, collector = collecting(WORLDS[world], config)
    before = {name: value.clone() for name, value in learner.policy.named_parameters()}
    learner.update(window)
    learner.update(collector.collect())
    for name, value in learner.policy.named_parameters():
        assert not torch.equal(value, before[name]), f"{name} did not move"
        assert torch.isfinite(value).all(), name


def hand_made(learner: PPOLearner, window: Workspace) -> Workspace:
    """One minibatch whose numbers can be worked by hand."""
    learner._score(window)
    part = next(window.minibatches(1, "step", learner.generator))
    part["agent_mask"] = torch.ones_like(part["agent_mask"])
    return part


def test_loss_is_the_papers_by_hand() -> None:
    config = PPO(standardise_advantage=False, normalise_value=False, entropy=0.1, value_clip=0.3)
    assert config.clip == 0.2 and config.value_weight == 0.5
    learner, window = collected(World(), config)
    part = hand_made(learner, window)
    new, old = part["log_prob"], part["log_prob"].clone()
    new_value = part["value"].clone()
    # Move the record, not the network: ratio = e^0.5 on half of the samples and e^-0.5 on the others.
    shift = torch.where(torch.rand_like(new) < 0.5, 0.5, -0.5)
    part["log_prob"] = old - shift
    part["value"] = new_value - 1.0
    loss, metrics = learner.loss(part)
    ratio, advantage, target = shift.double().exp(), part["advantage"].double(), part["target"].double()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    value = new_value.double()
    clipped = value - 1.0 + 0.3
    value_loss = 0.5 * torch.maximum((value - target) ** 2, (clipped - target) ** 2).mean()
    assert torch.allclose(metrics["policy_loss"].double(), -surrogate.mean(), atol=1e-5)
    assert torch.allclose(metrics["value_loss"].double(), value_loss, rtol=1e-4)
    assert metrics["clip_fraction"] == 1
    assert torch.allclose(metrics["kl"].double(), (ratio - 1 - shift).mean(), atol=1e-5)
    total = -surrogate.mean() + 0.5 * value_loss - 0.1 * metrics["entropy"].double()
    assert torch.allclose(loss.double(), total, rtol=1e-4)


def test_one_epoch_without_clip_is_the_plain_policy_gradient() -> None:
    plain = {"epochs": 1, "minibatches": 1, "clip": None, "value_clip": None, "entropy": 0.0, "value_weight": 0.0}
    config = PPO(standardise_advantage=False, **plain)
    learner, window = collected(World(), config)
    part = hand_made(learner, window)
    loss, _ = learner.loss(part)
    loss.backward()
    surrogate = [p.grad.clone() for p in learner.policy.actor.parameters()]
    learner.optimiser.zero_grad()
    inputs = {name: part[name] for name in (*learner.policy.reads, "action")}
    log_prob = learner.policy.actor.sequence(inputs, (), part["start"])[0]["log_prob"]
    (-(log_prob * part["advantage"]).mean()).backward()
    for ours, theirs in zip(surrogate, learner.policy.actor.parameters(), strict=True):
        assert torch.allclose(ours, theirs.grad, atol=1e-6)


def test_what_masked_entries_hold_changes_nothing() -> None:
    config = PPO(critic="local", network=SMALL, rollout=8)
    learner, window = collected(WORLDS["dying"], config)
    learner._score(window)
    dead = ~window.mask
    assert dead.any()

    def gradients() -> list[torch.Tensor]:
        learner.optimiser.zero_grad()
        learner.loss(window)[0].backward()
        return [p.grad.clone() for p in learner.policy.parameters()]

    before = gradients()
    for name in ("advantage", "target", "value", "log_prob"):
        window[name][dead] = 1e6
    window["obs"][: window.time][dead] = 1e6
    for one, other in zip(before, gradients(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("world", ["forced", "forced-continuous"])
def test_what_the_environment_did_in_an_agents_place_is_stored_and_teaches_its_policy_nothing(world: str) -> None:
    learner, window = collected(
        WORLDS[world], PPO(critic="local", network=SMALL, rollout=8, standardise_advantage=True)
    )
    learner._score(window)
    forced = window["forced"][: window.time]
    assert forced.any() and not forced.all()
    assert torch.equal(window["action"][forced], window["forced_action"][: window.time][forced])
    assert not torch.equal(window["action"][~forced], window["forced_action"][: window.time][~forced])
    assert torch.equal(window.decided, window.mask & ~forced)

    def policy_loss() -> torch.Tensor:
        return learner.loss(window)[1]["policy_loss"]

    window["log_prob"] = window["log_prob"] + 0.1 * torch.randn(window["log_prob"].shape)  # at ratio 1 it is 0 for all
    before = policy_loss()
    window["advantage"][forced] = 1e6
    window["log_prob"][forced] = -1e6
    assert torch.equal(before, policy_loss())
    window["advantage"][~forced] += torch.randn(int((~forced).sum()))
    assert not torch.equal(before, policy_loss())


def test_time_limit_bootstraps_from_the_real_last_observation() -> None:
    learner, window = collected(World(has_state=True, ends=0.0, limit=4), PPO(critic="local", rollout=6))
    finals: dict[int, torch.Tensor] = {}
    env = BatchedEnv(World(has_state=True, ends=0.0, limit=4), 6)
    env.reset(2)
    for t in range(6):
        step = env.step(window["action"][t])
        if step.final is not None:
            finals[t] = step.final["obs"]
    assert list(finals) == [3]
    inputs = {"obs": finals[3], "agent_mask": window["agent_mask"][3]}
    expected = learner.policy.critic.value(inputs, ())
    assert torch.allclose(window["next_value"][3], expected, atol=1e-6)
    assert torch.equal(window["next_value"][0], window["value"][1])
    assert (window["discount"] == 1).all() and window["cut"][3].all()
    last = {"obs": window["obs"][6], "agent_mask": window["agent_mask"][6]}
    assert torch.allclose(window["next_value"][5], learner.policy.critic.value(last, ()), atol=1e-6)


def test_gru_bootstraps_with_the_memory_before_the_reset() -> None:
    world = World(ends=0.0, limit=4)
    learner, window = collected(world, PPO(critic="local", network=GRU, rollout=4))
    inputs = {name: window[name][:4] for name in learner.policy.critic.reads}
    _, memory = learner.policy.critic.sequence(inputs, window.memory[1], window["start"][:4])
    env = BatchedEnv(world, 6)
    env.reset(2)
    for t in range(4):
        step = env.step(window["action"][t])
    value = learner.policy.critic.value(step.final, memory)
    assert torch.allclose(window["next_value"][3], value, atol=1e-5)
    assert not torch.allclose(
        value, learner.policy.critic.value(step.final, learner.policy.critic.initial_memory(6)), atol=1e-3
    )


def test_ends_in_one_copy_leave_the_others_alone() -> None:
    """Ten ends in the window are ten cuts, and the advantages are those of each episode alone, in float64."""
    config = PPO(critic="local", rollout=50, gamma=0.9, gae_lambda=0.8)
    learner, window = collected(World(ends=0.15, limit=9), config, envs=3)
    learner._score(window)
    assert window["cut"].sum() >= 10
    terms = window["reward", "value", "next_value", "discount"]
    for env in range(3):
        for agent in range(3):
            advantage = 0.0
            for t in reversed(range(50)):
                r, v, nv, d = (each[t, env, agent].double().item() for each in terms)
                delta = r + 0.9 * d * nv - v
                advantage = delta + (0.0 if window["cut"][t, env] else 0.9 * 0.8 * d * advantage)
                assert abs(advantage - window["advantage"][t, env, agent].item()) < 1e-4


def test_kl_stops_the_passes() -> None:
    learner, window = collected(World(), PPO(lr=0.05, target_kl=1e-4, epochs=10, minibatches=2))
    assert learner.update(window)["gradient_steps"] == 2
    learner, window = collected(World(), PPO(lr=1e-6, target_kl=1.0, epochs=3, minibatches=2))
    assert learner.update(window)["gradient_steps"] == 6


def test_step_size_falls_to_zero() -> None:
    learner, window = collected(World(), PPO(lr=1e-3, rollout=8, anneal=True))
    sizes = []
    for learner.progress in (0.0, 0.5, 1.0, 1.1):
        sizes.append(learner.update(window)["lr"].item())
    assert sizes == pytest.approx([1e-3, 5e-4, 0.0, 0.0])
    learner, window = collected(World(), PPO(lr=1e-3, rollout=8))
    learner.progress = 0.9
    assert learner.update(window)["lr"] == 1e-3


def test_metrics_are_means_over_minibatches() -> None:
    config = PPO(lr=1e-12, epochs=1, minibatches=4, standardise_advantage=False, value_clip=None)
    learner, window = collected(World(), config)
    metrics = learner.update(window)
    whole = learner.loss(window)[1]
    assert torch.allclose(metrics["value_loss"], whole["value_loss"], rtol=1e-3)
    assert torch.allclose(metrics["policy_loss"], whole["policy_loss"], atol=1e-4)


def test_team_reward_is_the_mean_of_the_living() -> None:
    learner, window = collected(WORLDS["dying"], PPO(team_reward=True, gamma=0.0, normalise_value=False, rollout=8))
    learner._score(window)
    alive = window["agent_mask"][:8]
    mean = (window["reward"] * alive).sum(-1) / alive.sum(-1).clamp(min=1)
    assert torch.allclose(window["target"], mean[..., None].expand_as(alive).float(), atol=1e-5)


def test_the_end_of_one_member_is_not_the_end_of_the_teams_reward() -> None:
    config = PPO(team_reward=True, gae_lambda=1.0, gamma=0.5, normalise_value=False, rollout=8)
    learner, window = collected(World(has_deaths=True, ends=0.0, limit=8), config)
    window["value"].zero_(), window["next_value"].zero_()
    learner._score(window)
    alive, reward = window["agent_mask"][:8], window["reward"]
    assert bool((window["discount"][:-1] == 0).any()) and not bool(window["cut"][:-1].any())
    mean = (reward * alive).sum(-1) / alive.sum(-1).clamp(min=1)
    to_come = [sum(0.5 ** (later - t) * mean[later] for later in range(t, 8)) for t in range(8)]
    assert torch.allclose(window["target"], torch.stack(to_come).float()[..., None].expand_as(alive), atol=1e-5)


@pytest.mark.parametrize("name", ["reward", "log_prob"])
def test_a_loss_that_is_not_finite_stops_before_anything_is_learned(name: str) -> None:
    learner, window = collected(World(), PPO(minibatches=1, normalise_value=False))
    before = [p.clone() for p in learner.policy.parameters()]
    window[name][0, 0] = torch.nan
    with pytest.raises(NonFiniteError) as caught:
        learner.update(window)
    assert isinstance(caught.value.batch, Workspace)
    assert all(torch.equal(p, q) for p, q in zip(before, learner.policy.parameters(), strict=True))


def test_state_dict_continues_bit_for_bit() -> None:
    config = PPO(network=GRU, rollout=8, anneal=True)
    learner, window, collector = collecting(World(), config)
    learner.update(window)
    twin = config.learner(World().team, torch.Generator().manual_seed(99))
    twin.load_state_dict(learner.state_dict())
    learner.progress = twin.progress = 0.3
    window = collector.collect()
    one, other = learner.update(window), twin.update(window)
    assert all(torch.equal(one[name], other[name]) for name in one)
    for a, b in zip(learner.policy.state_dict().values(), twin.policy.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_learning_draws_from_no_global_generator(global_randomness_unused: None) -> None:
    learner, window = collected(WORLDS["continuous"], PPO(rollout=8))
    learner.update(window)


def test_autocast_learns() -> None:
    learner, window = collected(World(), PPO(rollout=8, autocast=True))
    metrics = learner.update(window)
    assert all(torch.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    "wrong",
    [
        {"rollout": 0},
        {"epochs": 0},
        {"minibatches": -1},
        {"gamma": 1.5},
        {"gae_lambda": -0.1},
        {"lr": 0.0},
        {"adam_eps": -1.0},
        {"clip": 0.0},
        {"target_kl": -0.1},
    ],
)
def test_impossible_values_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=rf"algorithm\.{next(iter(wrong))}"):
        PPO(**wrong)
