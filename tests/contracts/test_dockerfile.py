"""The container's recipe names what is there; no engine is needed to read it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "Dockerfile").read_text()


def test_every_file_that_is_copied_exists_and_is_let_through():
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", RECIPE, re.MULTILINE) for name in line.split()]
    assert {"constraints.txt", "martes"} <= set(copied)
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    assert set(copied) == let_through


def test_its_extras_and_its_python_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", RECIPE, re.MULTILINE)
    (python,) = re.findall(r"^ARG PYTHON=(\S+)$", RECIPE, re.MULTILINE)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert project["requires-python"] == f">={python}", "the oldest one, which constraints.txt was resolved for"
