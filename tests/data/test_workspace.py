import multiprocessing
import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from martes.data import Discrete, Field, Image, Memory, MultiDiscrete, Schema, TeamSpec, Vector, Workspace
from martes.data.trees import leaves
from martes.errors import DataError
from martes.maths.masks import masked_mean

TEAM = TeamSpec(
    agents=("a_0", "a_1"),
    groups={"a": (0, 1)},
    observation={"a": {"camera": Image((1, 2, 2)), "vector": Vector(3)}},
    action={"a": Discrete(4)},
    state=Vector(5),
    masks_actions=True,
)
SCHEMA = Schema.from_team(TEAM).extended(
    value=Field(writer="the critic"), number=Field((), torch.int64), role=Field((), torch.int8, "env agent", fill=7)
)


def workspace(time: int = 4, envs: int = 3, memory: Memory = ()) -> Workspace:
    """`number` is the row of its step and environment: 100 · t + env."""
    made = Workspace(SCHEMA, time=time, envs=envs)
    made["number"] = (100 * torch.arange(time)[:, None, None] + torch.arange(envs)[:, None]).expand(-1, -1, 2)
    made["obs/vector"] = torch.randn(time + 1, envs, 2, 3)
    made["role"] = torch.arange(envs)[:, None].expand(-1, 2).to(torch.int8)
    made.memory = memory
    return made


# ------------------------------------------------------------------------------------------------------------- schema
def test_the_fields_of_a_team():
    shapes = {name: (field.shape, field.dtype, field.axes, field.extra_row) for name, field in SCHEMA.items()}
    byte, number, truth = torch.uint8, torch.float32, torch.bool
    assert shapes == {
        "obs/camera": ((1, 2, 2), byte, "time env agent", True),
        "obs/vector": ((3,), number, "time env agent", True),
        "state": ((5,), number, "time env", True),
        "action_mask": ((4,), truth, "time env agent", True),
        "agent_mask": ((), truth, "time env agent", True),
        "start": ((), truth, "time env", True),
        "reward": ((), number, "time env agent", False),
        "discount": ((), number, "time env agent", False),
        "cut": ((), truth, "time env", False),
        "action": ((), torch.int64, "time env agent", False),
        "value": ((), number, "time env agent", False),
        "number": ((), torch.int64, "time env agent", False),
        "role": ((), torch.int8, "env agent", False),
    }


def test_the_action_of_a_multi_discrete_team_has_a_number_for_each_choice():
    team = TeamSpec.of_agents({"a": Vector(1)}, {"a": MultiDiscrete((2, 3, 2))}, masks_actions=True)
    schema = Schema.from_team(team)
    assert (schema["action"].shape, schema["action"].dtype) == ((3,), torch.int64)
    assert schema["action_mask"].shape == (3, 3)


def test_two_writers_of_one_name_are_both_named():
    with pytest.raises(DataError, match="two writers of 'value': the critic and the teacher"):
        SCHEMA.extended(value=Field(writer="the teacher"))
    with pytest.raises(DataError, match="two writers of 'reward': the environment and the bonus"):
        SCHEMA.extended(reward=Field(writer="the bonus"))


def test_a_new_workspace_holds_what_its_fields_are_filled_with():
    made = Workspace(SCHEMA, time=4, envs=3)
    assert made["obs/camera"].shape == (5, 3, 2, 1, 2, 2)
    assert made["reward"].shape == (4, 3, 2)
    assert made["state"].shape == (5, 3, 5)
    assert made["role"].tolist() == [[7, 7]] * 3
    assert made["discount"].all()
    assert made["agent_mask"].all()
    assert not made["reward"].any()
    assert made["obs/camera"].dtype == torch.uint8  # the source's dtype is kept


# ------------------------------------------------------------------------------------------------------------ writing
def test_what_is_written_is_copied():
    made, reward = workspace(), torch.ones(3, 2)
    made.write(0, {"reward": reward})
    reward.zero_()
    assert made["reward"][0].eq(1).all()
    whole = torch.ones(4, 3, 2)
    made["value"] = whole
    whole.zero_()
    assert made["value"].eq(1).all()


def test_a_write_keeps_storage_and_dtype():
    made = workspace()
    places = {name: made[name].data_ptr() for name in made.names}
    made.write(2, {"reward": torch.ones(3, 2).double(), "role": torch.ones(3, 2, dtype=torch.int64)})
    made["number"] = torch.ones(4, 3, 2, dtype=torch.int32)
    assert {name: made[name].data_ptr() for name in made.names} == places
    assert made["role"].dtype == torch.int8


