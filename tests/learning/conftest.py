"""Learning is timed in updates: shapes, checked at run time everywhere else, are left unchecked here."""

import pytest


@pytest.fixture(autouse=True)
def all_unchecked(unchecked: None) -> None:
    """Every test of this folder is."""
