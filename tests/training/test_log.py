import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from martes.errors import CheckpointError, DataError, MissingExtra
from martes.training.log import Log
from martes.training.rows import read_rows
from martes.training.settings import Logging

ROOT = Path(__file__).parents[2]


def log_in(folder, *, greedy=True, **logging):
    return Log(
        folder, Logging(**{"every": 10, "progress": "none", "tensorboard": False, **logging}), 100, "test", greedy
    )


def told(steps, *, kl=0.0, returns=()):
    returns = torch.tensor(returns, dtype=torch.float64)
    return (
        steps,
        {"kl": torch.tensor(kl)},
        {"return": returns, "length": torch.full_like(returns, 5)} if len(returns) else {},
    )


def played(*returns, **stats):
    returns = torch.tensor(returns)
    return SimpleNamespace(returns=returns, lengths=torch.full(returns.shape, 25), stats=stats)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def table(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def scalars(folder):
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_row_is_due_each_time_a_multiple_of_every_is_passed_and_holds_the_means_since_the_last(tmp_path):
    with log_in(tmp_path) as log:
        log.update(*told(4, kl=1.0, returns=[2.0, 4.0]))
        log.update(*told(8, kl=2.0))
        log.update(*told(12, kl=6.0, returns=[9.0]))  # passes 10
        log.update(*told(35, kl=5.0))  # passes 20 and 30: one row
        log.update(*told(36, kl=7.0))  # the rest, written at the end
    first, second, last = rows(tmp_path)
    assert [row["step"] for row in (first, second, last)] == [12, 35, 36]
    assert first["learn/kl"] == 3 and second["learn/kl"] == 5 and last["learn/kl"] == 7
    assert first["train/return"] == 5 and first["train/episodes"] == 3 and first["train/length"] == 5
    assert "train/return" not in second, "no episode ended: no number, rather than an old one"
    assert {row["kind"] for row in (first, second, last)} == {"train"}


def test_a_metric_that_some_updates_lack_is_the_mean_over_those_that_have_it(tmp_path):
    with log_in(tmp_path) as log:
        log.update(1, {"a": torch.tensor(1.0), "b": torch.tensor(8.0)}, {})
        log.update(2, {"a": torch.tensor(3.0)}, {})
    assert rows(tmp_path)[0]["learn/a"] == 2 and rows(tmp_path)[0]["learn/b"] == 8


def test_what_a_learner_writes_over_later_was_already_counted(tmp_path):
    metric = torch.tensor(1.0, requires_grad=True).clone()
    with log_in(tmp_path) as log:
        log.update(1, {"a": metric}, {})
        metric.detach().fill_(100)
    assert rows(tmp_path)[0]["learn/a"] == 1


def test_a_metric_with_axes_is_refused_by_name(tmp_path):
    with log_in(tmp_path) as log, pytest.raises(DataError, match=r"'norms' has shape \[3\]"):
        log.update(1, {"norms": torch.zeros(3)}, {})


def test_an_evaluation_is_a_row_that_says_how_actions_were_taken(tmp_path):
    with log_in(tmp_path) as log:
        log.evaluation(0, played(1.0, 3.0, won=0.5))
    with log_in(tmp_path / "sampled", greedy=False) as log:
        log.evaluation(0, played(1.0))
    row = rows(tmp_path)[0]
    assert row["kind"] == "evaluation" and row["step"] == 0
    assert {name.removeprefix("evaluation/"): value for name, value in row.items() if "/" in name} == {
        "won": 0.5, "return": 2, "return_deviation": 1, "return_min": 1, "return_max": 3, "length": 25, "episodes": 2,
        "greedy": 1,
    }  # fmt: skip
    assert rows(tmp_path / "sampled")[0]["evaluation/greedy"] == 0


def test_phases_are_shares_of_the_wall_time_and_speed_leaves_tests_and_saves_out(tmp_path):
    begun = time.perf_counter()
    with log_in(tmp_path) as log:
        with log.phase("act"):
            time.sleep(0.1)
        with log.phase("evaluate"):
            time.sleep(0.2)
        log.update(*told(10))
        whole = time.perf_counter() - begun
        log.update(*told(20))
    first, second = rows(tmp_path)
    # Against our own clock: a busy machine may stretch every one of these times.
    assert first["time/act"] >= 0.1 / whole and first["time/evaluate"] >= 0.2 / whole
    assert first["time/evaluate"] + first["time/act"] <= 1
    assert 10 / (whole - 0.2) <= first["speed/env_steps_per_second"] * (1 + 1e-6)
    assert first["speed/env_steps_per_second"] <= 10 / 0.1
    assert "time/act" not in second, "phases count anew for each row"


def test_numbers_that_are_not_finite_are_null_so_that_every_line_stays_strict_json(tmp_path):
    with log_in(tmp_path, tensorboard=True) as log:
        log.update(*told(10, kl=float("nan")))
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row["learn/kl"] is None and "learn/kl" not in scalars(tmp_path)


def test_the_csv_grows_columns_and_holds_the_same_rows(tmp_path):
    with log_in(tmp_path) as log:
        log.evaluation(0, played(1.0))
        log.update(*told(10, kl=1.5))
        log.update(20, {"entropy": torch.tensor(2.0)}, {})
        assert not (tmp_path / "metrics.csv.new").exists()
        log.update(*told(30, kl=2.5))
    lines = table(tmp_path)
    assert len(lines) == 4 and list(lines[1])[:3] == ["step", "time", "kind"]
    for line, row in zip(lines, rows(tmp_path), strict=True):
        assert line == {name: str(value) for name, value in row.items()}


def test_tensorboard_reads_back_what_was_written(tmp_path):
    with log_in(tmp_path, tensorboard=True) as log:
        log.evaluation(0, played(1.0, 3.0))
        log.update(*told(10, kl=0.5))
        log.update(*told(20, kl=0.25))
        assert scalars(tmp_path)["learn/kl"] == [(10, 0.5), (20, 0.25)], "each row is there before the log is closed"
    assert scalars(tmp_path)["evaluation/return"] == [(0, 2)]
    assert not {"step", "time", "kind"} & scalars(tmp_path).keys()


def test_what_is_switched_off_leaves_no_file(tmp_path):
    with log_in(tmp_path, csv=False) as log:
        log.update(*told(10))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


STREAM = [told(step, kl=step / 7, returns=[step / 3.0]) for step in range(3, 43, 3)]


def tell(log, stream):
    for steps, metrics, episodes in stream:
        if steps in (12, 30):
            log.evaluation(steps, played(float(steps)))
        log.update(steps, metrics, episodes)


def timeless(row):
    return {name: value for name, value in row.items() if not name.startswith(("time", "speed"))}


@pytest.mark.parametrize("saved_after", [0, 2, 3, 6, 7, 12, len(STREAM)])
@pytest.mark.parametrize("lost", [1, 5, len(STREAM)])
def test_a_resumed_log_has_neither_gap_nor_repeated_row(tmp_path, saved_after, lost):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    broken.mkdir()
    with log_in(whole, tensorboard=True) as log:
        tell(log, STREAM)
    killed = log_in(broken, tensorboard=True)
    tell(killed, STREAM[:saved_after])
    state = killed.state_dict()
    tell(killed, STREAM[saved_after : saved_after + lost])
    with (broken / "metrics.jsonl").open("a") as file:  # the kill came in the middle of a line
        file.write('{"step": 1')
    for events in broken.glob("tensorboard/events*"):
        front, opened, rest = re.split(r"(\d{10})", events.name, maxsplit=1)
        events.rename(events.with_name(f"{front}{int(opened) - 60}{rest}"))  # a minute ago: no later name is waited for
    with log_in(broken, tensorboard=True) as resumed:
        resumed.load_state_dict(state)
        tell(resumed, STREAM[saved_after:])
    assert [timeless(row) for row in rows(broken)] == [timeless(row) for row in rows(whole)]
    assert [timeless(row) for row in table(broken)] == [timeless(row) for row in table(whole)]
    compared = ("evaluation/return", "learn/kl", "train/return", "train/episodes")
    assert {tag: scalars(broken)[tag] for tag in compared} == {tag: scalars(whole)[tag] for tag in compared}


def test_event_files_opened_within_a_second_are_read_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))  # 10 sorts before 9
    with log_in(tmp_path, tensorboard=True) as log:
        tell(log, STREAM[:3])
        state = log.state_dict()
    with log_in(tmp_path, tensorboard=True) as resumed:
        resumed.load_state_dict(state)
        tell(resumed, STREAM[3:])
    assert [step for step, _ in scalars(tmp_path)["train/return"]] == [12, 21, 30, 42]


