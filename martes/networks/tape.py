"""Acting on the tape: what `act` would record, with its gradient, for environments that let a gradient through."""

from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from martes.data import Memory, Schema, TimeStep, Workspace
from martes.data.trees import cleared, mapped
from martes.errors import DataError
from martes.networks.temporal import Chain, Outputs


class Tape(NamedTuple):
    """What happened, on the graph of autograd; and, on none, what the next window goes on from."""

    window: Workspace
    """Reads like any other; its tensors have a gradient, and it must not be written to."""
    last: TimeStep
    """What the environment shows now."""
    memory: Memory
    """What the modules remember now."""


@runtime_checkable
class Differentiable(Protocol):
    """An environment that a gradient passes through, and that can let go of the past."""

    def detach(self) -> None:
        """Ends the gradient here."""
        ...


def taped(
    chain: Chain,
    schema: Schema,
    first: TimeStep,
    steps: int,
    *,
    memory: Memory | None = None,
    generator: torch.Generator | None = None,
) -> Tape:
    """`steps` steps of acting from what the environment shows `first`, recorded with gradient through time.

    The gradient flows through policies and their memory (None: fresh), and through an environment whose `step` is a
    function of tensors; it ends with the window (truncated back-propagation). Steps are kept as they are, not copied:
    real numbers keep their precision. Without a generator there is no noise. Raises DataError where a field is missing
    or has another shape, and where somebody changed in place what the tape holds.
    """
    env = chain.env
    if env is None:
        raise DataError("a tape needs an environment: compose Chain(env, policy)")
    tape = _Recording(schema)
    fresh, last = chain.initial_memory(env.num_envs), first
    begun: Memory = fresh if memory is None else memory
    after = begun
    for _ in range(steps):
        tape.write({**last.seen, "start": last.start})
        inputs = {name: tape.read(name, chain) for name in chain.reads}
        if generator is not None:
            inputs.update(chain.noise(env.num_envs, generator))
        if after != ():
            after = cleared(after, fresh, last.start)
        outputs, after = chain(inputs, after)
        last = env.step(outputs["action"])
        tape.write({name: outputs[name] for name in chain.writes})
        tape.write({"reward": last.reward, "discount": last.discount, "cut": last.cut})
    tape.write({**last.seen, "start": last.start})
    window = tape.window(steps, env.num_envs)
    window.memory = begun
    if isinstance(env, Differentiable):
        env.detach()
    return Tape(window, _detached(last), mapped(Tensor.detach, after))


def _detached(step: TimeStep) -> TimeStep:
    seen = {name: value.detach() for name, value in step.seen.items()}
    return replace(step, seen=seen, reward=step.reward.detach(), discount=step.discount.detach(), final=None)


class _Recording:
    """A list of steps for each name; each tensor with the version that it had when it was written."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.steps: dict[str, list[tuple[Tensor, int]]] = {}

    def write(self, values: Outputs) -> None:
        for name, value in values.items():
            self.steps.setdefault(name, []).append((value, value._version))

    def read(self, name: str, chain: Chain) -> Tensor:
        if name not in self.steps:
            raise DataError(
                f"{chain.title} reads {name!r}, which the environment does not write: it writes {', '.join(self.steps)}"
            )
        return self.steps[name][-1][0]

    def window(self, time: int, envs: int) -> Workspace:
        tensors = {name: self._whole(name, time, envs) for name in self.schema}
        start = tensors["start"]
        return Workspace.of(self.schema, tensors, torch.ones_like(start[:time]))

    def _whole(self, name: str, time: int, envs: int) -> Tensor:
        field, shape = self.schema[name], self.schema.shape(name, time, envs)
        steps = self.steps.get(name)
        if steps is None:
            device = self.steps["start"][0][0].device
            return torch.full(shape, field.fill, dtype=field.dtype, device=device)
        if any(value._version != version for value, version in steps):
            raise DataError(
                f"{name!r} was changed in place after it was put on the tape, which holds no copies: "
                f"let {field.writer} make a new tensor at each step"
            )
        whole = torch.stack([value for value, _ in steps])
        if whole.shape != shape:
            raise DataError(f"{name!r} on the tape is {list(whole.shape)}, {field.writer} should give {list(shape)}")
        return whole if whole.is_floating_point() else whole.to(field.dtype)
