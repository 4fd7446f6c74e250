"""What may change, between which bounds: read from the config's own fields."""

from dataclasses import dataclass, field, replace
from typing import Annotated

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from martes.algorithms.coma import COMA
from martes.algorithms.ppo import PPO
from martes.algorithms.q_learning import QLearning
from martes.algorithms.registry import BUILT_IN, algorithm_named
from martes.conversion import Typed, changed
from martes.data.limits import Range
from martes.errors import ConfigError
from martes.evolution.space import drawn, moved, number_at, numbers_of, space_of, with_numbers


@given(st.integers(2, 300), st.integers(1, 300), st.integers(1, 300))
def test_a_whole_number_between_its_bounds_never_sticks(value: int, below: int, above: int):
    bounds = Range(max(value - below, 1), value + above)
    for factor in (bounds.grow, bounds.shrink):
        moved = bounds.moved(value, factor, is_whole=True)
        assert isinstance(moved, int)
        assert (moved - value) * (factor - 1) > 0, "it moves the way that it should"
        assert moved in bounds


@given(st.floats(1e-5, 1e-2))
def test_a_real_number_moves_by_its_factor_or_to_the_bound(value: float):
    bounds = Range(1e-5, 1e-2, 1.5, 0.75)
    assert bounds.moved(value, 1.5, is_whole=False) == min(value * 1.5, 1e-2)
    assert bounds.moved(value, 0.75, is_whole=False) == max(value * 0.75, 1e-5)


def test_a_whole_value_of_a_real_field_moves_as_a_real_number():
    for factor, to in ((1.2, 1.2), (0.8, 0.8)):
        assert moved(QLearning(ratio=1), "algorithm.ratio", Range(1e-3, 4.0), factor) == to
        assert moved(QLearning(batch=10), "algorithm.batch", Range(8, 64), factor) == 10 * to


def test_every_number_of_a_config_is_found_at_any_depth():
    found = dict(numbers_of(QLearning()))
    assert found["algorithm.lr"] == (5e-4, False, Range(1e-5, 1e-2))
    assert found["algorithm.batch"] == (32, True, Range(8, 512))
    assert found["algorithm.exploration.steps"] == (50_000, True, None)
    assert found["algorithm.target_rate"] == (None, False, None)
    assert found["algorithm.sequence"] == (None, True, None)
    assert not {"algorithm.double", "algorithm.mixer", "algorithm.network.hidden"} & found.keys()


def test_without_a_word_the_declared_numbers_are_searched():
    assert set(space_of(PPO())) == {"algorithm.lr", "algorithm.entropy", "algorithm.epochs"}
    assert set(space_of(PPO(entropy=0.0))) == {"algorithm.lr", "algorithm.epochs"}
    assert {"algorithm.lr", "algorithm.critic_lr", "algorithm.critic_epochs"} <= set(space_of(COMA()))
    assert {"algorithm.lr", "algorithm.batch", "algorithm.ratio"} == set(space_of(QLearning()))


