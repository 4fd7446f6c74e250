"""The picture of a population: who descends from whom, whatever is known of them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from martes.errors import CheckpointError, DataError
from martes.evolution.lineage import Life, write_lives
from martes.report.lineage import descent, lineage_picture

UNCHANGED = {"kind": "none", "what": "", "before": None, "after": None, "note": ""}


def a_life(generation: int, place: int, id: int, parent: int | None, fitness: float | None, lr: float = 1e-3) -> Life:
    values = {"algorithm.lr": lr, "algorithm.network.hidden": [8, 8]}
    return Life(generation, place, id, parent, 100 * (generation + 1), fitness, fitness, UNCHANGED, values)


LIVES = [
    a_life(0, 0, 0, None, 1.0),
    a_life(0, 1, 1, None, 2.0),
    a_life(1, 0, 1, None, 2.5),
    a_life(1, 1, 3, 0, 3.0, lr=1.2e-3),
    a_life(2, 0, 3, 0, None, lr=1.2e-3),
    a_life(2, 1, 5, 1, 4.0, lr=8e-4),
]


def test_descent_follows_parents_and_those_who_stayed():
    assert [life.id for life in descent(LIVES)] == [1, 1, 5]
    assert [life.id for life in descent(LIVES[:4])] == [0, 3]
    assert descent([a_life(0, 0, 0, None, None)]) == []


def test_a_picture_has_a_panel_for_fitness_and_each_number(tmp_path: Path):
    record = tmp_path / "lineage.jsonl"
    write_lives(LIVES, record, tmp_path / "lineage.csv")
    with_number = Image.open(lineage_picture(record, tmp_path / "one.png")).height
    bare = [Life(**{**vars(life), "values": {}}) for life in LIVES]
    write_lives(bare, record, tmp_path / "lineage.csv")
    assert with_number > Image.open(lineage_picture(record, tmp_path / "two.png")).height


def test_nothing_to_draw_is_told(tmp_path: Path):
    with pytest.raises(DataError, match="tells of nobody"):
        lineage_picture(tmp_path / "lineage.jsonl", tmp_path / "one.png")
    (tmp_path / "lineage.jsonl").write_text(json.dumps({"generation": 1}) + "\n")
    with pytest.raises(CheckpointError, match="no record of a population"):
        lineage_picture(tmp_path / "lineage.jsonl", tmp_path / "one.png")
