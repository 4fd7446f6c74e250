"""Any game written in JAX as a VectorEnv: the contract, memory that nobody writes over, one compilation, states."""

import textwrap
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from martes.data import Continuous, Discrete, Image, TeamSpec, TimeStep, Vector
from martes.envs.adapters import jax_env
from martes.envs.adapters.jax_env import JaxEnv, JaxGame, Outcome
from martes.envs.pace import drawn_actions
from martes.errors import EnvError, require
from martes.training.packing import Packing, unpacked
from tests.envs.contract import Promise, assert_same, check, played

pytestmark = [pytest.mark.extras, pytest.mark.usefixtures("compiled_once")]


def numpy_of_jax():
    return require("jax.numpy", "jax")


class Patrol:
    """A scout who may leave the team alone and a guard; the state has leaves of every kind, some weakly typed."""

    def __init__(self, **odd: object) -> None:
        self.odd = odd
        groups = {"scout": (0,), "guard": (1,)}
        self.team = TeamSpec(
            ("scout_0", "guard_0"),
            groups,
            {name: {"map": Image((1, 2, 3)), "pulse": Vector(size)} for name, size in (("scout", 3), ("guard", 2))},
            {"scout": Discrete(4), "guard": Discrete(2)},
            state=Vector(1),
            episode_limit=9,
            masks_actions=True,
        )

    def reset(self, key):
        jax, jnp = require("jax", "jax"), numpy_of_jax()
        state = {
            "key": jax.random.split(key)[0],
            "places": jax.random.randint(key, (2,), 0, 200).astype(jnp.uint8),
            "away": jnp.array(False),
            "clock": 0,  # weakly typed; a number after the first step
            "pay": 0.5,
        }
        return state, self.seen(state)

    def step(self, key, state, action):
        jax, jnp = require("jax", "jax"), numpy_of_jax()
        ends = (action[0] == 3) & ~state["away"]
        clock = state["clock"] + 1
        own, away = jax.random.split(state["key"])[0], state["away"] | ends
        after = {**state, "key": own, "away": away, "clock": clock, "pay": state["pay"] * 1.5}
        luck = jax.random.uniform(key)
        return Outcome(
            after,
            {**self.seen(after), **self.odd},
            reward={"scout_0": luck, "guard_0": after["pay"]},
            over=away & (luck < 0.3),
            discount=jnp.stack([~ends, True]),
            stats={"seen": clock},
        )

    def seen(self, state):
        jnp = numpy_of_jax()
        pulse = jnp.stack([state["clock"] * 1.0, state["pay"], 1])
        return {
            "obs/map": jnp.broadcast_to(state["places"][0], (2, 1, 2, 3)),
            "obs/pulse": {"scout_0": pulse, "guard_0": pulse[:2]},
            "agent_mask": {"scout_0": ~state["away"], "guard_0": True},
            "state": state["pay"][None] if hasattr(state["pay"], "shape") else jnp.array([state["pay"]]),
            "action_mask": {"scout_0": jnp.array([1, 0, 1, 1]), "guard_0": jnp.ones(2)},
        }


class Echo:
    """Shows the real numbers that were done last."""

    team = TeamSpec(("a_0", "a_1"), {"a": (0, 1)}, {"a": Vector(2)}, {"a": Continuous((-1, -1), (1, 1))})

    def reset(self, key):
        state = numpy_of_jax().zeros((2, 2))
        return state, {"obs": state}

    def step(self, key, state, action):
        return Outcome(action, {"obs": state}, 0.0)  # the state is the very array that was given


def steps_of(env: JaxEnv, count: int, seed: int = 0) -> list[TimeStep]:
    return played(env, seed, count)


def test_the_contract_is_kept():
    game = Patrol()
    check(Promise(lambda copies, limit: JaxEnv(game, copies, limit=limit), tells_state=True, draws=False, steps=60))


def test_the_example_of_the_docstring_is_all_that_a_game_needs():
    jax = require("jax", "jax")
    assert jax_env.__doc__
    code = textwrap.dedent(jax_env.__doc__.partition("\n\n")[2].partition("\n\n")[2])
    names = {"jax": jax, "jnp": jax.numpy, **vars(jax_env), "Vector": Vector, "Discrete": Discrete}
    exec(code, names)
    make = names["meet"]
    assert callable(make)
    env = make(16, "cpu")
    assert isinstance(env, JaxEnv)
    met = 0
    for before, step in zip(run := steps_of(env, 30), run[1:], strict=False):
        shown = step.seen["obs"] if step.final is None else step.final["obs"]
        together = shown[..., 0] == shown[..., 1]
        assert torch.equal(step.reward, together.float())
        assert torch.equal(step.discount, 1 - together.float())
        assert ((shown - before.seen["obs"]).abs() <= 1).all()
        met += int(together[:, 0].sum())
    assert met


