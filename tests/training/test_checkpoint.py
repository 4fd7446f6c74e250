"""Checkpoints are complete or absent, whatever happens, and a damaged one is refused with a way on."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from martes.errors import CheckpointError
from martes.training import checkpoint

ROOT = Path(__file__).parents[2]


def tree_of(step: int) -> dict:
    return {"steps": step, "weights": {"w": torch.full((50,), float(step)), 3: (None, True)}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    path = checkpoint.save(tmp_path / "run/checkpoints", tree_of(7), 7, keep=1)
    assert path == tmp_path / "run/checkpoints/000000000007"
    assert names(path) == ["manifest.json", "tensors.safetensors", "tree.json"]
    back = checkpoint.load(path)
    assert back["steps"] == 7
    assert back["weights"][3] == (None, True)
    assert torch.equal(back["weights"]["w"], torch.full((50,), 7.0))


def test_the_newest_are_kept_and_leftovers_go(tmp_path):
    assert checkpoint.newest(tmp_path / "none") is None
    (tmp_path / ".5.123").mkdir()  # a save that was killed
    for step in (5, 30, 200, 1000):
        checkpoint.save(tmp_path, tree_of(step), step, keep=2)
    assert names(tmp_path) == ["000000000200", "000000001000"]
    assert checkpoint.newest(tmp_path) == tmp_path / "000000001000"
    assert checkpoint.nearest_to(tmp_path / "none", 5) is None
    assert checkpoint.nearest_to(tmp_path, 10**9) == tmp_path / "000000001000"


def test_a_run_that_went_back_drops_the_future_it_left(tmp_path):
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, tree_of(step), step, keep=3)
    checkpoint.save(tmp_path, tree_of(15), 15, keep=3)
    assert names(tmp_path) == ["000000000010", "000000000015"]


def test_the_same_step_is_replaced(tmp_path):
    checkpoint.save(tmp_path, tree_of(1), 10, keep=3)
    path = checkpoint.save(tmp_path, tree_of(2), 10, keep=3)
    assert names(tmp_path) == ["000000000010"]
    assert checkpoint.load(path)["steps"] == 2


def test_where_replacing_stopped_half_way_the_old_one_is_found(tmp_path):
    path = checkpoint.save(tmp_path, tree_of(1), 10, keep=3)
    path.rename(tmp_path / "000000000010.replaced")
    assert checkpoint.load(checkpoint.newest(tmp_path))["steps"] == 1
    checkpoint.save(tmp_path, tree_of(2), 10, keep=3)
    assert names(tmp_path) == ["000000000010"]


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["manifest.json", "tensors.safetensors", "tree.json"])
@pytest.mark.parametrize("harm", [cut_short, flipped, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_refused_naming_the_file_and_a_good_one(tmp_path, file, harm):
    good = checkpoint.save(tmp_path, tree_of(10), 10, keep=3)
    harmed = checkpoint.save(tmp_path, tree_of(20), 20, keep=3)
    bad = checkpoint.save(tmp_path, tree_of(30), 30, keep=3)
    cut_short(harmed / "tree.json")  # the nearest older one is no better: it must not be advised
    harm(bad / file)
    with pytest.raises(CheckpointError) as refused:
        checkpoint.load(bad)
    assert file in str(refused.value)
    assert str(bad) in str(refused.value)
    assert f"go on from it: {good}" in str(refused.value)
    with pytest.raises(CheckpointError, match="There is no older one"):
        harm(good / file)
        checkpoint.load(good)


def test_a_foreign_or_newer_one_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, tree_of(10), 10, keep=3)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(CheckpointError, match=r"has version 99.*upgrade martes"):
        checkpoint.load(path)
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": "other"}))
    with pytest.raises(CheckpointError, match="no checkpoint of martes"):
        checkpoint.load(path)
    for text in ("[]", '"x"', '{"format": "martes.checkpoint"}', '{"format": "martes.checkpoint", "version": "a"}'):
        (path / "manifest.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
            checkpoint.load(path)
    with pytest.raises(CheckpointError, match="nowhere is no checkpoint"):
        checkpoint.load(tmp_path / "nowhere")


def test_a_state_that_cannot_be_kept_leaves_no_trace(tmp_path):
    checkpoint.save(tmp_path, tree_of(1), 1, keep=2)
    with pytest.raises(CheckpointError, match=r"^env/rng of this state is a set"):
        checkpoint.save(tmp_path, {"env": {"rng": set()}}, 2, keep=2)
    assert names(tmp_path) == ["000000000001"]


def test_a_file_in_the_way_is_one_clear_error(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*: File exists.*none was saved before"):
        checkpoint.save(tmp_path / "checkpoints", tree_of(1), 1, keep=2)


def run(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


FULL = """
import resource, sys, torch
from pathlib import Path
from martes.training import checkpoint
folder, room = Path(sys.argv[1]), int(sys.argv[2])
checkpoint.save(folder, {"w": torch.ones(4)}, 10, keep=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
try:
    checkpoint.save(folder, {"w": torch.ones(4096), "names": ["a long tree"] * 2000}, 20, keep=1)
except Exception as error:
    print(type(error).__name__, error)
print(sorted(path.name for path in folder.iterdir()))
print(checkpoint.load(checkpoint.newest(folder))["w"].tolist())
"""


@pytest.mark.parametrize("room", [0, 300, 17_000])  # in the tensors at their start, amid them, and in the tree
def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path, room):
    told, left, weights = run(FULL, tmp_path, room).stdout.splitlines()
    assert told.startswith(f"CheckpointError cannot write the checkpoint {tmp_path}/000000000020: File too large")
    assert told.endswith(f"Make room, then resume: the last good one is {tmp_path}/000000000010")
    assert left == "['000000000010']"
    assert weights == "[1.0, 1.0, 1.0, 1.0]"


CRASH = """
import os, sys, torch
from pathlib import Path
from martes.training import checkpoint
home, keep, step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
AT_WORK = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir"}
budget = None

def counted(event, arguments):
    global budget
    if budget is not None and event in AT_WORK:
        budget -= 1
        if budget < 0:
            os._exit(9)

sys.addaudithook(counted)
crashes = 0
while True:
    folder = home / str(crashes)
    for old in (10, 20):
        checkpoint.save(folder, {"step": old, "w": torch.ones(3)}, old, keep=2)
    child = os.fork()
    if child == 0:
        budget = crashes
        checkpoint.save(folder, {"step": 1000, "w": torch.ones(3)}, step, keep)
        os._exit(0)
    died = os.waitpid(child, 0)[1] != 0
    left = [checkpoint.load(path)["step"] for path in checkpoint._all(folder)[:keep]]
    expected = ([20, 10], [1000, 20], [1000, 10], [1000, 20])
    assert left in [each[:keep] for each in expected], left
    checkpoint.save(folder, {"step": 3000}, 3000, keep=1)
    assert sorted(path.name for path in folder.iterdir()) == ["000000003000"]
    if not died:
        break
    crashes += 1
print(crashes)
"""


@pytest.mark.parametrize(("keep", "step"), [(1, 30), (2, 30), (2, 20)])
def test_a_crash_at_any_file_operation_leaves_a_good_checkpoint(tmp_path, keep, step):
    done = run(CRASH, tmp_path, keep, step)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_the_limit_of_this_process_is_as_it_was():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
