"""VMAS as a VectorEnv: the contract, resets of some copies against twins, chance of its own, every kind of action."""

import inspect

import numpy as np
import pytest
import torch
from torch import Tensor

from martes.data import Continuous, Discrete, MultiDiscrete, Vector
from martes.envs.adapters.vmas import VmasEnv, vmas
from martes.envs.adapters.vmas_simulation import plain, reopened
from martes.envs.pace import drawn_actions
from martes.errors import ConfigError, EnvError
from tests.envs.contract import Promise, assert_same, check, played

pytestmark = [
    pytest.mark.extras,
    pytest.mark.filterwarnings("ignore"),  # VMAS's own
]
CONTRACT = {
    "balance": {},  # ends copy by copy
    "transport": {"continuous": False},
    "simple_spread": {"n_agents": 2},
    "simple_speaker_listener": {"continuous": False, "multi_discrete": True},  # unequal, with messages
    "simple_reference": {"continuous": False},
    "simple_world_comm": {},
    "diff_drive": {},  # groups with unequal actions
    "wind_flocking": {},  # its resets leave something behind
    "wheel": {},
}


@pytest.mark.usefixtures("unchecked", "global_randomness_unused")
@pytest.mark.parametrize("task", CONTRACT)
def test_the_contract_is_kept(task: str):
    def make(copies: int, limit: int | None) -> VmasEnv:
        return vmas(task, copies, limit=limit, **CONTRACT[task])

    check(Promise(make, tells_state=False, steps=60))


def test_teams_are_what_the_scenario_tells():
    team = vmas("simple_speaker_listener", 2, limit=9).team
    assert team.agents == ("speaker_0", "listener_0")
    assert team.observation == {"speaker": Vector(3), "listener": Vector(11)}
    assert team.action["speaker"] == Continuous((-1, -1, 0, 0, 0), (1, 1, 1, 1, 1))  # forces, then the message
    assert team.episode_limit == 9
    assert vmas("balance", 1, continuous=False).team.action == {"agent": Discrete(9)}
    several = vmas("simple_speaker_listener", 1, continuous=False, multi_discrete=True)
    assert several.team.action == {"speaker": MultiDiscrete((3, 3, 3)), "listener": MultiDiscrete((3, 3))}
    assert vmas("vel_control", 1).team.groups == {"agent": (0, 1, 2)}  # there, names are "agent 0", ...


def test_a_dict_of_parts_is_one_vector():
    team = vmas("football", 2, dict_obs=True, ai_red_agents=False, n_blue_agents=2, n_red_agents=2).team
    plain_team = vmas("football", 2, ai_red_agents=False, n_blue_agents=2, n_red_agents=2).team
    assert team.observation == plain_team.observation


def rollout(task: str, ended: Tensor | None, copies: int = 5, steps: int = 5) -> list[Tensor]:
    """Observations and rewards of a fixed run, with new episodes where `ended` in the middle of it."""
    env = vmas(task, copies)
    step, simulation = env.reset(3), env._simulation
    drawn, told = torch.Generator().manual_seed(0), list[Tensor]()
    for t in range(2 * steps):
        if t == steps and ended is not None:
            torch.manual_seed(99)
            told.append(torch.stack(reopened(simulation, ended), 1))
        elif t == steps:
            told.append(told[-2])
        torch.manual_seed(t)
        observed, rewards, *_ = plain(simulation.step)(env._by_agent(drawn_actions(env.team, step, drawn)))
        told += [torch.stack(observed, 1), torch.stack(rewards, 1)]
    return told


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("task", ["balance", "transport", "dropout", "discovery", "navigation", "ball_trajectory"])
def test_copies_that_end_begin_anew_and_the_others_do_not_notice(task: str):
    """Some copies restart: they go on as in a twin where all restart, the others as in a twin where none does."""
    ended = torch.tensor([True, False, True, False, False])
    some, none, every = rollout(task, ended), rollout(task, None), rollout(task, torch.ones_like(ended))
    assert not torch.allclose(none[-2], every[-2]), "a restart changes nothing here: this test sees nothing"
    for ours, left, fresh in zip(some[10:], none[10:], every[10:], strict=True):
        torch.testing.assert_close(ours[ended], fresh[ended])
        torch.testing.assert_close(ours[~ended], left[~ended])