def test_time_goes_on_over_a_resume(tmp_path):
    begun = time.perf_counter()
    first = log_in(tmp_path)
    time.sleep(0.05)
    state = first.state_dict()
    time.sleep(1)  # lost: nobody trained
    with log_in(tmp_path) as log:
        log.load_state_dict(state)
        log.update(*told(10))
        most = time.perf_counter() - begun - 1  # by our own clock: a busy machine may stretch the rest
        assert log.time >= 0.05
    assert 0.05 <= rows(tmp_path)[0]["time"] <= most


def test_rows_that_the_files_lost_are_missed_aloud(tmp_path, capsys):
    with log_in(tmp_path) as log:
        log.update(*told(10))
        log.update(*told(20))
        state = log.state_dict()
    (tmp_path / "metrics.jsonl").write_text("")
    with log_in(tmp_path, progress="plain") as log:
        log.load_state_dict(state)
        log.update(*told(30))
    assert "lacks 2 rows" in capsys.readouterr().out
    assert [row["step"] for row in rows(tmp_path)] == [30]


def test_an_older_run_in_the_folder_is_written_over(tmp_path):
    for _ in range(2):
        with log_in(tmp_path, tensorboard=True) as log:
            log.update(*told(10, kl=1.0))
    assert len(rows(tmp_path)) == len(table(tmp_path)) == 1
    assert scalars(tmp_path)["learn/kl"] == [(10, 1.0)]


