"""One copy of a task, played by hand."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from martes.envs.single import Board, Result, SingleEnv, serial_env
from tests.envs.contract import Promise, check


class Shown(NamedTuple):
    """What a step wrote, and what it came to."""

    row: dict[str, np.ndarray]
    result: Result

    def __getitem__(self, name: str) -> np.ndarray:
        return self.row[name]

    @property
    def is_cut(self) -> bool:
        return self.result.cut


class Played:
    """A copy and its row."""

    def __init__(self, env: SingleEnv) -> None:
        self.env = env
        self.row = Board(env.team, 1).row(0)

    def reset(self, seed: int | None = None) -> Shown:
        self.env.reset(seed, self.row)
        return self._shown(Result(False))

    def step(self, action: object) -> Shown:
        self.row["reward"][...], self.row["discount"][...] = 0, 1
        return self._shown(self.env.step(np.asarray(action), self.row))

    def _shown(self, result: Result) -> Shown:
        return Shown({name: array.copy() for name, array in self.row.items()}, result)


def legal(shown: Shown, draw: np.random.Generator) -> np.ndarray:
    """One legal action an agent."""
    return np.array([draw.choice(np.flatnonzero(mask)) for mask in shown["action_mask"]])


def check_single(make: object, draws: bool = False, steps: int = 200) -> None:
    """The contract, kept by copies of a task in one process."""
    assert callable(make)
    check(Promise(lambda copies, limit: serial_env(make, copies, limit=limit), draws=draws, steps=steps))


def played_through(env: SingleEnv, actions: Sequence[object], seed: int = 0) -> list[Shown]:
    """What a row of actions leads to, episodes opened where they were cut."""
    played = Played(env)
    shown = [played.reset(seed)]
    for action in actions:
        if shown[-1].is_cut:
            played.reset()
        shown.append(played.step(action))
    return shown
