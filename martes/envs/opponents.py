"""Opponents held fixed: a rival plays some of the agents, and the rest of the team learns, or is scored beside it."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from martes.data import Fields, Memory, Schema, TeamSpec, TimeStep, VectorEnv
from martes.data.trees import cleared, mapped
from martes.envs.changes import over_agents
from martes.envs.pace import drawn_actions
from martes.envs.single import is_recording, save_replay
from martes.envs.wrappers import Lens, Wrap, is_memory, part_of, series
from martes.errors import ConfigError, EnvError, nearest


@runtime_checkable
class Rival(Protocol):
    """Somebody who plays agents of a task. It acts for the whole of its own team; only some of that may be executed."""

    team: TeamSpec
    """The agents that it acts for, under the names and with the spaces that they have in the task."""

    def first(self, step: TimeStep, seed: int) -> Tensor:
        """Its team's first action [env agent ...], with nothing remembered and its chance begun anew."""
        ...

    def next(self, step: TimeStep, action: Tensor) -> Tensor:
        """Its team's next action, after the executed `action` of its team has led to `step`."""
        ...

    def state_dict(self) -> dict[str, object]:
        """Everything that its future depends on."""
        ...

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores `state_dict`."""
        ...


@runtime_checkable
class Actor(Protocol):
    """What a rival needs of a policy (a `TemporalModule` is one)."""

    reads: tuple[str, ...]

    def initial_memory(self, envs: int) -> Memory:
        """The memory at the start of an episode, leaves `env ...`."""
        ...

    def noise(self, envs: int, generator: torch.Generator) -> dict[str, Tensor]:
        """What one drawn step consumes; without it the step is greedy."""
        ...

    def step(self, inputs: Fields, memory: Memory) -> tuple[dict[str, Tensor], Memory]:
        """What it writes of one time step, `action` [env agent ...] among it, and the memory after it."""
        ...


class Uniform:
    """Plays every legal action with equal chance; real numbers between their bounds."""

    def __init__(self, team: TeamSpec) -> None:
        self.team = team
        self._generator = torch.Generator()

    def first(self, step: TimeStep, seed: int) -> Tensor:
        """Drawn actions."""
        self._generator.manual_seed(seed)
        return self.next(step, step.reward)

    def next(self, step: TimeStep, action: Tensor) -> Tensor:
        """Drawn actions."""
        return drawn_actions(self.team, step, self._generator).to(step.start.device)

    def state_dict(self) -> dict[str, object]:
        """Its random state."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores `state_dict`."""
        _restore(self._generator, state)


