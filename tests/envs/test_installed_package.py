"""A small package of a user's own, installed by pip: its environments bear names, and train by factory, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "little-caves"
version = "0.3"

[project.entry-points."martes.envs"]
cave = "little_caves:Cave"

[tool.setuptools]
py-modules = ["little_caves"]
"""

MODULE = '''
import numpy as np


class Cave:
    """Name the number that you see."""

    def __init__(self, agents: int = 2, numbers: int = 3):
        """
        Args:
            agents: How many look.
            numbers: How many there are.
        """
        self.agents, self.n_actions = agents, numbers
        self.generator = np.random.default_rng()

    def reset(self, seed=None):
        if seed is not None:
            self.generator = np.random.default_rng(seed)
        self.shown = self.generator.integers(self.n_actions, size=self.agents)
        return self.shown[:, None].astype(np.float32)

    def step(self, actions):
        rewards = (np.asarray(actions) == self.shown).astype(float)
        return self.reset(), rewards, False, {}
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables under which Python sees the package."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "little_caves.py").write_text(MODULE)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", target, source], check=True)
    return {**os.environ, "PYTHONPATH": str(target), "COLUMNS": "120"}


def martes(arguments: str, installed: dict[str, str], folder: Path) -> str:
    words = [sys.executable, "-m", "martes", *arguments.split()]
    made = subprocess.run(words, env=installed, cwd=folder, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return made.stdout


def test_its_name_is_listed_with_the_package(installed: dict[str, str], tmp_path: Path) -> None:
    listed = martes("list envs", installed, tmp_path)
    assert any(line.split()[:1] == ["cave"] and "from the package little-caves" in line for line in listed.splitlines())


@pytest.mark.parametrize("place", ["--env.name cave", "--env.factory little_caves:Cave --env.workers 2"])
def test_it_trains_by_name_and_by_factory(place: str, installed: dict[str, str], tmp_path: Path) -> None:
    sizes = "--env.agents 3 --env.copies 4 --env.wrap.time_limit 5 --algorithm.network.hidden 8 --evaluation.episodes 4"
    martes(
        f"train ippo/two-step {place} {sizes} --steps 200 --run-dir run --logging.progress none", installed, tmp_path
    )
    assert "agents: 3" in (tmp_path / "run" / "config.yaml").read_text()
    assert (tmp_path / "run" / "learning_curve.png").exists()
