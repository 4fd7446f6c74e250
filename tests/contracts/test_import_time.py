"""`import martes` is free: what a name needs is imported when it is first used."""

import subprocess
import sys

import martes

TIMED = """
import sys, time
import torch
begin = time.perf_counter()
import martes
print(time.perf_counter() - begin)
"""


def output(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_martes_costs_less_than_a_second_more_than_torch():
    assert float(output(TIMED)) < 1.0


def test_importing_martes_imports_no_dependency():
    heavy = ("torch", "numpy", "gymnasium", "rich", "tyro", "matplotlib")
    assert output(f"import sys, martes; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_every_public_name_is_there():
    for name in martes.__all__:
        assert getattr(martes, name) is not None
    assert set(dir(martes)) == set(martes.__all__)


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(martes, "Worksapce")
