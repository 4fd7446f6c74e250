"""The Laser Learning Environment, where agents block beams of their own colour so that others may pass.

Source: Molinghen et al. (2023), "Laser Learning Environment: a new environment for coordination-critical multi-agent
tasks"; https://github.com/yamoling/lle.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8

from martes.data import Discrete, Image, Observation, TeamSpec, Vector
from martes.envs.adapters.episodes import Chance, counted
from martes.envs.single import Result, Row, SingleEnv
from martes.errors import ConfigError, EnvError, nearest, require


@runtime_checkable
class Seen(Protocol):
    """What the team sees: an array [agent ...], masks [agent action], further numbers [agent extra]."""

    data: np.ndarray
    available_actions: np.ndarray
    extras: np.ndarray


@runtime_checkable
class WorldState(Protocol):
    """The state of the world, as numbers."""

    data: np.ndarray


@runtime_checkable
class Step(Protocol):
    """What a step came to."""

    obs: Seen
    state: WorldState
    reward: np.ndarray
    done: bool
    truncated: bool
    info: Mapping[str, object]


@runtime_checkable
class Laser(Protocol):
    """The package's environment; it speaks the interface of marlenv, of the same authors."""

    n_agents: int
    n_actions: int

    def reset(self, *, seed: int | None = None) -> tuple[Seen, WorldState]:
        """Opens an episode."""
        ...

    def step(self, action: np.ndarray) -> Step:
        """The result of a joint action."""
        ...

    def available_actions(self) -> np.ndarray:
        """True where an action is legal."""
        ...

    def get_image(self) -> np.ndarray:
        """A picture."""
        ...


class LaserTeam:
    """One level as a team of `agent_0`, `agent_1`, ..., whose common reward goes to everybody.

    Layers of the map are a picture with as many planes; what else it shows is a vector, `extras` a part beside it. Who
    has reached an exit can only stay. An episode ends for all when one dies or when all have left; the numbers of the
    team in the last info (`exit_rate`, `gems_collected`, `joint_exit`) are what it counts. `limit` cuts after so many
    steps.
    """

    def __init__(self, env: Laser, limit: int | None = None) -> None:
        self._env = env
        self._chance = Chance()
        self._limit, self._elapsed = limit, 0
        with self._chance:
            seen, state = env.reset(seed=0)
        self._has_extras = seen.extras.size > 0
        self._is_last = seen.data.ndim == 4 and seen.data.shape[-1] == 3  # channels: of a rendered picture alone
        self._main = "obs/map" if self._has_extras else "obs"
        names = [f"agent_{index}" for index in range(env.n_agents)]
        self.team = TeamSpec.of_agents(
            dict.fromkeys(names, self._observation(seen)),
            dict.fromkeys(names, Discrete(env.n_actions)),
            state=Vector(state.data.size),
            episode_limit=limit,
            masks_actions=True,
        )

    def _observation(self, seen: Seen) -> Observation:
        shape = self._planes(seen.data).shape[1:]
        is_picture = len(shape) == 3
        dtype = torch.uint8 if self._is_last else torch.float32
        main = Image((shape[0], shape[1], shape[2]), dtype) if is_picture else Vector(shape[0])
        return {"map": main, "extras": Vector(seen.extras.shape[1])} if self._has_extras else main

    def _planes(self, data: np.ndarray) -> np.ndarray:
        return np.moveaxis(data, -1, 1) if self._is_last else data

    def reset(self, seed: int | None, row: Row) -> None:
        """Opens an episode and writes what is seen first."""
        if seed is not None:
            self._chance.seed(seed)
        self._elapsed = 0
        with self._chance:  # colours of lasers are drawn from Python's global stream
            seen, state = self._env.reset(seed=seed)
        row["agent_mask"][...] = True
        self._show(row, seen, state)

    def step(self, action: np.ndarray, row: Row) -> Result:
        """The result of `action` [agent]."""
        self._elapsed += 1
        told = self._env.step(action)
        if told.reward.size != 1:
            raise EnvError(f"a reward of {told.reward.size} objectives: make the level without multi_objective()")
        self._show(row, told.obs, told.state)
        row["reward"][...] = told.reward.item()
        if told.done:
            row["discount"].fill(0)
        cut = bool(told.done or told.truncated or self._elapsed == self._limit)
        of_team = {name: value for name, value in counted(told.info).items() if not name[-1].isdigit()}
        return Result(cut, of_team if cut else {})

    def _show(self, row: Row, seen: Seen, state: WorldState) -> None:
        row[self._main][...] = self._planes(seen.data)
        if self._has_extras:
            row["obs/extras"][...] = seen.extras
        row["action_mask"][...] = seen.available_actions
        row["state"][...] = state.data.ravel()

    def render(self) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of the level as it stands."""
        return np.ascontiguousarray(self._env.get_image())

    def close(self) -> None:
        """Nothing is held."""


LEVELS = tuple(f"level{index}" for index in range(1, 7))


def lle(
    task: str,
    observation: str = "layered",
    walkable_lasers: bool = True,
    randomize_lasers: bool = False,
    shaping: bool = False,
    episode_limit: int | None = 78,
) -> SingleEnv:
    """A level of the Laser Learning Environment.

    Args:
        task: level1 to level6; or a map, written as the package writes maps
        observation: what agents see, as the package names it: layered, flattened, partial3x3, state, perspective, ...
        walkable_lasers: may agents step into a beam of another colour, and die?
        randomize_lasers: draw the colours of the lasers anew in each episode
        shaping: reward whoever first crosses a laser, by potentials, and show who did
        episode_limit: steps after which an episode is cut; the package has none, 78 is half the cells of a level
    """
    package = require("lle", "lle")
    if task not in LEVELS and not any(tile in task.split() for tile in ("X", "S0")):
        raise ConfigError(f"no task {task!r} of lle{nearest(task, LEVELS)}")
    known = [each.value for each in package.ObservationType]
    if observation not in known:
        raise ConfigError(f"no observation {observation!r} of lle{nearest(observation, known)}")
    level = package.level(LEVELS.index(task) + 1) if task in LEVELS else package.from_str(task)
    level = level.obs_type(observation).walkable_lasers(walkable_lasers)
    if randomize_lasers:
        level = level.randomize_lasers()
    return LaserTeam((level.pbrs() if shaping else level).build(), episode_limit)
