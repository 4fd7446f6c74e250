"""One module, two faces: `step` to act, `sequence` to learn; they agree to rounding, resets and masks included."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from martes.compiling import compiled
from martes.data import Field, Fields, Memory, TimeStep, Workspace
from martes.data.trees import cleared, mapped, outline
from martes.errors import DataError, nearest
from martes.networks.targets import still_copy

EARNED = "earned"
"""A field with an extra row that `act` keeps where it is asked for: what an agent was paid in the episode so far."""

Inputs = Mapping[str, Tensor]
Outputs = dict[str, Tensor]


class TemporalModule(nn.Module):
    """Reads fields of a workspace, writes others, and may carry memory from step to step.

    A subclass gives `step`; with memory also `initial_memory`; and, where it is faster than the loop, `sequence`.
    Law: `sequence` over a window = a loop of `step`, memory cleared wherever `start` is true.
    """

    reads: tuple[str, ...] = ()
    """Fields that it takes from the workspace."""
    writes: tuple[str, ...] = ()
    """Fields that it gives to the workspace when acting."""
    hot: tuple[str, ...] = ("step",)
    """Methods in which acting spends its time, functions of tensors: what there is to compile."""

    def initial_memory(self, envs: int) -> Memory:
        """The memory at the start of an episode, leaves `env ...`; () for a module without memory."""
        return ()

    def noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """The random numbers that one step of `envs` environments consumes; without them the step is greedy."""
        return {}

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """Outputs of one time step [env agent ...] and the memory after it."""
        raise NotImplementedError(f"{type(self).__name__} must define step")

    def sequence(self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]) -> tuple[Outputs, Memory]:
        """Outputs of a whole window [time env agent ...] and the memory after it; here, a loop over `step`."""
        fresh = self.initial_memory(start.shape[1])
        steps: list[Outputs] = []
        for t in range(start.shape[0]):
            memory = cleared(memory, fresh, start[t])
            outputs, memory = self.step({name: value[t] for name, value in inputs.items()}, memory)
            steps.append(outputs)
        return {name: torch.stack([outputs[name] for outputs in steps]) for name in steps[0]}, memory

    def value(self, inputs: Inputs, memory: Memory) -> Tensor:
        """The value [env agent] of one time step alone: what a bootstrap needs."""
        raise NotImplementedError(f"{type(self).__name__} has no value; a critic has")

    def value_noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """The random numbers that one `value` of `envs` environments consumes: of an action's value, what draws it."""
        return {}

    def fields(self) -> dict[str, Field]:
        """What acting with it adds to a team's schema: a field for each name it writes, beyond the action."""
        return {}

    def compile_acting(self, device: torch.device) -> None:
        """Compiles what is `hot` for a device: of this module, not of its copies, nor where it is sent."""
        for name in self.hot:
            setattr(self, name, compiled(getattr(self, name), device, is_small=True))

    def __getstate__(self) -> dict[str, object]:
        """What copies and other processes are given."""
        return {name: each for name, each in vars(self).items() if name not in self.hot}

    def part_for(self, name: str) -> "TemporalModule":
        """The part of this module that is enough to write `name`: acting alone needs no critic."""
        return self

    def renamed(self, **names: str) -> "TemporalModule":
        """The same module (no copy) under other names: `renamed(q="target_q")` writes `target_q`.

        What it reads, writes and draws can be renamed. Raises DataError for a name that it knows nothing of.
        """
        from martes.networks.composition import Renamed

        return Renamed(self, names)

    def frozen(self) -> "TemporalModule":
        """A copy whose weights no gradient reaches."""
        return still_copy(self)

    @property
    def title(self) -> str:
        """What errors call it."""
        return type(self).__name__

    def forward(
        self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"] | None = None
    ) -> tuple[Outputs, Memory]:
        """`step`, or `sequence` where `start` is given: calls through here fire the hooks of torch."""
        return self.step(inputs, memory) if start is None else self.sequence(inputs, memory, start)


@runtime_checkable
class SteppedEnv(Protocol):
    """What `act` needs of an environment (a VectorEnv is one)."""

    num_envs: int

    def step(self, action: Tensor) -> TimeStep:
        """The result of a joint action."""
        ...


