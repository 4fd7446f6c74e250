"""JaxMARL's tasks: the contract, number for number with the suite, who dies, who waits, what is terminal, pictures."""

import pytest
import torch

from martes.data import Continuous, Discrete, Image, Vector
from martes.envs.adapters.jaxmarl import FAMILIES, jaxmarl, overcooked, smax
from martes.envs.catalogue import make_env
from martes.envs.pace import drawn_actions
from martes.errors import ConfigError, EnvError, require
from tests.envs.adapters.compiled import MARKS, check_compiled
from tests.envs.contract import played

pytestmark = MARKS
SMALL = {"num_colors": 2, "num_ranks": 2, "hand_size": 2, "max_info_tokens": 3, "max_life_tokens": 1}
CONTRACT = {
    "HeuristicEnemySMAX": {},
    "MPE_simple_spread_v3": {"action_type": "Continuous"},
    "MPE_simple_speaker_listener_v4": {},
    "overcooked": {},
    "hanabi": SMALL,
    "switch_riddle": {},
}
DRAWN = ("HeuristicEnemySMAX", "MPE_simple_spread_v3", "MPE_simple_speaker_listener_v4", "overcooked")


@pytest.mark.usefixtures("global_randomness_unused")
@pytest.mark.parametrize("task", CONTRACT)
def test_the_contract_is_kept(task: str):
    check_compiled(jaxmarl(task, 1, **CONTRACT[task]), draws=task in DRAWN, steps=130)


def test_smax_is_the_suite_s_number_for_number():
    jax, suite = require("jax", "jax"), require("jaxmarl", "jax")
    scenario = require("jaxmarl.environments.smax", "jax").map_name_to_scenario("3m")
    raw, env = suite.make("HeuristicEnemySMAX", scenario=scenario), smax(4)
    reset, act = jax.jit(jax.vmap(raw.reset)), jax.jit(jax.vmap(raw.step_env))
    split, step = jax.random.split, env.reset(5)
    key, now = split(jax.random.PRNGKey(5))
    seen, state = reset(split(now, 4))
    generator, dead = torch.Generator().manual_seed(0), 0
    for _ in range(40):
        for index, agent in enumerate(raw.agents):
            assert step.seen["obs"][:, index].tolist() == seen[agent].tolist()
        assert step.seen["state"].tolist() == seen["world_state"].tolist()
        dead += int((~step.seen["agent_mask"]).sum())
        action = drawn_actions(env.team, step, generator)
        step = env.step(action)
        key, now, _ = split(key, 3)
        actions = {agent: action[:, index].numpy() for index, agent in enumerate(raw.agents)}
        seen, state, reward, done, _ = act(split(now, 4), state, actions)
        for index, agent in enumerate(raw.agents):
            assert step.reward[:, index].tolist() == reward[agent].tolist()
            there = step.seen if step.final is None else step.final
            assert (~there["agent_mask"][:, index]).tolist() == done[agent].tolist()
        assert step.cut.tolist() == done["__all__"].tolist()
        if step.cut.any():
            break
    assert dead, "nobody died: nothing was seen of the dead"


def test_the_dead_of_smax_are_absent_while_the_others_fight_on():
    env, alone, won, lost = smax(64), 0, 0, 0
    step = env.reset(0)
    for _ in range(110):
        legal = step.seen["action_mask"]
        assert legal.any(-1).all()
        shoots = legal[..., 5:].any(-1)
        step = env.step(torch.where(shoots, 5 + legal[..., 5:].int().argmax(-1), 4))  # at the first in reach, or wait
        final = step.seen if step.final is None else step.final
        there, fights, over = final["agent_mask"], ~step.cut, step.discount[:, 0] == 0
        assert (step.discount[fights] == 1).all(), "the living and the dead of a team that fights on"
        assert step.cut[over].all()
        alone += int((~there[fights]).sum())
        if step.cut.any():
            wins = step.stats["battle_won"].bool()
            assert ((step.reward[:, 0] >= 1) == wins)[step.cut].all(), "a victory pays 1 more"
            assert (~there[over & ~wins]).all(), "the defeated are dead"
            assert over[wins & step.cut].all()
            won, lost = won + int(wins[over].sum()), lost + int((~wins)[over].sum())
    assert min(alone, won, lost) > 0
    assert smax(1, map="5m_vs_6m").team.action["ally"] == Discrete(11)


