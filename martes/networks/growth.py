"""Networks that grow and shrink as they learn: what was learned moves into networks of another size.

What layers a network has is told once, by its `units()`: each parameter in which the units of a layer have entries of
their own, where they are made and where they are read. A new unit is made afresh and read with weight 0, so that no
output moves; of a layer that shrinks, the units that weigh least are left out. Targets, and the moments of optimisers,
follow the same map. Source: Chen et al. 2016 (Net2Net), where new units are copies; here they are fresh.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim import Optimizer

from martes.errors import ConfigError
from martes.networks.targets import followed
from martes.networks.units import Place, Unified, Units

Parts = Mapping[str, nn.Module | Optimizer]
"""Networks, targets and optimisers of one learner, by name."""
Ids = Int64[Tensor, "_slot _unit"]
"""Units of a layer, by number, for each slot."""


Index = tuple[Tensor | EllipsisType, ...]
"""What is taken of a tensor, axis by axis; `...`: all."""


class Layer(NamedTuple):
    """One layer before and after, and which of its old units stay, in their order."""

    before: Units
    after: Units
    kept: Ids

    @property
    def fresh(self) -> Int64[Tensor, "unit"]:
        """The numbers of its new units: they stand last."""
        return torch.arange(self.kept.shape[1], self.after.width, device=self.kept.device)


class Span(NamedTuple):
    """Where a layer stands in one parameter, before and after."""

    before: Place
    after: Place
    layer: Layer


class Move(NamedTuple):
    """The entries of an old parameter that stay, and where they go in the new one; slots lead in both."""

    taken: Index
    put: Index

    def into(self, new: Tensor, old: Tensor) -> None:
        """Writes the old entries into the new parameter."""
        as_slots(new, len(self.put))[self.put] = as_slots(old, len(self.put))[self.taken].to(new.dtype)


@dataclass(frozen=True, eq=False)
class Wiring:
    """A learner's parameters by name, the units of its layers, and which networks follow which."""

    names: dict[int, str]
    """Identity of a parameter or buffer -> its name."""
    tensors: dict[str, Tensor]
    units: dict[str, Units]
    online: dict[str, str]
    """Name of a target's layer -> that of the layer which it follows."""

    @classmethod
    def of(cls, parts: Parts) -> "Wiring":
        """That of these parts; where one holds another, what they share has the first name."""
        networks = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        named = [
            (tensor, f"{part}.{name}")
            for part, network in networks.items()
            for name, tensor in (*network.named_parameters(), *network.named_buffers())
        ]
        names = {id(tensor): name for tensor, name in reversed(named)}
        paths = {
            id(module): f"{part}.{path}"
            for part, network in reversed(networks.items())
            for path, module in network.named_modules()
        }
        modules = {paths[id(module)]: module for network in networks.values() for module in network.modules()}
        layers = {path: _units(module) for path, module in modules.items()}
        leaders = {
            paths[id(ours)]: paths[id(theirs)]
            for module in modules.values()
            if (leader := followed(module)) is not None
            for ours, theirs in zip(module.modules(), leader.modules(), strict=True)
            if id(theirs) in paths
        }
        return cls(
            names,
            {names[id(tensor)]: tensor for tensor, _ in named},
            {f"{path}/{field}": units for path, own in layers.items() for field, units in own.items()},
            {f"{path}/{field}": f"{leader}/{field}" for path, leader in leaders.items() for field in layers[path]},
        )

    def name(self, place: Place) -> str:
        """The name of the parameter in which this place is."""
        return self.names[id(place.parameter)]

    def kept(self, layer: str, width: int) -> Ids:
        """The units of a layer that stay where it becomes this wide: all, or those that weigh most.

        A target keeps those of the network that it follows, whatever they weigh in itself.
        """
        units = self.units[self.online.get(layer, layer)]
        if width >= units.width:
            device = units.incoming[0].parameter.device
            return torch.arange(units.width, device=device).expand(_slots(units), -1)
        weights = importance(units)
        stay = weights.topk(width, dim=1).indices
        return stay.sort(dim=1).values


