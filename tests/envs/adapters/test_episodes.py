"""What ends an episode, told for the whole team or agent by agent."""

from itertools import product

import numpy as np
import pytest

from martes.envs.adapters.episodes import Attendance, flags
from martes.errors import EnvError

ONES = [False, 0, 0.0, np.bool_(False), np.float32(0), np.zeros(())]
OTHERS = [True, 1, 2.5, np.bool_(True), np.int8(1), np.ones(())]


def ended(terminated: object, truncated: object) -> tuple[bool, list[float]]:
    """Is it over, and the discounts that are written."""
    row = {"discount": np.ones(3, np.float32)}
    ends = (flags(each, 3, "it", "ends") for each in (terminated, truncated))
    return Attendance(3).is_over(*ends, row), row["discount"].tolist()


@pytest.mark.parametrize(("no", "yes"), [*zip(ONES, OTHERS, strict=True)], ids=lambda each: type(each).__name__)
def test_a_flag_of_any_kind_is_that_of_every_agent(no: object, yes: object) -> None:
    for terminated, truncated in product((no, yes), repeat=2):
        expected = ended(*([bool(np.asarray(each))] * 3 for each in (terminated, truncated)))
        assert ended(terminated, truncated) == expected
    assert ended(yes, no) == (True, [0] * 3) and ended(no, yes) == (True, [1] * 3) and ended(no, no) == (False, [1] * 3)


def test_what_is_no_flag_is_told() -> None:
    for wrong in (None, "yes", [True, False], {"agent_0": True}):
        with pytest.raises(EnvError, match="it returned as ends"):
            flags(wrong, 3, "it", "ends")
