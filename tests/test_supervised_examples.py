"""The supervised examples run, and learn something in a small budget."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def told(name: str, *words: str | int, tmp_path: Path) -> dict[str, float]:
    """The numbers that a short run of an example prints, by what it says of them."""
    command = [sys.executable, EXAMPLES / name, *map(str, words)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return {match[1]: float(match[2]) for match in re.finditer(r"^(.+): ([0-9.]+)$", ran.stdout, re.MULTILINE)}


def test_the_cascade_begins_to_see(tmp_path):
    accuracies = told("digits_cascade.py", 16, tmp_path=tmp_path)
    assert list(accuracies) == [f"accuracy after look {depth}" for depth in (1, 2, 3)]
    assert accuracies["accuracy after look 3"] > 0.15


def test_the_recurrent_network_begins_to_read(tmp_path):
    assert told("digits_pixel_by_pixel.py", 8, tmp_path=tmp_path)["accuracy after 64 steps of one pixel"] > 0.15


def test_it_reads_larger_pictures(tmp_path):
    assert list(told("digits_pixel_by_pixel.py", 1, 10, tmp_path=tmp_path)) == ["accuracy after 100 steps of one pixel"]


def test_the_character_model_begins_to_write(tmp_path):
    bits = told("character_model.py", 50, tmp_path=tmp_path)
    assert bits["bits a character of text it never saw"] < 4.7  # the frequencies of single characters cost about 4.8
