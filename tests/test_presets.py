"""Every preset can be made, and begins to learn what it says."""

import subprocess
import sys

import pytest
import torch

from martes.envs.catalogue import make_env
from martes.errors import ConfigError
from martes.experiment import Experiment
from martes.presets import ALGORITHMS, DEFAULT, PRESETS, TASKS, UNFIT
from tests.extras import marked


@pytest.mark.parametrize("task", [marked(task) for task in TASKS])
def test_every_preset_has_a_learner(task):
    for algorithm in ALGORITHMS:
        if task in UNFIT.get(algorithm, ()):
            continue
        experiment = PRESETS[f"{algorithm}/{task}"]
        env = make_env(experiment.env.name, 1, options=experiment.env.options)
        learner = experiment.algorithm.learner(env.team, torch.Generator())
        has_memory = learner.policy.part_for("action").initial_memory(1) != ()
        assert has_memory == algorithm.endswith(("-gru", "-attention", "-retention", "rec-sable", "dt", "dt-1"))
        assert experiment.training.steps == TASKS[task]
        assert Experiment.from_yaml(experiment.to_yaml()) == experiment


def test_presets_are_a_mapping():
    assert DEFAULT in PRESETS
    unfit = sum(len(tasks) for tasks in UNFIT.values())
    assert len(PRESETS) == len(list(PRESETS)) == len(ALGORITHMS) * len(TASKS) - unfit
    assert "mappo/none" not in PRESETS


@pytest.mark.parametrize("task", ["probe-continuous", "probe-multi-discrete"])
@pytest.mark.parametrize("name", UNFIT)
def test_what_an_algorithm_would_refuse_is_no_preset(name, task):
    if task == "probe-continuous" and name in ("sac", "masac"):
        assert f"{name}/{task}" in PRESETS
        return
    assert task in UNFIT[name] and f"{name}/{task}" not in PRESETS
    with pytest.raises(ConfigError, match=f"{name} needs other actions than those of {task}: take mappo/{task}"):
        PRESETS[f"{name}/{task}"]
    with pytest.raises(ConfigError):  # it says so itself, too
        PRESETS[f"{name}/climbing"].algorithm.learner(make_env(task, 1).team, torch.Generator())


@pytest.mark.parametrize("name", ["iql", "vdn", "qmix", "qtran", "qmix-gru"])
def test_value_learners_take_one_step_targets_in_games_of_one_or_two_steps(name):
    for task in ("two-step", "climbing", "penalty"):
        assert PRESETS[f"{name}/{task}"].algorithm.td_lambda == 0
        assert PRESETS[f"coma/{task}"].algorithm.td_lambda == 0.95
    elsewhere = PRESETS[f"{name}/mpe-spread"]
    assert elsewhere.algorithm.td_lambda == 0.8
    assert elsewhere.changed({"algorithm.td_lambda": 0.0}).algorithm == PRESETS[f"{name}/two-step"].algorithm


def test_a_task_is_named_by_its_family_too():
    assert PRESETS["ippo/gymnasium:CartPole-v1"].env.name == "gymnasium:CartPole-v1"
    assert "ippo/gymnasium" not in PRESETS
    assert PRESETS["qmix/smac:3m"].env.workers == PRESETS["mappo/smacv2:10gen_zerg"].env.copies == 4
    with pytest.raises(ConfigError, match="unknown; did you mean 'gymnasium:<task>'"):
        PRESETS["ippo/gymnasum:CartPole-v1"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mapo/mpe-spread", "'mapo' is unknown; did you mean 'mappo'"),
        ("mappo/mpe-sprad", "'mpe-sprad' is unknown; did you mean 'mpe-spread'"),
        ("mappo", "no preset 'mappo' of <algorithm>/<task>"),
    ],
)
def test_an_unknown_preset_is_told_with_the_nearest(name, told):
    with pytest.raises(ConfigError, match=told):
        PRESETS[name]


def test_listing_names_imports_no_torch():
    code = "import sys; from martes.presets import PRESETS; list(PRESETS); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