@pytest.mark.usefixtures("unchecked")
def test_an_end_is_terminal_and_a_limit_is_not():
    ends = [step for step in played(vmas("balance", 60), 0, 40) if step.final is not None and not step.cut.all()]
    assert len(ends) > 3
    for step in ends:  # the package falls in some copies before the others
        assert step.final is not None
        assert torch.equal(step.discount, (~step.cut).float()[:, None].expand(60, 3))
        assert torch.equal(step.seen["obs"][~step.cut], step.final["obs"][~step.cut])
        assert not torch.isclose(step.seen["obs"][step.cut], step.final["obs"][step.cut]).all(-1).any()
        assert set(step.stats) == {"pos_rew", "ground_rew"}
        assert step.stats["ground_rew"][step.cut].min() == -10  # what a fall costs
    *before, last = played(vmas("balance", 4, limit=2), 0, 2)
    assert not any(step.cut.any() for step in before)
    assert last.cut.all()
    assert (last.discount == 1).all()


@pytest.mark.usefixtures("unchecked")
def test_who_plays_on_is_not_shown_a_second_noise():
    env = vmas("asym_joint", 3)  # draws noise whenever it is asked what is seen
    first = env.reset(0)
    env._simulation.scenario.done = lambda: torch.tensor([True, False, True])
    step = env.step(drawn_actions(env.team, first, torch.Generator()))
    assert step.final is not None
    assert torch.equal(step.seen["obs"][1], step.final["obs"][1])
    assert not torch.equal(step.seen["obs"][0], step.final["obs"][0])


@pytest.mark.usefixtures("unchecked", "global_randomness_unused")
def test_environments_do_not_disturb_each_other():
    alone = played(vmas("dropout", 3), 4, 12)
    env, other = vmas("dropout", 3), vmas("dropout", 3)
    generator = torch.Generator().manual_seed(4)
    step = env.reset(4)
    assert_same(step, alone[0], "at the start")
    for t in range(1, 13):
        other.reset(t)
        step = env.step(drawn_actions(env.team, step, generator))
        assert_same(step, alone[t], f"at step {t}")


@pytest.mark.usefixtures("unchecked")
def test_its_seed_is_that_of_vmas():
    import vmas as package

    env = vmas("balance", 3)
    word = int(np.random.SeedSequence(8).generate_state(1)[0]) >> 1
    theirs = torch.stack(package.make_env("balance", 3, seed=word).reset(seed=word), 1)
    assert torch.equal(env.reset(8).seen["obs"], theirs)


@pytest.mark.usefixtures("unchecked", "global_randomness_unused")
def test_a_step_that_fails_leaves_the_global_generators_alone():
    env = vmas("simple_spread", 2)
    env.reset(0)
    with pytest.raises(EnvError, match="vmas:simple_spread: an action is not a number"):
        env.step(torch.full((2, 3, 2), torch.nan))


@pytest.mark.usefixtures("unchecked")
def test_actions_beyond_their_bounds_by_rounding_are_taken():
    env = vmas("simple_spread", 2)
    env.reset(0)
    env.step(torch.full((2, 3, 2), 1 + 1e-6))


@pytest.mark.usefixtures("unchecked", "global_randomness_unused")
def test_a_picture_or_what_to_install():
    env = vmas("balance", 2)
    env.reset(0)
    try:
        picture = env.render(1)
    except EnvError as error:
        assert "xvfb-run" in str(error)
    else:
        assert picture.std() > 0
    env.close()


def test_bad_input_is_told_with_its_cure():
    with pytest.raises(ConfigError, match="no task 'balanse' of vmas; did you mean 'balance'"):
        vmas("balanse", 2)
    with pytest.raises(ConfigError, match="vmas:balance has no option 'n_agent'; did you mean 'n_agents'"):
        vmas("balance", 2, n_agent=3)
    with pytest.raises(ConfigError, match=r"vmas:balance cannot be made with .*'n_agents': 1"):
        vmas("balance", 2, n_agents=1)
    with pytest.raises(ConfigError, match="multi_discrete"):
        vmas("balance", 2, multi_discrete=True)
    env = vmas("balance", 2)
    with pytest.raises(EnvError, match="reset"):
        env.step(torch.zeros(2, 3, 2))
    env.reset(0)
    with pytest.raises(EnvError, match=r"\[2, 3\], this task takes \[2, 3, 2\]"):
        env.step(torch.zeros(2, 3))


def test_the_options_are_documented():
    from martes.data.options import options_of

    options = options_of(vmas)
    assert all(options[name].doc for name in ("task", "limit", "continuous", "multi_discrete"))
    assert "options" in inspect.signature(vmas).parameters
