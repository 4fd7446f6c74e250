import shutil

import pytest

from martes.errors import DataError
from martes.report.records import records


@pytest.fixture
def own_runs(runs, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(runs, tmp_path / "own")


def test_every_run_below_a_folder_is_found_with_its_hyperparameters_and_rows(runs):
    found = records(runs)
    assert [str(run.folder.relative_to(runs)) for run in found] == [
        "ippo-climbing/0",
        "ippo-climbing/1",
        "mappo-climbing/0",
    ]
    first = found[0]
    assert first.seed == 0 and found[1].seed == 1 and first.is_finished
    assert first.config["algorithm.lr"] == 0.0005 and first.config["algorithm.critic"] == "local"
    assert first.config["evaluation.greedy"] is True and first.config["env.name"] == "climbing"
    assert [step for step, _ in first.series("evaluation/return")] == [0, 400, 800, 1200, 1600]
    assert all(step >= 200 for step, _ in first.series("learn/kl"))


def test_a_run_named_twice_is_read_once(runs):
    assert len(records(runs, runs / "ippo-climbing", runs / "ippo-climbing/0")) == 3


def test_what_other_tools_keep_inside_a_run_is_no_run(own_runs):
    inner = own_runs / "ippo-climbing/0/wandb/files"
    inner.mkdir(parents=True)
    (inner / "config.yaml").write_text("a: 1")
    assert len(records(own_runs)) == 3


DAMAGES = {
    "half a YAML": ("config.yaml", "algorithm: {lr: 0.1", "cannot be read"),
    "a Python repr": ("config.yaml", "<Namespace lr=0.1>", "holds no hyperparameters"),
    "nothing at all": ("config.yaml", "", "holds no hyperparameters"),
    "code to run": ("config.yaml", "a: !!python/object/apply:os.system ['true']", "cannot be read"),
    "bytes": ("config.yaml", b"\xff\xfe\x00a", "cannot be read"),
    "not a number": ("metrics.jsonl", '{"step": 1, "kind": "train", "loss": NaN}\n', "line 1 is not strict JSON"),
    "a Python dict": ("metrics.jsonl", "{'step': 1}\n", "line 1 is not strict JSON"),
    "half a row in the middle": ("metrics.jsonl", '{"step": 1\n{"step": 2, "kind": "train"}\n', "line 1"),
    "a row without time": ("metrics.jsonl", '{"step": 1, "kind": "train"}\n', "time"),
    "no metrics": ("metrics.jsonl", None, "cannot be read"),
    "no config": ("config.yaml", None, "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_named_in_a_warning_and_the_others_are_still_read(own_runs, damage):
    name, content, complaint = DAMAGES[damage]
    path = own_runs / "ippo-climbing/1" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.warns(UserWarning, match=complaint) as warned:
        found = records(own_runs)
    assert [run.folder.parent.name for run in found] == ["ippo-climbing", "mappo-climbing"]
    assert len(warned) == 1 and str(path) in str(warned[0].message)


def test_several_damaged_runs_are_one_warning(own_runs):
    for run in ("ippo-climbing/0", "ippo-climbing/1"):
        (own_runs / run / "config.yaml").write_text("[1]")
    with pytest.warns(UserWarning, match="2 damaged runs") as warned:
        assert len(records(own_runs)) == 1
    assert len(warned) == 1


def test_no_run_at_all_is_an_error_that_says_what_was_sought(tmp_path):
    with pytest.raises(DataError, match=r"config\.yaml and metrics\.jsonl"):
        records(tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        records(tmp_path / "nowhere")


def test_nothing_but_damaged_runs_is_an_error_that_says_what_is_wrong(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(DataError, match=r"metrics\.jsonl cannot be read"):
        records(tmp_path)


def test_a_killed_run_is_read_without_its_unfinished_line_and_is_not_finished(own_runs):
    path = own_runs / "ippo-climbing/0/metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-3]) + lines[-3][:20])
    run = records(own_runs)[0]
    assert len(run.rows) == len(lines) - 3 and not run.is_finished