def test_a_full_disk_is_one_clear_error(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    (tmp_path / "metrics.csv.new").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"No space left.*make room"), log_in(tmp_path) as log:
        log.update(*told(10))


FULL = """
import resource, sys, torch
from pathlib import Path
from martes.errors import CheckpointError
from martes.training.log import Log
from martes.training.settings import Logging
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    logging = Logging(every=1, progress="none", tensorboard=sys.argv[2] == "yes")
    with Log(Path(sys.argv[1]), logging, 100, "t", True) as log:
        for step in range(1, 100):
            log.update(step, {"kl": torch.tensor(float(step))}, {})
except CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize("tensorboard", ["yes", "no"])
def test_a_disk_that_fills_on_the_way_loses_no_earlier_row(tmp_path, tensorboard):
    pytest.importorskip("resource", reason="limits of a process are a matter of Unix")
    command = [sys.executable, "-c", FULL, str(tmp_path), tensorboard]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.count("\n") == 1 and "cannot write metrics" in ran.stdout and "resume the run" in ran.stdout
    kept = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in kept] == list(range(1, len(kept) + 1)) and len(kept) > 5


def test_the_last_row_of_a_run_that_fails_is_written_and_the_failure_is_the_error_seen(tmp_path):
    with pytest.raises(ZeroDivisionError), log_in(tmp_path) as log:
        log.update(*told(4, kl=1.0))
        _ = 1 / 0
    assert rows(tmp_path)[0]["learn/kl"] == 1


KILLED = """
import sys, time, torch
from pathlib import Path
from martes.training.log import Log
from martes.training.settings import Logging
with Log(Path(sys.argv[1]), Logging(every=1, progress="none"), 10**9, "killed", True) as log:
    for step in range(1, 10**9):
        log.update(step, {"kl": torch.tensor(float(step))}, {})
        print(step, flush=True)
"""


def test_a_killed_run_keeps_its_rows(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            seen = int(line)
            if seen == 20:
                os.kill(process.pid, signal.SIGKILL)
    steps = [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")]
    assert process.returncode == -signal.SIGKILL and seen >= 20
    assert steps[:seen] == list(range(1, seen + 1))
    assert [int(row["step"]) for row in table(tmp_path)][:seen] == steps[:seen]
    assert [step for step, _ in scalars(tmp_path)["learn/kl"]][:seen] == steps[:seen]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"step": 1, "kind": "train", "a": NaN}', "NaN is not a number in JSON"),
        ('{"step": 1, "kind": "train", "step": 2}', "a name occurs twice"),
        ('{"step": 1, "kind": "train"', "strict JSON"),
        ('{"step": 1.5, "kind": "train"}', "no row of metrics"),
        ('{"step": 1, "kind": "other"}', "no row of metrics"),
        ("[1]", "no row of metrics"),
        ('{"step": 1, "kind": "train"}', "a time"),
        ('{"step": 1, "time": 0, "kind": "train", "a": "high"}', "a is 'high'"),
        ('{"step": 1, "time": 0, "kind": "train", "a": true}', "a is True"),
    ],
)
def test_a_damaged_row_is_refused_by_file_and_line(tmp_path, line, what):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "time": 0.5, "kind": "train", "a": 1}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"metrics\.jsonl, line 2.*{what}"):
        read_rows(path)


def test_wandb_that_is_not_installed_is_missed_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"pip install 'martes\[wandb\]'"):
        log_in(tmp_path, wandb="project")


@pytest.mark.extras
def test_wandb_offline_holds_every_number_and_the_configuration(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "config.yaml").write_text("algorithm:\n  lr: 0.125\n")
    with log_in(tmp_path, wandb="project") as log:
        log.evaluation(0, played(1.0, 3.0))
        log.update(*told(10, kl=0.5))
        log.update(*told(20, kl=0.25))
        summary = dict(wandb.run.summary)
        assert wandb.run.config["algorithm"] == {"lr": 0.125} and wandb.run.project == "project"
        assert summary["step"] == 20 and summary["learn/kl"] == 0.25 and summary["evaluation/return"] == 2
    (kept,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert kept.stat().st_size > 0
    assert wandb.run is None, "the session ends with the log"
