"""Modules made of modules: under other names, for every agent apart, a step behind; and such that only look on."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from martes.data import Field, Memory, TimeStep
from martes.data.trees import cleared, mapped
from martes.errors import DataError, nearest
from martes.networks.targets import follow
from martes.networks.temporal import Chain, Inputs, Outputs, SteppedEnv, TemporalModule


class Renamed(TemporalModule):
    """The module under other names, old -> new. What it calls by an old name is hidden from it wherever that exists.

    Raises DataError for a name that it neither reads, nor writes, nor draws.
    """

    def __init__(self, module: TemporalModule, names: Mapping[str, str]) -> None:
        super().__init__()
        self.module = module
        self.names = dict(names)
        known = _known(module)
        for name in names:
            if name not in known:
                raise DataError(f"{module.title} neither reads, writes nor draws {name!r}{nearest(name, known)}")
        self.reads, self.writes = self._new(module.reads), self._new(module.writes)

    def _new(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self.names.get(name, name) for name in names)

    def _outward(self, outputs: Outputs) -> Outputs:
        return {self.names.get(name, name): value for name, value in outputs.items()}

    def _inward(self, inputs: Inputs) -> Inputs:
        own = {name: value for name, value in inputs.items() if name not in self.names}
        return own | {old: inputs[new] for old, new in self.names.items() if new in inputs}

    @property
    def title(self) -> str:
        """The module's own, and that it is renamed."""
        return f"{self.module.title} (renamed)"

    def fields(self) -> dict[str, Field]:
        """The module's, under their new names."""
        return {self.names.get(name, name): field for name, field in self.module.fields().items()}

    def part_for(self, name: str) -> TemporalModule:
        """The module's part, under the same names."""
        old = {new: old for old, new in self.names.items()}.get(name, name)
        part = self.module.part_for(old)
        known = _known(part)
        return part.renamed(**{old: new for old, new in self.names.items() if old in known})

    def initial_memory(self, envs: int) -> Memory:
        """The module's memory."""
        return self.module.initial_memory(envs)

    def noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """The module's noise, under its new names."""
        return self._outward(self.module.noise(envs, generator))

    def value_noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """The noise of the module's values, under its new names."""
        return self._outward(self.module.value_noise(envs, generator))

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """Outputs of one step, under their new names."""
        outputs, memory = self.module(self._inward(inputs), memory)
        return self._outward(outputs), memory

    def sequence(self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]) -> tuple[Outputs, Memory]:
        """Outputs of a window, under their new names."""
        outputs, memory = self.module(self._inward(inputs), memory, start)
        return self._outward(outputs), memory

    def value(self, inputs: Inputs, memory: Memory) -> Tensor:
        """The module's value."""
        return self.module.value(self._inward(inputs), memory)


def _known(module: TemporalModule) -> dict[str, None]:
    """The names of what it reads, writes and draws."""
    device = next((each.device for each in module.parameters()), torch.device("cpu"))
    drawn = (*module.noise(1, torch.Generator(device)), *module.value_noise(1, torch.Generator(device)))
    return dict.fromkeys((*module.reads, *module.writes, *drawn))


class Shared(TemporalModule):
    """A network for one agent, used by each of `agents` members of a team: they become more environments.

    The network sees fields `(env agent) feature`, or `(env agent) 1 feature` where it `keeps_axis` (such as the policy
    of a team of one). Fields in `team_wide` have no agent axis: each agent sees them whole. Who was absent starts from
    fresh memory.
    """

    def __init__(
        self,
        module: TemporalModule,
        agents: int,
        *,
        keeps_axis: bool = False,
        team_wide: tuple[str, ...] = ("state",),
    ) -> None:
        super().__init__()
        self.module = module
        self.agents = agents
        self.keeps_axis = keeps_axis
        self.team_wide = team_wide
        self.reads = tuple(dict.fromkeys((*module.reads, "agent_mask")))
        self.writes = module.writes

    @property
    def title(self) -> str:
        """The module's own, and that it is shared."""
        return f"{self.module.title} (shared)"

    def fields(self) -> dict[str, Field]:
        """The module's."""
        return self.module.fields()

    def initial_memory(self, envs: int) -> Memory:
        """The module's memory of each agent, leaves `env agent ...`."""
        return mapped(lambda leaf: leaf.unflatten(0, (envs, self.agents)), self._fresh(envs))

    def _fresh(self, envs: int) -> Memory:
        return self.module.initial_memory(envs * self.agents)

    def noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """The module's noise, each agent's its own."""
        return self._apart(self.module.noise(envs * self.agents, generator), 0)

    def value_noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """What the module's values consume, each agent's its own."""
        return self._apart(self.module.value_noise(envs * self.agents, generator), 0)

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """Outputs of one step."""
        outputs, after = self.module(self._together(inputs, 0), self._flat(memory))
        return self._apart(outputs, 0), self._kept(after, inputs["agent_mask"])

    def sequence(self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]) -> tuple[Outputs, Memory]:
        """Outputs of a window."""
        mask = inputs["agent_mask"]
        was_there = torch.cat((torch.ones_like(mask[:1]), mask[:-1]))
        opens = (start.unsqueeze(-1) | ~was_there).flatten(1)  # time (env agent)
        outputs, after = self.module(self._together(inputs, 1), self._flat(memory), opens)
        return self._apart(outputs, 1), self._kept(after, mask[-1])

    def value(self, inputs: Inputs, memory: Memory) -> Tensor:
        """The module's value of each agent."""
        value = self.module.value(self._together(inputs, 0), self._flat(memory))
        return self._apart({"value": value}, 0)["value"]

    def _flat(self, memory: Memory) -> Memory:
        return mapped(lambda leaf: leaf.flatten(0, 1), memory)

    def _kept(self, memory: Memory, mask: Bool[Tensor, "env agent"]) -> Memory:
        kept = cleared(memory, self._fresh(len(mask)), ~mask.flatten()) if memory != () else memory
        return mapped(lambda leaf: leaf.unflatten(0, mask.shape), kept)

    def _together(self, inputs: Inputs, env: int) -> Inputs:
        def one_by_one(name: str, value: Tensor) -> Tensor:
            is_whole = name in self.team_wide
            folded = value.repeat_interleave(self.agents, env) if is_whole else value.flatten(env, env + 1)
            return folded.unsqueeze(env + 1) if self.keeps_axis else folded

        return {name: one_by_one(name, value) for name, value in inputs.items()}

    def _apart(self, outputs: Outputs, env: int) -> Outputs:
        def unfolded(value: Tensor) -> Tensor:
            value = value.squeeze(env + 1) if self.keeps_axis else value
            return value.unflatten(env, (-1, self.agents))

        return {name: unfolded(value) for name, value in outputs.items()}


