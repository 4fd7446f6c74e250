"""Who goes on to the next generation: tournaments, truncation as in population based training, or everybody."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from martes.errors import ConfigError


class Successor(NamedTuple):
    """Who takes a place in the next generation."""

    place: int
    """The place of the member that goes on, or that is copied."""
    is_copy: bool
    """Is it a copy, to be mutated (or that member itself, untouched)?"""


@runtime_checkable
class Selection(Protocol):
    """A way to choose. A value: all chance comes from the generator."""

    @property
    def draws_first(self) -> bool:
        """Do hyperparameters of the first generation come by chance (or as configured)?"""
        ...

    def refuse_unfit(self, size: int) -> None:
        """Raises ConfigError where a population of this size cannot be chosen from."""
        ...

    def successors(self, scores: Sequence[float], generator: torch.Generator) -> tuple[Successor, ...]:
        """Who takes each place of the next generation, by the scores of the members of this one."""
        ...


def best(scores: Sequence[float]) -> int:
    """The place of the highest score; of equal ones the first."""
    return max(range(len(scores)), key=lambda place: (scores[place], -place))


@dataclass(frozen=True)
class Tournament:
    """Each place goes to a copy of the best of `rivals` members, drawn with replacement."""

    rivals: int = 2
    elitism: bool = True
    """Does the best member go on as it is, in the first place?"""
    draws_first: bool = False

    def refuse_unfit(self, size: int) -> None:
        """Raises ConfigError where the tournament is larger than the population, or of nobody."""
        if not 1 <= self.rivals <= size:
            raise ConfigError(f"evolution.tournament is {self.rivals}: it must be 1 to evolution.population, {size}")

    def successors(self, scores: Sequence[float], generator: torch.Generator) -> tuple[Successor, ...]:
        """The elite itself, then copies of the winners."""
        shape = (len(scores) - self.elitism, self.rivals)
        drawn = torch.randint(len(scores), shape, generator=generator, device=generator.device).tolist()
        winners = [min(rivals, key=lambda place: (-scores[place], place)) for rivals in drawn]
        elite = (Successor(best(scores), is_copy=False),) if self.elitism else ()
        return (*elite, *(Successor(place, is_copy=True) for place in winners))


@dataclass(frozen=True)
class Truncation:
    """The worst `share` of the members become copies of members of the best `share`; all others go on as they are.

    Source: Jaderberg et al. 2017, "Population Based Training of Neural Networks", section 4.1 (truncation selection).
    """

    share: float = 0.25
    draws_first: bool = True

    def refuse_unfit(self, size: int) -> None:
        """Raises ConfigError where best and worst overlap."""
        if not 0 < self.share <= 0.5 or 2 * ceil(self.share * size) > size:
            raise ConfigError(
                f"evolution.share is {self.share}: of {size} members the best and the worst share must be apart; give "
                "a population of at least 2 and a share above 0, up to a half"
            )

    def successors(self, scores: Sequence[float], generator: torch.Generator) -> tuple[Successor, ...]:
        """Each member itself, or in place of a bad one a copy of a good one, drawn evenly."""
        order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
        count = ceil(self.share * len(scores))
        chosen = torch.randint(count, (count,), generator=generator, device=generator.device).tolist()
        follows = dict(zip(sorted(order[-count:]), (order[each] for each in chosen), strict=True))
        return tuple(Successor(follows.get(place, place), place in follows) for place in range(len(scores)))


@dataclass(frozen=True)
class RandomSearch:
    """Everybody goes on as it is, from hyperparameters drawn once: the baseline that evolution has to beat.

    Source: Bergstra and Bengio 2012, "Random Search for Hyper-Parameter Optimization".
    """

    draws_first: bool = True

    def refuse_unfit(self, size: int) -> None:
        """Fits any."""

    def successors(self, scores: Sequence[float], generator: torch.Generator) -> tuple[Successor, ...]:
        """Each member itself."""
        return tuple(Successor(place, is_copy=False) for place in range(len(scores)))
