"""Which environments a test needs an extra for."""

import pytest

from martes.envs.names import CATALOGUE, FAMILIES

WITH_TESTS = ("", "mpe", "lbf")
"""Extras that `make install` brings."""


def marked(name: str) -> object:
    """The environment's name as a parameter; marked where only `make test-extras` installs its package."""
    entry = CATALOGUE.get(name) or FAMILIES.get(name.partition(":")[0])
    is_installed = entry is None or entry.extra in WITH_TESTS
    return pytest.param(name, marks=[] if is_installed else pytest.mark.extras)
