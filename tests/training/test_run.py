"""A run folder knows its files, what it was made with, and who writes in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from martes.errors import CheckpointError
from martes.training.run import RunFolder, revision, versions

ROOT = Path(__file__).parents[2]


def test_nothing_is_written_before_it_is_claimed(tmp_path):
    folder = RunFolder(tmp_path / "runs/a")
    assert folder.newest_checkpoint() is None
    assert not (tmp_path / "runs").exists()
    with folder.claimed():
        assert (tmp_path / "runs/a").is_dir()


def test_versions_are_written_once_and_changes_are_told(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.record_versions() == []
    told = json.loads(folder.versions.read_text())
    assert told["torch"] == torch.__version__
    assert {"martes", "python", "numpy", "platform", "threads", "git", "accelerator"} < set(told)
    folder.versions.write_text(json.dumps({**told, "torch": "2.9.0"}))
    assert folder.record_versions() == [f"torch 2.9.0, now {torch.__version__}"]
    assert json.loads(folder.versions.read_text())["torch"] == "2.9.0"


@pytest.mark.parametrize("content", ["{", "[]"])
def test_versions_that_cannot_be_read_stop_nothing(content, tmp_path):
    folder = RunFolder(tmp_path)
    folder.versions.write_text(content)
    assert folder.record_versions() == [f"{folder.versions} is damaged, nobody knows which"]


def git(folder: Path, *words: str) -> str:
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    done = subprocess.run(
        ("git", *words), cwd=folder, env={**os.environ, **identity}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_revision_tells_the_commit_and_whether_files_differ(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert revision(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert revision(tmp_path) == {"revision": commit, "dirty": False}
    (tmp_path / "file").write_text("2")
    assert revision(tmp_path) == {"revision": commit, "dirty": True}


def test_versions_can_be_told_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert versions()["git"] == {"project": None, "martes": None}


HOLDER = """
import sys, time
from martes.training.run import RunFolder
with RunFolder(sys.argv[1]).claimed():
    print("mine", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def held(path: Path, seconds: float) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "mine\n"
    return holder


def test_a_folder_belongs_to_one_process_until_it_ends(tmp_path):
    holder = held(tmp_path, 60)
    with (
        pytest.raises(CheckpointError, match=f"another process is training in {tmp_path}"),
        RunFolder(tmp_path).claimed(),
    ):
        pass
    holder.kill()
    holder.wait()
    with RunFolder(tmp_path).claimed():
        pass


def test_one_can_wait_for_it(tmp_path):
    holder = held(tmp_path, 0.5)
    with RunFolder(tmp_path).claimed(patience=30):
        pass
    assert holder.wait() == 0


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match=r"cannot write the run folder .*Not a directory"),
        RunFolder(tmp_path / "file/run").claimed(),
    ):
        pass