def test_nothing_compiles_twice(caplog: pytest.LogCaptureFixture):
    jax = require("jax", "jax")
    env = JaxEnv(Patrol(), 5)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        steps = steps_of(env, 12)
        assert any(step.cut.any() for step in steps), "no copy was ever renewed"
        env.load_state_dict(env.state_dict())
        env.step(drawn_actions(env.team, steps[-1], torch.Generator()))
        env.reset(1)
    compiled = [each.getMessage() for each in caplog.records if each.getMessage().startswith("Compiling jit(_")]
    assert len([each for each in compiled if "_advanced" in each]) == 1, compiled
    assert len([each for each in compiled if "_renewed" in each]) == 1, compiled


def test_later_steps_leave_earlier_ones_as_they_were():
    env = JaxEnv(Patrol(), 3)
    generator = torch.Generator().manual_seed(0)
    kept, copies = [env.reset(0)], []
    for _ in range(25):
        copies.append(copied(kept[-1]))
        kept.append(env.step(drawn_actions(env.team, kept[-1], generator)))
    saved = env.state_dict()
    fixed = {name: leaf.clone() for name, leaf in leaves_of(saved).items()}
    env.step(drawn_actions(env.team, kept[-1], generator))
    for t, (step, copy) in enumerate(zip(kept, copies, strict=False)):
        assert_same(step, copy, f"after later steps (step {t})")
    assert all(torch.equal(leaf, fixed[name]) for name, leaf in leaves_of(saved).items())