@pytest.mark.parametrize("shape", [(3, 3, 2), (5, 3, 2), (4, 2, 2), (4, 3), (1,)])
def test_a_whole_write_of_another_shape_is_refused(shape: tuple[int, ...]):
    made = workspace()
    with pytest.raises(DataError) as caught:
        made["value"] = torch.ones(shape)
    for told in ("'value'", "[4, 3, 2]", str(list(shape)), "the critic"):
        assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reward", torch.ones(3)),  # would broadcast, wrongly
        ("reward", torch.ones(3, 2, 1)),
        ("number", torch.ones(3, 2)),  # a real number where a whole one belongs
        ("cut", torch.ones(3)),
        ("agent_mask", torch.ones(3, 2, dtype=torch.int64)),
        ("obs/camera", torch.ones(3, 2, 1, 2, 2)),
    ],
)
def test_a_step_of_another_shape_or_kind_is_refused(name: str, value: Tensor):
    made = workspace()
    before = made[name].clone()
    with pytest.raises(DataError, match=rf"'{name}' at step 1 takes .*got \[{value.shape[0]}.* from the environment"):
        made.write(1, {name: value})
    assert torch.equal(made[name], before)


def test_the_last_observation_has_a_step_of_its_own():
    made = workspace()
    made.write(4, {"obs/vector": torch.ones(3, 2, 3)})
    assert made["obs/vector"][4].eq(1).all()
    for t, name in ((4, "reward"), (5, "obs/vector"), (-1, "reward")):
        with pytest.raises(DataError, match=f"'{name}' has steps 0..{3 + (name != 'reward')}, there is no step {t}"):
            made.write(t, {name: torch.ones(made[name].shape[1:])})


# ------------------------------------------------------------------------------------------------------------ reading
def test_several_names_give_a_tuple():
    made = workspace()
    both = made["reward", "value"]
    assert isinstance(both, tuple)
    assert len(both) == 2
    assert both[0] is made["reward"]


def test_two_reads_give_one_tensor():
    made = workspace()
    assert made["obs/vector"] is made["obs/vector"]


@pytest.mark.parametrize(
    "use",
    [
        lambda w: w["valeu"],
        lambda w: w["reward", "valeu"],
        lambda w: w.write(0, {"valeu": torch.ones(3, 2)}),
        lambda w: w.__setitem__("valeu", torch.ones(4, 3, 2)),
        lambda w: w.at(0, ["valeu"]),
        lambda w: w.subset(["valeu"]),
    ],
)
def test_a_misspelt_name_is_told_the_nearest_and_who_writes_what(use: Any):
    with pytest.raises(DataError) as caught:
        use(workspace())
    for told in ("no field 'valeu'", "did you mean 'value'?", "value (the critic)", "action (the policy)"):
        assert told in str(caught.value)


def test_a_step_holds_every_field_that_has_it():
    made = workspace()
    assert set(made.at(0)) == set(made.names)
    assert set(made.at(4)) == {name for name in made.names if SCHEMA[name].extra_row} | {"role"}
    assert made.at(2, ["number"])["number"][:, 0].tolist() == [200, 201, 202]
    assert made.at(2, []) == {}
    assert set(made.at(5)) == set(made.at(-1)) == {"role"}  # there are no such steps
    made.at(2)["reward"].fill_(9)  # a view
    assert made["reward"][2].eq(9).all()


def test_a_step_once_read_stays_a_view_wherever_the_workspace_goes():
    made = workspace(memory=(torch.ones(3),))
    reward, obs = made.at(0)["reward"], made.at(0)["obs/vector"]
    made.share()
    made["reward"] = torch.full((4, 3, 2), 3.0)
    made.write(4, {"obs/vector": torch.full((3, 2, 3), 4.0)})
    made.carry()
    assert reward.eq(3).all()
    assert obs.eq(4).all()
    copies = pickle.loads(pickle.dumps(made)), deepcopy(made), made.rows(torch.arange(3))
    for other in (*copies, made.window(0, 2), made.to("cpu")):
        other.write(0, {"reward": other["reward"][0] + 1})
        assert other.at(0)["reward"].data_ptr() == other["reward"].data_ptr()
        assert all(torch.equal(each.at(0)["reward"], each["reward"][0]) for each in (made, other))
        assert other.mask[0].all()
        assert made.mask[0].any() == (other not in copies)
        made.carry()


