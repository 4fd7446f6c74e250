"""Experience from acting: one window after the other, without a seam, and what followed where a trajectory was cut."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from martes.data import Field, Fields, Memory, Schema, TimeStep, VectorEnv, Workspace
from martes.data.trees import cleared, mapped
from martes.errors import EnvError
from martes.networks import Chain, TemporalModule, act
from martes.networks.temporal import EARNED
from martes.training.episodes import Episodes
from martes.training.process import threads

FEW = 64
"""Agents of all environments together up to which one thread acts: of more, each would wait for the others."""


@dataclass
class Cut:
    """The cut rows of one step: which they are, what was really seen last, and the memory there, before any reset."""

    t: int
    index: Tensor
    final: dict[str, Tensor]
    memory: Memory


@runtime_checkable
class Windows(Protocol):
    """What is asked of collected windows."""

    @property
    def steps(self) -> int:
        """Steps of one window."""
        ...

    @property
    def keeps_final(self) -> bool:
        """Are the real last observations of cut episodes wanted?"""
        ...


@runtime_checkable
class Actor(Protocol):
    """What acting needs to know of a learner (a Learner is one)."""

    @property
    def policy(self) -> TemporalModule:
        """What acts."""
        ...

    @property
    def experience(self) -> Windows:
        """What is asked of the windows."""
        ...

    @property
    def fields(self) -> Mapping[str, Field]:
        """What is written beyond what the team's environments write."""
        ...


class Collector:
    """Acts with a learner's policy in an environment and lends out windows of what happened.

    The window is written over by the next `collect`. Episode returns and lengths are gathered on the way.
    """

    def __init__(self, env: VectorEnv, learner: Actor, generator: torch.Generator) -> None:
        self.env = env
        self.learner = learner
        self.generator = generator
        self.chain = Chain(env, learner.policy)
        schema = Schema.from_team(env.team).extended(**learner.fields)
        self.window = Workspace(schema, time=learner.experience.steps, envs=env.num_envs, device=generator.device)
        self.episodes = Episodes(env.num_envs, self.window.device, env.team.episode_limit)
        self._memory = learner.policy.initial_memory(env.num_envs)
        self._cuts: list[Cut] = []

    def start(self, seed: int) -> None:
        """Opens the first episode of every copy."""
        self._show(self.env.reset(seed))

    def _show(self, step: TimeStep) -> None:
        self.window.write(self.window.time, {**step.seen, "start": step.start})

    def collect(self) -> Workspace:
        """The next window: what was seen, done and earned, and `next_value` where the learner has values.

        Raises EnvError, naming environment, agent and step, where a reward or an observation is not finite, and where
        an episode lasts longer than the task says.
        """
        window = self.window
        window.carry()
        window.memory = self._memory
        self._cuts.clear()
        with threads(1 if window.envs * self.env.team.size <= FEW else torch.get_num_threads()):
            self._memory = act(self.chain, window, 0, window.time, generator=self.generator, on_cut=self._keep)
        refuse_nonfinite(window)
        if "next_value" in window:
            self._bootstrap()
        self.episodes.add(window)
        return window

    def _keep(self, t: int, step: TimeStep, memory: Memory) -> None:
        assert step.final is not None
        index = step.cut.nonzero().squeeze(1)
        self.episodes.tell({name: value.index_select(0, index) for name, value in step.stats.items()})
        names = step.final if self.learner.experience.keeps_final else self.learner.policy.reads
        final = {name: step.final[name].index_select(0, index) for name in names}
        self._cuts.append(Cut(t, index, final, mapped(lambda leaf: leaf.index_select(0, index), memory)))

    @property
    def final(self) -> Fields | None:
        """The real last observations of the episodes cut in the last window, in the order of its cuts.

        None where nothing was cut, or the experience does not keep them.
        """
        if not self._cuts or not self.learner.experience.keeps_final:
            return None
        return {name: torch.cat([cut.final[name] for cut in self._cuts]) for name in self._cuts[0].final}

    @torch.no_grad()
    def _bootstrap(self) -> None:
        """next_value_t = V(real last observation, memory before the reset) where cut, else value_{t+1}.

        Where acting records no values (they may depend on more than was known), the learner writes the latter.
        """
        window, policy = self.window, self.learner.policy
        next_value = window["next_value"]
        if "value" in policy.writes:
            next_value[:-1] = window["value"][1:]
        fresh = policy.initial_memory(window.envs)
        memory = cleared(self._memory, fresh, window["start"][window.time])
        next_value[-1] = self._valued(window.at(window.time, policy.reads), memory)
        if self._cuts:
            final = {name: torch.cat([cut.final[name] for cut in self._cuts]) for name in policy.reads}
            first, *others = (cut.memory for cut in self._cuts)
            memory = mapped(lambda *parts: torch.cat(parts), first, *others)
            steps = torch.cat([torch.full_like(cut.index, cut.t) for cut in self._cuts])
            envs = torch.cat([cut.index for cut in self._cuts])
            next_value[steps, envs] = self._valued(final, memory)

    def _valued(self, seen: dict[str, Tensor], memory: Memory) -> Tensor:
        policy = self.learner.policy
        return policy.value(seen | policy.value_noise(len(seen["agent_mask"]), self.generator), memory)

    def state_dict(self) -> dict[str, Any]:
        """What the next window depends on: the environment, the memory, the random state, the unfinished episodes.

        `env` is None where the environment cannot tell its state.
        """
        return {
            "env": state_of(self.env),
            "memory": self._memory,
            "generator": self.generator.get_state(),
            "episodes": self.episodes.state_dict(),
            **({EARNED: self.window[EARNED][self.window.time].clone()} if EARNED in self.window else {}),
        }

    def load_state_dict(self, state: dict[str, Any], seed: int) -> None:
        """Restores `state_dict`: the next window is the one that would have come.

        An environment that could not tell its state opens new episodes from `seed` instead.
        """
        self.generator.set_state(state["generator"])
        if state["env"] is None:
            self.start(seed)
            return
        self._show(self.env.load_state_dict(state["env"]))
        self._memory = mapped(lambda leaf: leaf.to(self.window.device), state["memory"])
        self.episodes.load_state_dict(state["episodes"])
        if EARNED in self.window:
            self.window.write(self.window.time, {EARNED: state[EARNED].to(self.window.device)})


def state_of(env: VectorEnv) -> dict[str, object] | None:
    """The environment's state, or None where it cannot tell it (an outside one that keeps it to itself)."""
    try:
        return env.state_dict() if hasattr(env, "state_dict") else None
    except NotImplementedError:
        return None


def refuse_nonfinite(window: Workspace) -> None:
    """Raises EnvError naming the field, environment, agent and step of the first number that is not finite."""
    for name in ("reward", *(name for name in window.names if name == "state" or name.split("/")[0] == "obs")):
        content = window[name]
        # A sum is finite wherever all its terms are (and do not overflow): one pass without a temporary mask.
        if not content.is_floating_point() or bool(content.sum().isfinite()):
            continue
        places = (~content.isfinite()).nonzero()
        if len(places):
            t, env, *rest = places[0].tolist()
            agent = f", agent {rest[0]}" if window.schema[name].axes.endswith("agent") else ""
            raise EnvError(
                f"the environment gave {content[tuple(places[0])].item()} in {name!r}: environment {env}{agent}, "
                f"step {t} of the window. Mend the environment; nothing was learned from this window"
            )