class Trained:
    """Plays as a trained policy does, with its own memory and chance, and sees through the `wrap` of its training.

    `team` is that of the task it was trained in, before any wrap. Without `greedy` it draws its actions.
    """

    def __init__(
        self,
        policy: Actor,
        team: TeamSpec,
        wrap: Wrap | None = None,
        *,
        greedy: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.team = team
        self._policy = policy
        self._lens = Lens(team, series(wrap or Wrap()))
        self._greedy = greedy
        self._device = torch.device(device)
        self._generator = torch.Generator(self._device)
        self._memory: Memory = ()

    def first(self, step: TimeStep, seed: int) -> Tensor:
        """The policy's first action."""
        self._generator.manual_seed(seed)
        self._memory = self._policy.initial_memory(len(step.start))
        return self._chosen(self._lens.first(self._here(step)).seen).to(step.start.device)

    def next(self, step: TimeStep, action: Tensor) -> Tensor:
        """The policy's next action; its memory is cleared where an episode opens."""
        here = self._here(step)
        seen = self._lens.next(here, action.to(self._device)).seen
        if self._memory != ():
            fresh = self._policy.initial_memory(len(here.start))
            self._memory = cleared(self._memory, fresh, here.start)
        return self._chosen(seen).to(step.start.device)

    def _here(self, step: TimeStep) -> TimeStep:
        """The step on the policy's device."""
        seen = {name: value.to(self._device) for name, value in step.seen.items()}
        final = step.final and {name: value.to(self._device) for name, value in step.final.items()}
        return replace(step, seen=seen, final=final, start=step.start.to(self._device))

    @torch.no_grad()
    def _chosen(self, seen: Fields) -> Tensor:
        envs = len(seen["agent_mask"])
        fields = {**_unforced(self._lens.team, envs, self._device), **seen}
        inputs = {name: fields[name] for name in self._policy.reads}
        if not self._greedy:
            inputs |= self._policy.noise(envs, self._generator)
        outputs, self._memory = self._policy.step(inputs, self._memory)
        return outputs["action"]

    def state_dict(self) -> dict[str, object]:
        """Memory and random state."""
        return {"memory": self._memory, "changes": self._lens.state(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores `state_dict`."""
        memory = state.get("memory")
        if not is_memory(memory):
            raise EnvError("this is not the state of a trained rival: it has no memory")

        def moved(leaf: Tensor) -> Tensor:
            return leaf.to(self._device)

        self._memory = mapped(moved, memory)
        self._lens.load(state.get("changes"), self._device)
        _restore(self._generator, state)


class Opponents:
    """An environment in which `rival` plays `agents` (none given: all that it acts for).

    The team is the rest: its fields are cut to it, groups without members vanish, vectors are padded to the widest that
    is left; `state` stays whole; rewards of the rival's agents are left out. An episode goes on while the task does,
    even if all the rest have died (`agent_mask` False).

    `is_seated` keeps the whole team, and its returns agent by agent: the rival's agents are `forced`, whatever their
    action is. In `final`, where nobody acts any more, it forces nothing.

    Raises ConfigError where the rival does not know these agents, or knows them with other spaces.
    """

    def __init__(self, env: VectorEnv, rival: Rival, agents: Sequence[str] = (), *, is_seated: bool = False) -> None:
        agents = tuple(agents) or rival.team.agents
        _refuse_misfits(env.team, rival.team, agents)
        self.num_envs = env.num_envs
        self.note = getattr(env, "note", "")
        self._env = env
        self._rival = rival
        self._seen_by_rival = _Part(env.team, rival.team)
        self._seats = _Seated(env.team, agents) if is_seated else _Rest(env.team, agents)
        self.team = self._seats.team
        self._shape = _no_action(self.team, env.num_envs).shape
        self._choice = _no_action(env.team, env.num_envs)

    def reset(self, seed: int) -> TimeStep:
        """The first step of every copy; equal seeds give equal futures if they do so in the environment itself."""
        step = self._env.reset(seed)
        stream = np.random.SeedSequence((seed, 1)).generate_state(1)  # not the environment's numbers once more
        self._place(self._rival.first(self._seen_by_rival.step(step), int(stream[0])))
        return self._seats.step(step, self._choice)

    def step(self, action: Tensor) -> TimeStep:
        """The result of `action` [env agent ...] of this team, and of the rival's choice, in every copy."""
        if action.shape != self._shape:
            raise EnvError(f"actions have the shape {list(action.shape)}, this team takes {list(self._shape)}")
        joint = self._seats.joint(action, self._choice)
        step = self._env.step(joint)
        self._place(self._rival.next(self._seen_by_rival.step(step), self._seen_by_rival.action(joint)))
        return self._seats.step(step, self._choice)

    def is_recording(self) -> bool:
        """Does the environment record its own episodes?"""
        return is_recording(self._env)

    def save_replay(self) -> None:
        """Saves the environment's own replay, both sides in it."""
        save_replay(self._env)

    def _place(self, chosen: Tensor) -> None:
        """Remembers the rival's action in the places of the whole team."""
        joint = chosen.new_zeros(self.num_envs, *self._choice.shape[1:])
        self._choice = self._seen_by_rival.placed(chosen, joint)

    def render(self, index: int = 0) -> UInt8[np.ndarray, "height width 3"]:
        """The environment's own picture."""
        return self._env.render(index)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()

    def state_dict(self) -> dict[str, object]:
        """The states of the environment and of the rival, and what it has chosen."""
        return {"rival": self._rival.state_dict(), "choice": self._choice, "env": self._env.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> TimeStep:
        """Restores `state_dict` and returns the step that the next action is chosen from."""
        step = self._env.load_state_dict(part_of(state, "env"))
        self._rival.load_state_dict(part_of(state, "rival"))
        choice = state.get("choice")
        if not isinstance(choice, Tensor) or choice.shape != self._choice.shape:
            raise EnvError("the saved environment had other opponents: give it the same env.wrap")
        self._choice = choice.to(step.start.device)
        return self._seats.step(step, self._choice)


class _Part:
    """Some agents of a team, by name: their rows of what all see and do."""

    def __init__(self, whole: TeamSpec, team: TeamSpec) -> None:
        self.team = team
        self._schema = Schema.from_team(team)
        self._rows = torch.tensor([whole.agents.index(agent) for agent in team.agents])

    def _of(self, value: Tensor) -> Tensor:
        self._rows = self._rows.to(value.device)
        return value.index_select(1, self._rows)

    def _fields(self, fields: Fields) -> Fields:
        known = {name: self._schema[name] for name in fields if name in self._schema}
        return {
            name: _narrowed(self._of(fields[name]), field.shape) if "agent" in field.axes else fields[name]
            for name, field in known.items()
        }

    def step(self, step: TimeStep) -> TimeStep:
        """What these agents see and earn."""
        return replace(
            step,
            seen=self._fields(step.seen),
            final=None if step.final is None else self._fields(step.final),
            reward=self._of(step.reward),
            discount=self._of(step.discount),
        )

    def action(self, joint: Tensor) -> Tensor:
        """What these agents do."""
        return _narrowed(self._of(joint), self._schema["action"].shape)

    def placed(self, action: Tensor, joint: Tensor) -> Tensor:
        """The joint action, these agents' rows replaced."""
        self._rows = self._rows.to(joint.device)
        if action.ndim > 2:
            action = functional.pad(action, (0, joint.shape[2] - action.shape[2]))
        return joint.index_copy(1, self._rows, action)


class _Rest:
    """The agents that a rival leaves to others."""

    def __init__(self, whole: TeamSpec, agents: Collection[str]) -> None:
        self.team = rest_of(whole, agents)
        self._part = _Part(whole, self.team)

    def step(self, step: TimeStep, choice: Tensor) -> TimeStep:
        return self._part.step(step)

    def joint(self, action: Tensor, choice: Tensor) -> Tensor:
        return self._part.placed(action, choice)


class _Seated:
    """The whole team, a rival's agents forced."""

    def __init__(self, whole: TeamSpec, agents: Collection[str]) -> None:
        self.team = replace(whole, forces_actions=True)
        self._seats = torch.tensor([agent in agents for agent in whole.agents])

    def step(self, step: TimeStep, choice: Tensor) -> TimeStep:
        self._seats = self._seats.to(choice.device)
        nobody = _unforced(self.team, len(choice), choice.device)
        by_task = step.seen.get("forced", nobody["forced"])  # the task has the last word
        does = torch.where(over_agents(by_task, choice), step.seen.get("forced_action", choice), choice)
        seen = {**step.seen, "forced": by_task | self._seats, "forced_action": does}
        return replace(step, seen=seen, final=None if step.final is None else {**nobody, **step.final})

    def joint(self, action: Tensor, choice: Tensor) -> Tensor:
        return torch.where(over_agents(self._seats.expand(action.shape[:2]), action), choice, action)


def rest_of(team: TeamSpec, agents: Collection[str]) -> TeamSpec:
    """The team without these agents, groups without members left out."""
    kept = [index for index, agent in enumerate(team.agents) if agent not in agents]
    groups = {
        name: tuple(kept.index(index) for index in members if index in kept)
        for name, members in team.groups.items()
        if any(index in kept for index in members)
    }
    return replace(
        team,
        agents=tuple(team.agents[index] for index in kept),
        groups=groups,
        observation={name: team.observation[name] for name in groups},
        action={name: team.action[name] for name in groups},
    )


def _refuse_misfits(team: TeamSpec, rivals: TeamSpec, agents: Sequence[str]) -> None:
    _refuse_strangers(rivals.agents, team, "the task has no agent")
    _refuse_strangers(agents, team, "the task has no agent")
    _refuse_strangers(agents, rivals, "the rival does not play")
    if set(agents) == set(team.agents):
        raise ConfigError(
            "the rival plays every agent and leaves none: name those that it is to play (--agents, or "
            "env.wrap.against_agents)"
        )
    for agent in rivals.agents:
        here, there = (_spaces(each, agent) for each in (team, rivals))
        if here != there:
            raise ConfigError(f"the rival knows {agent!r} with the spaces {there}; in this task it has {here}")
    if rivals.masks_actions and not team.masks_actions:
        raise ConfigError("the rival reads which actions are legal, and this task does not tell: train it on this task")


def _refuse_strangers(agents: Sequence[str], team: TeamSpec, told: str) -> None:
    for agent in agents:
        if agent not in team.agents:
            raise ConfigError(f"{told} {agent!r}{nearest(agent, team.agents)}")


def _spaces(team: TeamSpec, agent: str) -> tuple[object, object]:
    group = team.group_of[team.agents.index(agent)]
    return team.observation[group], team.action[group]


def _no_action(team: TeamSpec, envs: int, device: torch.device | str = "cpu") -> Tensor:
    """Zeros where an action of the team goes [env agent ...]."""
    field = Schema.from_team(team)["action"]
    return torch.zeros(envs, team.size, *field.shape, dtype=field.dtype, device=device)


def _narrowed(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first so many of each axis after `env agent`: what is left out is padding."""
    for axis, size in enumerate(shape, 2):
        value = value.narrow(axis, 0, size)
    return value


def _unforced(team: TeamSpec, envs: int, device: torch.device) -> dict[str, Tensor]:
    """`forced` nowhere."""
    nobody = torch.zeros(envs, team.size, dtype=torch.bool, device=device)
    return {"forced": nobody, "forced_action": _no_action(team, envs, device)}


def _restore(generator: torch.Generator, state: dict[str, object]) -> None:
    random = state.get("generator")
    if not isinstance(random, Tensor):
        raise EnvError("this is not the state of a rival: it has no random state")
    generator.set_state(random.cpu())
