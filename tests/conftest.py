"""What every test stands on: shapes checked at run time, one thread, reproducible randomness, snapshots."""

import random
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping

import tests.checked  # noqa: F401

jaxtyping.install_import_hook("martes", "tests.checked.types")  # before anything imports martes

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, register_random, settings  # noqa: E402

torch.set_num_threads(1)  # tests run side by side, one process a core
# Where a shell's background job ignores it, what tests start would ignore it, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


class GlobalGenerator:
    """Torch's, as hypothesis wants it: each example begins with the same numbers, so that one that fails can shrink."""

    seed, getstate, setstate = map(staticmethod, (torch.manual_seed, torch.get_rng_state, torch.set_rng_state))


global_generator = GlobalGenerator()  # hypothesis holds it weakly
register_random(global_generator)

# Every run tries the same examples, without a clock: who sees a failure sees it again, anywhere.
# To look farther, at random: pytest --hypothesis-profile=explore
settings.register_profile(
    "martes", max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "explore", settings.get_profile("martes"), max_examples=500, derandomize=False, print_blob=True
)
settings.load_profile("martes")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-seeds", type=int, default=1, help="seeds of each learning test")
    parser.addoption("--update-snapshots", action="store_true", help="rewrite tests/snapshots; then read the diff")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--update-snapshots"):
        items[:] = [item for item in items if "snapshot" in getattr(item, "fixturenames", ())]


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """Global randomness starts from the test's own name, so that a test alone and a test among others see the same.

    It does not excuse a use of global randomness in martes: `global_randomness_unused` is for where there must be none.
    """
    number = zlib.crc32(request.node.nodeid.encode())
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)
    return number


def global_states() -> str:
    # Not Python's own: the run-time type checker draws from it which item of a container it looks at.
    return str((torch.get_rng_state().tolist(), np.random.get_state()))


@pytest.fixture
def global_randomness_unused() -> Iterator[None]:
    """Fails the test if torch's or numpy's global generator moved."""
    before = global_states()
    yield
    assert global_states() == before, "something drew from a global generator instead of the run's"


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Leaves shapes and types unchecked, which takes half of the time: for what other tests run with checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def snapshot(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`snapshot(name, text)`: the text equals the committed file tests/snapshots/<name>."""

    def check(name: str, text: str) -> None:
        path = Path(__file__).parent / "snapshots" / name
        if request.config.getoption("--update-snapshots"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.exists() and path.read_text() == text, (
            f"{path.name} changed: if that is meant, run `pytest --update-snapshots` on this test and commit the diff"
        )

    return check
