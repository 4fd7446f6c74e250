"""What adapters share: who of a team is still there, a stream of chance for each copy, and what an info tells."""

import inspect
import random
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import UInt8
from numpy.random import mtrand

from martes.envs.single import Row
from martes.errors import EnvError

BY_TIME = ("truncated", "TimeLimit.truncated", "episode_limit")
"""Entries of an info that say whether a time limit ended the episode."""
Flags = np.ndarray | np.bool_ | bool
"""One for the whole team [], or one an agent [agent]."""


class Attendance:
    """Who is still there, from the flags that an environment gives for the whole team, or one an agent."""

    def __init__(self, agents: int) -> None:
        self.here = np.ones(agents, dtype=bool)

    def reopen(self) -> None:
        """Everybody is there again."""
        self.here[...] = True

    def is_over(self, terminated: Flags, truncated: Flags, row: Row) -> bool:
        """Is the episode over? Writes `discount`, and notes who left while others play on.

        An environment that terminates leaves everybody at discount 0; one cut by time only those who terminated.
        """
        if _is_one(terminated) and _is_one(truncated):
            if terminated:
                row["discount"].fill(0)
            return bool(terminated or truncated)
        ends = self.here & terminated
        leaves = ends | (self.here & truncated)
        over = not (self.here & ~leaves).any()
        row["discount"][ends] = 0
        if over and np.array_equal(ends, leaves):
            row["discount"].fill(0)
        if not over:
            self.here &= ~leaves
        return over


class Chance:
    """A copy's own streams for code that draws from NumPy's and Python's global ones: enter it to let the code draw.

    So copies do not disturb each other, and it does not matter which process steps them.
    """

    def __init__(self) -> None:
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Starts both streams anew."""
        self._bits: np.random.BitGenerator = np.random.MT19937(seed)
        self._state = random.Random(seed).getstate()

    def __enter__(self) -> None:
        self._outside = mtrand.get_bit_generator()
        mtrand.set_bit_generator(self._bits)
        random.setstate(self._state)

    def __exit__(self, *_: object) -> None:
        mtrand.set_bit_generator(self._outside)
        self._state = random.getstate()


def method(env: object, name: str) -> Callable[..., object] | None:
    """The environment's method of this name, if it has one."""
    found = getattr(env, name, None)
    return found if callable(found) else None


def takes(function: Callable[..., object], name: str) -> bool:
    """Does it have a parameter of this name, or take any?"""
    return any(each.name == name or each.kind is each.VAR_KEYWORD for each in _parameters(function))


def seeder(env: object) -> Callable[[int], object] | None:
    """The environment's `seed(n)`, if it has one that takes a number."""
    found = method(env, "seed")
    return found if found and _parameters(found) else None


def _parameters(function: Callable[..., object]) -> tuple[inspect.Parameter, ...]:
    try:
        return tuple(inspect.signature(function).parameters.values())
    except ValueError:  # some builtins tell nothing
        return ()


def by_time(info: Mapping[str, object]) -> bool | None:
    """Does the info say that a time limit ended the episode? None where it does not speak of it."""
    told = [bool(info[name]) for name in BY_TIME if name in info]
    return any(told) if told else None


def counted(info: Mapping[str, object]) -> dict[str, float]:
    """The numbers of an info, flags of time limits left out: what the environment counts of an episode."""
    return {
        name: float(value)
        for name, value in info.items()
        if isinstance(value, int | float | np.number | np.bool_) and name not in BY_TIME
    }


def per_agent(value: object, agents: int, env: str, what: str) -> np.ndarray:
    """One number for the team [] or one an agent [agent]. Raises EnvError for all else: `env` returned it as `what`."""
    array = np.asarray(value)
    if isinstance(value, bool | float):  # nearly always: no time is lost
        return array
    if array.shape not in ((), (agents,)) or array.dtype.kind not in "biuf":
        told = "a dict" if isinstance(value, Mapping) else f"shape {list(array.shape)} of {array.dtype}"
        raise EnvError(
            f"{env} returned as {what}: {told}. Give one number for the whole team, or one an agent, shape [{agents}]"
        )
    return array


def flags(value: object, agents: int, env: str, what: str) -> Flags:
    """The same, read as a flag for the team or one an agent; 0 is no."""
    if isinstance(value, bool | np.bool_):  # nearly always
        return value
    return per_agent(value, agents, env, what) != 0


def _is_one(flag: Flags) -> bool:
    return not isinstance(flag, np.ndarray) or flag.ndim == 0


def picture(env: object, cure: str) -> UInt8[np.ndarray, "height width 3"]:
    """What the environment's `render` draws. Raises EnvError where that is no picture; `cure` says what would help."""
    draw = method(env, "render")
    if draw is None:
        raise EnvError(f"{type(env).__name__} has no picture of itself: {cure}")
    try:
        frame = np.asarray(draw(mode="rgb_array") if takes(draw, "mode") else draw())
    except Exception as error:
        if type(error).__name__ != "NoSuchDisplayException":  # pyglet's, known by name where it is not installed
            raise
        raise EnvError(
            f"{type(env).__name__} draws on a screen, and there is none: start the command by `xvfb-run -a`"
        ) from error
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] not in (3, 4):
        raise EnvError(
            f"{type(env).__name__}.render() returned shape {list(frame.shape)} of {frame.dtype} where a picture, "
            f"bytes [height, width, 3], belongs: {cure}"
        )
    return np.ascontiguousarray(frame[..., :3])
