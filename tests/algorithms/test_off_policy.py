"""What is kept of the past: the fields that are needed, as small as they may be."""

from collections.abc import Iterator
from typing import Literal

import pytest
import torch

from martes.algorithms.off_policy import Store
from martes.algorithms.q_learning import QLearning
from martes.data import Discrete, TeamSpec, Vector
from martes.data.experience import Episodes
from martes.data.priorities import Prioritised
from martes.data.replay import Folder
from martes.envs.catalogue import environment
from martes.envs.settings import Environment
from martes.errors import ConfigError
from martes.maths.schedules import Constant, Linear
from martes.training.collect import Collector
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


def blocks(held: object) -> Iterator[tuple[int, int]]:
    """Where the memory of each tensor that an object of ours holds begins, and how many bytes that is."""
    if isinstance(held, torch.Tensor):
        yield held.untyped_storage().data_ptr(), held.untyped_storage().nbytes()
    elif isinstance(held, dict):
        for each in held.values():
            yield from blocks(each)
    elif type(held).__module__.startswith("martes."):
        yield from blocks(vars(held))


@pytest.mark.extras
@pytest.mark.parametrize(("seen_as", "share"), [("float32", 1 / 2), ("int8", 1 / 6)])
def test_5000_episodes_of_a_warehouse_take_this_share_of_dense_float_storage(
    seen_as: Literal["float32", "int8"], share: float
) -> None:
    env = environment(Environment("rware:rware-tiny-4ag-v2", 2))
    team, limit = env.team, 500
    store = Store(capacity=2 * (limit + 2), seen_as=seen_as)  # of each copy an episode, and a row for what it sees next
    learner = QLearning(mixer="sum", reward="mean", batch=2, rollout=limit, store=store).learner(
        team, torch.Generator().manual_seed(0)
    )
    collector = Collector(env, learner, torch.Generator().manual_seed(1))
    collector.start(0)
    window = collector.collect()
    learner.experience.add(window, collector.final)
    replay = learner.experience._replay
    assert replay is not None and replay.episode_count == 2 and window["cut"][-1].all()

    batch = replay.episodes(Episodes(2).drawn(replay, torch.Generator().manual_seed(0)))
    column = batch["place"] // replay.slots
    assert batch["obs"].dtype == getattr(torch, seen_as)
    assert torch.equal(batch["obs"][:-1].float(), window["obs"][:-1, column])  # nothing is lost

    agents, seen, actions = team.size, team.observation_sizes[0], team.legal_actions.shape[1]
    joined = agents * seen
    # Observations and state as float32, legal actions as int32, actions one-hot and as int64, and who is there.
    dense = (4 * joined + 4 * joined + 8 * agents * actions + 8 * agents + 13) * (limit + 1) * 5000
    assert dense == pytest.approx(6.2e9, rel=0.01)
    rows = replay.columns * replay.slots
    assert sum(dict(blocks(replay)).values()) / rows * (limit + 1) * 5000 < share * dense


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"beta_steps": -1}, {"alpha": -0.1}, {"beta": 1.1}])
def test_impossible_stores_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="store"):
        Store(**wrong)