class Chain(TemporalModule):
    """An environment, or none, and modules that run one after the other on the same step; each sees what came before.

    Raises DataError when composed, if two members write one name, or if a member reads what a later one writes.
    """

    def __init__(self, *members: SteppedEnv | TemporalModule) -> None:
        super().__init__()
        self.env = next((each for each in members if not isinstance(each, TemporalModule)), None)
        self.members = nn.ModuleList(each for each in members if isinstance(each, TemporalModule))
        if len(self.members) + (self.env is not None) < len(members):
            raise DataError("a chain has one environment at most")
        writers: dict[str, str] = {}
        for module in self._modules_in_order():
            for name in module.writes:
                if name in writers:
                    raise DataError(
                        f"two writers of {name!r} in a chain: {writers[name]} and {module.title}. "
                        f'Let one of them write another name: .renamed({name}="other_{name}")'
                    )
                writers[name] = module.title
        self._refuse_late_writers()
        self.writes = tuple(writers)
        reads = dict.fromkeys(name for module in self._modules_in_order() for name in module.reads)
        self.reads = tuple(name for name in reads if name not in writers)

    def _refuse_late_writers(self) -> None:
        modules = self._modules_in_order()
        for position, module in enumerate(modules):
            for later in modules[position + 1 :]:
                for name in set(module.reads) & set(later.writes):
                    raise DataError(
                        f"{module.title} reads {name!r}, which {later.title} writes after it: put the writer first"
                    )

    def _modules_in_order(self) -> list[TemporalModule]:
        return [module for module in self.members if isinstance(module, TemporalModule)]

    def leaves(self) -> Iterator[TemporalModule]:
        """The members in their order; those of a chain in it one by one."""
        for module in self._modules_in_order():
            if isinstance(module, Chain):
                yield from module.leaves()
            else:
                yield module

    def fields(self) -> dict[str, Field]:
        """The fields of all members."""
        return {name: added for module in self._modules_in_order() for name, added in module.fields().items()}

    def part_for(self, name: str) -> "Chain":
        """A chain of the members that `name` depends on (the same modules, not copies)."""
        needed, kept = {name}, list[TemporalModule]()
        for module in reversed(self._modules_in_order()):
            if needed & set(module.writes):
                needed |= set(module.reads)
                kept.insert(0, module)
        return Chain(*kept)

    def initial_memory(self, envs: int) -> Memory:
        """The only member's memory, or a tuple of the members' memories; () where none has any."""
        memories = tuple(module.initial_memory(envs) for module in self._modules_in_order())
        if len(memories) == 1:
            return memories[0]
        return memories if any(memory != () for memory in memories) else ()

    def _shares(self, memory: Memory) -> Iterator[tuple[TemporalModule, Memory]]:
        """Each member with its part of the memory."""
        modules = self._modules_in_order()
        if len(modules) == 1:
            return iter([(modules[0], memory)])
        return zip(modules, memory if isinstance(memory, tuple) and memory else ((),) * len(modules), strict=True)

    def noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """The noise of all members. Raises DataError where two of them would consume the same."""
        drawn: Outputs = {}
        for module in self._modules_in_order():
            own = module.noise(envs, generator)
            for name in own.keys() & drawn.keys():
                raise DataError(
                    f"{module.title} and a member before it draw {name!r}, and would draw alike: "
                    f'give one of them .renamed({name}="other_{name}")'
                )
            drawn |= own
        return drawn

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """Joined outputs of all members at one time step."""
        return self._run(inputs, memory, None)

    def sequence(self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]) -> tuple[Outputs, Memory]:
        """Joined outputs of all members over a window."""
        return self._run(inputs, memory, start)

    def _run(self, inputs: Inputs, memory: Memory, start: Tensor | None) -> tuple[Outputs, Memory]:
        outputs: Outputs = {}
        after: list[Memory] = []
        for module, carried in self._shares(memory):
            written, left = module({**inputs, **outputs}, carried, start)
            outputs.update(written)
            after.append(left)
        if len(after) == 1:
            return outputs, after[0]
        return outputs, tuple(after) if memory != () else ()

    def value_noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """What the values of all members consume."""
        modules = self._modules_in_order()
        return {name: drawn for module in modules for name, drawn in module.value_noise(envs, generator).items()}

    def value(self, inputs: Inputs, memory: Memory) -> Tensor:
        """The value of the member that writes it, which sees what members before it make of the inputs."""
        memories = {id(module): carried for module, carried in self._shares(memory)}
        needed = self.part_for("value")._modules_in_order()
        if not needed:
            raise DataError("no member of this chain writes a value")
        (*before, critic), outputs = needed, Outputs()
        for module in before:
            outputs |= module({**inputs, **outputs}, memories[id(module)])[0]
        return critic.value({**inputs, **outputs}, memories[id(critic)])


OnCut = Callable[[int, TimeStep, Memory], bool | None]
"""Told of each step at which some trajectory was cut: the step, the time step, the memory before any reset.

Where it answers true, acting ends there."""


class EveryoneCut:
    """As `on_cut`, it ends acting as soon as every environment has ended an episode; then it must be made anew.

    `Workspace.first_episodes` tells what belongs to these episodes.
    """

    def __init__(self) -> None:
        self._was_cut: Tensor | None = None

    def __call__(self, t: int, step: TimeStep, memory: Memory) -> bool:
        """Was every environment cut by now?"""
        self._was_cut = step.cut if self._was_cut is None else self._was_cut | step.cut
        return bool(self._was_cut.all())


