"""What the tests of adapters share."""

import pytest

from martes.errors import require


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Lets JAX take up what it compiled for another environment of the same task."""
    config = require("jax", "jax").config
    config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    config.update("jax_persistent_cache_min_compile_time_secs", 0)
    config.update("jax_disable_most_optimizations", True)
