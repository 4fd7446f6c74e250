"""One copy of a task in plain Python, and many of them stepped one after the other as one VectorEnv."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from martes.data import Schema, TeamSpec, TimeStep
from martes.errors import EnvError, MartesError

Row = Mapping[str, np.ndarray]
"""Field -> this copy's part of the arrays, written in place: `obs` or `obs/<part>` [agent feature], `agent_mask`
[agent], `reward` [agent], `discount` [agent]; where the team has them `state`, `action_mask`, `forced`,
`forced_action`."""


class Result(NamedTuple):
    """What a step came to, beside what it wrote."""

    cut: bool
    """Does the trajectory end here, for any reason?"""
    stats: Mapping[str, float] = {}
    """What the environment counts of an episode (`battle_won`); read where it is cut."""


@runtime_checkable
class SingleEnv(Protocol):
    """One copy of a task; it writes what it shows and pays into a row and never resets itself."""

    team: TeamSpec

    def reset(self, seed: int | None, row: Row) -> None:
        """Opens an episode and writes what is seen first; without a seed it goes on with its own random stream."""
        ...

    def step(self, action: np.ndarray, row: Row) -> Result:
        """The result of `action` [agent ...]; writes what is seen then and `reward`, and `discount` where it is not 1.

        `reward` holds zeros and `discount` ones beforehand; all else holds what the step before left.
        """
        ...

    def render(self) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of the copy as it stands."""
        ...

    def close(self) -> None:
        """Frees what the environment holds."""
        ...


Maker = Callable[[], SingleEnv]
"""Makes one copy."""


class Board:
    """The arrays that hold one step of all copies; `allocate(shape, dtype)` may place them into shared memory."""

    def __init__(
        self, team: TeamSpec, copies: int, allocate: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.zeros
    ) -> None:
        schema = Schema.from_team(team)

        def array(name: str) -> np.ndarray:
            dtype = torch.empty(0, dtype=schema[name].dtype).numpy().dtype
            made = allocate(schema.shape(name, 1, copies)[1:], dtype)  # time env ... -> env ...
            made[...] = schema[name].fill
            return made

        self.seen = {name: array(name) for name, field in schema.items() if field.extra_row and name != "start"}
        self.final = {name: array(name) for name in self.seen}
        self.reward, self.discount, self.cut, self.action = (
            array(name) for name in ("reward", "discount", "cut", "action")
        )

    def row(self, index: int) -> dict[str, np.ndarray]:
        """Copy `index`'s part of what is seen, of the rewards and of the discounts."""
        parts = {**self.seen, "reward": self.reward, "discount": self.discount}
        return {name: array[index] for name, array in parts.items()}

    def release(self) -> None:
        """Lets go of what `allocate` gave: from now on the arrays are others, and hold zeros."""

        def fresh(old: np.ndarray) -> np.ndarray:
            return np.zeros(old.shape, old.dtype)

        self.seen = {name: fresh(old) for name, old in self.seen.items()}
        self.final = {name: fresh(old) for name, old in self.final.items()}
        self.reward, self.discount, self.cut, self.action = (
            fresh(old) for old in (self.reward, self.discount, self.cut, self.action)
        )

    def _last(self, name: str) -> np.ndarray:
        """What each copy showed before any reset: those that were not cut show it still."""
        last = self.seen[name].copy()
        last[self.cut] = self.final[name][self.cut]
        return last

    def time_step(self, device: torch.device, stats: Mapping[int, Mapping[str, float]], is_first: bool) -> TimeStep:
        """What the arrays hold, copied; `stats` are those of the copies that were cut, each of them."""
        is_here = device.type == "cpu"

        def placed(array: np.ndarray) -> Tensor:
            copied = torch.asarray(array.copy())  # the array is written over by the next step
            return copied if is_here else copied.to(device)

        seen = {name: placed(array) for name, array in self.seen.items()}
        cut = placed(self.cut)
        start = torch.ones_like(cut) if is_first else cut
        step = TimeStep(seen, start, placed(self.reward), placed(self.discount), cut, stats={})
        if stats:
            step.final = {name: torch.asarray(self._last(name)).to(device) for name in self.final}
            step.stats = {name: placed(value) for name, value in self._told(stats).items()}
        return step

    def _told(self, stats: Mapping[int, Mapping[str, float]]) -> dict[str, np.ndarray]:
        names = dict.fromkeys(name for each in stats.values() for name in each)
        told = {name: np.full(len(self.cut), np.nan) for name in names}
        for index, each in stats.items():
            for name, value in each.items():
                told[name][index] = value
        return told