def _units(module: nn.Module) -> dict[str, Units]:
    # The class is asked first: of most modules this is the whole answer, and a protocol takes long to give it.
    return module.units() if hasattr(type(module), "units") and isinstance(module, Unified) else {}


def as_slots(tensor: Tensor, axes: int) -> Tensor:
    """The tensor with a slot axis first, of length 1 where it has none."""
    return tensor if tensor.ndim == axes else tensor.unsqueeze(0)


def along_units(place: Place, width: int, is_stacked: bool) -> Float[Tensor, "slot *entries"]:
    """A view of the entries of units, whose axis is `place.axis + 1` there."""
    tensor = place.parameter if is_stacked else place.parameter.unsqueeze(0)
    entries = tensor.narrow(place.axis, place.start, place.blocks * width * place.each)
    return entries.unflatten(place.axis, (place.blocks, width, place.each))


def importance(units: Units) -> Float[Tensor, "slot unit"]:
    """How much a unit can matter: the length of what makes it times the length of what reads it, for each slot.

    Under a norm what makes it is gain and shift alone. Where one reader serves all slots, they are weighed together.
    """
    makers, slots = _makers(units), _slots(units)

    def squares(places: tuple[Place, ...]) -> Tensor:
        total = torch.zeros(slots, units.width, device=units.incoming[0].parameter.device)
        for place in places:
            entries = along_units(place, units.width, units.is_stacked).square().movedim(place.axis + 1, 1)
            each = entries.flatten(2).sum(2)  # slot unit
            total += each if len(each) == slots else each.sum(0)
        return total

    return (squares(makers) * squares(units.read)).sqrt()


def _makers(units: Units) -> tuple[Place, ...]:
    return units.made if units.normed is None else units.normed[1:]


def _slots(units: Units) -> int:
    """Slots that lose units each by itself."""
    return min(len(place.parameter) for place in (*_makers(units), *units.read)) if units.is_stacked else 1


def transfer(old: Parts, new: Parts, *, accepts_change: bool = False) -> None:
    """Moves what was learned into fresh networks, targets and optimisers of the same form and another size, in place.

    Exact where layers grow: outputs stay to rounding. Raises ConfigError, naming the layer, where one changed whose
    slots have unequal sizes, and, naming the parameter, where sizes changed of which no layer is told; with
    `accepts_change` the leading entries of such a parameter are taken over.
    """
    before, after = Wiring.of(old), Wiring.of(new)
    _refuse_padded(before.units, after.units)
    if not accepts_change:
        _refuse_losses(before.units, after.units)
    layers = {
        name: Layer(before.units[name], units, before.kept(name, units.width))
        for name, units in after.units.items()
        if name in before.units
    }
    folded = _folded(before, after)
    with torch.no_grad():
        for layer in layers.values():
            _read_by_none(layer)
        moves = _moves(before, after, layers, folded, accepts_change)
        for name, move in moves.items():
            move.into(after.tensors[name], folded.get(name, before.tensors[name]))
        for layer in layers.values():
            _keep_norm(layer)
    for name, optimiser in new.items():
        source = old.get(name)
        if isinstance(optimiser, Optimizer) and isinstance(source, Optimizer):
            known = {key: move for key, move in moves.items() if key not in folded or key.endswith("bias")}
            _remember(source, optimiser, before, after, known)


def _refuse_padded(before: Mapping[str, Units], after: Mapping[str, Units]) -> None:
    """What the slots of such a layer have is not what its parameters' shapes say."""
    for name in dict.fromkeys((*before, *after)):
        old, new = (each.get(name) for each in (before, after))
        sizes = [units and (units.own or units.width) for units in (old, new)]
        if sizes[0] != sizes[1] and any(units is not None and units.own for units in (old, new)):
            raise ConfigError(
                f"{name} would go from {sizes[0]} to {sizes[1]} units: layers whose slots differ "
                "(network.hidden_by_group) keep their sizes; what may change is added, channels and memory_size"
            )


