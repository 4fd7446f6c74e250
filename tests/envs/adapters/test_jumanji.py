"""Jumanji's tasks: the contract, number for number with the suite, what is terminal and what a time limit, planes."""

import pytest
import torch

from martes.data import Continuous, Discrete, Image, Vector
from martes.envs.adapters.jumanji import jumanji
from martes.envs.pace import drawn_actions
from martes.errors import ConfigError, require
from tests.envs.adapters.compiled import MARKS, check_compiled
from tests.envs.contract import played

pytestmark = MARKS
TINY = {"shelf_rows": 1, "column_height": 3, "num_agents": 2, "request_queue_size": 2}
CONTRACT = {
    "LevelBasedForaging-v0": {"grid_observation": True, "fov": 2},
    "RobotWarehouse-v0": TINY,
    "Connector-v3": {"grid_size": 6, "num_agents": 3},
    "Cleaner-v0": {"num_rows": 5, "num_cols": 5},
    "SearchAndRescue-v0": {"num_targets": 3},
}


@pytest.mark.usefixtures("global_randomness_unused")
@pytest.mark.parametrize("task", CONTRACT)
def test_the_contract_is_kept(task: str):
    check_compiled(jumanji(task, 1, **CONTRACT[task]))


def test_foraging_is_the_suite_s_number_for_number():
    jax, env = (
        require("jax", "jax"),
        jumanji("LevelBasedForaging-v0", 64, num_food=1, grid_size=5, fov=5, force_coop=False),
    )
    raw, split = vars(env.game)["_env"], jax.random.split
    act = jax.jit(jax.vmap(raw.step))
    state, shown = jax.vmap(raw.reset)(split(split(jax.random.PRNGKey(3))[1], 64))
    step, generator, loaded, over, late = env.reset(3), torch.Generator().manual_seed(0), 0, 0, 0
    open_ = torch.ones(64, dtype=torch.bool)  # the suite's copies go on past their end
    for _ in range(100):
        action = drawn_actions(env.team, step, generator)
        step = env.step(action)
        state, shown = act(state, action.int().numpy())
        final = step.seen if step.final is None else step.final
        seen, mask, reward, discount, last = (
            torch.from_dlpack(each)
            for each in (
                shown.observation.agents_view, shown.observation.action_mask, shown.reward, shown.discount, shown.last()
            )
        )  # fmt: skip
        assert torch.equal(final["obs"][open_], seen[open_].float())
        assert torch.equal(final["action_mask"][open_], mask[open_])
        assert torch.equal(step.reward[open_], reward[open_])
        assert torch.equal(step.discount[open_], discount[open_])
        assert torch.equal(step.cut[open_], last[open_])
        loaded += int((step.reward[open_] > 0).sum())
        over += int((step.discount[open_, 0] == 0).sum())
        late += int((step.cut & open_ & (step.discount[:, 0] == 1)).sum())
        if step.cut.any():
            eaten = torch.from_dlpack(shown.extras["percent_eaten"])
            assert torch.equal(step.stats["percent_eaten"][open_ & step.cut], eaten[open_ & step.cut])
        open_ &= ~step.cut
    assert min(loaded, over, late) > 0
    assert not open_.any()


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("RobotWarehouse-v0", TINY),
        ("Cleaner-v0", {"num_rows": 5, "num_cols": 5}),
        ("SearchAndRescue-v0", {"num_targets": 40}),
    ],
)
def test_a_time_limit_that_the_suite_calls_the_end_is_not_terminal(task: str, options: dict[str, object]):
    env = jumanji(task, 8, time_limit=3, **options)
    assert env.team.episode_limit == 3
    steps = played(env, 0, 3)
    assert steps[3].cut.all()
    assert (steps[3].discount == 1).any(), "where the limit alone cut"
    assert all((step.discount[~step.cut] == 1).all() for step in steps)


def test_a_collision_in_the_warehouse_is_terminal_even_on_the_last_step():
    env = jumanji("RobotWarehouse-v0", 64, time_limit=4, **{**TINY, "num_agents": 8})
    steps = played(env, 0, 4)
    for step in steps:
        assert step.cut[(step.discount == 0).all(1)].all()
    first = ~torch.stack([step.cut for step in steps[:4]]).any(0)  # still in their first episode
    assert steps[4].cut[first].all()
    assert set(steps[4].discount[first, 0].tolist()) == {0.0, 1.0}


def test_who_is_connected_or_blocked_terminates_alone():
    env, alone = jumanji("Connector-v3", 32, grid_size=6, num_agents=3), 0
    there = torch.ones(32, 3, dtype=torch.bool)
    for step in played(env, 0, 60)[1:]:
        left = (step.discount == 0) & ~step.cut[:, None]
        assert there[left].all(), "nobody leaves twice"
        assert not step.seen["agent_mask"][left].any()
        assert not step.seen["obs"][left].any()
        alone += int(left.sum())
        there = step.seen["agent_mask"]
    assert alone


def test_boards_are_planes_with_one_s_own_place_on_the_last():
    wires, floor = jumanji("Connector-v3", 4, grid_size=6, num_agents=3), jumanji("Cleaner-v0", 4)
    assert wires.team.observation["agent"] == Image((5, 6, 6), torch.float32)
    assert floor.team.observation["agent"] == Image((4, 10, 10), torch.float32)
    counts = wires.reset(0).seen["obs"].sum((-1, -2))  # env agent plane
    assert torch.equal(counts, torch.tensor([0.0, 3, 3, 1, 1]).expand(4, 3, 5))
    planes = floor.reset(0).seen["obs"]
    assert (planes[:, :, 2, 0, 0] == 3).all(), "all three stand in the first corner"
    assert (planes[:, :, 3].sum((-1, -2)) == 1).all()
    assert not (planes[:, :, 0] * planes[:, :, 1]).any(), "no dirty walls"
    heads = wires.reset(0).seen["obs"][:, :, 3]
    assert torch.equal(heads.sum(1), wires.reset(0).seen["obs"][:, 0, 1]), "own heads are all heads"


def test_searchers_act_in_real_numbers_before_a_central_critic():
    team = jumanji("SearchAndRescue-v0", 2).team
    assert team.action["agent"] == Continuous((-1, -1), (1, 1))
    assert (team.state, team.observation["agent"], team.masks_actions) == (Vector(6), Vector(384), False)
    assert jumanji("LevelBasedForaging-v0", 1, num_agents=3, time_limit=7).team.agents == tuple(
        f"agent_{index}" for index in range(3)
    )
    assert jumanji("RobotWarehouse-v0", 1).team.action["agent"] == Discrete(5)


@pytest.mark.parametrize(
    ("task", "options", "told"),
    [
        ("Foraging-v0", {}, "no task 'Foraging-v0' of jumanji; did you mean 'LevelBasedForaging-v0'"),
        ("Connector-v1", {}, "did you mean 'Connector-v3'"),
        ("Snake-v1", {}, "no task 'Snake-v1'"),
        ("Connector-v3", {"grid": 5}, "unknown key 'env.grid'; did you mean 'grid_size'"),
        ("RobotWarehouse-v0", {"shelf_columns": 2}, "cannot be made with shelf_columns=2"),
    ],
)
def test_what_the_suite_does_not_have_is_named(task: str, options: dict[str, object], told: str):
    with pytest.raises(ConfigError, match=told):
        jumanji(task, 1, **options)
