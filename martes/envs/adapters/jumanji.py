"""Jumanji (Bonnet et al., 2024): foraging, robot warehouse, connector, cleaner, search and rescue, under `JaxEnv`.

Jumanji marks a time limit by a last step of discount 1 in foraging and the connector; in the others the last step has
discount 0 whatever ended the episode. Here all agree: discount 0 where the game itself ended, and `time_limit` cuts.

- Foraging: over when all food is eaten.
- Robot warehouse: over when two robots collide. (Scores are not those of `rware`, where robots wait for one another.)
- Connector: an agent that is connected or blocked terminates alone, though one that is blocked is made to pay on; over
  when all have.
- Cleaner: over when all is clean, or at an illegal action.
- Search and rescue: over when all targets are found.
"""

import inspect
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from martes.conversion import refuse_unknown
from martes.data import Action, Continuous, Discrete, Image, TeamSpec, Vector, VectorEnv
from martes.envs.adapters.jax_env import Array, JaxEnv, Outcome, Seen
from martes.envs.adapters.jax_pictures import Picture, board
from martes.errors import ConfigError, nearest, require

NEVER = 2**30
"""A time limit that no episode reaches."""


def jumanji(
    task: str, copies: int, device: str | torch.device = "cpu", limit: int | None = None, **options: object
) -> VectorEnv:
    """`copies` of a task of Jumanji under the suite's own name, such as `LevelBasedForaging-v0`.

    Connector and cleaner show one board to all; here each agent gets planes of it, its own place on the last ones.
    Raises ConfigError for a task or an option that the suite does not have.

    Args:
        task: the name in the suite's registry, its version included.
        limit: steps after which an episode is cut, if the task does not cut it before.
        options: what the task's constructor or its generator take: `time_limit`, `num_agents`, `grid_size` and others.
    """
    suite = require("jumanji", "jax")
    known = [name for name in suite.registered_environments() if name.rpartition("-v")[0] in KINDS]
    if task not in known:
        raise ConfigError(f"no task {task!r} of jumanji{nearest(task, known)}")
    kind = KINDS[task.rpartition("-v")[0]]
    draw = getattr(require(f"jumanji.environments.{kind.folder}.generator", "jax"), kind.generator)
    takes = inspect.signature(getattr(suite.environments, task.rpartition("-v")[0])).parameters.keys()
    drawn = inspect.signature(draw).parameters.keys()
    refuse_unknown("env", options, (takes | drawn) - {"generator", "viewer"})
    try:
        fresh = draw(**{**kind.drawn, **{name: value for name, value in options.items() if name in drawn}})
        env = suite.make(task, generator=fresh, **{name: options[name] for name in options if name not in drawn})
    except (TypeError, ValueError, AssertionError) as error:
        told = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise ConfigError(f"{task} of Jumanji cannot be made with {told}: {error}") from error
    return JaxEnv(BoardGame(env, kind), copies, device, limit)


@runtime_checkable
class SuiteEnv(Protocol):
    """A task as the suite has it."""

    time_limit: int

    @property
    def num_agents(self) -> int:
        """The size of the team."""
        ...

    def reset(self, key: Array) -> tuple[object, object]:
        """A fresh state, and the suite's time step."""
        ...

    def step(self, state: object, action: Array) -> tuple[object, object]:
        """The state after, and the suite's time step."""
        ...


class Kind(NamedTuple):
    """What sets one task apart from the others."""

    folder: str
    """Where the suite keeps it."""
    generator: str
    """The class that draws its fresh states."""
    drawn: Mapping[str, object]
    """What the suite's own variant draws."""
    sees: Callable[[SuiteEnv, object], Seen]
    """`obs` and what else is seen, of the suite's observation."""
    over: Callable[[object, object], Array]
    """Did the game itself end? Of the state and the suite's time step."""
    keeps_limit: bool = True
    """Is the suite's own time limit left to it, since it is told apart, or is seen or paid?"""
    ends_alone: bool = False
    """Do agents terminate while others play on?"""


class BoardGame:
    """A task of the suite as a JaxGame; `env` is the suite's own object."""

    def __init__(self, env: SuiteEnv, kind: Kind) -> None:
        self._env = env
        self._kind = kind
        self._jax = require("jax", "jax")
        self._agents = env.num_agents
        limit = env.time_limit
        if not kind.keeps_limit:
            env.time_limit = NEVER  # the suite then says `last` of nothing but the game's own end
        _, seen = self._jax.eval_shape(self.reset, self._jax.random.PRNGKey(0))
        shape: tuple[int, ...] = attrgetter("shape")(seen["obs"])[1:]
        self.team = TeamSpec(
            tuple(f"agent_{index}" for index in range(self._agents)),
            {"agent": tuple(range(self._agents))},
            {"agent": Vector(*shape) if len(shape) == 1 else Image((shape[0], shape[1], shape[2]), torch.float32)},
            {"agent": _acted(attrgetter("action_spec")(env))},
            state=Vector(attrgetter("size")(seen["state"])) if "state" in seen else None,
            episode_limit=limit,
            masks_actions="action_mask" in seen,
        )

    def reset(self, key: Array) -> tuple[object, Seen]:
        """A fresh state, and what is seen of it."""
        state, shown = self._env.reset(key)
        there = self._jax.numpy.ones(self._agents, bool)
        return (state, there), self._shown(shown, there)

    def step(self, key: Array, state: object, action: Array) -> Outcome:
        """The result of `action` [agent ...]."""
        jnp = self._jax.numpy
        assert isinstance(state, tuple)
        before, there = state
        after, shown = self._env.step(before, action)
        reward, discount, told = attrgetter("reward", "discount", "extras")(shown)
        over = self._kind.over(after, shown)
        ended = there & (discount == 0) if self._kind.ends_alone else jnp.zeros_like(there)
        there = there & ~ended
        return Outcome((after, there), self._shown(shown, there), reward, over, ~ended, told)

    def frame(self, state: object) -> Picture:
        """A picture by the suite's own viewer."""
        assert isinstance(state, tuple)
        viewer, render = attrgetter("_viewer", "render")(self._env)
        return board(viewer, render, state[0])

    def _shown(self, shown: object, there: Array) -> Seen:
        seen = self._kind.sees(self._env, attrgetter("observation")(shown))
        return {**seen, "agent_mask": there} if self._kind.ends_alone else seen


