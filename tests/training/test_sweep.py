"""A sweep trains each job once, whatever ends it half way, and tells what became of each."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from martes.errors import ConfigError
from martes.training import checkpoint
from martes.training.ledger import Entry, Job, Ledger
from martes.training.run import RunFolder
from martes.training.sweep import Board, latest, sweep
from tests.training.walks import a_run, trained, with_env

ROOT = Path(__file__).parents[2]


def a_job(name: str, seed: int = 0, **values: object) -> Job:
    run = a_run(**values)
    return Job(name, replace(run, training=replace(run.training, seed=seed)))


def listed(path: Path) -> list[tuple[str, str]]:
    lines = (path / "ledger.jsonl").read_text().splitlines()
    return [(told["job"], told["status"]) for told in map(json.loads, lines)]


# -------------------------------------------------------------------------------------------------------------- ledger
def test_the_last_entry_counts_and_a_torn_line_says_nothing(tmp_path):
    one, two, three = a_job("walk", 1), a_job("walk", 2), a_job("walk", 3)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.record(one, "running")
    ledger.record(one, "finished")
    ledger.record(two, "running")
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"job": "walk/seed-3", "stat')
    again = Ledger(tmp_path / "ledger.jsonl")
    assert [again.entry(job).status for job in (one, two, three)] == ["finished", "interrupted", "waiting"]
    again.record(three, "failed", "why")
    last = Ledger(tmp_path / "ledger.jsonl")
    assert (last.entry(three).status, last.entry(three).note) == ("failed", "why")
    assert last.entry(one).status == "finished"


def test_a_job_with_other_settings_is_another_job(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    job = a_job("walk")
    ledger.record(job, "finished")
    quiet = replace(job.plan, logging=replace(job.plan.logging, every=7))
    assert ledger.entry(Job("walk", quiet)).status == "finished"
    with pytest.raises(ConfigError, match=r"walk/seed-0 was run with other settings in .*: name another folder"):
        ledger.entry(a_job("walk", steps=999))


def test_impossible_sweeps_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="walk/seed-0 stands twice"):
        sweep([a_job("walk"), a_job("walk")], tmp_path)
    with pytest.raises(ConfigError, match="processes is 0"):
        sweep([a_job("walk")], tmp_path, processes=0)
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------- processes
@pytest.mark.slow
def test_each_job_is_trained_once_and_a_failed_one_again_only_when_asked(tmp_path):
    broken = a_job("broken", steps=64)
    broken = Job("broken", with_env(broken.plan, factory="tests.training.walks:breaking", options={"at": 20}))
    jobs = [a_job("a/walk", 3), a_job("a/walk", 4, steps=32), broken]
    told = io.StringIO()
    ends = sweep(jobs, tmp_path / "sweep", processes=3, console=Console(file=told, width=200))
    assert [entry.status for entry in ends.values()] == ["finished", "finished", "failed"]
    assert ends["broken/seed-0"].note.startswith("the environment gave nan in 'reward'")
    assert "EnvError" in (tmp_path / "sweep/broken/seed-0/output.txt").read_text()
    assert "a/walk/seed-3: finished  160 / 160" in told.getvalue()
    assert "broken/seed-0: failed" in told.getvalue()

    alone = trained(a_run(), tmp_path / "alone")  # the same run, without a sweep
    one = checkpoint.load(RunFolder(tmp_path / "sweep/a/walk/seed-3").newest_checkpoint())
    other = checkpoint.load(alone.folder.newest_checkpoint())
    assert all(
        bool((one["learner"]["policy"][name] == each).all()) for name, each in other["learner"]["policy"].items()
    )

    before = listed(tmp_path / "sweep")
    assert sweep(jobs, tmp_path / "sweep", processes=3) == ends
    assert listed(tmp_path / "sweep") == before
    sweep(jobs, tmp_path / "sweep", again=True)
    assert listed(tmp_path / "sweep")[len(before) :] == [("broken/seed-0", "running"), ("broken/seed-0", "failed")]


SWEEP = """
import sys
from pathlib import Path
from martes.training.sweep import sweep
from tests.training.test_sweep import a_job