def _refuse_losses(before: Mapping[str, Units], after: Mapping[str, Units]) -> None:
    cure = "which moves outputs: accept a change, or let networks only grow"
    for name, units in before.items():
        left = after[name].width if name in after else 0
        if left < units.width:
            raise ConfigError(f"{name} would go from {units.width} units to {left}, {cure}")
    for name in after.keys() - before.keys():
        if not name.rpartition("/")[2].startswith("added."):
            raise ConfigError(f"{name} would be a new layer that is read in place of another, {cure} by `added`")


def _read_by_none(layer: Layer) -> None:
    """New units count for nothing."""
    for place in layer.after.read if len(layer.fresh) else ():
        entries = along_units(place, layer.after.width, layer.after.is_stacked)
        entries.index_fill_(place.axis + 1, layer.fresh, 0.0)


def _keep_norm(layer: Layer) -> None:
    """Makes the norm of a layer that grew give its old units what it gave before.

    With s² = w' / w, old units are made s times as large and new ones as the mean of the old. So the mean is s times as
    large and the variance the same, ε included; gains are divided by s. New units stand at the mean, where a norm gives
    0, so shifts of their own, all different, begin to set them apart.
    """
    normed, count, fresh = layer.after.normed, layer.kept.shape[1], layer.fresh
    if normed is None or not len(fresh):
        return
    scale = (layer.after.width / layer.before.width) ** 0.5
    for place in normed.before:
        old, new = place.parameter.split((count, len(fresh)), dim=place.axis)
        new.copy_(old.mul_(scale).mean(place.axis, keepdim=True).expand_as(new))
    normed.gain.parameter[:, :count] /= scale
    normed.shift.parameter[:, count:] = torch.linspace(0, 1, len(fresh) + 2, device=fresh.device)[1:-1]


def _folded(before: Wiring, after: Wiring) -> dict[str, Tensor]:
    """Readers of layers that are no more, who now read the layer before it: R (W x + b) = (R W) x + R b.

    What such a layer's activation and norm did is lost.
    """
    found: dict[str, Tensor] = {}
    for layer in before.units.keys() - after.units.keys():
        units = before.units[layer]
        weight, bias, *_ = (place.parameter for place in units.incoming)
        for place in units.read:
            name = before.name(place)
            if name not in after.tensors or weight.ndim != 3 or units.incoming[0].blocks > 1:
                continue
            ahead, reader, behind = place.parameter.tensor_split((place.start, place.start + units.width), dim=2)
            is_joint = len(weight) > len(reader)
            made, shift = (each.mean(0, keepdim=True) if is_joint else each for each in (weight, bias))
            found[name] = torch.cat((ahead, reader @ made, behind), dim=2)
            other = name.removesuffix("weight") + "bias"
            found[other] = before.tensors[other] + (reader @ shift.unsqueeze(2)).squeeze(2)
    return found


def _moves(
    before: Wiring, after: Wiring, layers: Mapping[str, Layer], folded: Mapping[str, Tensor], is_loose: bool
) -> dict[str, Move]:
    """What goes where in each parameter and buffer that was there before."""
    spans: dict[str, list[Span]] = defaultdict(list)
    for layer in layers.values():
        old = {(before.name(place), place.axis): place for place in (*layer.before.incoming, *layer.before.read)}
        for place in (*layer.after.incoming, *layer.after.read):
            name = after.name(place)
            stood = old.get((name, place.axis), place if name in folded else None)
            if stood is not None:
                spans[name].append(Span(stood, place, layer))
    there = [name for name in before.tensors if name in after.tensors]
    sources = {**before.tensors, **folded}
    return {name: _move(name, sources[name], after.tensors[name], spans[name], is_loose) for name in there}


