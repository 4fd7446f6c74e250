"""Every subcommand, run for real on tiny budgets; every bad input is one line on stderr and an exit code."""

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from PIL import Image

from martes import api
from martes.cli import main
from martes.cli.words import split
from martes.errors import CheckpointError, ConfigError, DataError, MartesError
from martes.training.rows import read_rows

TINY = ["env.copies=4", "algorithm.rollout=5", "evaluation.episodes=4", "--algorithm.network.hidden", "8"]


def train(folder: Path, *words: str, preset: str = "ippo/two-step") -> int:
    return main(["train", preset, "--steps", "100", "--run-dir", str(folder), *words, *TINY])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert train(folder) == 0
    return folder


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    out, err = capsys.readouterr()
    assert err.startswith("martes: "), err
    assert err.count("\n") == 1
    assert "Traceback" not in out
    return err


# ------------------------------------------------------------------------------------------------------------ training
def test_train_names_what_it_made(run, tmp_path, capsys):
    assert train(tmp_path / "run") == 0
    *_, first, second, third = capsys.readouterr().out.strip().splitlines()
    assert [first, second, third] == [
        f"run: {tmp_path / 'run'}",
        f"learning curve: {tmp_path / 'run' / 'learning_curve.png'}",
        f"replay: {tmp_path / 'run' / 'replay.gif'}",
    ]
    assert Image.open(tmp_path / "run/learning_curve.png").width > 300
    assert Image.open(tmp_path / "run/replay.gif").n_frames > 1
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["env"]["copies"] == 4
    assert config["algorithm"]["network"]["hidden"] == [8]
    assert config["training"]["steps"] == 100


def test_the_default_folder_is_named_by_what_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["train", "mappo/climbing", "--steps", "20", "--seed", "3", *TINY]) == 0
    folders = sorted(path.name for path in Path("runs").iterdir())
    assert len(folders) == 2
    assert all(name.startswith("mappo-climbing-s3-") for name in folders)


def test_every_way_to_give_a_value(tmp_path):
    words = ["with", "algorithm.lr=1e-3", "--algorithm.gamma", "0.5", "--algorithm.gae-lambda=0.25", "--logging.no-csv"]
    assert train(tmp_path / "run", *words) == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    algorithm = config["algorithm"]
    assert (algorithm["lr"], algorithm["gamma"], algorithm["gae_lambda"]) == (1e-3, 0.5, 0.25)
    assert config["logging"]["csv"] is False
    assert not (tmp_path / "run/metrics.csv").exists()


def test_a_file_repeats_a_run_exactly(run, tmp_path):
    again = tmp_path / "again"
    assert main(["train", "--file", str(run / "config.yaml"), "--run-dir", str(again)]) == 0
    assert (again / "config.yaml").read_text() == (run / "config.yaml").read_text()
    without_time = [
        [{name: row[name] for name in row if not name.startswith(("time", "speed/"))} for row in read_rows(path)]
        for path in (run / "metrics.jsonl", again / "metrics.jsonl")
    ]
    assert without_time[0] == without_time[1]


