"""Changes of what agents see and earn, on tensors [env agent ...] alone: no loop over copies or agents.

A change is a value: the team as it is afterwards, and pure functions of a step and of a memory with a row a copy.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from martes.data import Continuous, Fields, Image, Memory, MultiDiscrete, Observation, TeamSpec, Vector
from martes.errors import ConfigError

Reward = Literal["own", "sum", "mean"]
"""What an agent earns: its own reward, or the team's sum or mean; those who died or left count in and are paid, too."""


def _unchanged(fields: Fields, memory: Memory) -> Fields:
    return fields


def _its_own(reward: Tensor) -> Tensor:
    return reward


def _nothing(seen: Fields) -> Memory:
    return ()


def _nothing_more(memory: Memory, reached: Fields, action: Tensor) -> Memory:
    return ()


@dataclass(frozen=True)
class Change:
    """One change, as functions of tensors with leading axis `env`."""

    team: TeamSpec
    """The team as it is afterwards."""
    shown: Callable[[Fields, Memory], Fields] = _unchanged
    """What is seen instead, given what is remembered."""
    earned: Callable[[Tensor], Tensor] = _its_own
    """What is earned instead [env agent]."""
    opened: Callable[[Fields], Memory] = _nothing
    """What is remembered when an episode opens, of what is seen there."""
    advanced: Callable[[Memory, Fields, Tensor], Memory] = _nothing_more
    """What is remembered after an action has led to these fields."""


Changing = Callable[[TeamSpec], Change]
"""The change for a team."""


# -------------------------------------------------------------------------------------------------- what is seen
def agent_id(team: TeamSpec) -> Change:
    """Each agent's own number, one-hot, behind what it sees: vectors grow by the team's size.

    Where observations have parts, or are pictures, it is a part of its own: `obs/agent_id`. The absent see zeros.
    """
    added = _added(team, "agent_id", [(team.size,) * team.size])

    def shown(fields: Fields, memory: Memory) -> Fields:
        return added.beside(fields, torch.diag_embed(fields["agent_mask"].float()))

    return Change(added.team, shown)


def last_action(team: TeamSpec) -> Change:
    """The action that each agent executed last behind what it sees: choices one-hot, real numbers as they are.

    Zeros when an episode opens, and for who was not there. What the environment did in an agent's place is what was
    executed. Where observations have parts, or are pictures, it is a part of its own: `obs/last_action`.
    """
    exists = team.legal_actions  # agent choice | agent sub choice | agent dimension
    kept = ("agent_mask", "forced", "forced_action") if team.forces_actions else ("agent_mask",)
    per_sub = range(exists.shape[1]) if team.action_kind is MultiDiscrete else range(1)
    if team.action_kind is Continuous:
        widths = [tuple(len(sizes) for sizes in team.action_sizes)]
    else:
        widths = [tuple(sizes[sub] if sub < len(sizes) else 0 for sizes in team.action_sizes) for sub in per_sub]
    added = _added(team, "last_action", widths)

    def opened(seen: Fields) -> Memory:
        there = seen["agent_mask"]
        return {"done": there.new_zeros((len(there), *exists.shape), dtype=torch.float32), **_some(seen, kept)}

    def advanced(memory: Memory, reached: Fields, action: Tensor) -> Memory:
        before = _leaves(memory)
        if team.forces_actions:
            action = torch.where(over_agents(before["forced"], action), before["forced_action"], action)
        done = action if team.action_kind is Continuous else functional.one_hot(action, exists.shape[-1])
        return {"done": done.float() * over_agents(before["agent_mask"], done), **_some(reached, kept)}

    def shown(fields: Fields, memory: Memory) -> Fields:
        done = _leaves(memory)["done"]
        done = done * over_agents(fields["agent_mask"], done)
        return added.beside(fields, *(done.unbind(-2) if team.action_kind is MultiDiscrete else (done,)))

    return Change(added.team, shown, opened=opened, advanced=advanced)


