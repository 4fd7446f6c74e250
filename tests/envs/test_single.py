"""One copy of a task after the other on one board: what they show and pay arrives where and when it should."""

from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch

from martes.data import Discrete, Schema, TeamSpec, Vector
from martes.envs.single import Board, Copies, HostedEnv, Result, Row, SingleEnv, limited, serial_env
from martes.errors import ConfigError, EnvError
from tests.envs.contract import Promise, check, played
from tests.envs.singles import TASKS, Faulty, Ramble, seed_of_copy

PAIR = {"a_0": Vector(2), "a_1": Vector(2)}


class Clock:
    """Shows [steps of this episode, its seed]; pays agent 0 its action; ends by itself after `length` steps."""

    def __init__(self, length: int = 3, error: BaseException | None = None) -> None:
        self.team = TeamSpec.of_agents(PAIR, dict.fromkeys(PAIR, Discrete(5)), episode_limit=10)
        self.closed = 0
        self._length, self._error = length, error
        self._seed = self._elapsed = self._episodes = 0

    def reset(self, seed: int | None, row: Row) -> None:
        self._seed = self._seed + 1 if seed is None else seed % 1000
        self._elapsed, self._episodes = 0, self._episodes + 1
        row["obs"][...] = 0, self._seed

    def step(self, action: np.ndarray, row: Row) -> Result:
        self._elapsed += 1
        if self._error is not None and self._elapsed == 2:
            raise self._error
        row["obs"][...] = self._elapsed, self._seed
        if action[0]:
            row["reward"][0] = action[0]
        is_over = self._elapsed == self._length
        if is_over:
            row["discount"][...] = 0
        return Result(is_over, {"episodes": self._episodes, **({"odd": 1.0} if self._seed % 2 else {})})

    def render(self) -> np.ndarray:
        return np.full((2, 3, 3), self._elapsed, np.uint8)

    def close(self) -> None:
        self.closed += 1
        if self._error is not None:
            raise self._error


def clocks(*made: SingleEnv, limit: int | None = None) -> HostedEnv:
    return serial_env(iter(made).__next__, len(made), limit=limit)


def act(env: HostedEnv, *first: int) -> torch.Tensor:
    return torch.tensor([[each, 0] for each in first])


# ---------------------------------------------------------------------------------------------------------------- board
@pytest.mark.parametrize("task", TASKS)
def test_board_is_a_step_of_the_teams_schema(task):
    team = Ramble(**TASKS[task]).team
    board, schema = Board(team, 4), Schema.from_team(team)
    assert set(board.seen) == set(board.final) == {n for n, f in schema.items() if f.extra_row} - {"start"}
    rest = {name: getattr(board, name) for name in ("reward", "discount", "cut", "action")}
    for name, array in {**board.seen, **rest}.items():
        assert array.shape == schema.shape(name, 1, 4)[1:], name
        assert torch.from_numpy(array).dtype == schema[name].dtype, name
        assert (array == schema[name].fill).all(), name


def test_a_row_is_written_in_place_and_a_step_is_a_copy():
    board = Board(Clock().team, 3)
    row = board.row(1)
    assert set(row) == {"obs", "agent_mask", "reward", "discount"}
    row["obs"][...] = 7
    row["reward"][0] = 5
    step = board.time_step(torch.device("cpu"), {}, is_first=False)
    assert step.seen["obs"].sum((1, 2)).tolist() == [0, 28, 0]
    assert step.reward.tolist() == [[0, 0], [5, 0], [0, 0]]
    row["obs"][...] = 9
    assert step.seen["obs"].max() == 7
    assert step.final is None


def test_arrays_lie_where_they_are_told_until_they_are_released():
    given = []

    def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        given.append(np.zeros(shape, dtype))
        return given[-1]

    board = Board(Clock().team, 3, allocate)
    board.row(2)["obs"][...] = 1
    assert len(given) == 2 * len(board.seen) + 4
    assert sum(array.sum() for array in given if array.shape == (3, 2, 2)) == 4
    board.release()
    held = [*board.seen.values(), *board.final.values(), board.reward, board.discount, board.cut, board.action]
    assert [array.shape for array in held] == [array.shape for array in given]
    assert not any(np.shares_memory(array, old) for array in held for old in given)


