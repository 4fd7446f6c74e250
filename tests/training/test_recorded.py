"""A rollout of somebody's own loop becomes the window that a collector would have made."""

from dataclasses import replace

import pytest
import torch

from martes.data import Schema
from martes.data.arguments import Arguments
from martes.data.trees import leaves
from martes.sable import SableConfig, SableTrainer
from martes.training.recorded import recorded
from tests.networks.sables import enlivened

T, B, N, D, A = 8, 4, 3, 5, 4
CONFIG = SableConfig(N, A, D, embed_dim=8, n_head=2, decay_scaling_factor=1.0, rollout_length=T)
CONFIGS = {
    "memory": CONFIG,
    "continuous": replace(CONFIG, action_space_type="continuous"),
    "no memory": replace(CONFIG, memory=False),
}


def trainer_of(config):
    trainer = SableTrainer(config)
    enlivened(trainer.network.policy)
    return trainer


def window_of(trainer, data):
    read = Arguments(trainer.network.team, torch.device("cpu"), rollout_length=trainer.config.rollout_length)
    schema = Schema.from_team(trainer.network.team).extended(**trainer.learner.fields)
    return recorded(trainer.network.policy, schema, read, data)


def drawn(config, network):
    """A rollout that begins in mid-episode; `dones` are ends of both kinds, `truncated` those by time."""
    continuous = config.is_continuous
    hstates = network.get_actions(torch.randn(B, N, D), network.init_hidden_states(B))[3]
    ends, by_time = torch.rand(T, B) < 0.4, torch.rand(T, B) < 0.6
    ends[3], by_time[3] = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    ends[-1], by_time[-1] = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    return {
        "observations": torch.randn(T, B, N, D),
        "actions": torch.rand(T, B, N, A) * 2 - 1 if continuous else torch.randint(A, (T, B, N)),
        "values": torch.randn(T, B, N),
        "rewards": torch.randn(T, B, N),
        "log_probs": -torch.rand(T, B, N),
        "dones": ends.unsqueeze(2).expand(T, B, N),
        "truncated": ends & by_time,
        "final_obs": torch.randn(T, B, N, D),
        "next_obs": torch.randn(B, N, D),
        "hstates": hstates,
    }


def next_value_of_each(network, data):
    """The same, one environment and one step after the other, through the network's own face."""
    truncated, expected = data["truncated"], torch.zeros(T, B, N)
    for env in range(B):
        hstates = {name: leaf[env : env + 1] for name, leaf in leaves(data["hstates"])} or ()
        for t in range(T):
            obs, action = data["observations"][t, env], data["actions"][t, env]
            seen = {"obs": obs[None], "agent_mask": torch.ones(1, N, dtype=torch.bool)}
            given = {"sample": action[None].atanh()} if network.config.is_continuous else {"action": action[None]}
            _, hstates = network.policy.step(seen | given, hstates)
            fresh = network.init_hidden_states(1)
            last = network.get_actions(data["final_obs"][t, env][None], hstates)[2]
            hstates = fresh if data["dones"][t, env, 0] else hstates
            follows = network.get_actions(data["next_obs"][env][None], hstates)[2] if t == T - 1 else None
            usual = follows[0] if t == T - 1 else data["values"][t + 1, env]
            expected[t, env] = last[0] if truncated[t, env] else usual
    return expected


@pytest.mark.parametrize("kind", CONFIGS)
def test_next_values_are_those_of_what_really_followed_with_the_memory_that_was_there(kind):
    trainer = trainer_of(CONFIGS[kind])
    data = drawn(trainer.config, trainer.network)
    window = window_of(trainer, data)
    expected = next_value_of_each(trainer.network, data)
    assert expected.std() > 0.1
    assert torch.allclose(window["next_value"], expected, atol=1e-5)


def test_ends_are_told_apart():
    trainer = trainer_of(CONFIG)
    data = drawn(CONFIG, trainer.network)
    window, ends, truncated = window_of(trainer, data), data["dones"][..., 0], data["truncated"]
    assert torch.equal(window["cut"], ends)
    assert torch.equal(window["start"][1:], ends) and not window["start"][0].any()
    assert torch.equal(window["discount"][..., 1], (~ends | truncated).float())
    assert torch.equal(window["obs"][-1], data["next_obs"])
    assert window.mask.all() and window["agent_mask"].all()
    separate = {**data, "dones": data["dones"] & ~truncated[..., None]}  # where dones are terminations alone
    assert torch.equal(window_of(trainer, separate)["discount"], window["discount"])
    assert torch.equal(window_of(trainer, separate)["cut"], window["cut"])


def test_an_agent_that_is_done_alone_expects_nothing_and_ends_no_episode():
    trainer = trainer_of(CONFIG)
    data = drawn(CONFIG, trainer.network) | {"truncated": None, "dones": torch.zeros(T, B, N)}
    data["dones"][2, 1, 0] = 1
    window = window_of(trainer, data)
    assert not window["cut"].any() and (window["discount"] == 0).nonzero().tolist() == [[2, 1, 0]]


def test_without_the_real_last_observation_the_value_before_stands_in():
    trainer = trainer_of(CONFIG)
    data = drawn(CONFIG, trainer.network)
    whole, window = window_of(trainer, data), window_of(trainer, {**data, "final_obs": None})
    by_time = data["truncated"]
    assert by_time[3].any() and by_time[-1].any()
    assert torch.equal(window["next_value"][by_time], data["values"][by_time])
    assert torch.allclose(window["next_value"][~by_time], whole["next_value"][~by_time], atol=1e-6)


def test_what_stands_in_final_obs_elsewhere_is_not_read():
    trainer = trainer_of(CONFIG)
    data = drawn(CONFIG, trainer.network)
    blank = data["final_obs"].masked_fill(~data["truncated"][..., None, None], torch.nan)
    other = window_of(trainer, {**data, "final_obs": blank})
    assert torch.equal(other["next_value"], window_of(trainer, data)["next_value"])


@pytest.mark.usefixtures("unchecked")
def test_a_limit_is_worth_what_would_have_followed_and_an_end_nothing():
    worth = {}
    for name in ("truncated", "terminated"):
        torch.manual_seed(0)
        config = SableConfig(1, 2, 1, embed_dim=8, rollout_length=8, gamma=0.8, lr=1e-2, memory=False)
        trainer, ends = SableTrainer(config), torch.zeros(8, B, 1)
        ends[3::4] = 1
        obs = torch.ones(B, 1, 1)
        for _ in range(20):
            actions, log_probs, values, _ = trainer.network.get_actions(torch.ones(8 * B, 1, 1), ())
            data = {
                "observations": obs.expand(8, B, 1, 1),
                "actions": actions.view(8, B, 1),
                "log_probs": log_probs.view(8, B, 1),
                "values": values.view(8, B, 1),
                "rewards": torch.ones(8, B, 1),
                "dones": ends,
                "truncated": ends if name == "truncated" else None,
                "final_obs": obs.expand(8, B, 1, 1),
                "next_obs": obs,
            }
            trainer.train_step(data)
        worth[name] = float(data["values"][-1].mean())
    assert worth["truncated"] == pytest.approx(5, abs=0.5)  # 1 / (1 - 0.8)
    assert worth["terminated"] < 3.0
