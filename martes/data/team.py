"""Facts of a task: who acts, what each agent sees and may do. Written once, never changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from martes.errors import ConfigError


@dataclass(frozen=True)
class Vector:
    """A vector of `size` real numbers."""

    size: int


@dataclass(frozen=True)
class Image:
    """A picture, channels first: `shape` = (channels, height, width). Bytes are read as shares of 255."""

    shape: tuple[int, int, int]
    dtype: torch.dtype = torch.uint8
    """What is stored: bytes, or real numbers (`torch.float32`), which are taken as they are."""

    def __post_init__(self) -> None:
        if self.dtype not in (torch.uint8, torch.float32):
            raise ConfigError(f"an image of {self.dtype}: store torch.uint8 or torch.float32")


@dataclass(frozen=True)
class Discrete:
    """One choice among `n` actions. Raises ConfigError without any."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"Discrete({self.n}): there must be an action to choose")


@dataclass(frozen=True)
class MultiDiscrete:
    """Several choices at once, the k-th among `sizes[k]`. Raises ConfigError where one has nothing to choose from."""

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if min(self.sizes, default=0) < 1:
            raise ConfigError(f"MultiDiscrete({self.sizes}): each choice needs an action to choose")


@dataclass(frozen=True)
class Continuous:
    """A vector of real numbers, the k-th between `low[k]` and `high[k]`. Raises ConfigError for no bounds."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.low or len(self.low) != len(self.high):
            raise ConfigError(f"Continuous({self.low}, {self.high}): give a low and a high for each number")
        if not all(-inf < low < high < inf for low, high in zip(self.low, self.high, strict=True)):
            raise ConfigError(
                f"Continuous({self.low}, {self.high}): each low must be finite and below its high. Policies draw from "
                "the whole range, so give the one in which actions make sense"
            )


Observation = Vector | Image | Mapping[str, Vector | Image]
Action = Discrete | MultiDiscrete | Continuous


def groups_from_names(agents: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Groups of agents that share a name up to its last underscore: `speaker_0` belongs to `speaker`."""
    groups: dict[str, tuple[int, ...]] = {}
    for index, agent in enumerate(agents):
        name = agent.rpartition("_")[0] or agent
        groups[name] = (*groups.get(name, ()), index)
    return groups