def test_defaults_then_file_then_flags(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("algorithm: {lr: 2e-3, gamma: 0.9}\n")
    assert train(tmp_path / "run", "--file", str(file), "algorithm.gamma=0.8") == 0
    algorithm = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["algorithm"]
    assert (algorithm["lr"], algorithm["gamma"], algorithm["critic"]) == (2e-3, 0.8, "local")


def test_resume_goes_on_and_keeps_what_is_learned(tmp_path, capsys):
    folder = tmp_path / "run"
    assert train(folder) == 0
    assert main(["train", "--resume", str(folder), "--steps", "160"]) == 0
    assert read_rows(folder / "metrics.jsonl")[-1]["step"] == 160
    assert main(["train", "--resume", str(folder), "algorithm.lr=1"]) == ConfigError.exit_code
    assert "algorithm.lr decides what a run learns" in capsys.readouterr().err
    assert main(["train", "ippo/two-step", "--resume", str(folder)]) == ConfigError.exit_code
    assert "leave out preset" in told(capsys)


def test_a_run_is_not_written_over(run, capsys):
    before = (run / "metrics.jsonl").read_bytes()
    assert train(run) == ConfigError.exit_code
    assert f"--resume {run}" in told(capsys)
    assert (run / "metrics.jsonl").read_bytes() == before


# --------------------------------------------------------------------------------------------------- what came of runs
def test_evaluate(run, capsys):
    assert main(["evaluate", str(run), "--episodes", "7", "--sample"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "7 episodes, actions drawn" in out
    assert all(name in out for name in ("95 % interval", "team", "agent_0", "agent_1", "length"))
    newest = sorted((run / "checkpoints").iterdir())[-1]
    assert main(["evaluate", str(newest), "--episodes", "7", "--greedy"]) == 0
    assert "greedy" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--sample", "--greedy"]) == ConfigError.exit_code
    assert "exclude each other" in told(capsys)


def test_a_record_that_cannot_be_written_is_refused_before_it_is_played(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "restored", None)
    for place in (tmp_path / "nowhere/data.safetensors", tmp_path):
        assert main(["evaluate", str(run), "--record", str(place)]) == DataError.exit_code
        assert f"cannot write {place}: name a file in a folder that exists" in told(capsys)


def test_play(run, tmp_path, capsys):
    film = tmp_path / "film.gif"
    assert main(["play", str(run), "--episodes", "2", "--output", str(film), "--no-window"]) == 0
    assert capsys.readouterr().out == f"replay: {film}\n"
    assert 2 <= Image.open(film).n_frames <= 4  # two episodes of two steps; equal pictures are one
    assert main(["play", str(run), "--output", "film.txt"]) == ConfigError.exit_code
    assert "end its name with .gif or .mp4" in told(capsys)


def test_a_film_that_cannot_be_written_is_refused_before_it_is_played(run, monkeypatch, capsys):
    monkeypatch.setattr(api, "restored", None)
    assert main(["play", str(run), "--output", "film.avi"]) == ConfigError.exit_code
    assert "film.avi" in told(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--episodes", "0"], "episodes is 0: it must be at least 1"),
        (["--episodes", "-3"], "episodes is -3: it must be at least 1"),
        (["--seed", "-1"], "the seed is -1: it must be at least 0"),
        (["--device", "gpu"], "device is 'gpu', and there is none on this machine"),
        (["--device", "meta"], "device is 'meta', and there is none on this machine"),
        (["--device", "cuda:x"], "device is 'cuda:x', and there is none on this machine"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "play"])
def test_a_play_that_cannot_be_is_refused(run, command, words, message, capsys):
    assert main([command, str(run), *words]) == ConfigError.exit_code
    assert message in told(capsys)


def test_report(run, tmp_path, capsys):
    picture = tmp_path / "curves.png"
    assert main(["report", str(run), "--output", str(picture)]) == 0
    assert "| ippo on two-step" in capsys.readouterr().out
    assert Image.open(picture).width > 300
    assert main(["report", str(tmp_path / "empty")]) != 0
    assert "no run to read" in told(capsys)


def test_a_report_that_cannot_be_is_refused_before_anything_is_told(run, tmp_path, capsys):
    picture = ["--output", str(tmp_path / "curves.png"), "--no-random"]
    assert main(["report", str(run), "--metric", "train/retrn", *picture]) == DataError.exit_code
    assert "has measured 'train/retrn' yet" in (said := told(capsys)) and "did you mean 'train/return'" in said
    assert main(["report", str(run), "--output", "curves.xyz", "--no-random"]) == ConfigError.exit_code
    assert "cannot draw a picture as 'curves.xyz'" in told(capsys)


def test_who_never_began_leaves_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "bc/two-step"]) == ConfigError.exit_code
    assert not list(Path("runs").iterdir())
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("kept")
    assert main(["train", "ippo/two-step", "--run-dir", "mine", "training.device=meta"]) == ConfigError.exit_code
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]
    Path("mine/config.yaml").write_text("written by hand")
    assert main(["train", "ippo/two-step", "--run-dir", "mine", "training.device=meta"]) == ConfigError.exit_code
    assert Path("mine/config.yaml").read_text() == "written by hand"