def test_the_mask_counts_written_steps_of_agents_that_are_there():
    made = workspace()
    assert not made.mask.any()
    made.write(0, {"obs/vector": torch.zeros(3, 2, 3)})  # seen, but nothing has come of it yet
    assert not made.mask.any()
    made.write(1, {"reward": torch.ones(3, 2)})
    made.write(2, {"reward": torch.ones(3, 2), "agent_mask": torch.tensor([[True, False]] * 3)})
    assert made.mask.any(1).tolist() == [[False, False], [True, True], [True, False], [False, False]]


def test_what_was_never_written_changes_no_loss():
    made = workspace()
    for t in (0, 1):
        made.write(t, {"reward": torch.randn(3, 2), "agent_mask": torch.rand(3, 2) < 0.5})
    before = masked_mean(made["reward"].square(), made.mask)
    made["reward"][~made.mask] = 1e6
    assert masked_mean(made["reward"].square(), made.mask) == before != 0


# ---------------------------------------------------------------------------------------------------------- selecting
@given(st.integers(1, 6), st.data())
def test_every_window_is_a_view_of_its_steps(time: int, data: st.DataObject):
    t0 = data.draw(st.integers(0, time - 1))
    t1 = data.draw(st.integers(t0 + 1, time))
    made = workspace(time, envs=2)
    made.write(t0, {"reward": torch.ones(2, 2)})
    part = made.window(t0, t1)
    assert (part.time, part.envs) == (t1 - t0, 2)
    assert part["number"][:, 0, 0].tolist() == [100 * t for t in range(t0, t1)]
    assert torch.equal(part["obs/vector"], made["obs/vector"][t0 : t1 + 1])  # and what followed
    assert torch.equal(part["role"], made["role"])
    assert torch.equal(part.mask, made.mask[t0:t1])
    part.write(0, {"value": torch.full((2, 2), 5.0)})
    assert made["value"][t0].eq(5).all()


@pytest.mark.parametrize("bounds", [(0, 0), (2, 1), (-1, 2), (0, 5), (4, 5)])
def test_a_window_that_is_not_there_is_refused(bounds: tuple[int, int]):
    with pytest.raises(DataError, match=r"no window .* of 4 steps"):
        workspace().window(*bounds)


def test_only_the_first_window_knows_the_memory():
    made = workspace(memory=torch.randn(3, 2))
    assert made.window(0, 2).memory is made.memory
    later = made.window(1, 4)
    with pytest.raises(DataError, match="or set `workspace"):
        _ = later.memory
    with pytest.raises(DataError, match="memory cannot be shuffled"):
        next(later.minibatches(2, "step"))
    later.memory = torch.zeros(3, 2)
    assert torch.equal(later.memory, torch.zeros(3, 2))
    assert workspace().window(1, 4).memory == ()  # who has none needs none


def test_memory_keeps_no_tape():
    made = workspace(memory=(torch.ones(3, requires_grad=True) * 2,))
    assert not any(leaf.requires_grad for _, leaf in leaves(made.memory))


def test_rows_are_whole_trajectories_with_their_memory():
    memory = {"h": torch.arange(6.0).view(3, 2), "c": (torch.arange(3),)}
    made = workspace(memory=memory)
    made.write(1, {"reward": torch.ones(3, 2), "agent_mask": torch.tensor([[True, True], [True, True], [False, True]])})
    part = made.rows(torch.tensor([2, 0]))
    assert (part.time, part.envs) == (4, 2)
    assert part["number"][0, :, 0].tolist() == [2, 0]
    assert part["role"][:, 0].tolist() == [2, 0]
    assert torch.equal(part["obs/vector"], made["obs/vector"][:, [2, 0]])
    assert torch.equal(part.mask, made.mask[:, [2, 0]])
    assert isinstance(part.memory, dict)
    assert part.memory["h"].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert part.memory["c"][0].tolist() == [2, 0]
    part["value"] = torch.ones(4, 2, 2)  # a copy
    assert not made["value"].any()


