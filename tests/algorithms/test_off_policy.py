"""What is kept of the past: the fields that are needed, as small as they may be."""

import pytest
import torch

from martes.algorithms.off_policy import Store
from martes.data import Discrete, TeamSpec, Vector
from martes.data.priorities import Prioritised
from martes.data.replay import Folder
from martes.errors import ConfigError
from martes.maths.schedules import Constant, Linear
from tests.worlds import World


def test_only_what_is_needed_is_kept() -> None:
    team = World(has_state=True, has_masks=True, has_image=True).team
    schema = Store(seen_as="int8").schema(team, ("obs/vector", "obs/camera", "agent_mask"))
    assert set(schema) == {
        *("obs/vector", "obs/camera", "agent_mask"),
        *("start", "cut", "reward", "discount", "action"),
    }
    assert (schema["obs/vector"].dtype, schema["obs/camera"].dtype) == (torch.int8, torch.uint8)
    assert (schema["reward"].dtype, schema["agent_mask"].dtype) == (torch.float32, torch.bool)


@pytest.mark.parametrize(("actions", "dtype"), [(5, torch.uint8), (256, torch.uint8), (257, torch.int16)])
def test_actions_are_kept_in_the_smallest_kind_that_holds_them(actions: int, dtype: torch.dtype) -> None:
    team = TeamSpec(("a",), {"a": (0,)}, {"a": Vector(1)}, {"a": Discrete(actions)}, state=Vector(2))
    schema = Store(seen_as="float16").schema(team, ("obs", "state"))
    assert (schema["action"].dtype, schema["state"].dtype) == (dtype, torch.float16)


def test_priorities_and_places() -> None:
    assert Store().prioritised is None and Store().place is None
    assert Store(alpha=0.6, beta=0.5).prioritised == Prioritised(0.6, Constant(0.5))
    assert Store(alpha=0.6, beta_steps=10).prioritised == Prioritised(0.6, Linear(0.4, 1.0, 10))
    place = Store(folder="rows").place
    assert isinstance(place, Folder) and place.path.name == "rows"


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"beta_steps": -1}, {"alpha": -0.1}, {"beta": 1.1}])
def test_impossible_stores_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="store"):
        Store(**wrong)
