"""What `--help` says is a promise: each change of a command, an option, a default or its text is seen in a diff."""

import re

import pytest

from martes.cli import main
from martes.cli.commands import COMMANDS


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command, snapshot, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([command, "--help"] if command else ["--help"]) == 0
    text = capsys.readouterr().out
    snapshot(f"help{'-' * bool(command)}{command}.txt", "".join(f"{row.rstrip()}\n" for row in text.splitlines()))


def test_the_help_of_training_shows_the_preset_that_is_asked_for(capsys):
    assert main(["train", "ippo-gru/two-step", "--help"]) == 0
    out = capsys.readouterr().out
    assert "here ippo-gru/two-step" in out
    assert re.search(r"--algorithm\.network\.memory +gru ", out)


def test_no_command_shows_the_help(capsys):
    assert main([]) == 0
    assert "usage: martes" in capsys.readouterr().out