class Lagged(Chain):
    """A copy of a module that no gradient reaches and that stays behind it; `follow` takes it a `share` of the way.

    theta' <- theta' + share (theta - theta'). Source: Lillicrap et al. 2016, section 3.
    """

    def __init__(self, module: TemporalModule, share: float = 1.0) -> None:
        super().__init__(module.frozen())
        self._online = (module,)  # in a tuple: what is followed is no part of this
        self.share = share

    @property
    def title(self) -> str:
        """The module's own, and that it lags."""
        return f"{self._online[0].title} (lagged)"

    def follow(self) -> None:
        """Moves the copy towards the module; buffers are copied."""
        for copy in self.members:
            follow(copy, self._online[0], self.share)


class Copied(TemporalModule):
    """Fields once more, under other names; `is_detached`: no gradient crosses. `names`: source -> copy."""

    def __init__(self, names: Mapping[str, str], is_detached: bool = False) -> None:
        super().__init__()
        self.names = dict(names)
        self.is_detached = is_detached
        self.reads, self.writes = tuple(names), tuple(names.values())

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """The copies; of any leading axes, so that a window is copied alike."""
        taken = {new: inputs[old] for old, new in self.names.items()}
        return {name: value.detach() if self.is_detached else value for name, value in taken.items()}, memory

    def sequence(self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]) -> tuple[Outputs, Memory]:
        """The copies of a window."""
        return self.step(inputs, memory)


class Probe(TemporalModule):
    """Shows what passes under some names to `tell`, and touches nothing: name -> tensor, without gradient.

    Raises DataError, when what is in its chain lacks a name.
    """

    def __init__(self, *names: str, tell: Callable[[Mapping[str, Tensor]], None]) -> None:
        super().__init__()
        self.reads = names
        self.tell = tell

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """Nothing."""
        self.tell({name: inputs[name].detach() for name in self.reads})
        return {}, memory

    def sequence(self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]) -> tuple[Outputs, Memory]:
        """Nothing; the window is told at once."""
        return self.step(inputs, memory)


class Event(NamedTuple):
    """Something that was read or written: by whom, at which call of the chain, under which name, in which shape."""

    call: int
    who: str
    does: Literal["reads", "writes"]
    name: str
    shape: tuple[int, ...]


class Trace:
    """A context in which everything that a chain's members and its environment read and write is noted, in order.

    In `act` a call of the chain is a step; in `replay` it is the whole window.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.events: list[Event] = []
        self._call = -1
        self._env = chain.env
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "Trace":
        self._hooks.append(self.chain.register_forward_pre_hook(self._begun))
        for module in self.chain.leaves():
            self._hooks.append(module.register_forward_pre_hook(self._read))
            self._hooks.append(module.register_forward_hook(self._wrote))
        if self._env is not None:
            self.chain.env = _Watched(self._env, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.chain.env = self._env
        for hook in self._hooks:
            hook.remove()

    def note(self, who: str, does: Literal["reads", "writes"], tensors: Mapping[str, Tensor]) -> None:
        """Takes down what was read or written."""
        self.events += [Event(self._call, who, does, name, tuple(value.shape)) for name, value in tensors.items()]

    def _begun(self, module: nn.Module, given: tuple[object, ...]) -> None:
        self._call += 1

    def _read(self, module: TemporalModule, given: tuple[Inputs, Memory, Tensor | None]) -> None:
        self.note(module.title, "reads", {name: given[0][name] for name in module.reads if name in given[0]})

    def _wrote(
        self,
        module: TemporalModule,
        given: tuple[Inputs, Memory, Tensor | None],
        returned: tuple[Outputs, Memory],
    ) -> None:
        self.note(module.title, "writes", {name: returned[0][name] for name in module.writes})


class _Watched:
    """An environment whose steps a trace takes down."""

    def __init__(self, env: SteppedEnv, trace: Trace) -> None:
        self.num_envs = env.num_envs
        self._env, self._trace = env, trace

    def step(self, action: Tensor) -> TimeStep:
        """The environment's own answer."""
        who = type(self._env).__name__
        self._trace.note(who, "reads", {"action": action})
        step = self._env.step(action)
        written = {"reward": step.reward, "discount": step.discount, "cut": step.cut, **step.seen, "start": step.start}
        self._trace.note(who, "writes", written)
        return step
