"""Learning is timed in updates: shapes, checked at run time everywhere else, are left unchecked here."""

import pytest


@pytest.fixture(autouse=True)
def all_unchecked(unchecked: None) -> None:
    """Every test of this folder is."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What asks for a `run_seed` is done for as many as `--run-seeds` says: docs/results.md was made with 3."""
    if "run_seed" in metafunc.fixturenames:
        metafunc.parametrize("run_seed", range(metafunc.config.getoption("--run-seeds")))
