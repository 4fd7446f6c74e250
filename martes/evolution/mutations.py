"""What may happen to a copy: nothing, another hyperparameter, noise on its weights; or what networks can grow into."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from martes.algorithms.learner import Algorithm
from martes.data import TeamSpec
from martes.data.experience import Finished, Replayed
from martes.data.limits import Number, Range
from martes.errors import ConfigError, DataError
from martes.evolution.member import UNCHANGED, Change, Member, Mutated, Mutation, newborn, revived
from martes.evolution.space import Space, moved, number_at, numbers_of, with_numbers
from martes.networks.stacked import StackedNorm, undrawn

_FORMS = 256
"""How many forms of policies are remembered."""


@dataclass(frozen=True)
class Unchanged:
    """A copy that stays a copy."""

    kind: ClassVar[str] = "none"

    def refuse_unfit(self, algorithm: Algorithm, team: TeamSpec) -> None:
        """Fits any."""

    def mutated(self, member: Member, generator: torch.Generator) -> Mutated | None:
        """The member."""
        return Mutated(member, UNCHANGED)


@dataclass(frozen=True)
class Hyperparameter:
    """A number of the algorithm moves up or down by its factor, within its bounds. Nothing that was learned changes."""

    space: Space
    all_at_once: bool = False
    """Does every number move, each up or down by chance (Jaderberg et al. 2017: perturb)? Else one."""
    free: frozenset[str] = frozenset()
    """Paths of which no value can touch a store (`free_of_stores`); of all others each new value is tried."""
    kind: ClassVar[str] = "hyperparameter"

    def refuse_unfit(self, algorithm: Algorithm, team: TeamSpec) -> None:
        """Raises ConfigError for an empty space, or a number that shapes what is learned or says only how it begins."""
        if not self.space:
            raise ConfigError(
                "this algorithm has no number with declared bounds: say evolution.space.algorithm.<name>=<low>,<high>, "
                "or evolution.mutation.hyperparameter=0"
            )
        member = newborn(algorithm, team, 0, torch.Generator())
        for path, bounds in self.space.items():
            for move in _moves(member.algorithm, path, bounds):
                if not _can_be(move.algorithm, team):
                    continue  # nobody ever goes there
                try:
                    _refuse_misfit(member, move.algorithm)
                except (ConfigError, DataError) as error:
                    raise ConfigError(f"evolution.space.{path} cannot be searched: {error}") from error

    def mutated(self, member: Member, generator: torch.Generator) -> Mutated | None:
        """The member with one number (or all of them) changed; None where each is at its bound or alone there."""
        algorithm, done = member.algorithm, list[_Move]()
        capacity = None if self.space.keys() <= self.free else _capacity(algorithm, member.team)
        for place in torch.randperm(len(self.space), generator=generator, device=generator.device).tolist():
            path = list(self.space)[place]
            moves = _moves(algorithm, path, self.space[path])
            order = torch.randperm(len(moves), generator=generator, device=generator.device).tolist()
            is_free = path in self.free
            fit = (moves[nth] for nth in order if is_free or _keeps_store(capacity, moves[nth].algorithm, member.team))
            move = next(fit, None)  # one is enough, and each costs a learner
            if move is not None:
                done.append(move)
                algorithm = done[-1].algorithm
                if not self.all_at_once:
                    break
        if not done:
            return None
        before = tuple(number_at(member.algorithm, move.path) for move in done)
        change = _told([move.path for move in done], before, tuple(move.value for move in done))
        return Mutated(replace(member, algorithm=algorithm), change)


class _Move(NamedTuple):
    path: str
    value: Number
    algorithm: Algorithm


def _moves(algorithm: Algorithm, path: str, bounds: Range) -> list[_Move]:
    """What one step up and one step down lead to, where that is a change that the algorithm does not refuse."""
    moves = list[_Move]()
    for factor in (bounds.grow, bounds.shrink):
        new = moved(algorithm, path, bounds, factor)
        if new != number_at(algorithm, path):
            try:
                moves.append(_Move(path, new, with_numbers(algorithm, {path: new})))
            except ConfigError:
                continue
    return moves


def _can_be(algorithm: Algorithm, team: TeamSpec) -> bool:
    """Is there a learner with these numbers?"""
    try:
        algorithm.learner(team, torch.Generator())
    except ConfigError:
        return False
    return True


def free_of_stores(algorithm: Algorithm, space: Space, team: TeamSpec) -> frozenset[str]:
    """The paths of a space along which a learner can be, with an equal store, at both ends of their bounds.

    Alone, and all together. What stores ask of a number (a batch that fits) then holds between the ends as well.
    """
    capacity = _capacity(algorithm, team)

    def keeps(numbers: Mapping[str, Number]) -> bool:
        try:
            return _keeps_store(capacity, with_numbers(algorithm, numbers), team)
        except ConfigError:
            return False

    numbers = dict(numbers_of(algorithm))
    ends = {path: bounds.ends(numbers[path].is_whole) for path, bounds in space.items()}
    free = [path for path, each in ends.items() if all(keeps({path: end}) for end in each)]
    is_joint = all(keeps({path: ends[path][end] for path in free}) for end in (0, 1))
    return frozenset(free if is_joint else ())


def _keeps_store(capacity: int | None, algorithm: Algorithm, team: TeamSpec) -> bool:
    """Is there a learner with these numbers, with a store of so many rows?"""
    try:
        return _capacity(algorithm, team) == capacity
    except ConfigError:
        return False


def _capacity(algorithm: Algorithm, team: TeamSpec) -> int | None:
    """The rows that its learner's store has; None: it keeps none. Raises ConfigError where no learner can be."""
    with undrawn():
        experience = algorithm.learner(team, torch.Generator()).experience
    return experience.capacity if isinstance(experience, Replayed | Finished) else None