BY_NAME = {
    "lr": Range(1e-5, 1e-2),
    "entropy": Range(1e-4, 0.1),
    "batch": Range(8, 512),
    "epochs": Range(1, 16),
    "ratio": Range(1e-3, 4.0),
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_numbers_of_the_same_name_declare_the_same_bounds_in_every_algorithm(name: str):
    for path, each in numbers_of(algorithm_named(name)):
        last = path.rpartition(".")[2]
        assert each.bounds == BY_NAME.get("lr" if last.endswith("_lr") else last.removeprefix("critic_")), path


@dataclass(frozen=True)
class Inner:
    """A part of a config."""

    depth: Annotated[int, Range(1, 8, grow=2.0, shrink=0.5)] = 2


@dataclass(frozen=True)
class Own:
    """A user's own config."""

    heat: Annotated[float, "a temperature", Range(0.1, 10.0)] = 1.0
    clip: Annotated[float, Range(0.1, 0.4)] | None = 0.2
    delay: Annotated[int | None, Range(1, 4)] = None
    lr: float = 1e-3
    inner: Inner = field(default_factory=Inner)

    def learner(self, team, generator):
        raise NotImplementedError


def test_a_config_of_ones_own_declares_its_own_bounds_and_its_names_say_nothing():
    space = {
        "algorithm.heat": Range(0.1, 10.0),
        "algorithm.clip": Range(0.1, 0.4),
        "algorithm.inner.depth": Range(1, 8, 2.0, 0.5),
    }
    assert space_of(Own()) == space, "a number that is none begins nowhere"
    auto = space_of(Own(delay=2), {"algorithm.delay": (), "algorithm.lr": ()})
    assert auto["algorithm.delay"] == Range(1, 4)
    assert auto["algorithm.lr"].high == pytest.approx(1e-2)
    with pytest.raises(ConfigError, match=r"algorithm\.heat is 20\.0, outside of its bounds 0\.1 to 10"):
        space_of(Own(heat=20.0))


def test_bounds_change_nothing_of_what_a_field_takes():
    typed = {"heat": Typed("1e-1"), "clip": Typed("none"), "delay": Typed("3"), "inner": {"depth": "4"}}
    assert changed(Own(), typed, "algorithm") == Own(0.1, None, 3, inner=Inner(4))
    with pytest.raises(ConfigError, match=r"algorithm\.delay is '1\.5': it must be a whole number or none"):
        changed(Own(), {"delay": Typed("1.5")}, "algorithm")
    assert changed(Own(), {"heat": 20.0}, "algorithm").heat == 20.0, "they bound what is searched alone"


def test_any_number_can_be_named():
    space = space_of(PPO(), {"algorithm.gamma": (0.9, 0.999), "algorithm.rollout": (8, 64, 1.5, 0.75)})
    assert space == {"algorithm.gamma": Range(0.9, 0.999), "algorithm.rollout": Range(8, 64, 1.5, 0.75)}
    auto = space_of(PPO(), {"algorithm.lr": (), "algorithm.clip": ()})
    assert auto["algorithm.lr"] == Range(1e-5, 1e-2)
    assert (auto["algorithm.clip"].low, auto["algorithm.clip"].high) == pytest.approx((0.02, 2.0))


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        ({"algorithm.lr": (1e-3, 1e-2)}, "algorithm.lr is 0.0005, outside of its bounds 0.001 to 0.01"),
        ({"algorithm.rl": (1e-3, 1e-2)}, "did you mean 'algorithm.lr'"),
        ({"algorithm.sharing": (1, 2)}, "'algorithm.sharing' is no number"),
        ({"algorithm.target_kl": (0.01, 0.1)}, "algorithm.target_kl is none, outside of its bounds"),
        ({"algorithm.lr": (1e-2, 1e-4)}, "give a lower one above 0, then a higher one"),
        ({"algorithm.lr": (1e-4, 1e-2, 0.9, 0.8)}, "grow must be above 1"),
        ({"algorithm.lr": (1e-4,)}, "give low,high"),
    ],
)
def test_a_space_that_cannot_be_is_refused(given_: dict, told: str):
    with pytest.raises(ConfigError, match=told):
        space_of(PPO(), given_)


def test_numbers_are_written_and_read_by_path():
    config = with_numbers(QLearning(), {"algorithm.exploration.end": 0.1, "algorithm.batch": 64})
    assert (config.exploration.end, config.batch) == (0.1, 64)
    assert number_at(config, "algorithm.exploration.end") == 0.1
    with pytest.raises(ConfigError, match=r"algorithm\.gamma"):
        with_numbers(QLearning(), {"algorithm.gamma": 1.5})


def test_drawn_values_spread_evenly_over_orders_of_magnitude():
    space = {"algorithm.lr": Range(1e-5, 1e-1), "algorithm.batch": Range(8, 512)}
    generator = torch.Generator().manual_seed(0)
    found = [drawn(QLearning(), space, generator) for _ in range(400)]
    assert all(each.lr in space["algorithm.lr"] and each.batch in space["algorithm.batch"] for each in found)
    assert all(isinstance(each.batch, int) for each in found)
    small = sum(each.lr < 1e-3 for each in found) / len(found)
    assert 0.4 < small < 0.6
    assert drawn(replace(QLearning(), lr=1e-4), space, torch.Generator().manual_seed(1)).gamma == 0.99