def test_a_resumed_run_cannot_end_before_it_stands(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    assert main(["train", "--resume", str(folder), "--steps", "60"]) == ConfigError.exit_code
    assert "training.steps is 60, but" in told(capsys)
    assert main(["train", "--resume", str(folder), "trainin.steps=200"]) == ConfigError.exit_code
    assert "unknown key 'trainin'; did you mean 'training'" in told(capsys)
    assert "steps: 100" in (folder / "config.yaml").read_text()


def by_hand(folder: Path, task: str) -> Path:
    """A run that a loop of one's own wrote."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"algorithm: {{name: by hand, rate: 3}}\ntraining: {{seed: 0}}\n{task}")
    (folder / "metrics.jsonl").write_text('{"step": 9, "time": 1.0, "kind": "evaluation", "evaluation/return": 5.0}\n')
    return folder


@pytest.mark.parametrize(
    ("task", "warning"),
    [
        ("env: {name: two-step}", None),
        ("env: {name: tow-step}", "tow-step was not played at random: .*two-step"),
        ("", "unnamed was not played at random: .* names no task"),
    ],
)
def test_report_of_a_run_of_another_algorithm(task: str, warning: str | None, tmp_path, capsys):
    folder, picture = by_hand(tmp_path / "run", task), str(tmp_path / "curves.png")
    with pytest.warns(UserWarning, match=warning) if warning else nullcontext():
        assert main(["report", str(folder), "--output", picture]) == 0
    cells = capsys.readouterr().out.splitlines()[2].split(" | ")
    assert cells[0].startswith("| by hand on") and cells[3] == "5"
    assert (cells[6] == "-") is (warning is not None)


def test_random_play_stands_beside_runs_of_the_same_rules_alone(tmp_path, capsys):
    for name, scale in (("a", 1.0), ("b", 2.0), ("c", 2.0)):
        by_hand(tmp_path / name, f"env: {{name: two-step, wrap: {{reward_scale: {scale}, agent_id: {scale > 1}}}}}")
    places, picture = [str(tmp_path / name) for name in "abc"], str(tmp_path / "curves.png")
    with pytest.warns(UserWarning, match="two-step was not played at random: .* by different rules"):
        assert main(["report", *places, "--output", picture]) == 0
    assert [line.split(" | ")[6] for line in capsys.readouterr().out.splitlines()[2:4]] == ["-", "-"]
    assert main(["report", *places[1:], "--output", picture]) == 0
    assert capsys.readouterr().out.splitlines()[2].split(" | ")[6] != "-"


def test_sweep_trains_all_and_does_nothing_twice(tmp_path, capsys):
    words = ["sweep", "ippo/two-step", "--seeds", "4", "7", "--processes", "2"]
    words += ["--run-dir", str(tmp_path / "sweep"), "training.steps=40", *TINY]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "| ippo on two-step" in out
    rows = sorted((tmp_path / "sweep").rglob("metrics.jsonl"))
    assert [path.parent.name for path in rows] == ["seed-4", "seed-7"]
    written = [path.stat().st_mtime_ns for path in rows]
    assert main(words) == 0
    assert [path.stat().st_mtime_ns for path in rows] == written
    assert main(["sweep", "ippo/two-stp"]) == ConfigError.exit_code


def test_list(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("mappo", "mpe-spread", "pip install 'martes[vmas]'", "installed"))
    assert main(["list", "algorithms"]) == 0
    assert "mpe-spread" not in capsys.readouterr().out


def test_bench(tmp_path, capsys):
    page = tmp_path / "page.md"
    assert main(["bench", "spread", "--repeats", "1", "--threads", "1", "--output", str(page)]) == 0
    assert "spread vs mpe2, 1024 copies" in capsys.readouterr().out
    assert "| spread vs mpe2, 32 copies |" in page.read_text()
    assert main(["bench", "spred"]) == ConfigError.exit_code
    assert "did you mean 'spread'" in told(capsys)


# ------------------------------------------------------------------------------------------------------- what is wrong
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["trian"], 2, "no command 'trian'; did you mean 'train'"),
        (["train", "mapo/mpe-spread"], 2, "did you mean 'mappo'"),
        (["train", "--steps", "many"], 2, "training.steps is 'many': it must be a whole number"),
        (["train", "--seed=--1"], 2, "training.seed is '--1': it must be a whole number"),
        (["train", "--steps", "0"], 2, "training.steps is 0: it must be at least 1"),
        (["train", "--sede", "1"], 2, "martes train has no option --sede; did you mean '--seed'"),
        (["train", "algorithm.lrr=1"], 2, "unknown key 'algorithm.lrr'; did you mean 'lr'"),
        (["train", "--algorithm.lr", "fast"], 2, "algorithm.lr is 'fast': it must be a finite number"),
        (["train", "with", "lr=1"], 2, "did you mean 'algorithm.lr'"),
        (["train", "--seed", "1", "training.seed=2"], 2, "training.seed is given twice: 2 and 1"),
        (["train", "env.agnets=3"], 2, "unknown key 'env.agnets'; did you mean 'agents'"),
        (["train", "env.factory=no_such:thing"], 2, "no module 'no_such'"),
        (["train", "--file", "no.yaml"], 2, "cannot read no.yaml"),
        (["train", "--resume", "runs/none"], 5, "no run in runs/none"),
        (["train", "training.device=cuda:77"], 2, "training.device is 'cuda:77'"),
        (["train", "training.device=ipu"], 2, "training.device is 'ipu'"),
        (["train", "a/b", "c/d"], 2, "c/d"),
        (["evaluate"], 2, "martes: Missing from martes evaluate: RUN Run folder"),
        (["evaluate", "runs/none"], 5, "no run in runs/none: there is no config.yaml"),
        (["evaluate", "x", "--episodes", "few"], 2, "martes: Error parsing --episodes: invalid literal for int()"),
        (["evaluate", "x", "k=v"], 2, "martes: Unrecognized options: k=v; see martes evaluate --help"),
        (["list", "enves"], 2, "enves"),
        (["sweep"], 2, "nothing to run"),
        (["bench", "--repeats", "0"], 2, "--repeats is 0"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(words, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    assert message in told(capsys)
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_a_foreign_checkpoint_is_refused(run, tmp_path, capsys):
    other = tmp_path / "other"
    assert train(other, preset="mappo-gru/memory-cue") == 0
    capsys.readouterr()
    (other / "config.yaml").write_text((run / "config.yaml").read_text())
    assert main(["evaluate", str(other)]) == CheckpointError.exit_code
    assert "holds no policy of the experiment" in told(capsys)
    newest = sorted((run / "checkpoints").iterdir())[-1]
    tensors = newest / "tensors.safetensors"
    content = tensors.read_bytes()
    try:
        tensors.write_bytes(content[:100])
        assert main(["evaluate", str(run)]) == CheckpointError.exit_code
        assert "tensors.safetensors" in told(capsys)
    finally:
        tensors.write_bytes(content)


def test_an_error_of_the_system_is_one_line_too(run, tmp_path, capsys):
    assert main(["report", str(run), "--output", str(tmp_path / "none/x.png")]) == MartesError.exit_code
    assert "none/x.png: No such file or directory" in told(capsys)


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("MARTES_DEBUG", "1")
    with pytest.raises(ConfigError):
        main(["trian"])


# ------------------------------------------------------------------------------------------------- words, and processes
@pytest.mark.parametrize(
    ("line", "own", "overrides"),
    [
        ("a/b --steps 3", "a/b --steps 3", {}),
        ("a/b with x.y=1 z=2", "a/b", {"x.y": "1", "z": "2"}),
        ("--x.y 1 a/b", "a/b", {"x.y": "1"}),
        ("--x.y=1 --x.z-w=-1", "", {"x.y": "1", "x.z_w": "-1"}),
        ("--x.y 64 64 a/b --seed 1", "a/b --seed 1", {"x.y": "64 64"}),
        ("--x.y -1e-3 --x.z word a/b", "a/b", {"x.y": "-1e-3", "x.z": "word"}),
        ("--x.on --x.no-off k.v=1", "", {"x.on": "true", "x.off": "false", "k.v": "1"}),
        ("--run-dir runs/a=b --run-dir=c", "--run-dir runs/a=b --run-dir=c", {}),
        ("k.v=a=b", "", {"k.v": "a=b"}),
    ],
)
def test_words(line, own, overrides):
    rest, found = split(line.split())
    assert rest == own.split()
    assert dict(found) == overrides


def test_the_command_as_a_process(tmp_path):
    def ran(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "martes", *words]
        environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environ)

    done = ran("train", "ippo/two-step", "--steps", "40", "--run-dir", "run", *TINY)
    assert done.returncode == 0, done.stderr
    assert "learning curve: run/learning_curve.png" in done.stdout
    failed = ran("evaluate", "ran")
    assert (failed.returncode, failed.stdout) == (5, "")
    assert failed.stderr == "martes: no run in ran: there is no config.yaml; did you mean 'run'? known: run\n"
    assert ran("--version").stdout.startswith("martes ")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/config.yaml").write_text("[")
    left_out = ran("report", "run", "bad", "--no-random")
    assert (left_out.returncode, left_out.stderr.count("\n")) == (0, 1)
    assert left_out.stderr.startswith("martes: 1 damaged runs are left out: bad/config.yaml cannot be read")


def test_help_and_lists_need_no_torch():
    for words in (["--help"], ["list", "presets"], ["list", "algorithms"], ["evaluate", "--help"]):
        code = f"import sys; from martes.cli import main; main({words!r}); print('torch' in sys.modules)"
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert out.endswith("False\n"), words