def _refuse_misfit(member: Member, algorithm: Algorithm) -> None:
    """Raises ConfigError or DataError where what a newborn member is cannot go on so, or would not heed the change."""
    if _capacity(member.algorithm, member.team) != _capacity(algorithm, member.team):
        raise ConfigError("a value that shapes stores cannot be changed alone")
    asked = newborn(algorithm, member.team, member.id, torch.Generator())
    learner = revived(replace(member, algorithm=algorithm), torch.Generator())
    learner.experience.load_state_dict(dict(member.experience or {}))
    was, wanted, now = (
        dict(_leaves(state))
        for state in (
            {"learner": member.learner, "experience": member.experience},
            {"learner": asked.learner, "experience": asked.experience},
            {"learner": learner.state_dict(), "experience": learner.experience.state_dict()},
        )
    )
    if any(not _is_equal(was[path], wanted[path]) and _is_equal(was[path], now[path]) for path in wanted):
        raise ConfigError("it says only how learning begins, and a member that has begun takes no notice of it")


def _leaves(tree: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every value of a state, by its path."""
    if isinstance(tree, Mapping):
        for name, branch in tree.items():
            yield from _leaves(branch, f"{path}/{name}")
    elif isinstance(tree, list | tuple):
        for place, branch in enumerate(tree):
            yield from _leaves(branch, f"{path}/{place}")
    else:
        yield path, tree


def _is_equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return one == other


def _told(paths: list[str], before: tuple[Number, ...], after: tuple[Number, ...]) -> Change:
    if len(paths) == 1:
        return Change(Hyperparameter.kind, paths[0], before[0], after[0])
    return Change(Hyperparameter.kind, ", ".join(paths), before, after)


@dataclass(frozen=True)
class Parameters:
    """Normal noise on a part of the weights that act, in proportion to how large the weights of their matrix are.

    w <- w + sd rms(W) n for a `share` of the entries of some matrices W, n ~ N(0, 1). A matrix is what maps inputs to
    units, convolutions included. Biases, gains of norms, `log_std`, entries that are exactly 0 (the padding of unequal
    agents), critics, targets and optimisers stay as they are.
    """

    share: float = 0.1
    sd: float = 0.1
    kind: ClassVar[str] = "parameters"
    _acting: dict[object, list[str]] = field(
        default_factory=dict[object, list[str]], init=False, compare=False, repr=False
    )
    """The weights that act, by the form of the policy's state: members of one population differ in that alone."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.sd <= 0:
            raise ConfigError(f"mutation of parameters: share is {self.share} (0 to 1), sd {self.sd} (above 0)")

    def refuse_unfit(self, algorithm: Algorithm, team: TeamSpec) -> None:
        """Raises ConfigError where no matrix of the policy acts."""
        if not _acting_weights(algorithm, team):
            raise ConfigError("what acts has no weight matrix: say evolution.mutation.parameters=0")

    def mutated(self, member: Member, generator: torch.Generator) -> Mutated | None:
        """The member with noise on its weights; None where all that could be changed is 0."""
        names = self._names(member)
        device = generator.device
        count = int(torch.randint(1, len(names) + 1, (), generator=generator, device=device))
        chosen = sorted(torch.randperm(len(names), generator=generator, device=device)[:count].tolist())
        policy = member.learner["policy"]
        assert isinstance(policy, dict)
        noised = {names[place]: self._noised(policy[names[place]], generator) for place in chosen}
        entries = sum(int((new != policy[name]).sum()) for name, new in noised.items())
        if not entries:
            return None
        before, after = _rms([policy[name] for name in noised]), _rms(list(noised.values()))
        change = Change(self.kind, f"rms of {', '.join(noised)}", before, after, f"{entries} weights changed")
        return Mutated(replace(member, learner={**member.learner, "policy": {**policy, **noised}}), change)

    def _names(self, member: Member) -> list[str]:
        policy = member.learner["policy"]
        assert isinstance(policy, dict)
        form = type(member.algorithm), tuple((name, tuple(each.shape)) for name, each in policy.items())
        if form not in self._acting:
            if len(self._acting) == _FORMS:
                self._acting.clear()
            self._acting[form] = _acting_weights(member.algorithm, member.team)
        return self._acting[form]

    def _noised(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        draw = {"generator": generator, "device": generator.device}
        is_chosen = (torch.rand(weight.shape, **draw) < self.share).to(weight.device) & (weight != 0)
        noise = torch.randn(weight.shape, **draw).to(weight)
        return torch.where(is_chosen, weight + self.sd * _rms([weight]) * noise, weight)


def _acting_weights(algorithm: Algorithm, team: TeamSpec) -> list[str]:
    """The names, in the policy's state, of the weight matrices that actions depend on."""
    with undrawn():
        policy = algorithm.learner(team, torch.Generator()).policy
    acting = {id(parameter) for parameter in policy.part_for("action").parameters()}
    # Slots are stacked: a vector of each has two axes, too.
    norms = [module for module in policy.modules() if isinstance(module, StackedNorm)]
    acting -= {id(gain) for norm in norms for gain in norm.parameters()}
    named = ((name, each) for name, each in policy.named_parameters() if id(each) in acting and each.ndim > 1)
    return [name for name, _ in named if not any("bias" in part or part == "log_std" for part in name.split(".")[-2:])]


def _rms(weights: Sequence[Tensor]) -> float:
    return torch.cat([weight.flatten().double() for weight in weights]).square().mean().sqrt().item()


@dataclass(frozen=True)
class Mutations:
    """One kind of mutation for each copy, drawn by its chance; where it cannot change anything, another one."""

    chances: tuple[tuple[Mutation, float], ...]

    def __post_init__(self) -> None:
        told = {mutation.kind: chance for mutation, chance in self.chances}
        if min(told.values(), default=0) < 0 or not any(told.values()):
            raise ConfigError(f"chances of mutations are {told}: none may be below 0, and one must be above")

    def refuse_unfit(self, algorithm: Algorithm, team: TeamSpec) -> None:
        """Raises ConfigError for the first kind with a chance that can never change a member of this population."""
        for mutation, chance in self.chances:
            if chance > 0:
                mutation.refuse_unfit(algorithm, team)

    def mutated(self, member: Member, generator: torch.Generator) -> Member:
        """The member after one mutation, which its `change` tells."""
        left = [(mutation, chance) for mutation, chance in self.chances if chance > 0]
        while left:
            weights = torch.tensor([chance for _, chance in left], dtype=torch.float64, device=generator.device)
            mutation, _ = left.pop(int(torch.multinomial(weights, 1, generator=generator)))
            done = mutation.mutated(member, generator)
            if done is not None:
                return replace(done.member, change=done.change)
        return replace(member, change=UNCHANGED)
