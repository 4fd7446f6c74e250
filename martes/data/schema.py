"""What a workspace holds: the fields of a team's task, their axes, shapes, dtypes and writers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Literal

import torch

from martes.data.team import Continuous, Discrete, Image, TeamSpec
from martes.errors import DataError

Axes = Literal["time env agent", "time env", "env agent", "env"]


@dataclass(frozen=True)
class Field:
    """What one name of a workspace holds: axes first, then `shape`."""

    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    axes: Axes = "time env agent"
    extra_row: bool = False
    """Does it hold one more step, the one that follows the last action (observations do)?"""
    fill: float = 0
    """The content before the first write."""
    doc: str = ""
    writer: str = "the environment"
    """Who writes it: said in the error that misses it."""

    @cached_property
    def over_time(self) -> bool:
        """Does it have a time axis?"""
        return self.axes.startswith("time")


class Schema(Mapping[str, Field]):
    """Field names -> fields, for teams of `agents` members. Never written to; `extended` returns a new one."""

    def __init__(self, fields: Mapping[str, Field], agents: int) -> None:
        self._fields = MappingProxyType(dict(fields))
        self.agents = agents

    def __getitem__(self, name: str) -> Field:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    @classmethod
    def from_team(cls, team: TeamSpec) -> "Schema":
        """The fields that every environment of this team writes, and the team's action."""
        seen = {
            name: Field(part.shape, part.dtype, extra_row=True) if isinstance(part, Image) else
            Field((part.size,), extra_row=True)
            for name, part in team.parts.items()
        }  # fmt: skip
        if team.state is not None:
            seen["state"] = Field((team.state.size,), axes="time env", extra_row=True, doc="what a central critic sees")
        if team.masks_actions:
            legal = tuple(team.legal_actions.shape[1:])
            seen["action_mask"] = Field(legal, torch.bool, extra_row=True, fill=1, doc="true where the action is legal")
        action = _action_field(team)
        if team.forces_actions:
            seen["forced"] = Field((), torch.bool, extra_row=True, doc="does the environment act in the agent's place?")
            seen["forced_action"] = replace(action, extra_row=True, writer="the environment", doc="what it does there")
        return cls({**seen, **_step_fields(), "action": action}, team.size)

    def extended(self, **fields: Field) -> "Schema":
        """This schema and `fields`. Raises DataError where a name has a writer already."""
        for name, field in fields.items():
            if name in self:
                raise DataError(
                    f"two writers of {name!r}: {self[name].writer} and {field.writer}. "
                    "Rename what one of them writes; a field has one writer"
                )
        return Schema({**self, **fields}, self.agents)

    @cached_property
    def completing(self) -> frozenset[str]:
        """The fields that complete a step: what was done there, and what came of it."""
        return frozenset(name for name, field in self.items() if field.over_time and not field.extra_row)

    @property
    def writers(self) -> str:
        """Each field with who writes it, for errors."""
        return ", ".join(f"{name} ({field.writer})" for name, field in self.items())

    def length(self, name: str, time: int) -> int:
        """The number of steps that field `name` holds in a workspace of `time` steps."""
        return time + self[name].extra_row

    def shape(self, name: str, time: int, envs: int) -> tuple[int, ...]:
        """The shape of field `name` in a workspace of `time` steps of `envs` environments."""
        sizes = {"time": self.length(name, time), "env": envs, "agent": self.agents}
        return (*(sizes[axis] for axis in self[name].axes.split()), *self[name].shape)

    def __reduce__(self) -> tuple[type["Schema"], tuple[dict[str, Field], int]]:
        return Schema, (dict(self._fields), self.agents)  # a read-only mapping cannot be pickled


def _step_fields() -> dict[str, Field]:
    return {
        "agent_mask": Field((), torch.bool, extra_row=True, fill=1, doc="is the agent there, alive and acting?"),
        "start": Field((), torch.bool, "time env", extra_row=True, doc="opens this step an episode? memory is cleared"),
        "reward": Field(doc="the result of this step's action"),
        "discount": Field(fill=1, doc="0 exactly where the agent truly terminated at this step"),
        "cut": Field((), torch.bool, "time env", doc="ends the trajectory after this step, for any reason?"),
    }


def _action_field(team: TeamSpec) -> Field:
    width = team.legal_actions.shape[1]
    if team.action_kind is Discrete:
        return Field((), torch.int64, writer="the policy")
    return Field((width,), torch.float32 if team.action_kind is Continuous else torch.int64, writer="the policy")
