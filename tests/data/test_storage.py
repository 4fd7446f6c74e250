import importlib
import json
import multiprocessing
import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from martes.data import Field, Schema, Workspace
from martes.data.storage import read_tensors, write_tensors
from martes.data.trees import leaves, outline
from martes.errors import DataError, MissingExtra
from tests.worlds import WORLDS


def workspace(memory: Any = ()) -> Workspace:
    """Every dtype, all axes, a half-written mask."""
    schema = Schema.from_team(WORLDS["image"].team).extended(
        value=Field(writer="the critic", doc="a doc"),
        task=Field((2,), torch.float64, "env", fill=-1.5),
        role=Field((), torch.int8, "env agent", fill=3),
    )
    made = Workspace(schema, time=4, envs=3)
    for name in ("obs/vector", "obs/camera", "reward", "role"):
        made[name] = torch.randint(0, 100, made[name].shape).to(made[name].dtype)
    made.write(1, {"reward": torch.ones(3, 3), "cut": torch.tensor([True, False, True])})
    made.memory = memory
    return made


MEMORIES: dict[str, Any] = {
    "none": (),
    "one tensor": torch.randn(3, 3, 5),
    "a tree": ({"h": torch.randn(3, 2), "count": torch.arange(3)}, (torch.ones(3, dtype=torch.bool), ())),
}


def assert_equal(one: Workspace, other: Workspace) -> None:
    assert dict(one.schema) == dict(other.schema)
    assert one.schema.agents == other.schema.agents
    assert (one.time, one.envs, one.names) == (other.time, other.envs, other.names)
    for name in one.names:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name
    assert torch.equal(one.mask, other.mask)
    assert outline(one.memory) == outline(other.memory)
    for (_, a), (_, b) in zip(leaves(one.memory), leaves(other.memory), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES.keys())
def test_a_saved_workspace_is_loaded_as_it_was(tmp_path: Path, memory: Any):
    before = workspace(memory)
    before.save(tmp_path / "window.safetensors")
    after = Workspace.load(tmp_path / "window.safetensors")
    assert_equal(before, after)
    assert [path.name for path in tmp_path.iterdir()] == ["window.safetensors"]
    after.write(0, {"reward": torch.zeros(3, 3)})  # and it can be written to


def test_parts_of_a_workspace_are_saved_too(tmp_path: Path):
    """Views, not contiguous, with storage in common."""
    whole = workspace(MEMORIES["a tree"])
    views = (whole.window(0, 3), whole.rows(torch.tensor([2, 0])), whole.subset(["obs/camera", "agent_mask"]))
    for part in views:
        part.save(tmp_path / "part")
        assert_equal(part, Workspace.load(tmp_path / "part"))


def test_unknown_memory_stays_unknown(tmp_path: Path):
    workspace(MEMORIES["one tensor"]).window(1, 3).save(tmp_path / "part")
    with pytest.raises(DataError, match="memory before this window is unknown"):
        _ = Workspace.load(tmp_path / "part").memory


def test_what_was_loaded_no_longer_depends_on_the_file(tmp_path: Path):
    before = workspace(MEMORIES["a tree"])
    before.save(tmp_path / "w")
    after = Workspace.load(tmp_path / "w")
    with (tmp_path / "w").open("r+b") as file:
        file.write(bytes((tmp_path / "w").stat().st_size))
    assert_equal(before, after)


