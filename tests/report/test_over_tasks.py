from pathlib import Path

import pytest
from PIL import Image

from martes.cli import main
from martes.errors import ConfigError
from martes.report import Interval, over_tasks, picture_over_tasks, results_table, table_over_tasks
from martes.report.records import Record
from tests.report.test_tables import cells

WON = "evaluation/battle_won"


def run_of(task, value, critic="central", metric="evaluation/return", **more):
    """A run that comes to `value` in its last tenth; MAPPO, or with another critic IPPO."""
    rows = [{"step": step, "time": 0.0, "kind": "evaluation", metric: each} for step, each in ((0, 0.0), (100, value))]
    config = {"algorithm.name": "ppo", "algorithm.critic": critic, "env.name": task, "training.steps": 100, **more}
    return Record(Path("run"), config, rows)


def runs_of(task, mappo, ippo, **more):
    central = [run_of(task, value, **more) for value in mappo]
    return central + [run_of(task, value, "local", **more) for value in ippo]


def chance(**means):
    return {task: Interval(mean, mean, mean) for task, mean in means.items()}


SPREAD = runs_of("spread", mappo=(10, 10), ippo=(4, 6))
TAG = runs_of("tag", mappo=(-30.0, -10.0), ippo=(-20.0, 0.0))
RANDOM = chance(spread=2, tag=-40)


def test_returns_are_normalised_by_random_play_and_the_best_experiment_of_a_task():
    found = over_tasks(SPREAD + TAG, RANDOM)
    assert found is not None
    assert found.scores == {
        "mappo": [[1.0, 1.0], [pytest.approx(1 / 3), 1.0]],
        "ippo": [[0.25, 0.5], [pytest.approx(2 / 3), pytest.approx(4 / 3)]],
    }
    assert (found.tasks, found.others) == (["spread", "tag"], [])
    assert "spread, tag: the return, 0 as random play, 1 as the best experiment here" in str(found)


def test_the_table_by_hand():
    found = over_tasks(SPREAD + TAG, RANDOM)
    heads, _, mappo, ippo = cells(table_over_tasks(found).split("\n\n")[0])
    assert heads == ["over 2 tasks", "runs", "interquartile mean", "mean"]
    assert (mappo[:2], ippo[:2]) == (["mappo", "4"], ["ippo", "4"])
    assert mappo[2].split()[0] == "1"  # of 1/3, 1, 1, 1 the middle two
    assert float(mappo[3].split()[0]) == pytest.approx((3 + 1 / 3) / 4, abs=1e-4)
    assert float(ippo[2].split()[0]) == pytest.approx((1 / 2 + 2 / 3) / 2, abs=1e-4)
    # Inside `spread` MAPPO's runs are equal, so only those of `tag` vary: means from 2/3 to 1.
    assert mappo[3].endswith("[0.6667, 1]")


def test_only_tasks_that_all_share_count_and_the_others_are_named():
    alone = [run_of("memory", 1.0), run_of("reference", 5.0), run_of("reference", 5.0, "local")]
    found = over_tasks(SPREAD + TAG + alone, RANDOM | chance(memory=0, reference=6))
    assert found is not None and found.tasks == ["spread", "tag"]
    assert found.others == ["memory", "reference"], "MAPPO alone was run on one, random play is better on the other"
    assert "Without memory, reference:" in str(found)
    single = [run_of("memory", 1.0, lr=1.0, **{"algorithm.epochs": 99})]
    assert over_tasks(SPREAD + TAG + single, RANDOM).scores == over_tasks(SPREAD + TAG, RANDOM).scores


def test_nothing_is_pooled_where_there_is_nothing_to_compare():
    assert over_tasks(SPREAD, RANDOM) is None, "one task"
    assert over_tasks(SPREAD + TAG) is None, "no random play"
    assert over_tasks(SPREAD + TAG, chance(spread=2)) is None
    assert over_tasks([run for run in SPREAD + TAG if run.config["algorithm.critic"] == "local"], RANDOM) is None
    assert over_tasks([run_of("spread", None), run_of("tag", None)], RANDOM) is None, "nothing measured"


def test_other_metrics_stay_as_they_are_measured_even_of_one_experiment():
    runs = [run_of(task, value, metric=WON) for task, value in (("3m", 0.5), ("3m", 0.75), ("8m", 0.25))]
    found = over_tasks(runs, metric=WON)
    assert found is not None and found.scores == {"mappo": [[0.5, 0.75], [0.25]]}
    assert "evaluation/battle_won as is, in the last tenth" in str(found)
    assert cells(table_over_tasks(found).split("\n\n")[0])[2][1:3] == ["3", "0.5 [0.4167, 0.5833]"]


def test_a_picture_has_a_line_for_each_experiment(tmp_path):
    found = over_tasks(SPREAD + TAG, RANDOM)
    path = picture_over_tasks(found, tmp_path / "pooled.png")
    assert Image.open(path).width == 960
    assert picture_over_tasks(found, tmp_path / "bare").suffix == ".png"
    with pytest.raises(ConfigError, match=r"cannot draw a picture as 'pooled\.docx'"):
        picture_over_tasks(found, tmp_path / "pooled.docx")


def test_the_command_pools_runs_of_several_tasks(tmp_path, capsys):
    for task in ("two-step", "climbing"):
        for name in ("one", "other"):
            folder = tmp_path / task / name
            folder.mkdir(parents=True)
            (folder / "config.yaml").write_text(f"algorithm: {{name: {name}}}\nenv: {{name: {task}}}\n")
            row = '{"step": 9, "time": 1.0, "kind": "evaluation", "evaluation/return": 15.0}\n'
            (folder / "metrics.jsonl").write_text(row)
    words = ["report", str(tmp_path), "--output", str(tmp_path / "curves.png")]
    assert main(words) == 0
    out, pooled = capsys.readouterr().out, tmp_path / "curves-over-tasks.png"
    assert "| over 2 tasks | runs |" in out and "| one | 2 | 1 | 1 |" in out
    assert f"interquartile means: {pooled}\nlearning curves:" in out and pooled.exists()
    assert main([*words, "--no-random"]) == 0
    assert "over 2 tasks" not in capsys.readouterr().out


def test_from_four_seeds_on_the_interquartile_mean_stands_beside_the_mean():
    many = runs_of("spread", mappo=(0.0, 4.0, 6.0, 100.0), ippo=(1.0,))
    heads, _, mappo, ippo = cells(results_table(many))
    at = heads.index("interquartile mean")
    assert heads[at - 1] == "last tenth"
    assert mappo[at].startswith("5 [") and mappo[at - 1].startswith("27.5 [") and ippo[at] == "-"
    assert len(heads) == len(mappo) == len(ippo) == 10
    assert "interquartile mean" not in cells(results_table(many[1:]))[0]