def _acted(spec: object) -> Action:
    """What one agent does, of the team's specification."""
    if hasattr(spec, "num_values"):
        return Discrete(int(attrgetter("num_values")(spec)[0]))
    low, high, shape = attrgetter("minimum", "maximum", "shape")(spec)
    low, high = (np.broadcast_to(np.asarray(bound, dtype=float), shape)[0] for bound in (low, high))
    return Continuous(tuple(low.tolist()), tuple(high.tolist()))


def _is_over(state: object, shown: object) -> Array:
    """Is this the last step, and not by a time limit?"""
    return attrgetter("last")(shown)() & (attrgetter("discount")(shown) == 0).all()


def _all_found(state: object, shown: object) -> Array:
    return attrgetter("targets.found")(state).all()


def _views(env: SuiteEnv, seen: object) -> Seen:
    views, mask = attrgetter("agents_view", "action_mask")(seen)
    return {"obs": views, "action_mask": mask}


def _wires(env: SuiteEnv, seen: object) -> Seen:
    """Planes of the connector's board: trails, heads, targets; the agent's own head, its own target."""
    jnp = require("jax.numpy", "jax")
    grid, mask = attrgetter("grid", "action_mask")(seen)
    owner, what = (grid - 1) // 3, jnp.where(grid > 0, (grid - 1) % 3, -1)  # 1 + 3 agent + (0 trail, 1 head, 2 target)
    own = owner == jnp.arange(env.num_agents)[:, None, None]
    trails, heads, targets = (jnp.broadcast_to(what == each, own.shape) for each in range(3))
    return {"obs": jnp.stack([trails, heads, targets, heads & own, targets & own], 1), "action_mask": mask}


def _floor(env: SuiteEnv, seen: object) -> Seen:
    """Planes of the cleaner's floor: dirt, walls, how many agents stand there; the agent's own place."""
    jnp = require("jax.numpy", "jax")
    grid, places, mask = attrgetter("grid", "agents_locations", "action_mask")(seen)
    agents = jnp.arange(env.num_agents)
    own = jnp.zeros((env.num_agents, *grid.shape)).at[agents, places[:, 0], places[:, 1]].set(1)
    dirt, walls, all_ = (jnp.broadcast_to(each, own.shape) for each in (grid == 0, grid == 2, own.sum(0)))
    return {"obs": jnp.stack([dirt, walls, all_, own], 1), "action_mask": mask}


def _rays(env: SuiteEnv, seen: object) -> Seen:
    """What a searcher sees along its rays; the state is where all are, how much remains to be found and of the time."""
    jnp = require("jax.numpy", "jax")
    views, remaining, step, places = attrgetter("searcher_views", "targets_remaining", "step", "positions")(seen)
    state = jnp.concatenate([places.ravel(), jnp.stack([remaining, 1 - step / env.time_limit])])
    return {"obs": views.reshape(env.num_agents, -1), "state": state}


KINDS: Mapping[str, Kind] = {
    "LevelBasedForaging": Kind(
        "routing.lbf",
        "RandomGenerator",
        {"grid_size": 8, "fov": 8, "num_agents": 2, "num_food": 2, "force_coop": True},
        _views,
        _is_over,
    ),
    "RobotWarehouse": Kind(
        "routing.robot_warehouse",
        "RandomGenerator",
        {
            "shelf_rows": 2,
            "shelf_columns": 3,
            "column_height": 8,
            "num_agents": 4,
            "sensor_range": 1,
            "request_queue_size": 8,
        },
        _views,
        _is_over,
        keeps_limit=False,
    ),
    "Connector": Kind(
        "routing.connector",
        "RandomWalkGenerator",
        {"grid_size": 10, "num_agents": 10},
        _wires,
        _is_over,
        ends_alone=True,
    ),
    "Cleaner": Kind(
        "routing.cleaner",
        "RandomGenerator",
        {"num_rows": 10, "num_cols": 10, "num_agents": 3},
        _floor,
        _is_over,
        keeps_limit=False,
    ),
    "SearchAndRescue": Kind(
        "swarms.search_and_rescue", "RandomGenerator", {"num_targets": 40, "num_searchers": 2}, _rays, _all_found
    ),
}
"""The suite's name of a task, without its version -> what it needs."""
