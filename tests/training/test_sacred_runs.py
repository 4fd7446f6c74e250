"""Sacred's own files, as its FileStorageObserver writes them, under PyMARL's names."""

import json
import sys

import pytest

from martes.errors import MissingExtra
from martes.training.log import Log
from martes.training.sacred_runs import pymarl_name
from tests.training.test_log import log_in, played, rows, told


def sacred_log(folder, **logging) -> Log:
    return log_in(folder / "run", sacred=str(folder / "sacred"), **logging)


def read(folder, name, number=1):
    return json.loads((folder / "sacred" / str(number) / name).read_text())


@pytest.mark.parametrize("module", ["sacred", "pkg_resources"])
def test_what_is_not_installed_is_missed_before_anything_runs(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"pip install 'martes\[sacred\]'"):
        sacred_log(tmp_path)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("train/return", "return_mean"),
        ("evaluation/return", "test_return_mean"),
        ("evaluation/return_deviation", "test_return_std"),
        ("train/length", "ep_length_mean"),
        ("evaluation/battle_won", "test_battle_won_mean"),
        ("learn/td_error_abs", "td_error_abs"),
        ("evaluation/episodes", "evaluation/episodes"),
        ("speed/env_steps_per_second", "speed/env_steps_per_second"),
    ],
)
def test_names_are_pymarl_s(ours, theirs):
    assert pymarl_name(ours) == theirs


@pytest.mark.extras
def test_a_run_is_kept_in_sacred_s_layout(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("algorithm:\n  lr: 0.125\n")
    with sacred_log(tmp_path) as log:
        log.evaluation(0, played(1.0, 3.0, battle_won=0.25))
        log.update(*told(50, kl=0.5, returns=[4.0]))
        assert read(tmp_path, "run.json")["status"] == "RUNNING"
        assert read(tmp_path, "info.json")["kl"] == [0.5], "each row is on disk before training goes on"
        log.update(*told(100, kl=float("nan")))
    assert {path.name for path in (tmp_path / "sacred/1").iterdir()} == {
        "config.json", "cout.txt", "info.json", "metrics.json", "run.json",
    }  # fmt: skip
    assert read(tmp_path, "config.json") == {"algorithm": {"lr": 0.125}}
    run, info, metrics = (read(tmp_path, f"{name}.json") for name in ("run", "info", "metrics"))
    assert run["status"] == "COMPLETED" and run["experiment"]["name"] == "test" and run["host"]["python_version"]
    assert info["test_battle_won_mean"] == [0.25] and info["test_battle_won_mean_T"] == [0]
    assert (info["test_return_mean"], info["return_mean"], info["return_mean_T"]) == ([2], [4], [50])
    assert (info["kl"], info["kl_T"]) == ([0.5], [50]), "what is not finite is left out"
    assert metrics["test_return_mean"]["values"] == [2] and metrics["kl"]["steps"] == [50]
    said = (tmp_path / "sacred/1/cout.txt").read_text().splitlines()
    assert said[0] == "test: 100 steps" and "test_battle_won_mean: 0.25" in said[1] and len(said) == 4


@pytest.mark.extras
def test_a_resumed_run_opens_a_folder_that_holds_all_its_rows(tmp_path):
    with sacred_log(tmp_path) as log:
        log.update(*told(10, kl=1.0))
        state = log.state_dict()
        log.update(*told(20, kl=2.0))
    assert read(tmp_path, "run.json")["status"] == "INTERRUPTED"
    with sacred_log(tmp_path) as log:
        log.load_state_dict(state)
        log.update(*told(20, kl=3.0))
    assert read(tmp_path, "info.json", 2)["kl"] == [row["learn/kl"] for row in rows(tmp_path / "run")] == [1, 3]
    assert read(tmp_path, "metrics.json", 2)["kl"]["steps"] == [10, 20]


@pytest.mark.extras
def test_what_ends_a_run_is_told(tmp_path):
    with pytest.raises(ZeroDivisionError), sacred_log(tmp_path) as log:
        log.update(*told(10))
        raise ZeroDivisionError("of the test")
    run = read(tmp_path, "run.json")
    assert run["status"] == "FAILED" and "ZeroDivisionError: of the test" in run["fail_trace"][-1]


@pytest.mark.extras
def test_logging_sacred_is_all_that_a_user_types(tmp_path):
    from martes.cli import main

    words = ["train", "iql/two-step", "--steps", "40", "--run-dir", str(tmp_path / "run"), "env.copies=2"]
    assert main([*words, "with", f"logging.sacred={tmp_path / 'sacred'}", "evaluation.episodes=2"]) == 0
    config, info = read(tmp_path, "config.json"), read(tmp_path, "info.json")
    assert config["env"]["name"] == "two-step" and config["training"]["steps"] == 40
    assert info["test_return_mean_T"] == [0, 40] and read(tmp_path, "run.json")["status"] == "COMPLETED"
