"""The one store: named tensors with named axes, indexed by time, that environments, policies and losses share."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import torch
from jaxtyping import Bool
from torch import Tensor

from martes.data import storage
from martes.data.schema import Field, Schema
from martes.data.trees import Memory, leaves, mapped
from martes.errors import DataError, nearest


class _Step(NamedTuple):
    """Views of one step."""

    fields: dict[str, Tensor]
    """Of all that have it; episode constants whole."""
    filled: Tensor
    """Of what tells whether it was written."""


class Workspace:
    """Preallocated tensors of `time` steps of `envs` environments; what is written is copied, never aliased.

    Step `t` holds what was seen at t, the action chosen there, and the reward, discount and cut that answered it;
    fields with an extra row hold one step more. Axis order is `time env agent`, then features.
    """

    def __init__(
        self, schema: Schema, *, time: int, envs: int, device: torch.device | str = "cpu", shared: bool = False
    ) -> None:
        tensors = {
            name: torch.full(schema.shape(name, time, envs), field.fill, dtype=field.dtype, device=device)
            for name, field in schema.items()
        }
        self._adopt(schema, tensors, torch.zeros(time, envs, dtype=torch.bool, device=device), ())
        if shared:
            self.share()

    def _adopt(self, schema: Schema, tensors: dict[str, Tensor], filled: Tensor, memory: Memory | None) -> "Workspace":
        self.schema = schema
        self._tensors = tensors
        self._filled = filled
        self._memory = memory
        self._steps: dict[int, _Step] = {}
        self.time, self.envs = filled.shape
        return self

    def __reduce__(self) -> tuple[Callable[..., "Workspace"], tuple[object, ...]]:
        return self._made, (self.schema, self._tensors, self._filled, self._memory)  # no views beside them

    @classmethod
    def _made(cls, schema: Schema, tensors: dict[str, Tensor], filled: Tensor, memory: Memory | None) -> "Workspace":
        return cls.__new__(cls)._adopt(schema, tensors, filled, memory)

    @classmethod
    def of(cls, schema: Schema, tensors: dict[str, Tensor], filled: Bool[Tensor, "time env"]) -> "Workspace":
        """A workspace without memory that holds these tensors themselves; `filled` is true where a step was written."""
        return cls._made(schema, tensors, filled, ())

    # ------------------------------------------------------------------------------------------------------- reading
    @overload
    def __getitem__(self, name: str) -> Tensor: ...
    @overload
    def __getitem__(self, name: tuple[str, ...]) -> tuple[Tensor, ...]: ...
    def __getitem__(self, name: str | tuple[str, ...]) -> Tensor | tuple[Tensor, ...]:
        """The whole tensor of a name, or a tuple of them for several names."""
        if isinstance(name, tuple):
            return tuple(self[each] for each in name)
        self._require(name)
        return self._tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    @property
    def names(self) -> tuple[str, ...]:
        """The fields, in the schema's order."""
        return tuple(self._tensors)

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self._filled.device

    @property
    def memory(self) -> Memory:
        """The memory before step 0, axis `env` first. Raises DataError where nobody knows it."""
        if self._memory is None:
            raise DataError(
                "the memory before this window is unknown: only step 0 of a collected workspace has it. "
                "Replay from step 0, or set `workspace.memory`"
            )
        return self._memory

    @memory.setter
    def memory(self, memory: Memory) -> None:
        self._memory = mapped(Tensor.detach, memory)

    @property
    def mask(self) -> Bool[Tensor, "time env agent"]:
        """True where a step was written and the agent was there: what a loss may count."""
        return self["agent_mask"][: self.time] & self._filled[:, :, None]

    @property
    def decided(self) -> Bool[Tensor, "time env agent"]:
        """True where an agent chose its action itself: what a policy's loss may count."""
        return self.mask & ~self["forced"][: self.time] if "forced" in self else self.mask

    @property
    def first_episodes(self) -> Bool[Tensor, "time env agent"]:
        """`mask`, up to and with the step at which each environment was first cut."""
        cut = self["cut"].long()
        return self.mask & (cut.cumsum(0) - cut == 0).unsqueeze(-1)

    def at(self, t: int, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Views of step `t`, the same at each call: of every field that has it (or just `names`), constants whole."""
        fields = self._step(t).fields
        for name in names or ():
            self._require(name)
        return {name: fields[name] for name in (fields if names is None else names) if name in fields}

    def _step(self, t: int) -> _Step:
        """Views of step `t`, made once: acting comes back to it in every window."""
        if t not in self._steps:
            fields = {
                name: tensor.select(0, t) if self.schema[name].over_time else tensor
                for name, tensor in self._tensors.items()
                if not self.schema[name].over_time or 0 <= t < len(tensor)
            }
            self._steps[t] = _Step(fields, self._filled[t : t + 1])
        return self._steps[t]

    # ------------------------------------------------------------------------------------------------------- writing
    def write(self, t: int, values: Mapping[str, Tensor]) -> None:
        """Copies `values` into step `t` (episode constants into their one place). Raises DataError naming the field."""
        step = self._step(t)
        for name, value in values.items():
            target = step.fields.get(name)
            if target is None:
                raise DataError(f"{name!r} has steps 0..{len(self[name]) - 1}, there is no step {t}")
            if value.shape != target.shape or (value.dtype != target.dtype and not _is_safe(value, target)):
                raise DataError(_mismatch(f"{name!r} at step {t}", value, target, self.schema[name]))
            target.copy_(value)
        if not self.schema.completing.isdisjoint(values):
            step.filled.fill_(True)

    def __setitem__(self, name: str, value: Tensor) -> None:
        """Copies `value` over the whole field. Raises DataError naming the field and both shapes."""
        target = self[name]
        if value.shape != target.shape or (value.dtype != target.dtype and not _is_safe(value, target)):
            raise DataError(_mismatch(f"all of {name!r}", value, target, self.schema[name]))
        target.copy_(value)

    def carry(self) -> None:
        """Puts what follows the last step into step 0, so that the next window goes on where this one ended."""
        for name, field in self.schema.items():
            if field.extra_row:
                self._tensors[name][0].copy_(self._tensors[name][self.time])
        self._filled.zero_()

    def _require(self, name: str) -> None:
        if name not in self._tensors:
            raise DataError(
                f"no field {name!r} in this workspace{nearest(name, self._tensors)}. "
                f"Who writes what: {self.schema.writers}"
            )

    # ----------------------------------------------------------------------------------------------------- selecting
    def window(self, t0: int, t1: int) -> "Workspace":
        """A view of the steps t0 <= t < t1, and of what followed the last of them."""
        if not 0 <= t0 < t1 <= self.time:
            raise DataError(f"no window [{t0}, {t1}) in a workspace of {self.time} steps")

        def part(name: str, tensor: Tensor) -> Tensor:
            return tensor[t0 : self.schema.length(name, t1)] if self.schema[name].over_time else tensor

        tensors = {name: part(name, tensor) for name, tensor in self._tensors.items()}
        is_known = t0 == 0 or self._memory == ()
        return Workspace._made(self.schema, tensors, self._filled[t0:t1], self._memory if is_known else None)

    def columns(self, first: int, last: int) -> "Workspace":
        """A view of the environments first <= env < last. Its memory is its own to set."""
        tensors = {
            name: tensor[:, first:last] if self.schema[name].over_time else tensor[first:last]
            for name, tensor in self._tensors.items()
        }
        return Workspace._made(self.schema, tensors, self._filled[:, first:last], None)

    def rows(self, index: Tensor) -> "Workspace":
        """The trajectories of the environments `index` (a copy), each with its memory before step 0."""

        def part(name: str, tensor: Tensor) -> Tensor:
            return tensor.index_select(int(self.schema[name].over_time), index)

        def chosen(leaf: Tensor) -> Tensor:
            return leaf.index_select(0, index)

        tensors = {name: part(name, tensor) for name, tensor in self._tensors.items()}
        memory = None if self._memory is None else mapped(chosen, self._memory)
        return Workspace._made(self.schema, tensors, self._filled.index_select(1, index), memory)

    def crops(self, first: Tensor, length: int) -> "Workspace":
        """`length` steps of each environment from its own step `first` on, and what followed (a copy).

        Steps beyond the end repeat what stands there last, and count as never written.
        """
        nth = first + torch.arange(length + 1, device=self.device).unsqueeze(1)  # time env
        column = torch.arange(self.envs, device=self.device)

        def part(name: str, tensor: Tensor) -> Tensor:
            if not self.schema[name].over_time:
                return tensor
            return tensor[nth[: self.schema.length(name, length)].clamp(max=len(tensor) - 1), column]

        filled = self._filled[nth[:-1].clamp(max=self.time - 1), column] & (nth[:-1] < self.time)
        tensors = {name: part(name, tensor) for name, tensor in self._tensors.items()}
        is_known = self._memory == () or not bool(first.any())
        return Workspace._made(self.schema, tensors, filled, self._memory if is_known else None)

    def minibatches(
        self, count: int, by: Literal["row", "step"], generator: torch.Generator | None = None
    ) -> Iterator["Workspace"]:
        """`count` disjoint random parts that together are the whole, their sizes differing by one at most.

        A *row* is one environment's whole trajectory, memory included: for policies with memory. A *step* is one time
        step of one environment, all agents together: the parts then have one time step and many environments, and
        fields lose their extra row. Raises DataError where there are fewer units than parts, or where steps are asked
        for although there is memory before step 0.
        """
        if by not in ("row", "step"):
            raise DataError(f"minibatches by {by!r}{nearest(str(by), ('row', 'step'))}")
        units = self.envs if by == "row" else self.envs * self.time
        if not 1 <= count <= units:
            raise DataError(f"{units} {by}s cannot make {count} minibatches: ask for 1 to {units}")
        source = self if by == "row" else self._as_steps()
        order = torch.randperm(units, generator=generator, device=generator.device if generator else "cpu")
        for part in order.to(self.device).tensor_split(count):
            yield source.rows(part)

    def _as_steps(self) -> "Workspace":
        if self._memory is None or any(True for _ in leaves(self._memory)):
            raise DataError("steps of a module with memory cannot be shuffled: take minibatches by='row'")
        schema = Schema(
            {name: replace(field, extra_row=False) for name, field in self.schema.items()}, self.schema.agents
        )

        def flat(name: str, tensor: Tensor) -> Tensor:
            if self.schema[name].over_time:
                return tensor[: self.time].flatten(0, 1).unsqueeze(0)  # time env ... -> 1 (time env) ...
            return tensor.expand(self.time, *tensor.shape).flatten(0, 1)

        tensors = {name: flat(name, tensor) for name, tensor in self._tensors.items()}
        return Workspace._made(schema, tensors, self._filled.flatten().unsqueeze(0), ())

    def subset(self, names: Sequence[str]) -> "Workspace":
        """The same steps with only `names` (views): what a minibatch does not hold costs nothing to shuffle."""
        for name in names:
            self._require(name)
        schema = Schema({name: self.schema[name] for name in names}, self.schema.agents)
        return Workspace._made(schema, {name: self._tensors[name] for name in names}, self._filled, self._memory)

    # ------------------------------------------------------------------------------------------------------- moving
    def to(self, device: torch.device | str) -> "Workspace":
        """The same content on `device`, memory included."""

        def moved(leaf: Tensor) -> Tensor:
            return leaf.to(device)

        tensors = {name: moved(tensor) for name, tensor in self._tensors.items()}
        memory = None if self._memory is None else mapped(moved, self._memory)
        return Workspace._made(self.schema, tensors, self._filled.to(device), memory)

    def share(self) -> "Workspace":
        """This workspace with its tensors moved to shared memory, for other processes to write into."""
        for tensor in (*self._tensors.values(), self._filled):
            tensor.share_memory_()
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file: content, schema, mask, memory. Atomic: the old file stays until it is done."""
        storage.write_workspace(Path(path), self.schema, self._tensors, self._filled, self._memory)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Workspace":
        """What `save` wrote. Raises DataError, naming the file, where it is missing, damaged or of another kind."""
        return cls._made(*storage.read_workspace(Path(path)))

    def to_tensordict(self) -> Any:
        """A TensorDict of the same tensors, one batch axis: `env`. Needs the extra `tensordict`."""
        return storage.tensordict_of(self.schema, self._tensors, self._filled, self._memory)

    @classmethod
    def from_tensordict(cls, tensordict: Any) -> "Workspace":
        """What `to_tensordict` made."""
        return cls._made(*storage.workspace_parts(tensordict))


def _is_safe(value: Tensor, target: Tensor) -> bool:
    """Does the cast lose nothing but precision? (int64 -> int8 is the storage of small actions.)"""
    return torch.can_cast(value.dtype, target.dtype) or (
        not value.is_floating_point() and value.dtype != torch.bool and target.dtype in _INTEGERS
    )


_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def _mismatch(place: str, value: Tensor, target: Tensor, field: Field) -> str:
    return (
        f"{place} takes {list(target.shape)} {target.dtype} (axes {field.axes}, then {list(field.shape)}), "
        f"got {list(value.shape)} {value.dtype} from {field.writer}"
    )