@torch.no_grad()
def act(
    chain: Chain,
    workspace: Workspace,
    t0: int,
    steps: int,
    *,
    generator: torch.Generator | None = None,
    on_cut: OnCut | None = None,
) -> Memory:
    """The memory after `steps` steps of acting from step `t0`, everything on the way recorded in the workspace.

    The one acting loop: collecting, evaluating and playing call it. Row t must hold what the environment shows now;
    the memory before it is the workspace's at t0 = 0. Without a generator there is no noise: the policy is greedy.
    `on_cut` may end it early.
    """
    env = chain.env
    if env is None:
        raise DataError("act needs an environment: compose Chain(env, policy)")
    refuse_missing(chain, workspace, (*chain.reads, *chain.writes))
    memory = workspace.window(t0, t0 + steps).memory
    fresh = chain.initial_memory(env.num_envs) if memory != () else ()
    chosen: TimeStep | None = None
    for t in range(t0, t0 + steps):
        inputs = workspace.at(t, chain.reads)
        if generator is not None:
            inputs.update(chain.noise(env.num_envs, generator))
        if (chosen is None or chosen.final is not None) and memory != ():  # after a step without a cut nothing opens
            memory = cleared(memory, fresh, workspace["start"][t])
        outputs, memory = chain(inputs, memory)
        workspace.write(t, {name: outputs[name] for name in chain.writes})
        chosen = env.step(outputs["action"])
        workspace.write(t, {"reward": chosen.reward, "discount": chosen.discount, "cut": chosen.cut})
        workspace.write(t + 1, {**chosen.seen, "start": chosen.start})
        if EARNED in workspace:
            paid = workspace[EARNED][t] + chosen.reward
            workspace.write(t + 1, {EARNED: paid * ~chosen.start.unsqueeze(1)})
        if on_cut is not None and chosen.final is not None and on_cut(t, chosen, memory):
            break
    return memory


def refuse_missing(module: TemporalModule, workspace: Workspace, names: Iterable[str]) -> None:
    """Raises DataError for a name that the workspace lacks, telling who needs it, who could write it, who writes what.

    Those who could are members of the chain, else the kinds of module known here that write nothing but such names.
    """
    for name in names:
        if name in workspace:
            continue
        modules = [*module.leaves()] if isinstance(module, Chain) else [module]
        users = [each.title for each in modules if name in (*each.reads, *each.writes)] or [module.title]
        inside = [each.title for each in modules if name in each.writes]
        known = sorted({kind.__name__ for kind in _kinds(TemporalModule) if name in vars(kind).get("writes", ())})
        if inside:
            cure = f"{inside[0]} would write it: extend the schema by its fields()"
        elif known:
            cure = f"{' or '.join(known)} could write it: put one before {users[0]}, and extend the schema"
        else:
            cure = "Extend its schema, and add the module that writes it"
        raise DataError(
            f"{' and '.join(users)} need the field {name!r}, which this workspace lacks"
            f"{nearest(name, workspace.names)}. {cure}. Who writes what: {workspace.schema.writers}"
        )


def _kinds(kind: type[TemporalModule]) -> Iterator[type[TemporalModule]]:
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)


def replay(
    module: TemporalModule, workspace: Workspace, *, given: tuple[str, ...] = (), stepwise: bool = False
) -> Outputs:
    """What `module` gives over the whole record, with gradient: [time env agent ...] each.

    `given` names recorded choices that are scored instead of drawn (`action`, or `sample` of a continuous policy).
    `stepwise` runs the loop over `step` in place of `sequence`: equal to rounding, slower.
    """
    names = (*module.reads, *given)
    refuse_missing(module, workspace, names)
    inputs: Fields = {name: _over_time(workspace, name) for name in names}
    start = workspace["start"][: workspace.time]
    run = TemporalModule.sequence.__get__(module) if stepwise else module
    outputs, _ = run(inputs, _memory_of(module, workspace), start)
    return outputs


def _over_time(workspace: Workspace, name: str) -> Tensor:
    """A field at each step; a constant is the same at all."""
    content = workspace[name]
    if workspace.schema[name].over_time:
        return content[: workspace.time]
    return content.expand(workspace.time, *content.shape)


def _memory_of(module: TemporalModule, workspace: Workspace) -> Memory:
    """What a module remembered before the record. Raises DataError where that is another module's."""
    fresh = module.initial_memory(workspace.envs)
    if fresh == ():
        return ()
    memory = mapped(Tensor.detach, workspace.memory)
    if outline(memory) != outline(fresh):
        raise DataError(
            f"the memory before step 0 has the form {outline(memory)}, that of {module.title} has {outline(fresh)}: "
            "it was another module's. Set workspace.memory, or replay what acted"
        )
    return memory
