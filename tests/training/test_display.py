import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from martes.training.display import Live, Pace, Plain, display_for, evaluation_in_words, in_words, small_curve

ROOT = Path(__file__).parents[2]
CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\r(?!\n)")

EVALUATION = {
    "step": 0, "time": 0.5, "kind": "evaluation", "evaluation/return": -51.5, "evaluation/return_deviation": 9.25,
    "evaluation/episodes": 32, "evaluation/greedy": 1,
}  # fmt: skip
TRAINING = {
    "step": 2500, "time": 2.0, "kind": "train", "train/episodes": 40, "train/return": -43.21, "learn/loss": 0.5,
    "learn/policy_loss": -0.0123, "learn/kl": None, "learn/entropy": 1.5, "learn/clip_fraction": 0.25, "learn/lr": 5e-4,
    "speed/env_steps_per_second": 41234.5, "time/act": 0.3, "time/learn": 0.625,
}  # fmt: skip


def console(**options):
    return Console(file=io.StringIO(), width=100, highlight=False, **options)


def play(display):
    display.open()
    display.begin(0)
    display.message("evaluation is greedy")
    display.row(EVALUATION)
    display.advance(2500)
    display.row(TRAINING)
    display.close()


def test_plain_prints_one_line_a_row_and_no_control_code():
    out = console()
    play(display_for("plain", "spread, seed 0", 10_000, out))
    title, said, evaluation, training = out.file.getvalue().splitlines()
    assert title == "spread, seed 0: 10,000 steps" and said == "evaluation is greedy"
    assert " ".join(evaluation.split()) == "0 0% evaluation return -51.5 ± 9.25 (greedy, 32 episodes)"
    numbers = "2,500 25% 0:00:00 left 41,234/s episodes 40 return -43.21 loss 0.5 policy_loss -0.0123 kl not finite"
    assert " ".join(training.split()) == f"{numbers} entropy 1.5 clip_fraction 0.25 time: act 30%, learn 62%"
    assert not CONTROL.search(out.file.getvalue().encode())


def test_live_draws_a_bar_with_returns_losses_speed_and_phases():
    out = console(force_terminal=True, record=True)
    play(display_for("live", "spread, seed 0", 10_000, out))
    shown = out.export_text()
    for text in (
        "spread, seed 0", "evaluation is greedy", "25%", "2500/10000", "left", "return -51.5 ± 9.25 (greedy", "at 0",
        "episodes 40  return -43.21", "loss 0.5  policy_loss -0.0123", "lr 0.0005", "act 30%  learn 62%",
    ):  # fmt: skip
        assert text in shown, text


def test_live_says_so_before_an_episode_has_ended():
    out = console(force_terminal=True, record=True)
    display = display_for("live", "t", 10, out)
    display.open()
    display.row({"step": 1, "time": 0.0, "kind": "train", "speed/env_steps_per_second": 1.0})
    display.close()
    assert "no episode has ended yet" in out.export_text()


def test_none_shows_nothing(capfd):
    play(display_for("none", "t", 10))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "kind"), [({}, Plain), ({"force_terminal": True}, Live), ({"force_terminal": False}, Plain)]
)
def test_auto_is_live_in_a_terminal_only(options, kind):
    assert isinstance(display_for("auto", "t", 10, console(**options)), kind)


def test_auto_is_plain_in_a_terminal_that_cannot_move_its_cursor(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(display_for("auto", "t", 10, console(force_terminal=True)), Plain)


def test_time_left_counts_from_where_this_session_began(monkeypatch):
    now = [7.0]
    monkeypatch.setattr("martes.training.display.perf_counter", lambda: now[0])
    pace = Pace(total=100)
    assert pace.left == "-:--:--"
    pace.begin(80)
    assert pace.left == "-:--:--", "nothing was done yet: the 80 steps before are no sign of this session's speed"
    now[0] += 0.25
    pace.steps = 82  # 0.125 s a step: 18 steps take 2.25 s
    assert pace.left == "0:00:02"
    pace.steps = 120
    assert pace.left == "0:00:00"


def test_a_small_curve_spans_its_blocks_and_a_flat_one_lies_low():
    assert small_curve([0, 1, 2, 7]) == "▁▂▃█"
    assert small_curve([3, 3]) == "▁▁" and small_curve([]) == ""


@pytest.mark.parametrize(
    ("value", "words"), [(1234567, "1,234,567"), (-43.2123, "-43.21"), (5e-4, "0.0005"), (None, "not finite"), (0, "0")]
)
def test_numbers_in_words(value, words):
    assert in_words(value) == words


def test_a_sampled_evaluation_says_so():
    assert "(sampled, 32 episodes)" in evaluation_in_words(EVALUATION | {"evaluation/greedy": 0})
    assert "± 9.25, battle_won 0.25 (greedy" in evaluation_in_words(EVALUATION | {"evaluation/battle_won": 0.25})


PROGRAM = """
import sys, tempfile, time, torch
from pathlib import Path
from martes.training.log import Log
from martes.training.settings import Logging
with Log(Path(sys.argv[1]), Logging(every=10, tensorboard=False), 60, "two games", False) as log:
    for step in range(0, 61, 10):
        log.update(step, {"loss": torch.tensor(0.25)}, {"return": torch.tensor([float(step)])})
        time.sleep(0.1)
    log.message("all is done")
"""


def in_a_terminal(folder, **environment):
    """Everything that the program writes when it believes to speak to a person."""
    here, there = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    variables = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", **environment}
    with subprocess.Popen(command, stdout=there, stderr=there, cwd=ROOT, env={**os.environ, **variables}) as process:
        os.close(there)
        written = b""
        while True:
            try:
                part = os.read(here, 65536)
            except OSError:  # how a pseudo-terminal on Linux says that the other side has hung up
                break
            if not part:
                break
            written += part
    os.close(here)
    assert process.returncode == 0, written.decode()
    return written


def test_a_real_terminal_sees_the_panel_redrawn_in_place(tmp_path):
    written = in_a_terminal(tmp_path)
    assert b"\x1b[?25l" in written and b"\x1b[?25h" in written, "the cursor is hidden, and given back"
    assert written.count(b"\x1b[2K") > 10 and b"\x1b[1A" in written, "lines are erased and drawn again"
    text = CONTROL.sub(b"", written).decode()
    assert "60/60" in text and "return 60" in text and "loss 0.25" in text and "all is done" in text
    assert "evaluation is sampled" in text


def test_a_dumb_terminal_and_a_pipe_see_plain_lines(tmp_path):
    seen = in_a_terminal(tmp_path / "dumb", TERM="dumb").replace(b"\r\n", b"\n")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "pipe")]
    piped = subprocess.run(command, capture_output=True, cwd=ROOT, check=True)
    for written in (seen, piped.stdout):
        assert not CONTROL.search(written)
        assert [line.split()[0] for line in written.decode().splitlines()[2:-1]] == ["10", "20", "30", "40", "50", "60"]
        assert all("loss 0.25" in line for line in written.decode().splitlines()[2:-1])
    assert piped.stderr == b""
