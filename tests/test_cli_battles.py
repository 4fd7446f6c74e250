"""What PyMARL's users do with a trained battle: choose a checkpoint by its step, read battles won, keep the replay."""

from pathlib import Path

import numpy as np
import pytest

from martes import api
from martes.cli import main
from martes.errors import CheckpointError, ConfigError, EnvError
from martes.training.rows import read_rows
from tests.envs.adapters.test_pymarl import Battle

DOT = np.zeros((1, 1, 3), np.uint8)


class Recorded(Battle):
    """A battle that keeps its replay in a file, one line an episode."""

    def __init__(self, replay_dir: str = "") -> None:
        super().__init__()
        self.replay_dir, self.episodes = replay_dir, 0

    def reset(self):
        self.episodes += 1
        return super().reset()

    def save_replay(self):
        Path(self.replay_dir, "battle.SC2Replay").write_text("an episode\n" * self.episodes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for 60 steps, saved each 20; the replays lie beside the run."""
    folder = tmp_path_factory.mktemp("battles")
    words = [f"env.factory={__name__}:Recorded", f"env.replay_dir={folder}", "env.copies=2", "env.wrap.agent_id=true"]
    words += ["training.save_every=20", "training.keep=9", "evaluation.episodes=4"]
    assert main(["train", "iql/two-step", "--steps", "60", "--run-dir", str(folder / "run"), "with", *words]) == 0
    return folder / "run"


def test_battles_won_are_logged_and_shown(run, capsys):
    tests = [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "evaluation"]
    assert tests and all(0 <= row["evaluation/battle_won"] <= 1 for row in tests)
    assert main(["evaluate", str(run), "--episodes", "6"]) == 0
    shown = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("battle_won"))
    assert float(shown.split()[1]) == pytest.approx(api.evaluate(run, 6).stats["battle_won"], rel=1e-3)


@pytest.mark.parametrize("wanted", [0, 23, 41, 10**6])
def test_the_checkpoint_nearest_to_a_step_is_taken(run, capsys, wanted):
    steps = [int(path.name) for path in (run / "checkpoints").iterdir()]
    assert len(steps) >= 3
    assert main(["evaluate", str(run), "--episodes", "2", "--step", str(wanted)]) == 0
    nearest = min(steps, key=lambda step: abs(step - wanted))
    assert f"step {nearest}: 2 episodes" in capsys.readouterr().out


def test_a_step_needs_a_run_with_checkpoints(run, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    assert main(["evaluate", str(tmp_path), "--step", "5"]) == CheckpointError.exit_code
    assert "has no checkpoint yet" in capsys.readouterr().err
    one = min((run / "checkpoints").iterdir())
    assert main(["evaluate", str(one), "--step", "5"]) == ConfigError.exit_code
    assert f"name its run, {run}, to choose" in capsys.readouterr().err


def test_the_game_s_own_replay_holds_the_episodes_that_were_played(run, capsys):
    replay = run.parent / "battle.SC2Replay"
    assert not replay.exists()
    assert main(["evaluate", str(run), "--episodes", "3", "--save-replay"]) == 0
    assert "replay: saved by the game" in capsys.readouterr().out
    assert replay.read_text().count("an episode") == 4  # three, and the one that opened after them


@pytest.mark.parametrize("values", [[], ["env.wrap.agent_id=true"]])
def test_what_records_nothing_is_refused_before_it_plays(tmp_path, capsys, monkeypatch, values):
    folder = tmp_path / "run"
    assert main(["train", "iql/two-step", "--steps", "20", "--run-dir", str(folder), "env.copies=2", *values]) == 0
    monkeypatch.setattr(api, "scored", None)
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--save-replay"]) == EnvError.exit_code
    out, err = capsys.readouterr()
    assert not out
    assert err == f"martes: two-step records no replay of its own: martes play {folder} draws a GIF\n"


def test_a_film_of_an_earlier_checkpoint(run, monkeypatch):
    shown = []
    monkeypatch.setattr(api, "filmed", lambda found, *_: shown.append(found.steps) or [DOT])
    steps = sorted(int(path.name) for path in (run / "checkpoints").iterdir())
    film = str(run.parent / "film.gif")
    for words in ([], ["--step", str(steps[0] + 1)]):
        assert main(["play", str(run), "--output", film, "--no-window", *words]) == 0
    assert shown == [steps[-1], steps[0]]
