"""`import martes` is free: what a name needs is imported when it is first used."""

import subprocess
import sys

import martes

COUNTED = """
import sys
before = set(sys.modules)
import martes
print(*sorted(name for name in set(sys.modules) - before if name.partition(".")[0] not in sys.stdlib_module_names))
"""


def output(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_martes_imports_nothing_else_of_its_own_and_no_dependency():
    """Counted, not timed: seconds are the machine's affair."""
    assert output(COUNTED) == "martes"


def test_every_public_name_is_there():
    for name in martes.__all__:
        assert getattr(martes, name) is not None
    assert set(dir(martes)) == set(martes.__all__)


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(martes, "Worksapce")
