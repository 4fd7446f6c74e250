"""Real tasks of one copy, in plain Python and from a stream of their own, and such as go wrong."""

import os
import signal
import sys
import time
from dataclasses import dataclass, replace

import numpy as np

from martes.data import Continuous, Discrete, Image, MultiDiscrete, TeamSpec, Vector
from martes.envs.single import Result, Row

AGENTS = ("walker_0", "walker_1", "flyer_0")
ACTIONS = {"discrete": Discrete(4), "multi": MultiDiscrete((3, 2)), "continuous": Continuous((-1.0, -2.0), (1.0, 2.0))}


@dataclass(frozen=True)
class Options:
    """What is special in a ramble."""

    action: str = "discrete"
    unequal: bool = False
    deaths: bool = False
    joins: bool = False
    masks: bool = False
    forced: bool = False
    image: bool = False
    state: bool = False
    stats: bool = False
    length: int = 12
    """Episodes take up to so many steps."""
    episode_limit: int | None = None


class Ramble:
    """Three agents stray about a line; what they do moves them, and a stream of the task's own does the rest."""

    def __init__(self, **options: object) -> None:
        self.options = replace(Options(), **options)
        self.team = self._team()
        self.is_closed = False
        self._random = np.random.default_rng()
        self._place = np.zeros(3)
        self._there = np.ones(3, bool)
        self._elapsed = self._length = 0

    def _team(self) -> TeamSpec:
        options = self.options
        sees = {agent: Vector(3 if options.unequal and agent == "flyer_0" else 2) for agent in AGENTS}
        if options.image:
            sees = {agent: {"view": Image((1, 4, 5)), "place": Vector(2)} for agent in AGENTS}
        does = dict.fromkeys(AGENTS, ACTIONS[options.action])
        if options.unequal:
            does["flyer_0"] = Discrete(6)
        team = TeamSpec.of_agents(sees, does, episode_limit=options.episode_limit, masks_actions=options.masks)
        return replace(team, state=Vector(4) if options.state else None, forces_actions=options.forced)

    def reset(self, seed: int | None, row: Row) -> None:
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self._place = self._random.normal(size=3)
        self._there = np.array([True, True, not self.options.joins])
        self._elapsed, self._length = 0, int(self._random.integers(2, self.options.length + 1))
        self._show(row)

    def step(self, action: np.ndarray, row: Row) -> Result:
        assert not self.is_closed
        self._elapsed += 1
        moves = action.reshape(3, -1).sum(-1)
        if self.options.forced:
            moves = np.where(row["forced"], row["forced_action"].reshape(3, -1).sum(-1), moves)
        self._place += self._there * (0.1 * moves + self._random.normal(scale=0.2, size=3))
        row["reward"][...] = -np.abs(self._place) * self._there
        if self.options.joins and self._elapsed == 3:
            self._there[2] = True
        if self.options.deaths and self._elapsed == 2 and self._place[0] > 0:
            self._there[0] = False
            row["discount"][0] = 0
        is_cut = self._elapsed == self._length
        is_over = is_cut and self._length % 2 == 0  # an end of its own, or else of its time
        row["discount"][...] *= not is_over
        self._show(row)
        return Result(is_cut, {"range": float(np.ptp(self._place))} if self.options.stats and is_over else {})

    def _show(self, row: Row) -> None:
        row["agent_mask"][...] = self._there
        seen = np.stack([self._place, np.full(3, self._elapsed / 10)], -1) * self._there[:, None]
        if self.options.image:
            row["obs/view"][...] = self._random.integers(0, 255, (3, 1, 4, 5)) * self._there[:, None, None, None]
        place = row["obs/place" if self.options.image else "obs"]
        place[:, :2] = seen
        if self.options.unequal:
            place[2, 2] = self._there[2]
        if self.options.state:
            row["state"][...] = [*self._place, self._elapsed]
        if self.options.masks:
            row["action_mask"][...] = self.team.legal_actions.numpy()
            row["action_mask"][..., 1] &= self._random.random(row["action_mask"].shape[:-1]) < 0.5
        if self.options.forced:
            row["forced"][...] = self._random.random(3) < 0.3
            row["forced_action"][...] = 1

    def render(self) -> np.ndarray:
        picture = np.zeros((8, 8, 3), np.uint8)
        picture[..., 0] = self._elapsed
        return picture

    def close(self) -> None:
        self.is_closed = True


TASKS: dict[str, dict[str, object]] = {
    "plain": {},
    "unequal": {"unequal": True},
    "dying": {"deaths": True, "joins": True},
    "masked": {"masks": True},
    "forced": {"forced": True, "deaths": True},
    "image": {"image": True},
    "stats": {"stats": True, "state": True},
    "multi": {"action": "multi", "masks": True},
    "continuous": {"action": "continuous", "forced": True},
}
"""Name -> options of rambles that are told apart by what is special in them."""


class Slow(Ramble):
    """Its step takes a millisecond, and no core."""

    def step(self, action: np.ndarray, row: Row) -> Result:
        time.sleep(0.001)
        return super().step(action, row)


FAULTS = {
    "raises": lambda: 1 / 0,
    "exits": lambda: sys.exit(3),
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "sleeps": lambda: time.sleep(1000),
    "spins": lambda: [None for _ in iter(int, 1)],
    "leaves": lambda: os._exit(7),
}


class Faulty(Ramble):
    """Does what it should not in the episode that one seed opens, at step `at` (0: as it opens)."""

    def __init__(self, fault: str, seed: int, at: int = 3) -> None:
        super().__init__(length=30)
        self._fault, self._at, self._seed, self._is_due = fault, at, seed, False

    def reset(self, seed: int | None, row: Row) -> None:
        super().reset(seed, row)
        self._length = 30
        self._is_due = seed == self._seed
        self._act_up()

    def step(self, action: np.ndarray, row: Row) -> Result:
        result = super().step(action, row)
        self._act_up()
        return result

    def _act_up(self) -> None:
        if self._is_due and self._elapsed == self._at:
            FAULTS[self._fault]()

    def render(self) -> np.ndarray:
        raise NotImplementedError("it draws nothing")


def seed_of_copy(copy: int, copies: int, seed: int = 0) -> int:
    """What copy `copy` is reset with when all are reset with `seed`."""
    return int(np.random.SeedSequence(seed).generate_state(copies)[copy] >> 1)
