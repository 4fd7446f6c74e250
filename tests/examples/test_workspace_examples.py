"""The examples of the workspace as a library, and of one call for each method, run in small."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("script", "budget", "told"),
    [
        ("differentiable_pendulum.py", ("2", "4", "5"), "an episode of 200 steps pays -"),
        ("imagination.py", ("1", "2", "4"), "a true episode of 200 steps pays -"),
        ("background_evaluation.py", ("2", "4"), "version 1: -"),
        ("cartpole_ppo.py", ("1024",), "after 0 steps the return is "),
        ("qmix_two_step.py", ("300",), "qmix earns "),
        ("imitation.py", ("1024", "24", "2"), "after 2 gradient steps"),
    ],
)
def test_the_example_runs(script, budget, told, tmp_path):
    ran = subprocess.run(
        [sys.executable, EXAMPLES / script, *budget], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert told in ran.stdout
