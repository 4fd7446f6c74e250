"""Mutations of networks: more or fewer units, another layer or one less, another activation. What was learned stays."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import ClassVar, NamedTuple, get_args

import torch

from martes.algorithms.learner import Algorithm
from martes.algorithms.resizing import Resizing
from martes.data import Image, TeamSpec
from martes.data.limits import SHARE, refuse, refuse_beyond
from martes.errors import ConfigError, nearest
from martes.evolution.member import Change, Member, Mutated, Value, newborn
from martes.networks import Network
from martes.networks.autoregressive import TurnShape
from martes.networks.blocks import ActivationName

Shape = Network | TurnShape


@dataclass(frozen=True)
class Shapes:
    """Between which bounds networks may change, and by how much. Raises ConfigError for bounds that cannot be."""

    new_layer: float = 0.2
    """Chance that a mutation adds or removes a layer, rather than units of one."""
    layers: tuple[int, int] = (1, 3)
    """Fewest and most layers, hidden and added ones together."""
    units: tuple[int, int] = (16, 500)
    """Fewest and most units of a layer, of a memory, or of the layer after an attention or retention."""
    steps: tuple[int, ...] = (16, 32, 64)
    """How many units come or go at once."""
    channels: tuple[int, int] = (8, 256)
    """Fewest and most channels of a convolution."""
    channel_steps: tuple[int, ...] = (8, 16, 32)
    """How many channels come or go at once."""
    activations: tuple[ActivationName, ...] = get_args(ActivationName)
    """What activations are drawn from."""
    together: bool = True
    """Do all networks of the algorithm change alike, policies and critics? Else one of them, by chance."""
    only: tuple[str, ...] = ()
    """Networks that may change, such as `algorithm.network`; none given: all."""

    def __post_init__(self) -> None:
        refuse_beyond(self, SHARE, "new_layer", path="evolution.shapes.")
        for name in ("layers", "units", "channels"):
            low, high = getattr(self, name)
            refuse(f"evolution.shapes.{name}", (low, high), not 1 <= low <= high, "two numbers from 1 up, least first")
        for name in ("steps", "channel_steps"):
            value = getattr(self, name)
            refuse(f"evolution.shapes.{name}", value, min(value, default=0) < 1, "one or more numbers from 1 up")


class Site(NamedTuple):
    """A width, or a list of layers, in one network of a config."""

    path: str
    """Of the network: `algorithm.network`."""
    field: str
    place: int | None
    """Which of several widths; None: there is one."""
    value: int
    bounds: tuple[int, int]
    steps: tuple[int, ...]

    @property
    def where(self) -> str:
        """The path of its field."""
        return f"{self.path}.{self.field}"


class Edit(NamedTuple):
    """A field of one network, before and after."""

    path: str
    before: Value
    after: Value


@dataclass(frozen=True)
class Architecture:
    """Another width or depth of networks, within bounds.

    New units are read with weight 0 and new layers add 0: outputs stay. Of a layer that shrinks the units that weigh
    least go, of layers the last; how far outputs moved is told.
    """

    shapes: Shapes = field(default_factory=Shapes)
    kind: ClassVar[str] = "architecture"

    def refuse_unfit(self, algorithm: Algorithm, team: TeamSpec) -> None:
        """Raises ConfigError where no network can change, or where one begins outside of its bounds."""
        shapes = shapes_of(algorithm, self.shapes, self.kind)
        for path, shape in shapes.items():
            (low, high), depth = self.shapes.layers, _depth(shape)
            cure = f"within its bounds, {low} to {high}: see evolution.shapes.layers"
            refuse(path, f"{depth} layers deep", not low <= (depth or low) <= high, cure)
        sites = [site for path, shape in shapes.items() for site in self._sites(path, shape, team)]
        refuse("evolution.mutation.architecture", "above 0", not sites, "0: these networks have no width that can move")
        grown = algorithm
        for site in sites:
            low, high = site.bounds
            cure = f"within its bounds, {low} to {high}: see evolution.shapes"
            refuse(site.where, site.value, not low <= site.value <= high, cure)
            grown = with_value(grown, site.where, _widened(value_at(grown, site.where), site, 1))
        state = newborn(algorithm, team, 0, torch.Generator()).learner
        # What would be refused in mid-evolution is refused now.
        Resizing(team, algorithm, grown).resized(state, torch.Generator())

    def mutated(self, member: Member, generator: torch.Generator) -> Mutated | None:
        """The member with one change of its networks; None where every bound is reached."""
        shapes = shapes_of(member.algorithm, self.shapes, self.kind)
        deeper = [edits for path, shape in shapes.items() for edits in self._layer_edits(path, shape)]
        wider = [edit for path, shape in shapes.items() for edit in self._width_edits(path, shape, member.team)]
        ways = [_shuffled(_joined(each, self.shapes.together), generator) for each in (deeper, wider)]
        is_layer = torch.rand((), generator=generator, device=generator.device).item() < self.shapes.new_layer
        for edits in (ways[0] + ways[1]) if is_layer else (ways[1] + ways[0]):
            done = _edited(self.kind, member, edits, generator)
            if done is not None:
                return done
        return None

    def _sites(self, path: str, shape: Shape, team: TeamSpec) -> Iterator[Site]:
        """The widths of a network that are in use."""
        units = self.shapes.units, self.shapes.steps
        if any(isinstance(part, Image) for part in team.parts.values()):
            channels = self.shapes.channels, self.shapes.channel_steps
            yield from (Site(path, "channels", i, width, *channels) for i, width in enumerate(shape.channels))
        if isinstance(shape, TurnShape):
            if getattr(shape, "feed_forward", True):
                yield Site(path, "feed_forward_size", None, shape.feed_forward_size or shape.size, *units)
            return
        for name in ("added",) if shape.hidden_by_group else ("hidden", "added"):  # those of groups stay
            yield from (Site(path, name, i, width, *units) for i, width in enumerate(getattr(shape, name)))
        if shape.memory == "gru":
            yield Site(path, "memory_size", None, shape.memory_size, *units)

    def _width_edits(self, path: str, shape: Shape, team: TeamSpec) -> Iterator["Way"]:
        for site in self._sites(path, shape, team):
            low, high = site.bounds
            before = getattr(shape, site.field)
            for step in (sign * step for step in site.steps for sign in (1, -1)):
                if low <= site.value + step <= high:
                    edit = Edit(site.where, before, _widened(before, site, step))
                    yield Way((site.field, site.place, step), edit)

    def _layer_edits(self, path: str, shape: Shape) -> Iterator["Way"]:
        if isinstance(shape, TurnShape):
            return
        (fewest, most), (narrow, wide) = self.shapes.layers, self.shapes.units
        hidden, added, count = shape.hidden, shape.added, _depth(shape)
        if count < most:
            width = min(max(hidden[-1], narrow), wide)
            yield Way(("added", None, 1), Edit(f"{path}.added", added, (*added, width)))
        if count > fewest:
            name, layers = ("added", added) if added or shape.hidden_by_group else ("hidden", hidden)
            if len(layers) > (name == "hidden"):
                yield Way(("added", None, -1), Edit(f"{path}.{name}", layers, layers[:-1]))


@dataclass(frozen=True)
class Activation:
    """Another activation of networks; every weight stays."""

    shapes: Shapes = field(default_factory=Shapes)
    kind: ClassVar[str] = "activation"

    def refuse_unfit(self, algorithm: Algorithm, team: TeamSpec) -> None:
        """Raises ConfigError where no network has one to choose."""
        networks = shapes_of(algorithm, self.shapes, self.kind).values()
        if not any(isinstance(each, Network) for each in networks) or len(set(self.shapes.activations)) < 2:
            raise ConfigError("there is no other activation to take: say evolution.mutation.activation=0")

    def mutated(self, member: Member, generator: torch.Generator) -> Mutated | None:
        """The member with another activation; None where there is no other."""
        ways = [
            Way(("activation", None, choice), Edit(f"{path}.activation", shape.activation, name))
            for path, shape in shapes_of(member.algorithm, self.shapes, self.kind).items()
            for choice, name in enumerate(self.shapes.activations)
            if isinstance(shape, Network) and shape.activation != name
        ]
        for edits in _shuffled(_joined(ways, self.shapes.together), generator):
            done = _edited(self.kind, member, edits, generator)
            if done is not None:
                return done
        return None


class Way(NamedTuple):
    """A change of one network; those of a key are the same change of several."""

    key: tuple[str, int | None, int]
    edit: Edit


def shapes_of(algorithm: Algorithm, wanted: Shapes, kind: str) -> dict[str, Shape]:
    """The networks of a config that may change, by path. Raises ConfigError where there is none, or none so named."""
    found = dict(_shapes_in(algorithm, "algorithm"))
    for path in wanted.only:
        if path not in found:
            raise ConfigError(f"evolution.shapes.only: {path!r} is no network of this algorithm{nearest(path, found)}")
    kept = {path: shape for path, shape in found.items() if not wanted.only or path in wanted.only}
    if not kept:
        name = type(algorithm).__name__
        raise ConfigError(f"{name} has no network that could change: say evolution.mutation.{kind}=0")
    return kept


def _shapes_in(node: object, path: str) -> Iterator[tuple[str, Shape]]:
    if isinstance(node, Network | TurnShape):
        yield path, node
    elif is_dataclass(node):
        for each in fields(node):
            yield from _shapes_in(getattr(node, each.name), f"{path}.{each.name}")
    elif isinstance(node, Mapping):
        for name, each in node.items():
            yield from _shapes_in(each, f"{path}.{name}")


def _depth(shape: Shape) -> int:
    """Layers, hidden and added ones; 0: it has none that could come or go."""
    if not isinstance(shape, Network):
        return 0
    return max(len(each) for each in (shape.hidden, *shape.hidden_by_group.values())) + len(shape.added)


def _widened(widths: object, site: Site, step: int) -> int | tuple[int, ...]:
    """The field of a site, one width of it moved."""
    if not isinstance(widths, tuple) or site.place is None:
        return site.value + step
    return *widths[: site.place], site.value + step, *widths[site.place + 1 :]


def _joined(ways: list[Way], together: bool) -> list[list[Edit]]:
    """The edits of each change: of all networks that can have it at once, or of one."""
    if not together:
        return [[way.edit] for way in ways]
    keys = dict.fromkeys(way.key for way in ways)
    return [[way.edit for way in ways if way.key == key] for key in keys]


def _shuffled(ways: list[list[Edit]], generator: torch.Generator) -> list[list[Edit]]:
    return [ways[i] for i in torch.randperm(len(ways), generator=generator, device=generator.device).tolist()]


def _edited(kind: str, member: Member, edits: list[Edit], generator: torch.Generator) -> Mutated | None:
    """The member after these edits, what was learned carried over; None where they change nothing, or are refused."""
    try:
        algorithm = member.algorithm
        for edit in edits:
            algorithm = with_value(algorithm, edit.path, edit.after)
    except ConfigError:
        return None
    resizing = Resizing(member.team, member.algorithm, algorithm, accepts_change=True)
    resized = resizing.resized(member.learner, generator)
    if not (resized.weights or max(resized.moved.values(), default=0.0) > 0):
        return None
    first, *others = edits
    told = "".join(f"{each.path} {each.before} -> {each.after}, " for each in others)
    change = Change(kind, *first, note=f"{told}{resized.note}")
    # A memory that has another width begins anew, with new episodes.
    collector = None if any(each.path.endswith("memory_size") for each in edits) else member.collector
    return Mutated(replace(member, algorithm=algorithm, learner=resized.state, collector=collector), change)


def value_at(node: object, path: str) -> object:
    """The value at a path of a config, such as `algorithm.network.hidden`."""
    for name in path.split(".")[1:]:
        node = node[name] if isinstance(node, Mapping) else getattr(node, name)
    return node


def with_value(algorithm: Algorithm, path: str, value: object) -> Algorithm:
    """The config with another value at a path. Raises ConfigError where it refuses that."""
    changed = _with(algorithm, path.split(".")[1:], value)
    assert isinstance(changed, Algorithm)
    return changed


def _with(node: object, path: list[str], value: object) -> object:
    if not path:
        return value
    name, *below = path
    if isinstance(node, Mapping):
        return {**node, name: _with(node[name], below, value)}
    assert is_dataclass(node) and not isinstance(node, type)
    return replace(node, **{name: _with(getattr(node, name), below, value)})