def _move(name: str, old: Tensor, new: Tensor, spans: list[Span], is_loose: bool) -> Move:
    if old.shape == new.shape and all(span.layer.before.width == span.layer.after.width for span in spans):
        return Move((...,), (...,))
    is_stacked = bool(spans) and spans[0].layer.after.is_stacked
    axes = old.ndim + (not is_stacked)
    (slots, *sizes), (stacks, *wanted) = as_slots(old, axes).shape, as_slots(new, axes).shape
    by_axis = [[span for span in spans if span.after.axis == axis] for axis in range(1, axes)]
    matched = [_matched(*each) for each in zip(sizes, wanted, by_axis, strict=True)]
    if slots != stacks or not (is_loose or all(each.is_whole for each in matched)):
        raise ConfigError(
            f"{name} goes from {list(old.shape)} to {list(new.shape)}, and no layer's width says how: outputs cannot "
            "stay. What grows is hidden, added, channels, memory_size, feed_forward_size and hypernet; all else needs "
            "accepts_change=True, or a network that learns from the start"
        )
    return Move(_grid(slots, [each.taken for each in matched]), _grid(slots, [each.put for each in matched]))


class Matched(NamedTuple):
    """Positions along an axis that stay, old and new, for each slot or for all; does every old one of no layer stay?"""

    taken: Ids
    put: Ids
    is_whole: bool


def _matched(size: int, wanted: int, spans: list[Span]) -> Matched:
    """Units by their numbers, and all else in its order."""
    kept = [span.layer.kept for span in spans]
    firsts = [torch.arange(each.shape[1], device=each.device).expand_as(each) for each in kept]
    stood = [_positions(span.before, span.layer.before.width, ids) for span, ids in zip(spans, kept, strict=True)]
    stands = [_positions(span.after, span.layer.after.width, ids) for span, ids in zip(spans, firsts, strict=True)]
    rest = _others(size, [(span.before, span.layer.before.width) for span in spans])
    vacant = _others(wanted, [(span.after, span.layer.after.width) for span in spans])
    count = min(len(rest), len(vacant))
    slots = max((len(each) for each in kept), default=1)
    taken = torch.cat([each.expand(slots, -1) for each in (*stood, rest[None, :count])], dim=1)
    put = torch.cat([each.expand(slots, -1) for each in (*stands, vacant[None, :count])], dim=1)
    return Matched(taken, put, len(rest) == len(vacant))


def _positions(place: Place, width: int, ids: Ids) -> Ids:
    """Where these units have entries along the axis."""
    blocks = torch.arange(place.blocks, device=ids.device)[:, None, None] * width
    units = (ids[:, None, :, None] + blocks) * place.each  # slot block unit 1
    return (place.start + units + torch.arange(place.each, device=ids.device)).flatten(1)


def _others(size: int, places: list[tuple[Place, int]]) -> Int64[Tensor, "position"]:
    """The positions along an axis that are of no layer."""
    is_other = torch.ones(size, dtype=torch.bool)
    for place, width in places:
        is_other[place.start : place.start + place.blocks * width * place.each] = False
    return is_other.nonzero().squeeze(1)


def _grid(slots: int, positions: list[Ids]) -> Index:
    """The index of all combinations of positions, by slot."""
    axes = len(positions) + 1
    first = torch.arange(slots).view(slots, *(1,) * len(positions))
    spread = [each.view(len(each), *(1,) * axis, -1, *(1,) * (axes - axis - 2)) for axis, each in enumerate(positions)]
    return first, *spread


def _remember(old: Optimizer, new: Optimizer, before: Wiring, after: Wiring, moves: Mapping[str, Move]) -> None:
    """Hands an optimiser what another knows of each parameter: what has the parameter's shape goes where it goes."""
    known = {before.names[id(each)]: (each, old.state[each]) for each in _learned(old) if each in old.state}
    for parameter in _learned(new):
        name = after.names[id(parameter)]
        if name in known and name in moves:
            source, memories = known[name]
            new.state[parameter] = {
                key: _moved(value, source, parameter, moves[name]) if isinstance(value, Tensor) else value
                for key, value in memories.items()
            }


def _learned(optimiser: Optimizer) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _moved(value: Tensor, source: Tensor, parameter: Tensor, move: Move) -> Tensor:
    if value.shape != source.shape:
        return value.clone()
    moved = torch.zeros_like(parameter, dtype=value.dtype)
    move.into(moved, value)
    return moved