@given(st.integers(1, 5), st.integers(1, 7), st.sampled_from(["row", "step"]), st.integers(0, 99), st.data())
def test_minibatches_hold_every_unit_once(time: int, envs: int, by: Any, seed: int, data: st.DataObject):
    units = envs if by == "row" else envs * time
    count = data.draw(st.integers(1, units))
    made = workspace(time, envs)
    made.write(0, {"reward": torch.ones(envs, 2)})
    parts = list(made.minibatches(count, by, torch.Generator().manual_seed(seed)))
    sizes = [part.envs for part in parts]
    assert len(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert {part.time for part in parts} == {time if by == "row" else 1}
    found = torch.cat([part["number"][..., 0].flatten() for part in parts])
    assert sorted(found.tolist()) == sorted(made["number"][..., 0].flatten().tolist())
    for part in parts:
        number, whole = part["number"][..., 0], time + 1 if by == "row" else 1
        t, env = number // 100, number % 100
        assert part["obs/vector"].shape[0] == whole
        assert torch.equal(part["obs/vector"][: part.time], made["obs/vector"][t, env])
        assert torch.equal(part.mask, made.mask[t, env])
        assert torch.equal(part["role"].long(), env[0][:, None].expand(-1, 2))  # an episode's constant goes along


def test_minibatches_by_row_carry_memory():
    made = workspace(envs=6, memory=({"h": torch.arange(6)},))
    for part in made.minibatches(4, "row"):
        assert isinstance(part.memory, tuple)
        assert part.memory[0]["h"].tolist() == part["number"][0, :, 0].tolist()


def test_minibatches_are_drawn_from_the_generator():
    def order(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        parts = workspace(envs=20).minibatches(3, "step", generator)
        return [int(n) for part in parts for n in part["number"][..., 0].flatten()]

    assert order(1) == order(1) != order(2)
    assert order(1) != sorted(order(1))


@pytest.mark.parametrize(("by", "units"), [("row", 3), ("step", 12)])
@pytest.mark.parametrize("surplus", [-99, 1])
def test_too_many_or_no_minibatches_are_refused(by: Any, units: int, surplus: int):
    count = max(0, units + surplus)
    with pytest.raises(DataError, match=f"{units} {by}s cannot make {count} minibatches: ask for 1 to {units}"):
        next(workspace().minibatches(count, by))


def test_steps_of_a_module_with_memory_are_not_shuffled():
    with pytest.raises(DataError, match="by='row'"):
        next(workspace(memory=torch.ones(3, 1)).minibatches(2, "step"))


def test_a_subset_is_a_view_of_some_fields():
    made = workspace(memory=torch.ones(3))
    part = made.subset(["number", "agent_mask"])
    assert part.names == ("number", "agent_mask")
    assert part["number"] is made["number"]
    assert torch.equal(part.mask, made.mask)
    assert part.memory is made.memory
    assert "reward" in made
    assert "reward" not in part


def test_carry_opens_the_next_window_with_what_followed_the_last():
    made = workspace()
    last = made["obs/vector"][4].clone()
    made.write(3, {"reward": torch.ones(3, 2)})
    made.carry()
    assert torch.equal(made["obs/vector"][0], last)
    assert not made.mask.any()
    one = workspace(time=1)
    last = one["obs/vector"][1].clone()
    one.carry()
    assert torch.equal(one["obs/vector"][0], last)


# ------------------------------------------------------------------------------------------------------------- moving
def test_to_moves_everything():
    made = workspace(memory=(torch.ones(3), {"h": torch.ones(3)}))
    moved = made.to("meta")
    assert {moved[name].device.type for name in moved.names} == {"meta"}
    assert {leaf.device.type for _, leaf in leaves(moved.memory)} == {"meta"}
    assert moved.device.type == moved.mask.device.type == "meta"
    assert made.device.type == "cpu"


def fill_from_elsewhere(made: Workspace) -> None:
    made.write(2, {"reward": torch.full((3, 2), 7.0), "obs/camera": torch.full((3, 2, 1, 2, 2), 9, dtype=torch.uint8)})


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_writes_into_a_shared_workspace(method: str):
    made = Workspace(SCHEMA, time=4, envs=3, shared=True)
    child = multiprocessing.get_context(method).Process(target=fill_from_elsewhere, args=(made,))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    assert made["reward"][2].eq(7).all()
    assert made["obs/camera"][2].eq(9).all()
    assert made.mask.any(2).any(1).tolist() == [False, False, True, False]


def test_sharing_keeps_the_content_and_returns_the_workspace():
    made = workspace()
    before = made["obs/vector"].clone()
    assert made.share() is made
    assert all(made[name].is_shared() for name in made.names)
    assert torch.equal(made["obs/vector"], before)


def test_a_workspace_is_pickled_whole():
    made = workspace(memory=(torch.ones(3),))
    again = pickle.loads(pickle.dumps(made))
    assert dict(again.schema) == dict(made.schema)
    assert torch.equal(again["number"], made["number"])
    assert again.memory[0].tolist() == [1, 1, 1]
