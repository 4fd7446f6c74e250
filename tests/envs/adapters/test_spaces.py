"""Gymnasium's spaces as a team's, there and back."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from martes.data import Continuous, Discrete, Image, MultiDiscrete, Vector
from martes.envs.adapters.seats import Seats, team_of
from martes.envs.adapters.spaces import acted, native, observed, ours
from martes.envs.single import Board
from martes.errors import ConfigError, EnvError

NUMBERS = spaces.Box(-1, 1, (3,))
LAST = spaces.Box(0, 255, (6, 5, 3), np.uint8)
FIRST = spaces.Box(0, 255, (3, 6, 5), np.uint8)
ACTIONS = {
    "discrete": spaces.Discrete(5),
    "discrete from 3": spaces.Discrete(5, start=3),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-discrete table": spaces.MultiDiscrete([[3, 2], [4, 5]], start=[[1, 0], [0, -2]]),
    "multi-binary": spaces.MultiBinary(3),
    "multi-binary table": spaces.MultiBinary([2, 2]),
    "tuple": spaces.Tuple((spaces.Discrete(2), spaces.Discrete(4, start=-1))),
    "box": spaces.Box(np.array([-1, 0], np.float32), np.array([1, 3], np.float32)),
    "box table": spaces.Box(-2, 2, (2, 3), np.float64),
}


class Table:
    """A team of these spaces, its seats, and a row."""

    def __init__(self, sees: Mapping[str, spaces.Space], does: spaces.Space | Mapping[str, spaces.Space]) -> None:
        does = does if isinstance(does, Mapping) else dict.fromkeys(sees, does)
        self.team = team_of(sees, does, masks_actions=True, forces_actions=True)
        self.seats = Seats(self.team, sees, does)
        self.row = Board(self.team, 1).row(0)


def seen(space: spaces.Space, value: object) -> dict[str, np.ndarray]:
    """What one agent's observation becomes."""
    table = Table({"a": space}, spaces.Discrete(2))
    table.seats.show(table.row, {"a": value})
    return {name: table.row[name][0] for name in table.team.parts}


@pytest.mark.parametrize(
    ("space", "value", "expected"),
    [
        (NUMBERS, np.array([0.1, 0.2, 0.3]), [0.1, 0.2, 0.3]),
        (NUMBERS, [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]),
        (spaces.Box(0, 9, (2, 2), np.int64), np.array([[1, 2], [3, 4]]), [1, 2, 3, 4]),
        (spaces.Box(0, 1, ()), 0.5, [0.5]),
        (spaces.Discrete(4, start=1), 3, [0, 0, 1, 0]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
        (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 9, (2,)))), (1, np.array([5, 6])), [0, 1, 5, 6]),
        (spaces.Dict(b=NUMBERS, a=spaces.Discrete(2)), {"a": 0, "b": np.ones(3), "more": 7}, [1, 1, 1, 1, 0]),
    ],
)
def test_what_is_no_picture_is_one_vector(space: spaces.Space, value: object, expected: list[float]) -> None:
    assert observed(space, "a")[0].space == Vector(len(expected))
    assert seen(space, value)["obs"] == pytest.approx(np.array(expected))


@pytest.mark.parametrize(
    ("space", "image"),
    [
        (LAST, Image((3, 6, 5))),
        (FIRST, Image((3, 6, 5))),
        (spaces.Box(0, 1, (6, 5, 3)), Image((3, 6, 5), torch.float32)),
        (spaces.Box(0, 1, (6, 5, 7)), Image((7, 6, 5), torch.float32)),
        (spaces.Box(0, 1, (3, 3, 2)), Image((2, 3, 3), torch.float32)),
        (spaces.Box(0, 1, (3, 6, 5), np.int8), Image((3, 6, 5), torch.float32)),
        (spaces.Box(-1, 255, (6, 5, 3), np.int16), Image((3, 6, 5), torch.float32)),
        (spaces.Box(0, 255, (6, 5), np.uint8), Image((1, 6, 5))),
    ],
)
def test_pictures_have_their_channels_first_and_are_bytes_where_they_go_up_to_255(
    space: spaces.Space, image: Image
) -> None:
    space.seed(3)
    value = space.sample()
    assert observed(space, "a")[0].space == image
    shown = seen(space, value)["obs"]
    assert shown.dtype == (np.uint8 if image.dtype == torch.uint8 else np.float32)
    is_last = value.ndim == 3 and value.shape != image.shape
    assert np.array_equal(shown, np.moveaxis(value, -1, 0) if is_last else value.reshape(image.shape))


