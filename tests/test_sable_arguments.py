"""What the small face of Sable cannot take, it refuses by a ValueError that names the argument."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from martes.errors import ConfigError, EnvError
from martes.sable import ArgumentError, SableConfig, SableNetwork, SableTrainer

T, B, N, D, A = 3, 2, 3, 5, 4
CONFIG = SableConfig(N, A, D, embed_dim=8, rollout_length=T)
CONTINUOUS = replace(CONFIG, action_space_type="continuous")
NETWORK, BOUNDED = SableNetwork(CONFIG), SableNetwork(CONTINUOUS)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"chunk_size": 0}, "chunk_size is 0: it must be an integer >= 1"),
        ({"n_agents": 0}, "n_agents is 0"),
        ({"n_block": -1}, "n_block is -1"),
        ({"rollout_length": 0}, "rollout_length is 0"),
        ({"embed_dim": 10, "n_head": 4}, "embed_dim is 10: it must be a multiple of n_head, which is 4"),
        ({"action_space_type": "multi"}, "action_space_type is multi: it must be discrete or continuous"),
        ({"decay_scaling_factor": 1.5}, "decay_scaling_factor is 1.5: it must be between 0 and 1"),
        ({"gamma": -0.1}, "gamma is -0.1"),
        ({"lr": 0.0}, "lr is 0.0: it must be above 0"),
        ({"ent_coef": -1.0}, "ent_coef is -1.0: it must be 0 or more"),
        ({"lr": float("nan")}, "lr is nan: it must be a finite number"),
    ],
)
def test_a_config_that_cannot_be(values, told):
    with pytest.raises(ValueError, match=f"^{told}"):
        SableConfig(**{"n_agents": N, "action_dim": A, "obs_dim": D, **values})


@pytest.mark.usefixtures("unchecked")
def test_a_config_of_other_types():
    for name, value, cure in (
        ("obs_dim", 2.5, "a whole number"),
        ("memory", 1, "true or false"),
        ("lr", "x", "a finite"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} is .*: it must be {cure}"):
            replace(CONFIG, **{name: value})
    assert replace(CONFIG, lr=1, n_agents=2.0) == replace(CONFIG, lr=1.0, n_agents=2)


def test_such_an_error_is_a_config_error_with_its_exit_code():
    assert issubclass(ArgumentError, ConfigError) and ArgumentError.exit_code == ConfigError.exit_code
    with pytest.raises(ArgumentError, match=r"^device is 'nowhere'"):
        SableTrainer(CONFIG, device="nowhere")
    with pytest.raises(ArgumentError, match=r"^batch_size is 0"):
        NETWORK.init_hidden_states(0)
    with pytest.raises(ArgumentError, match=r"^num_episodes is 0"):
        SableTrainer(CONFIG).evaluate(Odd(), 0)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_config_or_no_number_of_anything_is_refused_by_name():
    with pytest.raises(ArgumentError, match=r"^config is \{'n_agents': 3\}: it must be a SableConfig"):
        SableTrainer({"n_agents": 3})
    for wrong in (True, 2.0, "2", None):
        with pytest.raises(ArgumentError, match=f"^batch_size is {wrong}: it must be an integer >= 1"):
            NETWORK.init_hidden_states(wrong)
        with pytest.raises(ArgumentError, match=f"^num_episodes is {wrong}: it must be an integer >= 1"):
            SableTrainer(CONFIG).evaluate(Odd(), wrong)


def test_hidden_states_on_no_device_are_refused_by_name():
    for device in ("nowhere", "cuda:99"):
        with pytest.raises(ArgumentError, match=f"^device is '{device}', which is not at hand"):
            NETWORK.init_hidden_states(B, device)


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_are_numbers():
    config = SableConfig(np.int64(N), np.int64(A), np.int32(D), embed_dim=8, lr=np.float64(1e-3), memory=np.bool_(True))
    assert config == SableConfig(N, A, D, embed_dim=8, lr=1e-3)
    assert [type(each) for each in (config.n_agents, config.lr, config.memory)] == [int, float, bool]
    assert SableNetwork(config).init_hidden_states(np.int64(B))["elapsed"].shape == (B,)


def test_hidden_states_of_another_dtype_are_taken():
    obs, hstates = torch.randn(B, N, D), NETWORK.init_hidden_states(B)
    _, _, _, hstates = NETWORK.get_actions(obs, hstates)
    twice = {name: leaf.double() if leaf.is_floating_point() else leaf for name, leaf in hstates.items()}
    (right, _, _, _), (found, _, _, _) = (NETWORK.get_actions(obs, each, True) for each in (hstates, twice))
    assert torch.equal(right, found)


def acting(network=NETWORK, **other):
    return {"obs": torch.zeros(B, N, D), "hstates": network.init_hidden_states(B), **other}


NONE_LEGAL = torch.ones(B, N, A, dtype=torch.bool).index_fill(1, torch.tensor([1]), False)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"obs": torch.zeros(B, N + 1, D)},
            r"obs has the shape \[2, 4, 5\]: it must be \[batch=2, n_agents=3, obs_dim=5\]",
        ),
        ({"obs": torch.zeros(N, D)}, r"obs has the shape \[3, 5\]: it must be \[batch, n_agents=3"),
        ({"obs": torch.zeros(0, N, D)}, "obs has the shape"),
        ({"obs": np.full((B, N, D), np.nan)}, r"obs is nan at \[0, 0, 0\]: it must be a finite number"),
        ({"obs": np.array([None])}, "obs is no array of numbers"),
        ({"legal_actions": NONE_LEGAL}, r"legal_actions is False at \[0, 1\]: it must be true for one action"),
        ({"legal_actions": torch.ones(B, N, A + 1)}, r"legal_actions has the shape \[2, 3, 5\]"),
        ({"legal_actions": torch.full((B, N, A), 2)}, "legal_actions is 2 at .*: it must be true or false"),
        (
            {"hstates": NETWORK.init_hidden_states(B + 1)},
            r"hstates hold .*\[3, 1, 1, 8, 8\].* must hold .*\[2, 1, 1, 8, 8\]",
        ),
        ({"hstates": ()}, "hstates hold no states"),
    ],
)
def test_acting_refuses(given, told):
    with pytest.raises(ValueError, match=f"^{told}"):
        NETWORK.get_actions(**acting(**given))


def test_continuous_actions_have_no_legal_ones():
    with pytest.raises(ValueError, match=r"^legal_actions are for discrete actions"):
        BOUNDED.get_actions(**acting(BOUNDED, legal_actions=torch.ones(B, N, A)))


SCORED = {"obs": torch.zeros(B, T * N, D), "actions": torch.zeros(B, T * N, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"obs": torch.zeros(B, T * N + 1, D)}, "obs has 10 rows each: 3 agents need a multiple of 3"),
        ({"actions": torch.zeros(B, T)}, r"actions has the shape \[2, 3\]: it must be \[batch=2, time\*n_agents=9\]"),
        ({"actions": torch.full((B, T * N), A)}, r"actions is 4 at \[0, 0\]: it must be an integer from 0 to 3"),
        ({"actions": torch.full((B, T * N), -1)}, r"actions is -1"),
        ({"actions": torch.full((B, T * N), 0.5)}, r"actions is 0.5"),
        ({"dones": torch.zeros(B, T)}, r"dones has the shape \[2, 3\]: it must be \[batch=2, time\*n_agents=9\]"),
        ({"dones": torch.eye(B, T * N)}, r"dones is True at \[0, 0\]: it must be the same for all agents of a step"),
        ({"legal_actions": torch.zeros(B, T * N, A)}, "legal_actions is False"),
        (
            {"legal_actions": torch.arange(A).bool().expand(B, T * N, A)},
            "actions is 0 at .*: it must be one of the legal",
        ),
        ({"hstates": NETWORK.init_hidden_states(1)}, "hstates hold"),
    ],
)
def test_scoring_refuses(given, told):
    with pytest.raises(ValueError, match=f"^{told}"):
        NETWORK(**{**SCORED, "hstates": NETWORK.init_hidden_states(B), **given})


def test_scoring_refuses_what_no_continuous_action_is():
    hstates, obs = BOUNDED.init_hidden_states(B), SCORED["obs"]
    with pytest.raises(ValueError, match=r"^actions is 1\.5 at .*between -1 and 1"):
        BOUNDED(obs, torch.full((B, T * N, A), 1.5), hstates)
    with pytest.raises(ValueError, match=r"^actions has the shape"):
        BOUNDED(obs, torch.zeros(B, T * N), hstates)
    assert BOUNDED(obs, torch.ones(B, T * N, A), hstates)[1].isfinite().all()


def rollout(**other):
    numbers = {name: torch.zeros(T, B, N) for name in ("values", "rewards", "log_probs", "dones")}
    actions = torch.zeros(T, B, N, dtype=torch.int64)
    return {
        "observations": torch.zeros(T, B, N, D),
        "actions": actions,
        "next_obs": torch.zeros(B, N, D),
        **numbers,
        **other,
    }


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"observations": torch.zeros(T + 1, B, N, D)},
            r"observations has the shape \[4, 2, 3, 5\]: it must be \[rollout_length=3, batch, n_agents=3, obs_dim=5\]",
        ),
        ({"next_obs": torch.zeros(B + 1, N, D)}, "next_obs has the shape"),
        ({"dones": torch.zeros(T + 1, B, N)}, "dones has the shape"),
        ({"rewards": torch.full((T, B, N), np.inf)}, "rewards is inf"),
        ({"legal_actions": torch.zeros(T, B, N, A)}, "legal_actions is False"),
        ({"rewards": [torch.zeros(B, N), torch.zeros(B)]}, "rewards is no array of numbers: .*equal size"),
        ({"actions": None}, "actions is missing"),
        ({"reward": torch.zeros(T, B, N)}, "reward is no entry of a rollout; did you mean 'rewards'"),
        ({"truncated": torch.zeros(T, N)}, "truncated has the shape"),
        ({"hstates": NETWORK.init_hidden_states(1)}, "hstates hold"),
        (
            {"truncated": torch.ones(T, B), "final_obs": torch.full((T, B, N, D), np.nan)},
            "final_obs is nan",
        ),
    ],
)
def test_learning_refuses(given, told):
    with pytest.raises(ValueError, match=f"^{told}"):
        SableTrainer(CONFIG).train_step(rollout(**given))


@pytest.mark.usefixtures("unchecked")
def test_learning_refuses_what_is_no_rollout():
    for given, told in ((None, "rollout_data is NoneType"), ([1], "rollout_data is list"), ({3: 1}, "3 is no entry")):
        with pytest.raises(ArgumentError, match=f"^{told}"):
            SableTrainer(CONFIG).train_step(given)


def test_lists_of_steps_are_a_rollout_too_and_nobody_writes_to_it():
    torch.manual_seed(0)
    data = rollout(observations=torch.randn(T, B, N, D), rewards=torch.randn(T, B, N))
    hstates = NETWORK.init_hidden_states(B)
    before = {name: each.clone() for name, each in data.items()}
    learned = []
    for given in (data, {name: list(each) for name, each in data.items()}):
        torch.manual_seed(0)
        learned.append(SableTrainer(CONFIG).train_step({**given, "hstates": hstates}))
    assert learned[0] == learned[1]
    assert all(torch.equal(each, data[name]) for name, each in before.items())
    assert not any(each.any() for each in hstates.values())


class Told(SableTrainer):
    """Learns from what `answer` makes of the loss and its metrics."""

    def __init__(self, answer):
        super().__init__(CONFIG)
        self.answer = answer

    def ppo_loss(self, batch):
        return self.answer(*super().ppo_loss(batch))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda loss, _: loss, "ppo_loss must return the loss, a scalar with gradient, and a dict"),
        (lambda loss, metrics: (loss.expand(3), metrics), "ppo_loss must return"),
        (lambda loss, metrics: (loss.detach(), metrics), "ppo_loss must return"),
        (lambda loss, _: (loss, {"note": "x"}), "note of ppo_loss is 'x': it must be one number"),
        (lambda loss, _: (loss, {"all": torch.zeros(2)}), "all of ppo_loss is tensor.*: it must be one number"),
    ],
)
def test_a_loss_of_ones_own_that_cannot_be(answer, told):
    with pytest.raises(ArgumentError, match=f"^{told}"):
        Told(answer).train_step(rollout())


@pytest.mark.usefixtures("unchecked")
def test_metrics_of_ones_own_are_numbers_of_any_kind():
    mine = {"whole": 3, "flag": True, "mean": np.float64(0.5), "counts": torch.tensor(7)}
    found = Told(lambda loss, metrics: (loss, metrics | mine)).train_step(rollout())
    assert {name: found[name] for name in mine} == {"whole": 3, "flag": 1, "mean": 0.5, "counts": 7}


def test_learning_refuses_more_minibatches_than_environments_only_with_memory():
    with pytest.raises(ValueError, match=r"^num_minibatches is 4, this rollout has 2 environments"):
        SableTrainer(replace(CONFIG, num_minibatches=4)).train_step(rollout())
    SableTrainer(replace(CONFIG, num_minibatches=4, memory=False)).train_step(rollout())


class Timid:
    """An environment that never begins."""

    def step(self, actions):
        return None


class Odd:
    """An environment that answers as told."""

    def __init__(self, answer=(), shape=(N, D)):
        self.answer, self.shape = answer, shape

    def reset(self):
        return np.zeros(self.shape), {}

    def step(self, actions):
        return self.answer


@pytest.mark.parametrize(
    ("env", "error", "told"),
    [
        (Odd((1, 2)), EnvError, r"Odd.step\(\) does not answer as expected"),
        (Odd((np.zeros((N, D)), [1, 2], True, {})), EnvError, "returned as rewards: shape"),
        (Odd((np.zeros((N, D)), np.nan, True, {})), EnvError, r"returned the rewards nan"),
        (Odd(shape=(N, D + 1)), ArgumentError, r"obs has the shape \[1, 3, 6\]"),
        (
            Odd(({"agent_0": np.zeros(D)}, 0.0, False, {})),
            EnvError,
            r"Odd.step\(\) returned a dict as observations",
        ),
        (Odd(([np.zeros(D), np.zeros(D + 1)], 0.0, False, {})), EnvError, "returned a list as observations"),
        (object(), EnvError, r"^an environment has reset\(\), .* This object has no reset\(\) and no step\(\)$"),
        (Timid(), EnvError, r"This Timid has no reset\(\)$"),
        (Timid, EnvError, "^Timid is a class: hand over an environment that was made of it"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_evaluation_refuses_an_environment_that_answers_otherwise(env, error, told):
    with pytest.raises(error, match=told):
        SableTrainer(CONFIG).evaluate(env, 1)


def test_evaluation_takes_five_answers_and_one_flag_an_agent():
    ends = np.ones(N, bool)
    scores = SableTrainer(CONTINUOUS).evaluate(Odd((np.zeros((N, D)), np.arange(3.0), ends, ~ends, {})), 2)
    assert (scores["return"], scores["agent_return"], scores["length"]) == (3.0, 1.0, 1.0)
