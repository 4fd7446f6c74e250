"""Hidden layers whose widths differ from slot to slot: one stack, padded to the widest slot.

Padding needs no mask: a unit that is made and read with weight 0 is 0 under every activation, and none of its weights
has a gradient. Only a layer norm has to know how many units there are, and a slot with fewer layers keeps its features.
"""

from collections.abc import Mapping
from typing import NamedTuple

from martes.errors import ConfigError, nearest
from martes.networks.sharing import Slots


class Widths(NamedTuple):
    """Widths of hidden layers, each slot's own."""

    of_slot: tuple[tuple[int, ...], ...]

    @property
    def depth(self) -> int:
        """Layers of the slot that has most."""
        return max(len(own) for own in self.of_slot)

    @property
    def are_equal(self) -> bool:
        """Have all slots the same layers?"""
        return len(set(self.of_slot)) == 1

    def made(self, layer: int) -> tuple[int, ...]:
        """Units that each slot's layer makes; 0: it has no such layer."""
        return tuple(own[layer] if layer < len(own) else 0 for own in self.of_slot)

    def after(self, layer: int) -> tuple[int, ...]:
        """Features that each slot has then: what its last layer made, where it has no such layer."""
        return tuple(own[: layer + 1][-1] for own in self.of_slot)


def widths_of(hidden: tuple[int, ...], by_group: Mapping[str, tuple[int, ...]], slots: Slots) -> Widths:
    """The layers of each slot: what an agent's own name says, else its group's, else `hidden`.

    Raises ConfigError for a name that nobody has, for agents that share parameters and are given unequal layers, and
    where one network serves the whole team.
    """
    if not by_group:
        return Widths((hidden,) * slots.count)
    if not slots.names:
        raise ConfigError(
            f"network.hidden_by_group names {', '.join(by_group)}, but this network is not divided by group: leave it "
            "out and give hidden (a central critic is one for the team: give critic_network)"
        )
    known = {name for names in slots.names for name in names}
    for name in by_group:
        if name not in known:
            raise ConfigError(f"network.hidden_by_group: no group or agent is named {name!r}{nearest(name, known)}")
    found: dict[int, tuple[str, tuple[int, ...]]] = {}
    for slot, names in zip(slots.slot_of_agent, slots.names, strict=True):
        own = next((by_group[name] for name in names if name in by_group), hidden)
        first, others = found.setdefault(slot, (names[0], own))
        if own != others:
            raise ConfigError(
                f"network.hidden_by_group gives {first} {list(others)} and {names[0]} {list(own)}, who share their "
                "parameters: give both the same, or take sharing=group or sharing=agent"
            )
    return Widths(tuple(found[slot][1] for slot in range(slots.count)))