def frame_stack(team: TeamSpec, count: int) -> Change:
    """The last `count` observations, oldest first: vectors along features, pictures along channels.

    As Gymnasium's FrameStackObservation does by default, the first observation of an episode fills the places before
    it. An agent that joins later starts anew likewise; the absent see zeros.
    """
    parts = {
        name: None if isinstance(part, Image) else SideBySide([_widths(team, name)] * count)
        for name, part in team.parts.items()
    }

    def stacked(part: Vector | Image) -> Vector | Image:
        if isinstance(part, Vector):
            return Vector(part.size * count)
        channels, *plane = part.shape
        return Image((channels * count, plane[0], plane[1]), part.dtype)

    def opened(seen: Fields) -> Memory:
        frames = {name: seen[name].unsqueeze(2).expand(-1, -1, count, *seen[name].shape[2:]) for name in parts}
        return {"agent_mask": seen["agent_mask"], **frames}

    def advanced(memory: Memory, reached: Fields, action: Tensor) -> Memory:
        before, anew = _leaves(memory), _leaves(opened(reached))
        stays = before["agent_mask"] & reached["agent_mask"]
        for name in parts:  # env agent frame ...
            frames = torch.cat((before[name][:, :, 1:], anew[name][:, :, -1:]), 2)
            anew[name] = torch.where(over_agents(stays, frames), frames, anew[name])
        return {**anew}

    def shown(fields: Fields, memory: Memory) -> Fields:
        frames = _leaves(memory)
        joined = {
            name: frames[name].flatten(2, 3) if beside is None else beside(*frames[name].unbind(2))
            for name, beside in parts.items()
        }
        return {**fields, **joined}

    return Change(_seeing(team, lambda _, space: _over_parts(space, stacked)), shown, opened=opened, advanced=advanced)