@runtime_checkable
class Recording(Protocol):
    """What may record its own episodes, as StarCraft does."""

    def is_recording(self) -> bool:
        """Does it record them?"""
        ...

    def save_replay(self) -> None:
        """Saves what was recorded."""
        ...


def is_recording(env: object) -> bool:
    """Does an environment record its own episodes, so that `save_replay` has something to save?"""
    return isinstance(env, Recording) and env.is_recording()


def save_replay(env: object) -> None:
    """Lets an environment save what the game itself records. Raises EnvError where it records nothing."""
    if not isinstance(env, Recording):
        raise EnvError(f"{type(env).__name__} records no replay of its own: martes play draws a GIF")
    env.save_replay()


@runtime_checkable
class Crew(Protocol):
    """Who steps the copies of a board, here or elsewhere."""

    stats: dict[int, Mapping[str, float]]
    """Each copy that the last step cut -> what it counted of that episode."""

    def reset(self, seeds: Sequence[int]) -> None:
        """Opens an episode in every copy."""
        ...

    def step(self) -> None:
        """Steps every copy by its row of `board.action`; those that were cut open their next episode."""
        ...

    def render(self, copy: int) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of one copy."""
        ...

    def is_recording(self) -> bool:
        """Does every copy record its own episodes?"""
        ...

    def save_replay(self) -> None:
        """Saves what each copy recorded."""
        ...

    def close(self) -> None:
        """Closes every copy and all that was opened for them."""
        ...


class _Place:
    """Which copy is at work: what is raised inside comes as an EnvError that names it and the step of its episode."""

    def __init__(self, first: int, copies: int) -> None:
        self.first, self.at, self.is_closed = first, 0, False
        self.elapsed = [0] * copies

    def __enter__(self) -> None:
        if self.is_closed:
            raise EnvError("this environment is closed: make a new one")

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        is_told = isinstance(error, MartesError) and not isinstance(error, EnvError)
        if is_told or not isinstance(error, Exception | SystemExit):
            return
        step = self.elapsed[self.at]
        where = f"step {step} of its episode" if step else "the start of an episode"
        kind = "" if isinstance(error, EnvError) else f"{type(error).__name__}: "
        raise EnvError(f"environment copy {self.first + self.at}, {where}: {kind}{error}") from error


class Copies:
    """A crew in this process: the copies from `first` on, one after the other.

    `limit` cuts episodes after so many steps. What an environment raises comes as an EnvError that names copy and step.
    """

    def __init__(self, envs: Sequence[SingleEnv], board: Board, first: int = 0, limit: int | None = None) -> None:
        self._envs = envs
        self._board = board
        self._limit = limit
        self._mine = slice(first, first + len(envs))
        self._place = _Place(first, len(envs))
        self._rows = [board.row(copy) for copy in range(first, first + len(envs))]
        self.stats: dict[int, Mapping[str, float]] = {}

    def reset(self, seeds: Sequence[int]) -> None:
        """Opens an episode in every copy; each has its own seed, so that it does not matter who steps it."""
        self.stats = {}
        self._clear()
        with self._place:
            for index, (env, row) in enumerate(zip(self._envs, self._rows, strict=True)):
                self._place.at, self._place.elapsed[index] = index, 0
                env.reset(seeds[index], row)

    def _clear(self) -> None:
        board, mine = self._board, self._mine
        board.reward[mine], board.discount[mine], board.cut[mine] = 0, 1, False

    def step(self) -> None:
        """Steps every copy by its row of `board.action`; those that were cut open their next episode."""
        self.stats = {}
        self._clear()
        place, elapsed, actions = self._place, self._place.elapsed, self._board.action[self._mine]
        with place:
            for index, (env, row, action) in enumerate(zip(self._envs, self._rows, actions, strict=True)):
                place.at = index
                elapsed[index] += 1
                result = env.step(action, row)
                if result.cut or elapsed[index] == self._limit:
                    self._reopen(index, env, row, result.stats)

    def _reopen(self, index: int, env: SingleEnv, row: Row, stats: Mapping[str, float]) -> None:
        copy, board = self._mine.start + index, self._board
        board.cut[copy] = True
        for name, final in board.final.items():
            final[copy] = row[name]
        self.stats[copy] = dict(stats)
        self._place.elapsed[index] = 0
        env.reset(None, row)

    def render(self, copy: int) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of one copy."""
        self._place.at = copy - self._place.first
        with self._place:
            return self._envs[self._place.at].render()

    def is_recording(self) -> bool:
        """Does every copy record its own episodes?"""
        return all(is_recording(env) for env in self._envs)

    def save_replay(self) -> None:
        """Saves what each copy recorded. Raises EnvError where one records nothing."""
        with self._place:
            for index, env in enumerate(self._envs):
                self._place.at = index
                save_replay(env)

    def close(self) -> None:
        """Closes every copy, each whatever comes of the others."""
        envs, self._envs = self._envs, ()
        self._place.is_closed = True
        with ExitStack() as closing:
            for env in envs:
                closing.callback(env.close)