def test_one_tensor_in_two_places_is_stored_twice(tmp_path: Path):
    shared = torch.randn(3, 2)
    before = workspace((shared, shared))
    before.save(tmp_path / "w")
    first, second = Workspace.load(tmp_path / "w").memory
    assert torch.equal(first, shared)
    first.zero_()
    assert torch.equal(second, shared)


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        Workspace.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_what_cannot_be_loaded_is_named_with_its_cure(tmp_path: Path):
    assert "no file" in refused(tmp_path / "missing")
    assert "cannot read" in refused(tmp_path)  # a folder
    path = tmp_path / "window"
    workspace().save(path)
    whole = path.read_bytes()
    for length in (0, 5, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "damaged or cut short" in refused(path)
    path.write_bytes(b"\x93NUMPY" + bytes(100))
    assert "damaged" in refused(path)


@pytest.mark.parametrize("header", [None, "not json", "[1]", json.dumps({"format": "something else"})])
def test_a_foreign_file_is_refused(tmp_path: Path, header: str | None):
    save_file({"weight": torch.ones(2)}, tmp_path / "model", {"martes": header} if header else None)
    assert "is no martes.workspace file" in refused(tmp_path / "model")


def changed_header(path: Path, change: Any) -> None:
    tensors, header = read_tensors(path, "martes.workspace")
    change(header, tensors)
    write_tensors(path, tensors, header)


def test_a_file_of_a_later_version_asks_for_an_upgrade(tmp_path: Path):
    workspace().save(tmp_path / "w")
    changed_header(tmp_path / "w", lambda header, _: header.update(version=99))
    assert "upgrade martes" in refused(tmp_path / "w")


@pytest.mark.parametrize(
    "change",
    [
        lambda header, tensors: tensors.pop("field/reward"),
        lambda header, tensors: tensors.pop("memory/0/h"),
        lambda header, tensors: header.pop("fields"),
        lambda header, tensors: header["fields"]["reward"].update(dtype="float99"),
        lambda header, tensors: header["fields"]["reward"].update(colour="red"),
        lambda header, tensors: tensors.update({"field/reward": torch.ones(4, 3, 7)}),
        lambda header, tensors: tensors.update({"field/reward": torch.ones(4, 3, 3).double()}),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, change: Any):
    workspace(MEMORIES["a tree"]).save(tmp_path / "w")
    changed_header(tmp_path / "w", change)
    refused(tmp_path / "w")


def save_with_little_room(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # what a full disk does, from the system itself
    try:
        workspace().save(path)
    except DataError as error:
        assert "cannot write" in str(error)
        assert "unharmed" in str(error)
        assert str(path) in str(error)
        os._exit(7)
    os._exit(0)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "window"
    old = workspace()
    old.save(path)
    child = multiprocessing.get_context("fork").Process(target=save_with_little_room, args=(path,))
    child.start()
    child.join(60)
    assert child.exitcode == 7
    assert_equal(old, Workspace.load(path))
    assert [each.name for each in tmp_path.iterdir()] == ["window"]  # no half file beside it


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"cannot write .*nowhere/window: No such file.*folder that exists"):
        workspace().save(tmp_path / "nowhere" / "window")


# --------------------------------------------------------------------------------------------------------- TensorDict
@pytest.fixture
def tensordict() -> Any:
    return importlib.import_module("tensordict")


@pytest.mark.extras
@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES.keys())
def test_a_tensordict_and_back(tensordict: Any, memory: Any):
    before = workspace(memory)
    made = before.to_tensordict()
    assert isinstance(made, tensordict.TensorDict)
    assert made.batch_size == (3,)
    assert made["reward"].shape == (3, 4, 3)  # env time agent
    assert made["task"].shape == (3, 2)
    assert_equal(before, Workspace.from_tensordict(made))
    assert_equal(before.rows(torch.tensor([2, 0])), Workspace.from_tensordict(made[torch.tensor([2, 0])]))


@pytest.mark.extras
def test_a_tensordict_of_other_origin_is_refused(tensordict: Any):
    with pytest.raises(DataError, match="does not come from a workspace"):
        Workspace.from_tensordict(tensordict.TensorDict({"reward": torch.ones(3)}, [3]))
    made = workspace().to_tensordict()
    made["bonus"] = torch.ones(3)
    with pytest.raises(DataError, match="'bonus' is no field"):
        Workspace.from_tensordict(made)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensordict", None)  # Python's own way to say that there is none
    with pytest.raises(MissingExtra, match=r"martes\[tensordict\]"):
        workspace().to_tensordict()