def copied(step: TimeStep) -> TimeStep:
    def clones(fields: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
        return None if fields is None else {name: value.clone() for name, value in fields.items()}

    seen, final = clones(step.seen), clones(step.final)
    assert seen is not None
    return TimeStep(
        seen, step.start.clone(), step.reward.clone(), step.discount.clone(), step.cut.clone(), final, step.stats
    )


def leaves_of(state: dict[str, object]) -> dict[str, Tensor]:
    leaves = state["leaves"]
    assert isinstance(leaves, dict)
    return leaves


def test_an_action_may_be_written_over_once_it_was_done():
    env = JaxEnv(Echo(), 2)
    env.reset(0)
    action = torch.rand(2, 2, 2)
    done = action.clone()
    env.step(action)
    action.fill_(9)
    assert torch.equal(env.step(action).seen["obs"], done)


def test_actions_may_lie_anywhere_and_be_of_any_kind():
    game, memory = Patrol(), torch.zeros(40, dtype=torch.int64)
    env = JaxEnv(game, 3)
    action = torch.tensor([[0, 1], [2, 0], [3, 1]])
    views = [action, action.int(), action.double(), action.t().contiguous().t()]
    views += [memory[offset : offset + 6].view(3, 2).copy_(action) for offset in (1, 9)]  # askew in memory
    views.append(torch.stack([action] * 2, -1)[..., 1].expand(3, 2))
    results = []
    for view in views:
        env.reset(4)
        results.append(env.step(view))
    for result in results[1:]:
        assert_same(results[0], result, "with the same actions, laid out otherwise")
    assert results[0].discount[2, 0] == 0, "the scout of copy 2 left"


def test_a_saved_state_survives_its_file_and_goes_on_bit_for_bit():
    game = Patrol()
    env = JaxEnv(game, 3)
    step = steps_of(env, 7)[-1]
    packing = Packing()
    form = packing.packed(env.state_dict(), "env")
    held = {name: tensor.contiguous() for name, tensor in packing.tensors.items()}
    state = unpacked(form, safetensors.torch.load(safetensors.torch.save(held)))
    assert isinstance(state, dict)
    twin = JaxEnv(game, 3)
    shown = twin.load_state_dict(state)
    assert torch.equal(shown.seen["obs/pulse"], step.seen["obs/pulse"])
    generator = torch.Generator().manual_seed(3)
    for t in range(20):
        action = drawn_actions(env.team, step, generator)
        step = env.step(action)
        assert_same(step, twin.step(action), f"{t + 1} steps after the state was loaded")


def test_states_of_others_are_refused():
    env = JaxEnv(Patrol(), 3)
    with pytest.raises(EnvError, match="reset"):
        env.state_dict()
    env.reset(0)
    with pytest.raises(EnvError, match="another number of copies than 2"):
        JaxEnv(Patrol(), 2).load_state_dict(env.state_dict())
    with pytest.raises(EnvError, match="missing"):
        JaxEnv(Echo(), 3).load_state_dict(env.state_dict())
    with pytest.raises(EnvError, match="leaves"):
        env.load_state_dict({"state": torch.zeros(3)})


def test_seeds_copies_and_episodes_differ():
    env = JaxEnv(Patrol(), 4)
    first = [env.reset(seed).seen["obs/map"][:, 0, 0, 0, 0].tolist() for seed in (0, 1, 0)]
    assert first[0] == first[2] != first[1]
    assert len(set(first[0])) > 1
    opened = {tuple(step.seen["obs/map"][:, 0, 0, 0, 0].tolist()) for step in steps_of(env, 30) if step.start.any()}
    assert len(opened) > 3


def test_who_leaves_terminates_once_and_an_over_game_ends_for_all():
    env, alone, over, late = JaxEnv(Patrol(), 32), 0, 0, 0
    there = torch.ones(32, 2, dtype=torch.bool)
    for step in steps_of(env, 40)[1:]:
        left = (step.discount[:, 0] == 0) & ~step.cut
        assert there[left, 0].all(), "nobody leaves twice"
        assert not step.seen["agent_mask"][left, 0].any()
        assert not step.seen["obs/pulse"][left, 0].any()
        ended = step.discount[:, 1] == 0
        assert (step.discount[ended] == 0).all()
        assert step.cut[ended].all()
        by_limit = step.cut & ~ended
        if step.cut.any():
            assert (step.stats["seen"][by_limit] == 9).all(), "cut by the limit of nine steps, and only then"
            assert step.final is not None
            assert torch.equal(step.final["state"][:, 0], 0.5 * 1.5 ** step.stats["seen"])
            assert (step.seen["obs/pulse"][step.cut, 1, 0] == 0).all(), "every copy that was cut begins anew"
            assert all(torch.equal(step.final[name][~step.cut], step.seen[name][~step.cut]) for name in step.seen)
        alone, over, late = alone + int(left.sum()), over + int(ended.sum()), late + int(by_limit.sum())
        there = step.seen["agent_mask"]
    assert min(alone, over, late) > 0


def test_numbers_of_double_width_are_of_the_team_s_kind():
    with require("jax", "jax").enable_x64(True):
        step = steps_of(JaxEnv(Patrol(), 2), 3)[-1]
    assert step.reward.dtype == step.seen["obs/pulse"].dtype == torch.float32


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ({"state": np.zeros(3, np.float32)}, r"Patrol gives state of shape \[3\], its team declares \[1\]"),
        ({"obs/pulse": np.zeros((2, 1))}, r"obs/pulse of shape \[2, 1\], its team declares \[2, 3\]"),
        ({"obs/pulse": {"scout_0": np.zeros(3)}}, "no obs/pulse for agent 'guard_0'"),
        ({"smell": np.zeros(2)}, "shows .*smell.*, its team declares"),
    ],
)
def test_what_does_not_fit_the_team_is_named(odd: dict[str, object], told: str):
    env = JaxEnv(Patrol(**odd), 2)
    env.reset(0)
    with pytest.raises(EnvError, match=told):
        env.step(torch.zeros(2, 2, dtype=torch.int64))


def test_misuse_is_told():
    with pytest.raises(EnvError, match="at least one copy"):
        JaxEnv(Echo(), 0)
    env = JaxEnv(Echo(), 2)
    with pytest.raises(EnvError, match="reset"):
        env.step(torch.zeros(2, 2, 2))
    env.reset(0)
    with pytest.raises(EnvError, match=r"\[2, 2\], this task takes \[2, 2, 2\]"):
        env.step(torch.zeros(2, 2))
    with pytest.raises(EnvError, match="Echo has no picture"):
        env.render()
    with pytest.raises(EnvError, match="no copy 2"):
        env.render(2)
    env.close()
    with pytest.raises(EnvError, match="reset"):
        env.step(torch.zeros(2, 2, 2))


def test_a_limit_shortens_episodes_and_a_game_is_known_by_its_members():
    assert JaxEnv(Patrol(), 1, limit=4).team.episode_limit == 4
    assert JaxEnv(Patrol(), 1, limit=40).team.episode_limit == 9
    assert isinstance(Patrol(), JaxGame)
    assert not isinstance(SimpleNamespace(team=Echo.team), JaxGame)
