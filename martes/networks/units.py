"""Hidden units: where those of a layer stand in the parameters that make them, and in those that read them.

Whoever wires layers together says so in a method `units()`; growth (`growth.py`) needs to know no more of a network.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Place(NamedTuple):
    """Where units stand along one axis of a parameter: from `start` on, all of them, `blocks` times.

    Axes are counted as those of stacked parameters, `slot out in`: 1 is what a map makes, 2 what it reads.
    """

    parameter: Tensor
    axis: int
    blocks: int = 1
    """How often they stand there: three times in a GRU's gates."""
    each: int = 1
    """Entries of each unit in each block: the pixels of a channel."""
    start: int = 0


class Normed(NamedTuple):
    """Units that a layer norm goes through: what makes them before it, and its gain and shift."""

    before: tuple[Place, ...]
    gain: Place
    shift: Place


class Units(NamedTuple):
    """Units of one layer, which could stand in any order: every parameter in which each has entries of its own."""

    width: int
    made: tuple[Place, ...]
    """What makes them; under a norm, what is added to them after it."""
    read: tuple[Place, ...]
    """What reads them: a unit whose entries are 0 there changes nothing."""
    normed: Normed | None = None
    is_stacked: bool = True
    """Have the parameters a leading slot axis?"""
    own: tuple[int, ...] = ()
    """How many each slot has, where they differ: the rest is padding."""

    @property
    def incoming(self) -> tuple[Place, ...]:
        """Every place that is no reader's."""
        return self.made if self.normed is None else (*self.made, *self.normed.before, *self.normed[1:])


@runtime_checkable
class Unified(Protocol):
    """A module that knows its hidden units."""

    def units(self) -> dict[str, Units]:
        """Its layers' units, by the config's field that says how many there are: `hidden.0`, `memory_size`, …"""
        ...
