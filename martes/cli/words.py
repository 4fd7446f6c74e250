"""What a person types, in the ways that people type it: `--algorithm.lr 1e-3`, `algorithm.lr=1e-3`, `with k=v`."""

import re
from collections.abc import Sequence

from martes.conversion import Typed

INTERRUPTED = 130
"""The exit code of a run that Ctrl-C ended, saved."""
Overrides = tuple[tuple[str, str], ...]
"""Paths into an experiment and their values: `algorithm.lr`, `1e-3`."""

_ASSIGNED = re.compile(r"(?:--(?=[^=]*\.))?([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)
_FLAG = re.compile(r"--([A-Za-z_][\w-]*(?:\.[\w-]+)+)")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def split(words: Sequence[str]) -> tuple[list[str], Overrides]:
    """The words that are a command's own, and the values of the experiment among them.

    A flag with a dot in it takes the next word, or several numbers (`--algorithm.network.hidden 64 64`); without a word
    it is true, and `--logging.no-csv` is false.
    """
    own: list[str] = []
    overrides: list[tuple[str, str]] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if assigned := _ASSIGNED.fullmatch(word):
            overrides.append((_path(assigned[1]), assigned[2]))
        elif flag := _FLAG.fullmatch(word):
            end = _end_of_values(words, position)
            overrides.append(_flagged(flag[1], words[position:end]))
            position = end
        elif word != "with":
            own.append(word)
    return own, tuple(overrides)


def _path(name: str) -> str:
    return name.replace("-", "_")


def _flagged(name: str, values: Sequence[str]) -> tuple[str, str]:
    if values:
        return _path(name), " ".join(values)
    is_negated = ".no-" in name
    return _path(name.replace(".no-", ".")), "false" if is_negated else "true"


def _end_of_values(words: Sequence[str], first: int) -> int:
    """Where the values of a flag end: after one word of any kind, or after a row of numbers."""
    end = first
    while end < len(words) and _NUMBER.fullmatch(words[end]):
        end += 1
    has_word = end == first < len(words) and not words[first].startswith("--") and not _ASSIGNED.fullmatch(words[first])
    return end + has_word


def typed(*pairs: tuple[str, str | None]) -> list[tuple[str, object]]:
    """Those of the pairs that have a value, as typed by a person."""
    return [(path, Typed(value)) for path, value in pairs if value is not None]
