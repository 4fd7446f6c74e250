"""The command `martes`: `main` finds the subcommand, lets it run, and tells errors in one line."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import Field, fields, replace
from io import StringIO
from itertools import groupby
from typing import get_args

import tyro
from rich.console import Console
from tyro.conf import Positional, Suppress

import martes
from martes.cli import tables
from martes.cli.commands import COMMANDS, Command, Sweep, Train
from martes.cli.evolve import Evolve
from martes.cli.words import INTERRUPTED, split
from martes.errors import ConfigError, MartesError, nearest
from martes.presets import DEFAULT, PRESETS

_HELP = ("-h", "--help")
_ABOUT = "Learning to act in sequence, alone or in a team. `martes train` trains the default preset."


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command: 0, or that of the error, which is told in one line.

    With the variable MARTES_DEBUG set, the whole traceback of an error is shown.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with _warnings_in_a_line():
            return _run(words)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except (MartesError, OSError) as error:
        is_ours = isinstance(error, MartesError)
        if os.environ.get("MARTES_DEBUG") or not (is_ours or error.filename):
            raise
        told = " ".join(str(error).split()) if is_ours else f"{error.filename}: {error.strerror}"
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"martes: {told}", style="red", markup=False)
        return error.exit_code if is_ours else MartesError.exit_code


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Warnings for users say what is the matter, not where in the code that was found."""
    usual = warnings.formatwarning

    def told(message: Warning | str, category: type[Warning], file: str, number: int, line: str | None = None) -> str:
        return f"martes: {message}\n" if category is UserWarning else usual(message, category, file, number, line)

    warnings.formatwarning = told
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _run(words: list[str]) -> int:
    name, *rest = words or ["--help"]
    if name in _HELP:
        return _shown(
            lambda: tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="martes", description=_ABOUT, args=["--help"])
        )
    if name == "--version":
        print(f"martes {martes.__version__}")
        return 0
    if name not in COMMANDS:
        raise ConfigError(f"no command {name!r}{nearest(name, COMMANDS)}; see martes --help")
    command = COMMANDS[name]
    takes_overrides = command in (Train, Evolve, Sweep)
    rest, overrides = split(rest) if takes_overrides else (rest, ())
    if set(rest) & set(_HELP):
        return _shown(lambda: _parsed(command, name, ["--help"]), command, rest)
    parsed = _parsed(command, name, rest)
    if isinstance(parsed, Train | Evolve | Sweep):
        parsed = replace(parsed, overrides=overrides)
    return parsed()


def _shown(help_text: Callable[[], object], command: type[Command] | None = None, words: Sequence[str] = ()) -> int:
    """0, after the help was shown; with every value of the preset among the words, or of the default one."""
    with suppress(SystemExit):  # tyro ends with it
        help_text()
    if command in (Train, Evolve, Sweep):
        preset = next((each for each in words if each in PRESETS), DEFAULT)
        print(f"\nEvery value of an experiment, here {preset}:\n")
        for section in (*tables.settings(PRESETS[preset]), *(tables.evolution() if command is Evolve else ())):
            tables.console().print(section)
    return 0


def _parsed(command: type[Command], name: str, words: list[str]) -> Command:
    """The command with its options. Raises ConfigError for an unknown flag, a missing or an impossible value."""
    options = (each for each in fields(command) if not {Positional, Suppress} & set(get_args(each.type)))
    flags = [flag for each in options for flag in _flags(each)]
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag.replace("_", "-") not in (*flags, *_HELP):
            raise ConfigError(f"martes {name} has no option {flag}{nearest(flag, flags)}")
    told = StringIO()
    try:
        with redirect_stderr(told):
            return tyro.cli(command, prog=f"martes {name}", args=words)
    except SystemExit as stop:
        if not stop.code:
            raise
    raise ConfigError(f"{_first_rows(told.getvalue()).rstrip('.')}; see martes {name} --help")


def _flags(option: Field) -> tuple[str, ...]:
    name = option.name.replace("_", "-")
    return (f"--{name}", f"--no-{name}") if option.type is bool else (f"--{name}",)


def _first_rows(box: str) -> str:
    """What a framed message says first, without its title and its frame, which is drawn in lines or in dashes."""
    rows = (row.strip("│╭╮╰╯─ ") for row in box.strip().splitlines()[1:])
    blocks = groupby(rows, key=lambda row: bool(row.strip("-")))
    return " ".join(next(block for is_text, block in blocks if is_text))