@dataclass(frozen=True)
class TeamSpec:
    """The facts of a task that every part of the library reads.

    Raises ConfigError where the facts contradict each other: an agent in no group or in two, a group without spaces,
    or a team that mixes kinds of action.
    """

    agents: tuple[str, ...]
    """Names, in the order of the agent axis."""
    groups: Mapping[str, tuple[int, ...]]
    """Group name -> positions on the agent axis. Members of a group have equal spaces."""
    observation: Mapping[str, Observation]
    """Group name -> what its members see; a mapping of parts becomes the fields `obs/<part>`."""
    action: Mapping[str, Action]
    """Group name -> what its members do."""
    state: Vector | None = None
    """What a central critic sees; without it the team's observations, joined, stand in."""
    episode_limit: int | None = None
    """Steps after which an episode is cut, without being terminal."""
    masks_actions: bool = False
    """Does the environment forbid some actions at some steps? (It then writes `action_mask`.)"""
    forces_actions: bool = False
    """Does the environment act in place of an agent at some steps? (It then writes `forced` and `forced_action`.)"""

    def __post_init__(self) -> None:
        for name in ("groups", "observation", "action"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        _refuse_misplaced(self.agents, self.groups)
        for kind, spaces in (("observation", self.observation), ("action", self.action)):
            if set(spaces) != set(self.groups):
                raise ConfigError(
                    f"{kind} names the groups {sorted(spaces)}, the team has {sorted(self.groups)}: name each once"
                )
        kinds = {type(space).__name__: group for group, space in self.action.items()}
        if len(kinds) > 1:
            told = " and ".join(f"{kind} ({group})" for kind, group in kinds.items())
            raise ConfigError(
                f"this team mixes kinds of action: {told}. One policy acts in one kind; "
                "discretise the continuous group, or train the groups as two teams"
            )

    @classmethod
    def of_agents(
        cls,
        observation: Mapping[str, Observation],
        action: Mapping[str, Action],
        groups: Mapping[str, tuple[int, ...]] | None = None,
        *,
        state: Vector | None = None,
        episode_limit: int | None = None,
        masks_actions: bool = False,
    ) -> "TeamSpec":
        """The team of agents whose spaces are given by agent name; groups default to `groups_from_names`.

        Raises ConfigError, naming both agents, where two members of a group have unequal spaces.
        """
        agents = tuple(observation)
        groups = groups or groups_from_names(agents)
        _refuse_misplaced(agents, groups)
        if set(action) != set(agents):
            raise ConfigError(
                f"observation names the agents {sorted(agents)}, action {sorted(action)}: name each in both"
            )
        for name, members in groups.items():
            first = agents[members[0]]
            for other in (agents[index] for index in members[1:]):
                for kind, spaces in (("observation", observation), ("action", action)):
                    if spaces[first] != spaces[other]:
                        raise ConfigError(
                            f"group {name!r} joins agents with unequal {kind} spaces: {first} has {spaces[first]}, "
                            f"{other} has {spaces[other]}. Put them into groups of their own (groups=...)"
                        )
        return cls(
            agents,
            groups,
            {name: observation[agents[members[0]]] for name, members in groups.items()},
            {name: action[agents[members[0]]] for name, members in groups.items()},
            state,
            episode_limit,
            masks_actions,
        )

    def __reduce__(self) -> tuple[type["TeamSpec"], tuple[object, ...]]:
        spaces = dict(self.groups), dict(self.observation), dict(self.action)  # read-only mappings cannot be pickled
        facts = self.state, self.episode_limit, self.masks_actions, self.forces_actions
        return TeamSpec, (self.agents, *spaces, *facts)

    @property
    def size(self) -> int:
        """The number of agents."""
        return len(self.agents)

    @cached_property
    def group_of(self) -> tuple[str, ...]:
        """The name of each agent's group, along the agent axis."""
        name_at = {index: name for name, members in self.groups.items() for index in members}
        return tuple(name_at[index] for index in range(self.size))

    @cached_property
    def action_kind(self) -> type[Action]:
        """The one kind of action of this team."""
        return type(next(iter(self.action.values())))

    @cached_property
    def parts(self) -> Mapping[str, Vector | Image]:
        """Workspace field -> what it holds: `obs`, or `obs/<part>` for each part; vectors padded to the widest group.

        Raises ConfigError where a part is an image of unequal shapes, or absent in some group: it cannot be padded.
        """
        by_group = [_named_parts(self.observation[name]) for name in self.groups]
        names = dict.fromkeys(name for parts in by_group for name in parts)
        return MappingProxyType({name: _padded(name, [parts.get(name) for parts in by_group]) for name in names})

    @cached_property
    def observation_sizes(self) -> tuple[int, ...]:
        """The true width of each agent's vector observation (all vector parts together), padding left out."""
        return tuple(sum(sizes) for sizes in zip(*self.vector_sizes.values(), strict=True)) or (0,) * self.size

    @cached_property
    def vector_sizes(self) -> Mapping[str, tuple[int, ...]]:
        """Workspace field of each vector that is observed -> its true width for each agent, padding left out."""

        def sizes(name: str) -> tuple[int, ...]:
            parts = (_named_parts(self.observation[group])[name] for group in self.group_of)
            return tuple(part.size for part in parts if isinstance(part, Vector))

        return {name: sizes(name) for name, part in self.parts.items() if isinstance(part, Vector)}

    @cached_property
    def action_sizes(self) -> tuple[tuple[int, ...], ...]:
        """Per agent, the number of choices of each sub-action; for continuous actions a 1 for each dimension."""

        def sizes(space: Action) -> tuple[int, ...]:
            match space:
                case Discrete(n):
                    return (n,)
                case MultiDiscrete(sizes):
                    return sizes
                case Continuous(low, _):
                    return (1,) * len(low)

        return tuple(sizes(self.action[name]) for name in self.group_of)

    @cached_property
    def legal_actions(self) -> Bool[Tensor, "agent *choices"]:
        """What exists for each agent once actions are padded to the widest group.

        Shape `agent action` (discrete), `agent sub action` (multi-discrete) or `agent dimension` (continuous).
        """
        width = max(len(sizes) for sizes in self.action_sizes)
        choices = max(size for sizes in self.action_sizes for size in sizes)
        legal = torch.zeros(self.size, width, choices, dtype=torch.bool)
        for agent, sizes in enumerate(self.action_sizes):
            for sub, size in enumerate(sizes):
                legal[agent, sub, :size] = True
        if self.action_kind is Discrete:
            return legal[:, 0]
        return legal[..., 0] if self.action_kind is Continuous else legal

    @cached_property
    def bounds(self) -> tuple[Float[Tensor, "agent dimension"], Float[Tensor, "agent dimension"]]:
        """Lowest and highest continuous action of each agent; padding lies in [-1, 1]."""
        width = self.legal_actions.shape[1]
        low, high = -torch.ones(self.size, width), torch.ones(self.size, width)
        for agent, name in enumerate(self.group_of):
            space = self.action[name]
            assert isinstance(space, Continuous)
            low[agent, : len(space.low)] = torch.tensor(space.low)
            high[agent, : len(space.high)] = torch.tensor(space.high)
        return low, high


def _refuse_misplaced(agents: tuple[str, ...], groups: Mapping[str, tuple[int, ...]]) -> None:
    placed = sorted(index for members in groups.values() for index in members)
    if placed != list(range(len(agents))) or not all(groups.values()):
        raise ConfigError(
            f"groups {dict(groups)} do not place each of the {len(agents)} agents {list(agents)} exactly once: "
            f"give every position 0..{len(agents) - 1} to one group, and every group a member"
        )
    if len(set(agents)) < len(agents):
        raise ConfigError(f"two agents of {list(agents)} bear one name: give each its own")


def _named_parts(space: Observation) -> dict[str, Vector | Image]:
    if isinstance(space, Vector | Image):
        return {"obs": space}
    return {f"obs/{name}": part for name, part in space.items()}


def _padded(name: str, parts: list[Vector | Image | None]) -> Vector | Image:
    vectors = [part for part in parts if isinstance(part, Vector)]
    if len(vectors) == len(parts):
        return Vector(max(part.size for part in vectors))
    first = parts[0]
    if first is None or any(part != first for part in parts):
        raise ConfigError(
            f"{name} is {parts} in the groups of this team and cannot be padded: "
            "give every group the same image, or a vector of any size"
        )
    return first
