"""Arrays that somebody hands over, read with care: a misfit is told by the argument's name, with what it should be."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import SupportsIndex, TypeGuard

import numpy as np
import torch
from torch import Tensor

from martes.data.team import Continuous, TeamSpec, Vector
from martes.data.trees import Memory, leaves, mapped
from martes.errors import ConfigError

EDGE = 1 - 1e-6
"""The largest continuous action that is given, or scored: where tanh reaches 1 nothing could be inverted."""


class ArgumentError(ConfigError, ValueError):
    """An argument that cannot be; the message begins with its name."""


def refuse(name: str, wrong: Tensor, value: Tensor, cure: str) -> None:
    """Raises ArgumentError, naming the first place of an argument where `wrong` is true."""
    if bool(wrong.any()):
        place = tuple(int(index) for index in wrong.nonzero()[0])
        raise ArgumentError(f"{name} is {value[place].item()} at {list(place)}: it must be {cure}")


def count(name: str, value: object) -> int:
    """The number, 1 or more. Raises ArgumentError for anything else."""
    if not isinstance(value, SupportsIndex) or isinstance(value, bool) or value.__index__() < 1:
        raise ArgumentError(f"{name} is {value}: it must be an integer >= 1")
    return value.__index__()


def number(name: str, value: object) -> Tensor:
    """The number as a tensor [] without gradient. Raises ArgumentError where it is not one number."""
    try:
        return torch.as_tensor(value).detach().float().reshape(())
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"{name} is {value!r}: it must be one number") from error


def plain(value: object) -> object:
    """The value, with NumPy's numbers as Python's own, in dicts and lists too: `Discrete.n` of Gymnasium, means."""
    if _is_scalar(value):
        return value.item()
    if _is_mapping(value):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if _is_list(value) else value


@contextmanager
def placing(device: object) -> Generator[None, None, None]:
    """For what is placed on a device inside: raises ArgumentError where there is none of this name."""
    try:
        yield
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ArgumentError(f"device is {device!r}, which is not at hand: {error}") from error


class Arguments:
    """Reads the arguments of one call. The size of an axis, once known, is the same in every argument.

    The team's agents have equal spaces: a vector to see; one discrete action, or continuous ones in [-1, 1].
    """

    def __init__(self, team: TeamSpec, device: torch.device, **known: int) -> None:
        seen = team.parts["obs"]
        assert isinstance(seen, Vector)
        self.device = device
        self.is_continuous = team.action_kind is Continuous
        self.sizes = {"n_agents": team.size, "obs_dim": seen.size, "action_dim": team.legal_actions.shape[1], **known}

    def tensor(self, name: str, value: object) -> Tensor:
        """The value, which may be a list of tensors, as one on this device. Raises ArgumentError where it is none."""
        try:
            whole = torch.stack(list(value)) if _are_tensors(value) else value
            return (whole if isinstance(whole, Tensor) else torch.tensor(np.asarray(whole))).to(self.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(f"{name} is no array of numbers: {error}") from error

    def shaped(self, name: str, value: object, axes: str) -> Tensor:
        """The value as a tensor of these axes. Raises ArgumentError where it has another shape."""
        given, named = self.tensor(name, value), axes.split()
        if given.ndim != len(named) or not all(
            0 < size == self.sizes.setdefault(axis, size) for axis, size in zip(named, given.shape, strict=True)
        ):
            known = (f"{axis}={self.sizes[axis]}" if axis in self.sizes else axis for axis in named)
            raise ArgumentError(f"{name} has the shape {list(given.shape)}: it must be [{', '.join(known)}]")
        return given

    def numbers(self, name: str, value: object, axes: str) -> Tensor:
        """Real numbers. Raises ArgumentError as `shaped` does, and where one is not finite."""
        given = self.shaped(name, value, axes).float()
        refuse(name, ~given.isfinite(), given, "a finite number")
        return given

    def flags(self, name: str, value: object, axes: str) -> Tensor:
        """Truth values. Raises ArgumentError as `shaped` does, and for numbers but 0 and 1."""
        given = self.shaped(name, value, axes)
        refuse(name, given != given.bool(), given, "true or false")
        return given.bool()

    def team_flags(self, name: str, value: object, axes: str) -> Tensor:
        """Truth values with `n_agents` as the last axis. The value may lack it: one for the team is everybody's."""
        given, per_agent = self.tensor(name, value), f"{axes} n_agents"
        if given.ndim == len(axes.split()):
            given = given.unsqueeze(-1).repeat_interleave(self.sizes["n_agents"], dim=-1)
        return self.flags(name, given, per_agent)

    def legal(self, value: object, axes: str) -> Tensor:
        """`legal_actions`, true where an action is legal. Raises ArgumentError where an agent has none."""
        if self.is_continuous:
            raise ArgumentError("legal_actions are for discrete actions, these are continuous: leave them out")
        legal = self.flags("legal_actions", value, f"{axes} action_dim")
        refuse("legal_actions", ~legal.any(-1), legal.any(-1), "true for one action at least, if only to wait")
        return legal

    def choice(self, value: object, axes: str, legal: Tensor | None) -> dict[str, Tensor]:
        """`actions` as they are recorded: `action`, and what it was before squashing where it is continuous (`sample`).

        Raises ArgumentError for an action that does not exist or is not legal.
        """
        if self.is_continuous:
            given = self.numbers("actions", value, f"{axes} action_dim")
            refuse("actions", given.abs() > 1, given, "between -1 and 1")
            action = given.clamp(-EDGE, EDGE)
            return {"action": action, "sample": action.atanh()}
        given, last = self.shaped("actions", value, axes), self.sizes["action_dim"] - 1
        action = given.long()
        refuse("actions", (action != given) | (action < 0) | (action > last), given, f"an integer from 0 to {last}")
        if legal is not None:
            is_legal = legal.gather(-1, action.unsqueeze(-1)).squeeze(-1)
            refuse("actions", ~is_legal, action, "one of the legal_actions")
        return {"action": action}

    def memory(self, hstates: object, fresh: Memory) -> Memory:
        """`hstates` on the device and of the dtypes of `fresh` ones. Raises ArgumentError for those of another form."""
        known = {path: list(leaf.shape) for path, leaf in leaves(fresh)}
        given = {path: list(leaf.shape) for path, leaf in leaves(hstates)} if _is_memory(hstates) else {}
        if given != known or not _is_memory(hstates):
            raise ArgumentError(f"hstates hold {given or 'no states'}, and must hold {known or 'none: ()'}")

        def moved(leaf: Tensor, own: Tensor) -> Tensor:
            return leaf.to(own)

        return mapped(moved, hstates, fresh)


def _are_tensors(value: object) -> TypeGuard[Sequence[Tensor]]:
    return _is_row(value) and len(value) > 0 and all(isinstance(each, Tensor) for each in value)


def _is_row(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, list | tuple)


def _is_list(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list)


def _is_scalar(value: object) -> TypeGuard[np.bool_ | np.int64 | np.float64]:
    return isinstance(value, np.generic)


def _is_mapping(value: object) -> TypeGuard[Mapping[object, object]]:
    return isinstance(value, Mapping)


def _is_memory(value: object) -> TypeGuard[Memory]:
    return isinstance(value, Tensor | tuple | dict)