def shrunk(team: TeamSpec, factor: int) -> Change:
    """Pictures of a `factor`-th of the height and of the width, each block of pixels as its mean; bytes stay bytes.

    Rows and columns that fill no block are left out. Raises ConfigError where there is no picture, or no whole block.
    """
    pictures = [name for name, part in team.parts.items() if isinstance(part, Image)]
    if not pictures:
        raise ConfigError(f"env.wrap.shrink is {factor}, but this team sees no pictures: leave it out")

    def smaller(part: Vector | Image) -> Vector | Image:
        if isinstance(part, Vector):
            return part
        channels, height, width = part.shape
        if min(height, width) < factor:
            raise ConfigError(f"env.wrap.shrink is {factor}: more than the {height} x {width} pixels of a picture")
        return Image((channels, height // factor, width // factor), part.dtype)

    def shown(fields: Fields, memory: Memory) -> Fields:
        return {**fields, **{name: _block_means(fields[name], factor) for name in pictures}}

    return Change(_seeing(team, lambda _, space: _over_parts(space, smaller)), shown)


def _block_means(picture: Tensor, factor: int) -> Tensor:
    """Blocks that are not whole are left out."""
    stack = picture.float().reshape(-1, *picture.shape[-3:])
    means = functional.avg_pool2d(stack, factor)
    means = means.reshape(*picture.shape[:-2], *means.shape[-2:])
    return means if picture.is_floating_point() else means.round().to(picture.dtype)


def flattened(team: TeamSpec) -> Change:
    """One vector `obs` of all the parts of an observation in their order, pictures too, bytes as shares of 255."""
    join = SideBySide([_widths(team, name) for name in team.parts])

    def size(group: str, space: Observation) -> Observation:
        return Vector(sum(_width(part) for part in _parts_of(space).values()))

    def shown(fields: Fields, memory: Memory) -> Fields:
        others = {name: value for name, value in fields.items() if name not in team.parts}
        parts = (fields[name] for name in team.parts)
        return {"obs": join(*(_as_numbers(part).flatten(2) for part in parts)), **others}

    return Change(_seeing(team, size), shown)


# -------------------------------------------------------------------------------------------------- what is earned
def team_reward(team: TeamSpec, kind: Reward) -> Change:
    """The sum (PyMARL's common reward) or mean of all the team's rewards for everybody, the dead included."""

    def earned(reward: Float[Tensor, "env agent"]) -> Float[Tensor, "env agent"]:
        whole = reward.sum(1, keepdim=True) if kind == "sum" else reward.mean(1, keepdim=True)
        return whole.expand_as(reward)

    return Change(team) if kind == "own" else Change(team, earned=earned)


def reward_scale(team: TeamSpec, factor: float) -> Change:
    """Every reward times `factor`."""
    return Change(team, earned=lambda reward: reward * factor)


# -------------------------------------------------------------------------------------------------- places of features
class SideBySide:
    """Vectors [env agent width] of several sources in one, each agent's true widths together, padding at the end.

    `widths` holds, for each source, the true width of each agent; sources may be padded further.
    """

    def __init__(self, widths: Sequence[tuple[int, ...]]) -> None:
        self._widest = [max(source) for source in widths]
        ends = np.cumsum(self._widest)
        rows = [
            [start + each for start, source in zip((0, *ends), widths, strict=False) for each in range(source[agent])]
            for agent in range(len(widths[0]))
        ]
        self._is_padded = any(min(source) < max(source) for source in widths)
        longest = max(len(row) for row in rows)
        self._index = torch.tensor([row + [int(ends[-1])] * (longest - len(row)) for row in rows])

    def __call__(self, *sources: Tensor) -> Float[Tensor, "env agent width"]:
        """The vectors joined."""
        joined = torch.cat([each[..., :width] for each, width in zip(sources, self._widest, strict=True)], -1)
        if not self._is_padded:
            return joined
        joined = functional.pad(joined, (0, 1))  # the last column is what padding reads: 0
        self._index = self._index.to(joined.device)
        return joined.gather(-1, self._index.expand(len(joined), -1, -1))


class _Added(NamedTuple):
    """A vector of features that joins what is seen."""

    team: TeamSpec
    beside: Callable[..., Fields]
    """`beside(fields, *sources)`: the fields with the sources in their place."""


def _added(team: TeamSpec, name: str, widths: Sequence[tuple[int, ...]]) -> _Added:
    """Features behind each agent's vector; a part of their own where observations have parts or are pictures."""
    sizes = [sum(each) for each in zip(*widths, strict=True)]
    if all(isinstance(space, Vector) for space in team.observation.values()):
        join = SideBySide([_widths(team, "obs"), *widths])

        def behind(fields: Fields, *sources: Tensor) -> Fields:
            return {**fields, "obs": join(fields["obs"], *sources)}

        def longer(group: str, space: Observation) -> Observation:
            return Vector(_width(_parts_of(space)["obs"]) + sizes[team.groups[group][0]])

        return _Added(_seeing(team, longer), behind)
    alone = SideBySide(widths)

    def apart(fields: Fields, *sources: Tensor) -> Fields:
        named = {"obs/image" if field == "obs" else field: value for field, value in fields.items()}
        return {**named, f"obs/{name}": alone(*sources)}

    def extended(group: str, space: Observation) -> Observation:
        parts = space if isinstance(space, Mapping) else {"image": space}
        if name in parts:
            raise ConfigError(f"env.wrap.{name}: the observations of {group!r} have a part of this name already")
        return {**parts, name: Vector(sizes[team.groups[group][0]])}

    return _Added(_seeing(team, extended), apart)


def _seeing(team: TeamSpec, changed: Callable[[str, Observation], Observation]) -> TeamSpec:
    return replace(team, observation={group: changed(group, space) for group, space in team.observation.items()})


def _over_parts(space: Observation, function: Callable[[Vector | Image], Vector | Image]) -> Observation:
    if isinstance(space, Mapping):
        return {name: function(part) for name, part in space.items()}
    return function(space)


def _parts_of(space: Observation) -> dict[str, Vector | Image]:
    """Workspace field -> what it holds, of one group."""
    if isinstance(space, Mapping):
        return {f"obs/{name}": part for name, part in space.items()}
    return {"obs": space}


def _width(part: Vector | Image) -> int:
    return part.size if isinstance(part, Vector) else math.prod(part.shape)


def _widths(team: TeamSpec, field: str) -> tuple[int, ...]:
    """The true width of each agent's part."""
    return tuple(_width(_parts_of(team.observation[group])[field]) for group in team.group_of)


def _as_numbers(part: Tensor) -> Tensor:
    return part if part.is_floating_point() else part.float() / 255


def over_agents(mask: Tensor, like: Tensor) -> Tensor:
    """A mask [env agent] that spreads over the further axes of `like` [env agent ...]."""
    return mask.reshape(*mask.shape, *(1,) * (like.ndim - mask.ndim))


def _some(fields: Fields, names: Sequence[str]) -> dict[str, Memory]:
    return {name: fields[name] for name in names}


def _leaves(memory: Memory) -> dict[str, Tensor]:
    """What a change that remembers by name does remember."""
    assert isinstance(memory, dict)
    return {name: leaf for name, leaf in memory.items() if isinstance(leaf, Tensor)}