@pytest.mark.parametrize(
    ("task", "options", "steps"),
    [
        ("HeuristicEnemySMAX", {"max_steps": 3}, 4),
        ("MPE_simple_spread_v3", {"max_steps": 3}, 4),
        ("overcooked", {"max_steps": 3}, 3),
        ("coin_game", {"num_inner_steps": 2, "num_outer_steps": 2}, 4),
        ("switch_riddle", {}, 6),
    ],
)
def test_the_suite_s_time_limit_is_counted_as_it_counts_and_is_not_terminal(
    task: str, options: dict[str, object], steps: int
):
    env = jaxmarl(task, 2, **options)
    assert env.team.episode_limit == steps
    jax = require("jax", "jax")
    raw, idle = vars(env.game)["_env"], 4 if "SMAX" in task else 0
    act, (_, state) = jax.jit(raw.step_env), raw.reset(jax.random.PRNGKey(0))
    step = env.reset(0)
    for t in range(1, steps + 1):
        _, state, _, done, _ = act(jax.random.PRNGKey(t), state, dict.fromkeys(raw.agents, idle))
        step = env.step(torch.full((2, env.team.size), idle))
        assert step.cut.all() == bool(done["__all__"]) == (t == steps)
    assert (step.discount == 1).all()


def test_who_tells_ends_the_riddle():
    env = jaxmarl("switch_riddle", 8)
    step = env.reset(0)
    assert env.team.action["agent"] == Discrete(3)
    inside = step.seen["obs"][..., 0].bool()
    action = torch.where(inside, 2, 0)
    action[4:] = torch.where(inside[4:], 0, 2)  # outside, nobody is heard
    step = env.step(action)
    assert step.cut.tolist() == [True] * 4 + [False] * 4
    assert (step.discount[:4] == 0).all()
    assert (step.reward[:4] == -1).all()


def test_who_waits_in_hanabi_has_only_the_no_op():
    env = jaxmarl("hanabi", 16, **SMALL)
    assert env.team.masks_actions
    paid, scored = torch.zeros(16), 0
    for step in played(env, 0, 60):
        legal = step.seen["action_mask"]
        waits = legal[..., -1]
        assert (waits.sum(1) == 1).all()
        assert (legal.sum(-1) == 1)[waits].all()
        paid += step.reward[:, 0]
        if step.cut.any():
            assert (step.discount[step.cut] == 0).all(), "hanabi ends by its own rules alone"
            assert torch.equal(step.stats["score"][step.cut], paid[step.cut])
            scored += int((paid[step.cut] > 0).sum())
            paid[step.cut] = 0
    assert scored
    box = jaxmarl("hanabi", 1).team
    assert (box.observation["agent"], box.action["agent"]) == (Vector(658), Discrete(21))


def test_overcooked_shows_planes_and_pays_what_is_asked():
    env, shaped = overcooked(64), overcooked(64, shaped_reward=0.5)
    assert env.team.observation["agent"] == Image((26, 4, 5), torch.float32)
    one, other = env.reset(1), shaped.reset(1)
    at = one.seen["obs"][:, :, 0].flatten(2)
    assert (at.sum(-1) == 1).all(), "the first plane is where oneself is"
    generator, seen = torch.Generator().manual_seed(0), set[float]()
    for _ in range(150):
        action = drawn_actions(env.team, one, generator)
        one, other = env.step(action), shaped.step(action)
        assert torch.equal(one.seen["obs"], other.seen["obs"])
        seen |= set((other.reward - one.reward).unique().tolist())
    assert {0.0, 1.5} <= seen <= {0.0, 1.5, 2.5}
    assert overcooked(1, layout="coord_ring").team.observation["agent"] == Image((26, 5, 5), torch.float32)


