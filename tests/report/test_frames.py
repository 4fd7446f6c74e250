import json
import sys
from pathlib import Path

import pandas
import pytest

from martes.errors import MissingExtra
from martes.report import read_runs


def test_the_table_holds_every_number_of_every_run(runs):
    table = read_runs(runs)
    assert list(table)[:8] == ["run", "seed", "finished", "step", "time", "kind", "name", "value"]
    for run, part in table.groupby("run"):
        written = [
            (row["step"], row["kind"], name, value)
            for row in map(json.loads, Path(f"{run}/metrics.jsonl").read_text().splitlines())
            for name, value in row.items()
            if name not in ("step", "time", "kind")
        ]
        assert list(part[["step", "kind", "name", "value"]].itertuples(index=False, name=None)) == written
    assert table["finished"].all() and set(table["seed"]) == {0, 1}


def test_hyperparameters_are_columns_with_their_types(runs):
    table = read_runs(runs / "ippo-climbing", runs / "mappo-climbing/0")
    assert table["algorithm.lr"].dtype == float and (table["algorithm.lr"] == 0.0005).all()
    assert table["evaluation.greedy"].dtype == bool and table["training.steps"].dtype == int
    by_critic = table[table.name == "evaluation/return"].groupby("algorithm.critic").value.count()
    assert by_critic.to_dict() == {"local": 10, "central": 5}


def test_a_number_that_was_not_finite_is_missing(tmp_path):
    (tmp_path / "config.yaml").write_text("a: {b: [1, 2]}\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 0.5, "kind": "train", "learn/kl": null}\n')
    table = read_runs(tmp_path)
    assert pandas.isna(table.value[0]) and table["a.b"][0] == "[1, 2]" and not table.finished[0]


def test_runs_with_different_hyperparameters_share_a_table(runs, tmp_path):
    (tmp_path / "config.yaml").write_text("algorithm: {mixer: monotone}\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 0.5, "kind": "train", "learn/loss": 1.5}\n')
    table = read_runs(runs / "ippo-climbing/0", tmp_path)
    mixers = table.groupby("run")["algorithm.mixer"].agg(lambda column: set(column.dropna()))
    assert mixers[str(tmp_path)] == {"monotone"} and mixers[str(runs / "ippo-climbing/0")] == set()


def test_without_pandas_the_error_says_what_to_install(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"pip install 'martes\[pandas\]'"):
        read_runs(runs)
