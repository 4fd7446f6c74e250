"""The matrix: every algorithm in every kind of world trains two updates and moves every parameter, or says why not."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from martes.algorithms.registry import BUILT_IN, algorithm_named
from martes.envs.batched.engine import BatchedEnv
from martes.errors import ConfigError
from martes.training.collect import Collector
from tests.worlds import World


@dataclass(frozen=True)
class Column:
    """A kind of world, and what is asked of the algorithm in it."""

    world: World
    changes: dict[str, Any]


def column(world: World, **changes: Any) -> Column:
    return Column(world, changes)


COLUMNS = {
    "discrete": column(World()),
    "discrete masked": column(World(has_masks=True, has_state=True)),
    "continuous": column(World("continuous")),
    "multi-discrete": column(World("multi")),
    "unequal team": column(World(is_unequal=True, has_masks=True)),
    "dying agent": column(World(has_deaths=True, has_state=True)),
    "time limit": column(World(ends=0.0, limit=3)),
    "recurrent": column(World(has_deaths=True), memory="gru"),
    "attention": column(World(has_deaths=True), memory="attention"),
    "retention": column(World(has_deaths=True), memory="retention"),
    "shared": column(World(is_unequal=True), sharing="shared"),
    "by group": column(World(is_unequal=True), sharing="group"),
    "by agent": column(World(is_unequal=True), sharing="agent"),
    "one agent": column(World(agents=1)),
    "image": column(World(has_image=True, has_state=True)),
    "image without a state": column(World(has_image=True)),
    "kill and resume": column(World(has_masks=True), memory="gru"),
}
REFUSED = {  # (algorithm, column) -> the error that says what to do
    (name, "image without a state"): "Give the TeamSpec a state, or take critic=local"
    for name in ("ppo", "mappo", "maa2c")
} | {
    ("coma", "continuous"): "needs Discrete actions, and this team's are Continuous",
    ("coma", "multi-discrete"): "needs Discrete actions, and this team's are MultiDiscrete",
    ("coma", "image without a state"): "Give the TeamSpec a state",
}
REFUSED |= {
    (name, case): "one value an action needs a list of actions"
    for name in ("dqn", "iql", "vdn", "qmix", "qtran")
    for case in ("continuous", "multi-discrete")
}
REFUSED |= {(name, "image without a state"): "Give the TeamSpec a state" for name in ("qmix", "qtran")}
REFUSED |= {(name, "multi-discrete"): "not several at once" for name in ("sac", "masac")}
QUICK = {  # what lags behind for many updates moves in two, and batches are due after the first window
    "target_every": 1,
    "batch": 4,
    "ratio": 0.1,
    "warmup": 0,
    "episodes": 2,
}


def configured(name: str, changes: dict[str, Any]) -> Any:
    config: Any = algorithm_named(name)
    small = {"hidden": (8,), "memory_size": 8, "channels": (4,), "agent_id": True, "size": 8, "heads": 2}
    small = {each: value for each, value in small.items() if hasattr(config.network, each)}
    if hasattr(config.network, "memory_size"):  # who acts in turn has its memory by name: rec-sable
        small["memory"] = changes.get("memory", "none")
    network = replace(config.network, **small)
    quick = {name: value for name, value in QUICK.items() if hasattr(config, name)}
    if getattr(config, "reward", None) == "common":
        quick["reward"] = "mean"  # in these worlds everybody is paid something else
    changes = {name: value for name, value in changes.items() if name != "memory"}
    return replace(config, network=network, rollout=8, **quick, **changes)


def begun(name: str, case: Column) -> tuple[Any, Collector]:
    env = BatchedEnv(case.world, 5)
    learner = configured(name, case.changes).learner(env.team, torch.Generator().manual_seed(0))
    collector = Collector(env, learner, torch.Generator().manual_seed(1))
    collector.start(2)
    return learner, collector


def weights(learner: Any) -> dict[str, torch.Tensor]:
    """Everything that is learned or follows what is learned, whether it acts or not."""
    modules = {name: each for name, each in vars(learner).items() if isinstance(each, torch.nn.Module)}
    named = ((f"{at}.{name}", value) for at, each in modules.items() for name, value in each.named_parameters())
    return {name: value.detach().clone() for name, value in named}


def update(learner: Any, collector: Collector, nth: int = 1) -> None:
    learner.experience.add(collector.collect(), collector.final)
    batches = list(learner.experience.due(40 * nth))
    assert batches
    for batch in batches:
        learner.update(batch)


@pytest.mark.parametrize("case", COLUMNS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_cell_trains_or_is_refused(name: str, case: str) -> None:
    if (name, case) in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[name, case]):
            begun(name, COLUMNS[case])
        return
    learner, collector = begun(name, COLUMNS[case])
    before = weights(learner)
    update(learner, collector)
    parts = (learner, learner.experience, collector)
    kept = deepcopy([each.state_dict() for each in parts])  # as a file would keep it
    update(learner, collector, 2)
    after = weights(learner)
    still = [each for each in before if torch.equal(before[each], after[each])]
    assert not still, f"these did not move: {still}"
    if case == "kill and resume":
        twin, its_collector = begun(name, COLUMNS[case])
        twin.load_state_dict(kept[0])
        twin.experience.load_state_dict(kept[1])
        its_collector.load_state_dict(kept[2], 0)
        with pytest.raises(AssertionError):  # before the second update the twin is elsewhere: the comparison can fail
            assert_equal(weights(twin), after)
        update(twin, its_collector, 2)
        assert_equal(weights(twin), after)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("name", BUILT_IN)
def test_parameters_of_two_seeds_are_as_committed(name: str, snapshot: Any) -> None:
    """A change of what an algorithm computes is seen here, and said in the commit.

    Rounded: processors differ in the last bits.
    """
    lines = []
    for seed in (0, 1):
        env = BatchedEnv(World(has_masks=True), 4)
        learner = configured(name, {}).learner(env.team, torch.Generator().manual_seed(seed))
        collector = Collector(env, learner, torch.Generator().manual_seed(seed))
        collector.start(seed)
        update(learner, collector)
        for each, value in learner.policy.named_parameters():
            lines.append(f"{seed} {each} {value.double().norm().item():.4f}")
    snapshot(f"trace-{name}.txt", "\n".join(lines) + "\n")
