from pathlib import Path

import pytest

from martes.presets import ALGORITHMS, PRESETS
from martes.report import records
from martes.report.labels import Label, algorithm_of, experiments, preset_of
from martes.report.records import Record

RUN = {"algorithm.name": "ppo", "algorithm.critic": "central", "env.name": "spread"}


def run_of(**config):
    return Record(Path("run"), RUN | config, [])


def made(folder, preset, **changes):
    """The record of a run that a preset made, changed."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(PRESETS[preset].changed(changes).to_yaml())
    (folder / "metrics.jsonl").write_text('{"step": 0, "time": 0.0, "kind": "evaluation", "evaluation/return": 1.0}\n')
    (found,) = records(folder)
    return found


def labels(runs):
    return [str(label) for label in experiments(runs)]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_of_a_preset_has_the_name_of_its_algorithm(name, tmp_path):
    task = next(task for task in ("climbing", "probe-continuous") if f"{name}/{task}" in PRESETS)
    twins = {"sac": "masac", "ddpg": "maddpg", "td3": "matd3"}  # the same, but for the team
    run = made(tmp_path / "run", f"{name}/{task}")
    assert labels([run]) == [f"{twins.get(name, name)} on {task}"]
    alone = made(tmp_path / "alone", f"{name}/gymnasium:CartPole-v1")
    shared = {twin: one for one, twin in twins.items()}
    assert labels([alone]) == [f"{shared.get(name, name)} on gymnasium:CartPole-v1"]


@pytest.mark.parametrize("name", ["iql", "vdn", "qmix", "qtran", "dqn", "iql-gru", "mappo", "maa2c", "rec-sable"])
def test_a_changed_run_says_what_differs(name, tmp_path):
    changes = {"algorithm.lr": 0.123, "algorithm.gamma": 0.9, "training.seed": 7, "training.steps": 1000}
    run = made(tmp_path / "run", f"{name}/two-step", **changes)
    ((label, _),) = experiments([run]).items()
    assert (label.algorithm, label.task) == (name, "two-step")
    assert sorted(label.details.split(", ")) == ["gamma 0.9", "lr 0.123"]
    same = made(tmp_path / "same", f"{name}/two-step", **{"training.seed": 1, "env.workers": 2})
    assert labels([run, same])[1] == f"{name} on two-step, training.steps 100000"


def test_what_is_left_of_a_variant_is_named_by_what_it_is_now(tmp_path):
    alone = made(tmp_path / "alone", "vdn/two-step", **{"algorithm.mixer": "none", "algorithm.reward": "own"})
    summed = made(tmp_path / "summed", "iql/two-step", **{"algorithm.mixer": "sum", "algorithm.reward": "common"})
    forgetful = made(tmp_path / "forgetful", "mappo-gru/climbing", **{"algorithm.network.memory": "none"})
    assert labels([alone, summed, forgetful]) == [
        "iql on two-step", "vdn on two-step, reward common", "mappo on climbing"
    ]  # fmt: skip


def test_many_settings_in_common_are_counted_and_all_that_tell_apart_are_said(tmp_path):
    common = {"algorithm.gamma": 0.9, "algorithm.batch": 8, "algorithm.dueling": True, "env.copies": 2}
    plain = made(tmp_path / "plain", "qmix/two-step", **common)
    hidden = made(tmp_path / "hidden", "qmix/two-step", **common, **{"algorithm.network.hidden": (7,)})
    assert labels([plain, hidden]) == [
        "qmix on two-step, dueling True, gamma 0.9, batch 8, and 1 more",
        "qmix on two-step, hidden [7], dueling True, gamma 0.9, batch 8, and 1 more",
    ]


def test_settings_of_one_name_are_told_by_their_path(tmp_path):
    one = made(tmp_path / "one", "coma/climbing", **{"algorithm.critic_network.hidden": (9,)})
    other = made(tmp_path / "other", "coma/climbing", **{"algorithm.network.hidden": (9,)})
    first, second = labels([one, other])
    assert "critic_network.hidden [9]" in first and second == "coma on climbing, network.hidden [9]"


def test_options_of_a_task_are_said(tmp_path):
    assert labels([made(tmp_path / "run", "mappo/mpe-spread", **{"env.agents": 5})]) == [
        "mappo on mpe-spread, agents 5"
    ]


def test_experiments_differ_in_more_than_seed_or_machine():
    same = [run_of(**{"training.seed": seed, "training.device": device}) for seed, device in ((0, "cpu"), (1, "cuda"))]
    assert experiments(same) == {Label("mappo", "spread"): same}
    fast = [run_of(**{"algorithm.lr": 0.1, "training.seed": seed}) for seed in (0, 1)]
    slow = [run_of(**{"algorithm.lr": 0.01, "training.seed": 0})]
    both = experiments([*fast, *slow])
    assert both == {Label("mappo", "spread", "lr 0.1"): fast, Label("mappo", "spread", "lr 0.01"): slow}
    other = run_of(**{"env.name": "custom", "env.factory": "mine:make", "algorithm.lr": 0.1})
    assert labels([*fast, other]) == ["mappo on spread, lr 0.1", "mappo on mine:make, lr 0.1"]


def test_algorithms_of_others_keep_their_name():
    assert algorithm_of({"algorithm.name": "mine:Own"}) == "mine:Own" and preset_of("mine:Own", "spread") == {}
    runs = [run_of(**{"algorithm.name": "mine:Own", "algorithm.lr": lr}) for lr in (1, 2)]
    assert labels(runs) == ["mine:Own on spread, lr 1", "mine:Own on spread, lr 2"]
    assert labels(runs[:1]) == ["mine:Own on spread"]
    assert labels([Record(Path("run"), {}, [])]) == ["unnamed on unnamed"]
