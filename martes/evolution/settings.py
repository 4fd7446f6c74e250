"""What an evolution is told besides its experiment. Each field is an option of the command line."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from martes.conversion import Typed, converted
from martes.data.limits import COUNT, NATURAL, refuse_beyond
from martes.errors import ConfigError
from martes.evolution.architecture import Shapes
from martes.evolution.places import PlaceName

SelectionName = Literal["tournament", "truncation", "random"]


@dataclass(frozen=True)
class Chances:
    """How likely each kind of mutation is; they are divided by their sum. One that can change nothing is redrawn."""

    none: float = 0.4
    """The copy stays a copy."""
    hyperparameter: float = 0.4
    """A number of `evolution.space` moves by its factor."""
    parameters: float = 0.2
    """Noise on a part of the weights that act."""
    architecture: float = 0.0
    """Networks grow or shrink, as `evolution.shapes` says."""
    activation: float = 0.0
    """Networks take another activation."""


@dataclass(frozen=True)
class Evolution:
    """How members become others. `training.steps` is what each member learns for; all together take that many times."""

    population: int = 4
    """Members."""
    every: int | None = None
    """Environment steps of each member between two selections; none: as `evaluation.every`."""
    selection: SelectionName = "tournament"
    """Who is copied: winners of tournaments; the best share in place of the worst (population based training); nobody:
    random search."""
    tournament: int = 2
    """Members in a tournament."""
    elitism: bool = True
    """Does the best member go on as it is (with tournaments)?"""
    share: float = 0.25
    """Share of the members that are replaced (with truncation)."""
    window: int = 1
    """Newest evaluations whose mean decides."""
    mutation: Chances | None = None
    """How copies differ; none: as usual with tournaments, or all hyperparameters at once with truncation."""
    mutates_first: bool = False
    """Mutate the first generation, too (else it is as configured; truncation and random search draw it)?"""
    noise: float = 0.1
    """Deviation of the noise on weights, in root mean squares of their matrix."""
    shapes: Shapes = field(default_factory=Shapes)
    """How networks may change, where `mutation.architecture` or `mutation.activation` is above 0."""
    space: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    """What is searched: `evolution.space.algorithm.lr=1e-4,1e-2`, with two factors of a step up and down if you like,
    or `auto`; nothing given: all declared numbers that the algorithm has."""
    fitness: str = "team"
    """What test episodes are worth: the return of the team, of a group or an agent by name, `stats.<count>`, or
    `module:function` of scores and team."""
    against: str | None = None
    """Who plays `against_agents` in test episodes alone: the folder of a run, or random."""
    against_agents: tuple[str, ...] = ()
    """Whom it plays; none given: all of that run's own team."""
    target: float | None = None
    """Stop at the first generation whose best member reaches this fitness (mean of `window`); none: never."""
    shared_replay: bool = False
    """Draw from what all members have seen up to this generation, and from one's own since (learners from replay)?"""
    place: PlaceName = "here"
    """Where members learn: one by one in this process, in worker processes, or on Ray; with equal results."""
    workers: int = 0
    """Worker processes, or actors on Ray; 0: one a core."""

    def __post_init__(self) -> None:
        refuse_beyond(self, COUNT, "population", "tournament", "window", path="evolution.")
        refuse_beyond(self, COUNT, "every", path="evolution.", or_none=True)
        refuse_beyond(self, NATURAL, "workers", path="evolution.")
        if self.against_agents and self.against is None:
            raise ConfigError("evolution.against_agents names whom evolution.against plays: give both")


def bounds_listed(space: Mapping[str, object], path: str = "") -> Iterator[tuple[str, tuple[float, ...]]]:
    """Path -> numbers, of a tree or of dotted paths as a file or a person gives them; `auto` is ().

    Raises ConfigError for what are no numbers.
    """
    for name, value in space.items():
        inner = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping):
            yield from bounds_listed({str(key): each for key, each in value.items()}, inner)
            continue
        is_auto = isinstance(value, str) and value.strip() in ("auto", "")
        typed = Typed(value) if isinstance(value, str) else value
        numbers = () if is_auto else converted(tuple[float, ...], typed, f"evolution.space.{inner}")
        assert isinstance(numbers, tuple)
        yield inner, numbers