if __name__ == "__main__":
    jobs = [a_job("walk", seed, steps=100_000) for seed in (1, 2)]
    print([entry.status for entry in sweep(jobs, Path(sys.argv[1]), processes=2).values()])
"""


def steps_of(path: Path) -> list[int]:
    found = [RunFolder(path / f"walk/seed-{seed}").newest_checkpoint() for seed in (1, 2)]
    return [checkpoint.step_of(each) if each is not None else 0 for each in found]


def begun(path: Path, beyond: int) -> subprocess.Popen[str]:
    """A sweep of two long runs that have both saved something beyond that step."""
    script = path.parent / "script.py"
    script.write_text(SWEEP)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, script, path], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while min(steps_of(path)) <= beyond:
        assert process.poll() is None
        assert time.monotonic() < deadline, "the sweep does not get going"
        time.sleep(0.05)
    return process


def is_free(path: Path) -> bool:
    with RunFolder(path).claimed(patience=60):
        return True


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_ended_sweep_ends_its_runs_and_goes_on(tmp_path, number):
    path = tmp_path / "sweep"
    process = begun(path, beyond=0)
    process.send_signal(number)
    told = process.communicate(timeout=120)[0]
    if number == signal.SIGINT:
        assert "['interrupted', 'interrupted']" in told
    assert all(is_free(path / f"walk/seed-{seed}") for seed in (1, 2))  # the runs of a killed sweep end, too
    stopped = steps_of(path)
    assert max(stopped) < 100_000
    ledger = Ledger(path / "ledger.jsonl")
    assert [ledger.entry(a_job("walk", seed, steps=100_000)).status for seed in (1, 2)] == ["interrupted"] * 2
    process = begun(path, beyond=max(stopped))
    process.send_signal(signal.SIGINT)
    assert "['interrupted', 'interrupted']" in process.communicate(timeout=120)[0]
    rows = [json.loads(line) for line in (path / "walk/seed-1/metrics.jsonl").read_text().splitlines()]
    evaluated = [row["step"] for row in rows if row["kind"] == "evaluation"]
    assert evaluated == list(range(0, evaluated[-1] + 1, 48))  # without a gap, none twice


# ------------------------------------------------------------------------------------------------------------- display
def with_rows(path: Path) -> Job:
    job = a_job("mine", 7, steps=1000)
    rows = [
        {"step": 10, "time": 1, "kind": "train", "train/return": -5.0, "speed/env_steps_per_second": 1234.5},
        {"step": 20, "time": 2, "kind": "evaluation", "evaluation/return": 3.25, "evaluation/length": None},
    ]
    folder = path / job.key
    folder.mkdir(parents=True)
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "metrics.jsonl").write_text("".join(lines) + '{"step": 30, "ti')
    return job


def test_the_latest_numbers_are_those_of_complete_rows(tmp_path):
    job = with_rows(tmp_path)
    found = latest(RunFolder(tmp_path / job.key))
    assert (found["step"], found["evaluation/return"], found["train/return"]) == (20, 3.25, -5.0)
    assert "evaluation/length" not in found
    assert latest(RunFolder(tmp_path / "none")) == {}


def test_a_terminal_shows_one_table_and_a_file_gets_lines(tmp_path):
    job, other = with_rows(tmp_path), a_job("mine", 8)
    entries = {job: Entry("running"), other: Entry("failed", "[no] room")}
    screen = io.StringIO()
    with Board([job, other], tmp_path, Console(file=screen, force_terminal=True, width=120)) as board:
        board.show(entries)
    for text in ("experiment", "mine", "running", "20 / 1,000", "1,234", "3.25", "failed", "[no] room"):
        assert text in screen.getvalue()

    lines = io.StringIO()
    with Board([job, other], tmp_path, Console(file=lines, width=120)) as board:
        board.show(entries)
        board.show(entries)
        board.show({**entries, job: Entry("finished")})
    assert lines.getvalue().splitlines() == [
        "mine/seed-7: running  20 / 1,000  1,234  3.25",
        "mine/seed-8: failed  0 / 160  [no] room",
        "mine/seed-7: finished  20 / 1,000  3.25",
    ]
