"""From one generation to the next, as functions of members: who is copied, how copies differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, inf, isnan

from martes.algorithms.learner import Algorithm
from martes.data import TeamSpec
from martes.errors import ConfigError
from martes.evolution.architecture import Activation, Architecture
from martes.evolution.member import Member, child, newborn
from martes.evolution.mutations import Hyperparameter, Mutations, Parameters, Unchanged, free_of_stores
from martes.evolution.selection import RandomSearch, Selection, Tournament, Truncation
from martes.evolution.settings import Chances, Evolution
from martes.evolution.space import Space, drawn, space_of
from martes.training.seeding import generator_of


@dataclass(frozen=True)
class Breeding:
    """How the next generation comes about."""

    selection: Selection
    mutations: Mutations
    space: Space
    """What the first generation is drawn from where the selection asks for it."""
    window: int = 1
    """Newest evaluations whose mean decides."""
    mutates_first: bool = False
    """Is the first generation mutated?"""


def breeding_of(evolution: Evolution, algorithm: Algorithm, team: TeamSpec) -> Breeding:
    """The breeding that these settings say.

    Raises ConfigError for bounds that exclude where the algorithm starts, a population that cannot be selected from,
    and a mutation that this algorithm can never have.
    """
    is_truncated = evolution.selection == "truncation"
    selection: Selection = RandomSearch()
    if evolution.selection == "tournament":
        selection = Tournament(evolution.tournament, evolution.elitism)
    elif is_truncated:
        selection = Truncation(evolution.share)
    selection.refuse_unfit(evolution.population)
    chances = evolution.mutation or (Chances(0, 1, 0) if is_truncated else Chances())
    is_searched = chances.hyperparameter > 0 or selection.draws_first
    space = space_of(algorithm, evolution.space) if is_searched or evolution.space else {}
    mutations = Mutations(
        (
            (Unchanged(), chances.none),
            (Hyperparameter(space, is_truncated, free_of_stores(algorithm, space, team)), chances.hyperparameter),
            (Parameters(sd=evolution.noise), chances.parameters),
            (Architecture(evolution.shapes), chances.architecture),
            (Activation(evolution.shapes), chances.activation),
        )
    )
    if evolution.selection != "random":
        mutations.refuse_unfit(algorithm, team)
    return Breeding(selection, mutations, space, evolution.window, evolution.mutates_first)


def first_generation(
    algorithm: Algorithm, team: TeamSpec, size: int, seed: int, breeding: Breeding | None = None, device: str = "cpu"
) -> list[Member]:
    """So many members with first weights of their own: all as configured, or drawn where the breeding says so."""
    members = list[Member]()
    for place in range(size):
        config, generator = algorithm, generator_of(seed, "mutation", place)
        if breeding is not None and breeding.selection.draws_first:
            config = drawn(algorithm, breeding.space, generator)
        member = newborn(config, team, place, generator_of(seed, "learning", place, device=device))
        if breeding is not None and breeding.mutates_first:
            member = breeding.mutations.mutated(member, generator)
        members.append(member)
    return members


def next_generation(members: Sequence[Member], breeding: Breeding, seed: int, generation: int) -> list[Member]:
    """The members of a generation, chosen from those of the one before, copies mutated.

    Who goes on as it is stays the same object, untouched; a copy has a number that no other member ever has. Raises
    ConfigError where members have not been scored, or by what is no number, or play for different teams.
    """
    for member in members:
        if not member.fitness:
            raise ConfigError(f"member {member.id} has no fitness yet: evaluate every member before selection")
        if isnan(score(member, breeding.window)):
            raise ConfigError(f"the fitness of member {member.id} is not a number: say -inf of one that failed")
        if member.team != members[0].team:
            raise ConfigError(f"members {members[0].id} and {member.id} are of different teams: breed them apart")
    scores = [score(member, breeding.window) for member in members]
    chosen = breeding.selection.successors(scores, generator_of(seed, "selection", generation))
    successors = list[Member]()
    for place, (parent, is_copy) in enumerate(chosen):
        member = members[parent]
        if is_copy:
            member = child(member, generation * len(members) + place)
            member = breeding.mutations.mutated(member, generator_of(seed, "mutation", member.id))
        successors.append(member)
    return successors


def score(member: Member, window: int = 1) -> float:
    """The mean of the newest evaluations of a member's line, `window` or as many as there are; -inf: there is none."""
    newest = member.fitness[-window:]
    return fsum(newest) / len(newest) if newest else -inf