class HostedEnv:
    """Copies of a task written in plain Python as one VectorEnv: a board, and the crew that steps it.

    It cannot tell its state: what such an environment holds is its own affair, so a resumed run opens new episodes.
    """

    def __init__(self, team: TeamSpec, board: Board, crew: Crew, device: torch.device | str = "cpu") -> None:
        self.team = team
        self.num_envs = len(board.cut)
        self.device = torch.device(device)
        self.note = ""
        """What the user should know of how it is hosted, if anything."""
        self._board = board
        self._crew = crew
        self._is_open = False

    def reset(self, seed: int) -> TimeStep:
        """The first step of every copy; equal seeds give equal futures, if the task draws from its own stream."""
        seeds = np.random.SeedSequence(seed).generate_state(self.num_envs) >> 1  # some tasks take 31 bits
        self._is_open = True
        self._crew.reset([int(each) for each in seeds])
        return self._board.time_step(self.device, {}, is_first=True)

    def step(self, action: Tensor) -> TimeStep:
        """The result of `action` [env agent ...] in every copy. Raises EnvError where its shape is another."""
        if not self._is_open:
            raise EnvError("step() before reset(): call reset(seed) first")
        if action.shape != self._board.action.shape:
            expected = list(self._board.action.shape)
            raise EnvError(f"actions have the shape {list(action.shape)}, this task takes {expected}")
        self._board.action[...] = action.numpy(force=True)
        self._crew.step()
        return self._board.time_step(self.device, self._crew.stats, is_first=False)

    def render(self, index: int = 0) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of copy `index` as it stands. Raises EnvError where there is none of it."""
        if not 0 <= index < self.num_envs:
            raise EnvError(f"there is no copy {index}: this environment has the copies 0 to {self.num_envs - 1}")
        return self._crew.render(index)

    def is_recording(self) -> bool:
        """Does the game itself record episodes, in every copy?"""
        return self._crew.is_recording()

    def save_replay(self) -> None:
        """Saves what the game itself records in each copy. Raises EnvError where it records nothing."""
        self._crew.save_replay()

    def close(self) -> None:
        """Closes every copy."""
        self._crew.close()

    def state_dict(self) -> dict[str, object]:
        """Raises NotImplementedError: nobody knows all that a task in plain Python holds."""
        raise NotImplementedError("an environment written in plain Python cannot tell its state")

    def load_state_dict(self, state: dict[str, object]) -> TimeStep:
        """Raises NotImplementedError, as `state_dict` does."""
        raise NotImplementedError("an environment written in plain Python cannot tell its state")


def serial_env(make: Maker, copies: int, device: torch.device | str = "cpu", limit: int | None = None) -> HostedEnv:
    """`copies` of a task, stepped one after the other in this process; `limit` cuts episodes after so many steps."""
    counted(copies)
    envs: list[SingleEnv] = []
    with ExitStack() as unless_all_goes_well:
        for _ in range(copies):
            envs.append(make())
            unless_all_goes_well.callback(envs[-1].close)
        team = limited(envs[0].team, limit)
        board = Board(team, copies)
        unless_all_goes_well.pop_all()
    return HostedEnv(team, board, Copies(envs, board, limit=limit), device)


def counted(copies: int) -> int:
    """The same number of copies. Raises EnvError where it is none."""
    if copies < 1:
        raise EnvError(f"env.copies is {copies}: an environment needs at least one copy")
    return copies


def limited(team: TeamSpec, limit: int | None) -> TeamSpec:
    """The team under another time limit, the shorter one."""
    limits = [each for each in (team.episode_limit, limit) if each is not None]
    return replace(team, episode_limit=min(limits)) if limits else team