# ---------------------------------------------------------------------------------------------------------------- steps
def test_rewards_discounts_cuts_and_both_observations():
    with closing(clocks(Clock(3), Clock(2))) as env:
        first = env.reset(0)
        seeds = [seed_of_copy(0, 2) % 1000, seed_of_copy(1, 2) % 1000]
        assert first.start.all()
        assert not first.cut.any()
        assert first.seen["obs"][:, 0].tolist() == [[0, seeds[0]], [0, seeds[1]]]
        one, two, three = (env.step(act(env, *actions)) for actions in ((1, 2), (0, 3), (4, 0)))
    assert [step.reward[:, 0].tolist() for step in (one, two, three)] == [[1, 2], [0, 3], [4, 0]]
    assert not torch.stack([step.reward[:, 1] for step in (one, two, three)]).any()
    assert [step.cut.tolist() for step in (one, two, three)] == [[False] * 2, [False, True], [True, False]]
    assert [step.start.tolist() for step in (one, two, three)] == [[False] * 2, [False, True], [True, False]]
    assert [step.discount[:, 1].tolist() for step in (one, two, three)] == [[1, 1], [1, 0], [0, 1]]
    assert one.final is None
    assert two.final["obs"][:, 0].tolist() == [[2, seeds[0]], [2, seeds[1]]]
    assert two.seen["obs"][:, 0].tolist() == [[2, seeds[0]], [0, seeds[1] + 1]]
    assert three.final["obs"][0, 0].tolist() == [3, seeds[0]]
    assert three.seen["obs"][:, 0].tolist() == [[0, seeds[0] + 1], [1, seeds[1] + 1]]


def test_stats_are_those_of_the_cut_and_unknown_elsewhere():
    with closing(clocks(Clock(3), Clock(2), Clock(2))) as env:
        seeds = [seed_of_copy(copy, 3) for copy in range(3)]
        env.reset(0)
        assert not env.step(act(env, 0, 0, 0)).stats
        told = env.step(act(env, 0, 0, 0)).stats
    assert told["episodes"].isnan().tolist() == [True, False, False]
    assert told["episodes"][1:].tolist() == [1, 1]
    odd = [seed % 2 == 1 for seed in seeds]
    assert any(odd[1:]), "the seeds should show both"
    assert told["odd"].isfinite().tolist() == [False, *odd[1:]]


class Silent(Clock):
    """Counts nothing."""

    def step(self, action: np.ndarray, row: Row) -> Result:
        return Result(super().step(action, row).cut)


def test_a_copy_that_counts_nothing_shows_its_real_end_too():
    with closing(clocks(Silent(2), Silent(3))) as env:
        env.reset(0)
        one, two = (env.step(act(env, 0, 0)) for _ in range(2))
    assert one.final is None
    assert two.cut.tolist() == [True, False]
    assert two.final["obs"][:, 0, 0].tolist() == [2, 2]
    assert two.stats == {}


@pytest.mark.parametrize(("limit", "expected"), [(None, 10), (2, 2), (40, 10)])
def test_the_shorter_limit_counts(limit, expected):
    assert limited(Clock().team, limit).episode_limit == expected
    with closing(clocks(Clock(30), limit=limit)) as env:
        assert env.team.episode_limit == expected


def test_a_limit_cuts_without_being_terminal_and_counts_anew():
    with closing(clocks(Clock(30), Clock(3), limit=4)) as env:
        env.reset(0)
        steps = [env.step(act(env, 0, 0)) for _ in range(8)]
    assert [t for t, step in enumerate(steps, 1) if step.cut[0]] == [4, 8]
    assert [t for t, step in enumerate(steps, 1) if step.cut[1]] == [3, 6]
    assert all(step.discount[0].all() for step in steps)
    assert steps[3].final["obs"][0, 0, 0] == 4


