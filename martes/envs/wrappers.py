"""An environment seen through changes of what agents see and earn; one place runs, restarts and restores them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard, get_args

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from martes.data import Fields, Memory, TeamSpec, TimeStep, VectorEnv
from martes.data.trees import cleared, mapped
from martes.envs.changes import (
    Change,
    Changing,
    Reward,
    agent_id,
    flattened,
    frame_stack,
    last_action,
    reward_scale,
    shrunk,
    team_reward,
)
from martes.envs.single import is_recording, save_replay
from martes.errors import ConfigError, EnvError, nearest


@dataclass(frozen=True)
class Wrap:
    """What is changed in what agents see, do and earn."""

    agent_id: bool = False
    """Show each agent its own number in the team, one-hot, behind what it sees?"""
    last_action: bool = False
    """Show each agent the action that it executed last (choices one-hot), behind what it sees?"""
    time_limit: int | None = None
    """Cut episodes after so many steps, without ending them: the shorter of this and the task's own limit holds."""
    reward_scale: float = 1.0
    """Multiplies every reward; logged returns are scaled, too."""
    team_reward: Reward = "own"
    """What an agent earns: its own reward, or the sum or mean over the whole team, the dead included.

    The return of a team is the sum of what its agents earn: under `sum` it counts every reward once an agent.
    """
    shrink: int = 1
    """Show pictures at one so-manieth of their height and width, each block of pixels as its mean."""
    flatten: bool = False
    """Join pictures (bytes as shares of 255) and vectors into one vector?"""
    frame_stack: int = 1
    """Show the last so many observations at once; an episode's first one fills the places before it."""
    against: str | None = None
    """Who plays the agents `against_agents`: the folder of a saved run, or `random`."""
    against_agents: tuple[str, ...] = ()
    """The agents that learn nothing here: `against` plays them. Empty: those of the saved run's own team."""

    def __post_init__(self) -> None:
        for name, least in (("time_limit", 1), ("frame_stack", 1), ("shrink", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"env.wrap.{name} is {value}: it must be at least {least}")
        if not (math.isfinite(self.reward_scale) and self.reward_scale > 0):
            raise ConfigError(f"env.wrap.reward_scale is {self.reward_scale}: give a number above 0")
        if self.team_reward not in get_args(Reward):
            raise ConfigError(
                f"env.wrap.team_reward is {self.team_reward!r}{nearest(str(self.team_reward), get_args(Reward))}"
            )
        self._refuse_unclear_opponents()

    def _refuse_unclear_opponents(self) -> None:
        if self.against_agents and self.against is None:
            raise ConfigError(
                f"env.wrap.against_agents names {', '.join(self.against_agents)}, and nobody to play them: "
                "give env.wrap.against, the folder of a run or `random`"
            )
        if self.against == "random" and not self.against_agents:
            raise ConfigError("env.wrap.against is random: name the agents that it plays in env.wrap.against_agents")
        if len(set(self.against_agents)) < len(self.against_agents):
            raise ConfigError(f"env.wrap.against_agents names an agent twice: {', '.join(self.against_agents)}")


class Lens:
    """A series of changes, the first nearest to the task, and what each remembers of the running episodes."""

    def __init__(self, team: TeamSpec, series: Sequence[Changing]) -> None:
        self._changes: list[Change] = []
        for changing in series:
            self._changes.append(changing(team))
            team = self._changes[-1].team
        self.team = team
        self._memories: list[Memory] = []

    def first(self, step: TimeStep) -> TimeStep:
        """The first step of every copy, changed."""
        self._memories, seen = [], step.seen
        for change in self._changes:
            self._memories.append(change.opened(seen))
            seen = change.shown(seen, self._memories[-1])
        return replace(step, seen=seen)

    def next(self, step: TimeStep, action: Tensor) -> TimeStep:
        """The step that `action` has led to, changed."""
        for index, change in enumerate(self._changes):
            memory, final = change.advanced(self._memories[index], _reached(step), action), None
            if step.final is not None:
                final = change.shown(step.final, memory)
                memory = cleared(memory, change.opened(step.seen), step.start)
            self._memories[index] = memory
            seen, reward = change.shown(step.seen, memory), change.earned(step.reward)
            step = replace(step, seen=seen, final=final, reward=reward)
        return step

    def shown(self, seen: Fields) -> Fields:
        """What is seen, changed by what is remembered now."""
        for change, memory in zip(self._changes, self._memories, strict=True):
            seen = change.shown(seen, memory)
        return seen

    def state(self) -> Memory:
        """What each change remembers."""
        return tuple(mapped(Tensor.contiguous, memory) for memory in self._memories)

    def load(self, state: object, device: torch.device) -> None:
        """Restores `state`. Raises EnvError where it is not that of these changes."""
        if not is_memory(state) or not isinstance(state, tuple) or len(state) != len(self._changes):
            raise EnvError("the saved environment was wrapped in another way: give it the same env.wrap")

        def moved(leaf: Tensor) -> Tensor:
            return leaf.to(device)

        self._memories = [mapped(moved, memory) for memory in state]


def _reached(step: TimeStep) -> Fields:
    """What the action has led to in each copy: the real last observation where it was cut, else what is seen."""
    if step.final is None:
        return step.seen

    def reached(name: str, last: Tensor) -> Tensor:
        return torch.where(step.start.view(-1, *(1,) * (last.ndim - 1)), last, step.seen[name])

    return {name: reached(name, last) for name, last in step.final.items()}


class Changed:
    """An environment seen through a lens."""

    def __init__(self, env: VectorEnv, series: Sequence[Changing]) -> None:
        self._env = env
        self._lens = Lens(env.team, series)
        self.team = self._lens.team
        self.num_envs = env.num_envs
        self.note = getattr(env, "note", "")

    def reset(self, seed: int) -> TimeStep:
        """The first step of every copy; equal seeds give equal futures if they do so in the environment itself."""
        return self._lens.first(self._env.reset(seed))

    def step(self, action: Tensor) -> TimeStep:
        """The result of `action` [env agent ...] in every copy."""
        return self._lens.next(self._env.step(action), action)

    def is_recording(self) -> bool:
        """Does the environment record its own episodes?"""
        return is_recording(self._env)

    def save_replay(self) -> None:
        """Saves the environment's own replay. Raises EnvError where it has none."""
        save_replay(self._env)

    def render(self, index: int = 0) -> UInt8[np.ndarray, "height width 3"]:
        """The environment's own picture."""
        return self._env.render(index)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()

    def state_dict(self) -> dict[str, object]:
        """The environment's state, and what the changes remember."""
        return {"env": self._env.state_dict(), "changes": self._lens.state()}

    def load_state_dict(self, state: dict[str, object]) -> TimeStep:
        """Restores `state_dict` and returns the step that the next action is chosen from."""
        step = self._env.load_state_dict(part_of(state, "env"))
        self._lens.load(state.get("changes"), step.start.device)
        return replace(step, seen=self._lens.shown(step.seen))


def part_of(state: dict[str, object], name: str) -> dict[str, object]:
    """The state that stands at `name`. Raises EnvError where there is none."""
    part = state.get(name)
    if not _is_state(part):
        raise EnvError(f"the saved environment was wrapped in another way: its state has no part {name!r}")
    return part


def _is_state(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def is_memory(value: object) -> TypeGuard[Memory]:
    """Is it what a change or a module remembers?"""
    return isinstance(value, Tensor | tuple | dict)


def series(wrap: Wrap) -> list[Changing]:
    """The changes that are asked for, in their one order: what is seen, from the task outwards, then what is earned.

    `shrink`, `flatten`, `frame_stack`, `last_action`, `agent_id`: actions and numbers are not stacked; `team_reward`,
    `reward_scale`. (The time limit is kept where episodes are cut; opponents stand nearer to the task than all these.)
    """
    wanted: list[tuple[bool, Changing]] = [
        (wrap.shrink > 1, lambda team: shrunk(team, wrap.shrink)),
        (wrap.flatten, flattened),
        (wrap.frame_stack > 1, lambda team: frame_stack(team, wrap.frame_stack)),
        (wrap.last_action, last_action),
        (wrap.agent_id, agent_id),
        (wrap.team_reward != "own", lambda team: team_reward(team, wrap.team_reward)),
        (wrap.reward_scale != 1, lambda team: reward_scale(team, wrap.reward_scale)),
    ]
    return [changing for is_wanted, changing in wanted if is_wanted]


def wrapped(env: VectorEnv, wrap: Wrap) -> VectorEnv:
    """The environment with the changes of `series`; without any, the environment itself."""
    asked = series(wrap)
    return Changed(env, asked) if asked else env