def test_bodies_of_brax_are_groups_of_equal_joints():
    require("brax", "mabrax")
    env = jaxmarl("halfcheetah_6x1", 2, limit=2)
    assert env.team.groups == {"agent_0": (0, 1, 3, 4), "agent_2": (2, 5)}
    assert env.team.observation == {"agent_0": Vector(9), "agent_2": Vector(8)}
    assert env.team.action["agent_2"] == Continuous((-1,), (1,))
    steps = played(env, 0, 3)
    assert [bool(step.cut.all()) for step in steps] == [False, False, True, False]
    final = steps[2].final
    assert final is not None
    assert (steps[2].discount == 1).all()
    assert not torch.equal(final["state"], steps[2].seen["state"]), "the real last one, not the next first one"
    assert torch.allclose(steps[2].seen["state"], steps[0].seen["state"], atol=0.5), "which lies near the first"


@pytest.mark.parametrize("task", ["hanabi", "coin_game"])
def test_tasks_without_a_picture_say_so(task: str):
    env = jaxmarl(task, 1)
    env.reset(0)
    with pytest.raises(EnvError, match="draws no picture"):
        env.render()


@pytest.mark.parametrize(
    ("task", "options", "told"),
    [
        ("MPE_simple_spreat_v3", {}, "did you mean 'MPE_simple_spread_v3'"),
        ("MPE_simple_spread_v3", {"num_agent": 3}, "unknown key 'env.num_agent'; did you mean 'num_agents'"),
        ("MPE_simple_spread_v3", {"local_ratio": 2.0}, "cannot be made with local_ratio=2.0: local_ratio must be"),
        ("HeuristicEnemySMAX", {"map_name": "3s5zz"}, "SMAX has no map '3s5zz'; did you mean '3s5z'"),
        ("HeuristicEnemySMAX", {"atack_mode": "closest"}, "did you mean 'attack_mode'"),
        ("overcooked", {"layout": "cramped"}, "overcooked has no layout 'cramped'; did you mean 'cramped_room'"),
        ("hanabi", {"num_agents": 9}, "between 2 and 5"),
        ("ant_4x2", {"backened": "spring"}, "ant_4x2 of JaxMARL cannot be made with backened='spring'"),
    ],
)
def test_what_the_suite_does_not_have_is_named(task: str, options: dict[str, object], told: str):
    with pytest.raises(ConfigError, match=told):
        jaxmarl(task, 1, **options)


def test_tasks_are_those_of_the_suite():
    assert set(FAMILIES) <= set(require("jaxmarl", "jax").registered_envs)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("smax-8m", {}, 8),
        ("smax-5m_vs_6m", {}, 5),
        ("smax-3s5z", {}, 8),
        ("smax-smacv2_5_units", {}, 5),
        ("smax-2s3z", {"map": "3s5z"}, 8),
        ("smax-2s3z", {"map_name": "3s5z"}, 8),
    ],
)
def test_the_maps_of_smax_are_named_and_tell_who_has_won(name: str, options: dict[str, object], size: int):
    env = make_env(name, 2, options={**options, "max_steps": 4})
    assert env.team.size == size and env.team.state is not None and env.team.masks_actions
    step, generator = env.reset(0), torch.Generator().manual_seed(0)
    for _ in range(env.team.episode_limit or 0):
        assert step.seen["action_mask"].any(-1).all() and step.seen["state"].isfinite().all()
        step = env.step(drawn_actions(env.team, step, generator))
    assert step.cut.all() and step.stats["battle_won"].tolist() == [0, 0]
    env.close()
