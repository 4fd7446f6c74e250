"""A member of a population: hyperparameters and what was learned with them, as values; and what may change it.

Between two generations a member is data alone: its algorithm's config and the `state_dict` of its learner, of its
experience and of its collector. So it can be copied, changed, saved, and sent to another process, whatever it learns
with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from martes.algorithms.learner import Algorithm, Learner
from martes.data import TeamSpec
from martes.errors import ConfigError

State = dict[str, object]
"""A tree of dicts, lists and tuples of tensors, numbers and text: what a `state_dict` returns."""
Value = float | int | str | bool | tuple[float, ...] | None
"""What a change went from and to."""


class Change(NamedTuple):
    """What was changed of a member."""

    kind: str
    """none, hyperparameter, parameters, architecture or activation."""
    what: str = ""
    """The value that changed: a path of the config such as `algorithm.lr`, or the weights."""
    before: Value = None
    after: Value = None
    note: str = ""
    """What else was measured, such as how far outputs moved."""

    def __str__(self) -> str:
        if not self.what:
            return self.kind
        told = f"{self.what} {in_words(self.before)} -> {in_words(self.after)}"
        return f"{told} ({self.note})" if self.note else told


UNCHANGED = Change("none")


def in_words(value: Value) -> str:
    """The value, numbers with a fraction in four digits."""
    if isinstance(value, tuple):
        return ", ".join(in_words(each) for each in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, eq=False)
class Member:
    """One of a population, between two generations. It is never written to; its tensors are its own alone."""

    id: int
    """Its number in the population's history: no two members ever have the same."""
    team: TeamSpec
    """Whom it plays."""
    algorithm: Algorithm
    """Its hyperparameters."""
    learner: State
    """`state_dict` of its learner: weights, targets, optimisers, counters."""
    experience: State | None = None
    """`state_dict` of its experience; None: empty."""
    collector: State | None = None
    """`state_dict` of its collector, unfinished episodes among it; None: it opens new ones, from streams of its own."""
    steps: int = 0
    """Environment steps that its line has learned from."""
    fitness: tuple[float, ...] = ()
    """What evaluations of its line came to, one a generation, oldest first."""
    parent: int | None = None
    """Whom it was copied from; None in the first generation."""
    change: Change = UNCHANGED
    """How it differs from its parent."""


class Mutated(NamedTuple):
    """A member after a mutation, and what that changed."""

    member: Member
    change: Change


@runtime_checkable
class Mutation(Protocol):
    """One kind of change, as a value that says how much."""

    kind: ClassVar[str]
    """Its name in `Change.kind`."""

    def refuse_unfit(self, algorithm: Algorithm, team: TeamSpec) -> None:
        """Raises ConfigError, saying what to do, where it can never change a member with this algorithm."""
        ...

    def mutated(self, member: Member, generator: torch.Generator) -> Mutated | None:
        """The member changed, and what changed; None where nothing can change now, every bound being reached.

        `member` and its tensors stay as they are: what does not change may be handed on, what changes is a new tensor.
        All chance comes from `generator`.
        """
        ...


def newborn(algorithm: Algorithm, team: TeamSpec, id: int, generator: torch.Generator) -> Member:
    """A member that has learned nothing yet; its first weights come from `generator`."""
    learner = algorithm.learner(team, generator)
    return Member(id, team, algorithm, learner.state_dict(), learner.experience.state_dict())


def child(parent: Member, id: int) -> Member:
    """A copy of a member under a number of its own, which shares no tensor with it.

    What was learned is equal, bit for bit: weights, targets, moments, experience. It opens episodes of its own.
    """
    learner, experience = own(parent.learner), own(parent.experience)
    assert isinstance(learner, dict)
    kept = experience if isinstance(experience, dict) else None
    return replace(
        parent,
        id=id,
        parent=parent.id,
        change=UNCHANGED,
        learner=learner,
        experience=kept,
        collector=None,
    )


def revived(member: Member, generator: torch.Generator) -> Learner:
    """The member's learner at work, on the generator's device.

    Weights, moments and counters are those of its state, and what optimisers are set to (step sizes and the like) is
    as its hyperparameters say now. Raises ConfigError where its state is that of another algorithm or another shape.
    """
    learner = member.algorithm.learner(member.team, generator)
    fresh = learner.state_dict()
    try:
        learner.load_state_dict({name: _as_set(part, fresh.get(name)) for name, part in member.learner.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"what member {member.id} has learned does not fit its hyperparameters ({reason:.200}): "
            "a value that shapes networks or stores cannot be changed alone"
        ) from error
    return learner


def own(tree: object) -> object:
    """The tree with copies of all its tensors, on the CPU."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, Mapping):
        return {name: own(branch) for name, branch in tree.items()}
    if isinstance(tree, list | tuple):
        branches = [own(branch) for branch in tree]
        return branches if isinstance(tree, list) else tuple(branches)
    return tree


def _as_set(state: object, fresh: object) -> object:
    """The part of a state, its optimisers set as those of `fresh`."""
    match state, fresh:
        case {"param_groups": list(groups), **rest}, {"param_groups": list(settings)}:
            pairs = zip(groups, settings, strict=True)
            return {**rest, "param_groups": [{**now, "params": before["params"]} for before, now in pairs]}
        case dict(branches), dict(others):
            return {name: _as_set(branch, others.get(name)) for name, branch in branches.items()}
    return state