def test_a_reset_in_mid_episode_starts_the_count_anew():
    with closing(clocks(Clock(30), limit=4)) as env:
        env.reset(0)
        for _ in range(3):
            env.step(act(env, 3))
        again = env.reset(1)
        assert not again.reward.any()
        assert not again.cut.any()
        assert [bool(env.step(act(env, 0)).cut) for _ in range(4)] == [False, False, False, True]


def test_seeds_tell_copies_apart_and_repeat():
    with closing(serial_env(Ramble, 6)) as env:
        first, again, other = env.reset(3), env.reset(3), env.reset(4)
    assert len(first.seen["obs"][:, 0, 0].unique()) == 6
    assert torch.equal(first.seen["obs"], again.seen["obs"])
    assert not torch.equal(first.seen["obs"], other.seen["obs"])


@pytest.mark.parametrize("task", TASKS)
def test_contract(task, unchecked):
    check(Promise(lambda copies, limit: serial_env(partial(Ramble, **TASKS[task]), copies, limit=limit), steps=80))


# --------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(("at", "where"), [(0, "the start of an episode"), (3, "step 3 of its episode")])
def test_an_error_names_copy_and_step(at, where):
    with closing(serial_env(partial(Faulty, "raises", seed_of_copy(2, 4), at), 4)) as env:
        with pytest.raises(EnvError, match=rf"^environment copy 2, {where}: ZeroDivisionError: division") as found:
            played(env, 0, 9)
        assert isinstance(found.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (EnvError("agent 'a_0' sees nothing"), EnvError, "^environment copy 1, step 2 of its episode: agent 'a_0'"),
        (ConfigError("no map"), ConfigError, "^no map$"),
        (SystemExit(2), EnvError, "copy 1, step 2 of its episode: SystemExit: 2"),
    ],
)
def test_errors_that_are_already_told(error, kind, text):
    env = clocks(Clock(), Clock(error=error))
    env.reset(0)
    env.step(act(env, 0, 0))
    with pytest.raises(kind, match=text):
        env.step(act(env, 0, 0))


def test_copies_count_from_the_first():
    board = Board(Clock().team, 6)
    crew = Copies([Clock(), Clock(error=ValueError("odd"))], board, first=4)
    crew.reset([1, 2])
    assert board.seen["obs"][:, 0, 1].tolist() == [0, 0, 0, 0, 1, 2]
    crew.step()
    with pytest.raises(EnvError, match="environment copy 5, step 2"):
        crew.step()


def test_misuse_is_told():
    with pytest.raises(EnvError, match=r"env\.copies is 0"):
        serial_env(Clock, 0)
    with closing(clocks(Clock(), Clock())) as env:
        with pytest.raises(EnvError, match="reset"):
            env.step(act(env, 0, 0))
        env.reset(0)
        with pytest.raises(EnvError, match=r"shape \[3, 2\], this task takes \[2, 2\]"):
            env.step(act(env, 0, 0, 0))
        with pytest.raises(EnvError, match=r"no copy 2.*0 to 1"):
            env.render(2)
        assert env.render(1).shape == (2, 3, 3)
        for restored in (env.state_dict, partial(env.load_state_dict, {})):
            with pytest.raises(NotImplementedError):
                restored()


def test_closing_closes_each_once_whatever_comes_of_the_others():
    made = Clock(), Clock(error=ValueError("stuck")), Clock()
    env = clocks(*made)
    env.reset(0)
    with pytest.raises(ValueError, match="stuck"):
        env.close()
    env.close()
    assert [each.closed for each in made] == [1, 1, 1]
    for use in (partial(env.step, act(env, 0, 0, 0)), partial(env.reset, 0), env.render):
        with pytest.raises(EnvError, match="closed"):
            use()


def test_copies_that_were_made_are_closed_where_the_next_cannot_be():
    made = [Clock(), Clock()]
    rest = iter(made)

    def make() -> SingleEnv:
        for each in rest:
            return each
        raise ConfigError("no more")

    with pytest.raises(ConfigError, match="no more"):
        serial_env(make, 3)
    assert [each.closed for each in made] == [1, 1]
