"""The project speaks of itself alone: no path of somebody's machine, no note from one author to another."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = re.compile(
    r"(?<![\w.~>)}-])/(work|home|root|opt|mnt|srv|Users)/\w+|/tmp/\w+"
    r"|\b(TODO|FIXME|XXX|HACK)\b"
    r"|\b(the brief|house rules|the lead (will|commits|said)|as an AI|language model)\b"
)
NOT_OURS = {"LICENSE", Path(__file__).name}


def is_text(path: Path) -> bool:
    """Is it no picture, nor compiled code? (Of the latter, drafts come and go while tests run side by side.)"""
    return "__pycache__" not in path.parts and path.is_file() and b"\0" not in path.read_bytes()


def test_nothing_names_a_machine_or_how_it_was_written():
    folders = [path for name in ("martes", "tests", "docs", "examples", ".ci") for path in (ROOT / name).rglob("*")]
    texts = [path for path in (*ROOT.iterdir(), *folders) if is_text(path)]
    assert {ROOT / "Makefile", Path(__file__)} <= set(texts)
    found = [
        f"{path.relative_to(ROOT)}:{row}: {line.strip()}"
        for path in texts
        if path.name not in NOT_OURS
        for row, line in enumerate(path.read_text(errors="ignore").splitlines(), start=1)
        if FORBIDDEN.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("line", ["see /home/ann/runs", "open('/tmp/x')", "# TODO: later", "as the brief asks"])
def test_such_a_line_is_found(line):
    assert FORBIDDEN.search(line)


@pytest.mark.parametrize(
    "line", ["https://a.org/work/page", "runs/home/x", "$HOME/opt/x", "/path/to/python", "tmp_path"]
)
def test_an_innocent_line_is_not(line):
    assert not FORBIDDEN.search(line)