def test_a_dict_with_pictures_keeps_its_parts_and_names_nested_ones() -> None:
    space = spaces.Dict(eye=LAST, body=spaces.Dict(arm=NUMBERS, eye=FIRST), also=spaces.Tuple((NUMBERS, LAST)))
    space.seed(0)
    value = space.sample()
    shown = seen(space, value)
    assert set(shown) == {"obs/eye", "obs/body.arm", "obs/body.eye", "obs/also.0", "obs/also.1"}
    assert np.array_equal(shown["obs/eye"], np.moveaxis(value["eye"], -1, 0))
    assert np.array_equal(shown["obs/body.eye"], value["body"]["eye"])
    assert np.array_equal(shown["obs/also.0"], value["also"][0])


@pytest.mark.parametrize(
    ("space", "value", "told"),
    [
        (NUMBERS, np.zeros(4), r"'a' observed shape \[4\] of float64.*Vector\(size=3\): 4 numbers where 3 belong"),
        (NUMBERS, 1.0, "1 numbers where 3"),
        (NUMBERS, None, "1 numbers where 3"),
        (NUMBERS, "abc", "1 numbers where 3"),
        (LAST, np.zeros((3, 6, 5)), r"shape \[3, 6, 5\] where \[6, 5, 3\] belongs"),
        (spaces.Discrete(3), 7, "'a' observed shape .*Vector"),
        (spaces.Dict(b=NUMBERS), {"c": np.zeros(3)}, r"the keys \['c'\].*'b'"),
        (spaces.Dict(b=LAST), {"c": 0}, r"the keys \['c'\]"),
        (spaces.Dict(b=LAST), 3, "no part 'b' in int"),
        (spaces.Tuple((NUMBERS, LAST)), (np.zeros(3),), "index"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused_with_the_cure(
    space: spaces.Space, value: object, told: str
) -> None:
    with pytest.raises(EnvError, match=told) as caught:
        seen(space, value)
    assert "Mend what reset() and step() return" in str(caught.value)


@pytest.mark.parametrize(
    "space", [spaces.Sequence(NUMBERS), spaces.Graph(NUMBERS, None), spaces.Dict(a=LAST, b=spaces.Sequence(NUMBERS))]
)
def test_what_has_no_fixed_size_cannot_be_observed(space: spaces.Space) -> None:
    with pytest.raises(ConfigError, match=r"'a' observes .*no fixed size: wrap it into a Box"):
        observed(space, "a")


def test_what_an_agent_does() -> None:
    assert acted(ACTIONS["discrete from 3"], "a") == Discrete(5)
    assert acted(ACTIONS["multi-discrete table"], "a") == MultiDiscrete((3, 2, 4, 5))
    assert acted(ACTIONS["multi-binary table"], "a") == MultiDiscrete((2,) * 4)
    assert acted(ACTIONS["tuple"], "a") == MultiDiscrete((2, 4))
    assert acted(ACTIONS["box"], "a") == Continuous((-1, 0), (1, 3))


@pytest.mark.parametrize(
    ("space", "told"),
    [
        (spaces.Dict(a=spaces.Discrete(2)), "'a' acts in Dict.*martes takes Discrete, MultiDiscrete"),
        (spaces.Tuple((spaces.Discrete(2), NUMBERS)), "'a' acts in Tuple"),
        (spaces.Box(-np.inf, np.inf, (2,)), "'a' acts in .*no bounds.*RescaleAction"),
    ],
)
def test_actions_that_cannot_be_taken(space: spaces.Space, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        acted(space, "a")


@given(kind=st.sampled_from(sorted(ACTIONS)), seed=st.integers(0, 2**31), padding=st.integers(0, 2))
def test_actions_go_there_and_back(kind: str, seed: int, padding: int) -> None:
    space = ACTIONS[kind]
    space.seed(seed)
    sample = space.sample()
    action = ours(space, sample)
    if action.ndim:
        action = np.append(action, np.zeros(padding, action.dtype))
    back = native(space)(action)
    assert space.contains(back)
    if isinstance(space, spaces.Tuple):
        assert back == sample
    else:
        assert np.array_equal(back, sample)


@given(kind=st.sampled_from(sorted(ACTIONS)), seed=st.integers(0, 2**31))
def test_what_is_forced_is_written_in_the_terms_of_the_action(kind: str, seed: int) -> None:
    table = Table({"a": NUMBERS, "b": NUMBERS}, ACTIONS[kind])
    ACTIONS[kind].seed(seed)
    sample = ACTIONS[kind].sample()
    table.seats.force(table.row, "b", sample)
    assert table.row["forced"].tolist() == [False, True]
    assert not table.row["forced_action"][0].any()
    told = table.seats.actions(table.row["forced_action"], ["b"])["b"]
    assert told == pytest.approx(sample)
    table.seats.force(table.row, "b", None)
    assert not table.row["forced"].any()
    assert not table.row["forced_action"].any()


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        ("discrete", 5),
        ("discrete from 3", 2),
        ("discrete", [1, 2]),
        ("discrete", "left"),
        ("multi-discrete", [1]),
        ("multi-discrete", [1, 2]),
        ("tuple", (1,)),
        ("tuple", 1),
        ("box", [0.0]),
    ],
)
def test_a_forced_action_that_is_none_of_the_agent_s_is_refused(kind: str, action: object) -> None:
    table = Table({"a": NUMBERS}, ACTIONS[kind])
    with pytest.raises(EnvError, match="forced upon agent 'a' is not in"):
        table.seats.force(table.row, "a", action)


def test_only_those_asked_for_act() -> None:
    table = Table({"a": NUMBERS, "b": NUMBERS, "c": NUMBERS}, spaces.Discrete(5))
    assert table.seats.actions(np.array([4, 3, 2]), ["c", "a"]) == {"a": 4, "c": 2}
    assert table.seats.actions(np.array([4, 3, 2]), ["c", "b", "a"]) == {"a": 4, "b": 3, "c": 2}


@pytest.mark.parametrize("space", [NUMBERS, LAST, spaces.Box(0, 1, (2, 2)), spaces.Discrete(3)], ids=str)
@pytest.mark.parametrize("agents", [2, 20])
def test_the_absent_see_zeros_and_come_back(space: spaces.Space, agents: int) -> None:
    names = [f"a_{index}" for index in range(agents)]
    table = Table(dict.fromkeys(names, space), spaces.Discrete(2))
    space.seed(0)
    everything = {name: space.sample() for name in names}
    some = {name: space.sample() for name in reversed(names[1:])}
    for values in (everything, some, {}, everything):
        table.seats.show(table.row, values)
        assert table.row["agent_mask"].tolist() == [name in values for name in names]
        expected = [seen(space, values[name])["obs"] if name in values else table.row["obs"][0] * 0 for name in names]
        assert np.array_equal(table.row["obs"], expected)


@pytest.mark.parametrize("wrong", [np.zeros(4), np.zeros((3, 1, 4)), 0.5, None])
def test_one_misfit_among_many_is_found(wrong: object) -> None:
    table = Table({f"a_{index}": NUMBERS for index in range(20)}, spaces.Discrete(2))
    values: dict[str, object] = {name: np.ones(3) for name in table.team.agents}
    with pytest.raises(EnvError, match="agent 'a_7' observed"):
        table.seats.show(table.row, {**values, "a_7": wrong})
    table.seats.show(table.row, {**values, "a_7": [2, 3, 4]})
    assert table.row["obs"][6:9].tolist() == [[1, 1, 1], [2, 3, 4], [1, 1, 1]]


def test_many_that_do_not_sit_side_by_side_find_their_places() -> None:
    sees = {f"{'ab'[index % 2]}_{index}": spaces.Box(0, 99, (1 + index % 2,)) for index in range(40)}
    table = Table(sees, spaces.Discrete(2))
    table.seats.show(table.row, {name: np.full(space.shape, int(name[2:])) for name, space in sees.items()})
    assert table.row["obs"].tolist() == [[index, index * (index % 2)] for index in range(40)]


def test_who_is_not_in_the_team_cannot_be_observed() -> None:
    table = Table({"a": NUMBERS}, spaces.Discrete(2))
    with pytest.raises(EnvError, match=r"observations of \['z'\], who are not in the team \['a'\]"):
        table.seats.show(table.row, {"z": np.zeros(3)})


def test_unequal_vectors_are_padded_with_zeros() -> None:
    wide, narrow = spaces.Box(-1, 1, (2, 2)), spaces.Box(-1, 1, (3,))
    table = Table({"a_0": wide, "b_0": narrow}, {"a_0": spaces.Discrete(4), "b_0": spaces.Discrete(2)})
    table.seats.show(table.row, {"a_0": np.ones((2, 2)), "b_0": np.ones(3)})
    assert table.row["obs"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert dict(table.team.groups) == {"a": (0,), "b": (1,)}


@pytest.mark.parametrize("other", [spaces.Box(0, 1, (2, 2, 3)), NUMBERS], ids=["picture", "vector"])
def test_pictures_that_cannot_share_a_field_are_vectors(other: spaces.Box) -> None:
    table = Table({"a": spaces.Box(0, 1, (3, 2, 3)), "b": other}, spaces.Discrete(2))
    table.seats.show(table.row, {"a": np.ones((3, 2, 3)), "b": np.ones(other.shape)})
    assert table.row["obs"].sum(1).tolist() == [18, np.prod(other.shape)]


def test_groups_are_agents_of_one_name_and_equal_spaces() -> None:
    two, three = spaces.Discrete(2), spaces.Discrete(3)
    does = {"red_0": two, "red_1": three, "red_2": two, "blue_0": two, "judge": two}
    team = team_of(dict.fromkeys(does, NUMBERS), does)
    assert dict(team.groups) == {"red_0": (0, 2), "red_1": (1,), "blue": (3,), "judge": (4,)}


@pytest.mark.parametrize(
    ("kind", "mask", "expected"),
    [
        ("discrete", np.array([1, 0, 1, 0, 0], np.int8), [True, False, True, False, False]),
        ("discrete", [1, 0, 1, 0, 0], [True, False, True, False, False]),
        ("discrete", None, [True] * 5),
        ("multi-discrete", (np.array([1, 0, 1]), np.array([0, 1])), [[True, False, True], [False, True, False]]),
        ("multi-discrete", [1, 0, 1, 0, 1], [[True, False, True], [False, True, False]]),
        ("multi-discrete", None, [[True, True, True], [True, True, False]]),
    ],
)
def test_masks(kind: str, mask: object, expected: list[object]) -> None:
    table = Table({"a": NUMBERS}, ACTIONS[kind])
    table.seats.allow(table.row, "a", mask)
    assert table.row["action_mask"][0].tolist() == expected


def test_masks_that_cannot_be() -> None:
    table = Table({"a": NUMBERS}, spaces.Discrete(3))
    with pytest.raises(EnvError, match="the mask of legal actions of agent 'a' has 4 entries, it has 3 actions"):
        table.seats.allow(table.row, "a", np.ones(4))
    with pytest.raises(EnvError, match=r"agent 'a' has no legal action: .* if only to wait"):
        table.seats.allow(table.row, "a", np.zeros(3))
    table.seats.allow(table.row, "a", np.zeros(3), is_over=True)
    assert table.row["action_mask"].all()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_ends_of_a_box_are_reached_and_never_passed(kind: type) -> None:
    box = spaces.Box(np.array([-0.1, 0.0], kind), np.array([0.1, 0.7], kind), dtype=kind)
    team = team_of({"a": spaces.Discrete(2)}, {"a": box})
    for end, bound in zip(team.bounds, (box.low, box.high), strict=True):
        done = native(box)(end[0].numpy())
        assert isinstance(done, np.ndarray) and done.dtype == kind
        assert box.contains(done), done
        assert np.allclose(done, bound, atol=1e-7)


def test_real_numbers_that_stand_for_whole_ones_are_rounded() -> None:
    box = spaces.Box(-2, 3, (3,), np.int64)
    done = native(box)(np.array([-1.6, 0.4, 2.9], np.float32))
    assert isinstance(done, np.ndarray) and done.tolist() == [-2, 0, 3] and box.contains(done)
