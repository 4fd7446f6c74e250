"""Networks of members change within bounds; what is told of it is what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from martes.algorithms.autoregressive import MAT, Sable
from martes.algorithms.coma import COMA
from martes.algorithms.maddpg import MADDPG
from martes.algorithms.ppo import PPO, PPOLearner
from martes.conversion import changed, plain
from martes.data import TeamSpec
from martes.errors import ConfigError
from martes.evolution.architecture import Activation, Architecture, Shapes, value_at
from martes.evolution.generation import Site, outcome
from martes.evolution.member import Member, Mutated, child, newborn, revived
from martes.evolution.settings import Chances
from martes.networks import Network
from martes.networks.mat import MATShape
from martes.networks.sable import SableShape
from tests.evolution.populations import EVOLUTION, TEAM, a_plan, evolved, members, q_plan, same, work
from tests.worlds import WORLDS

pytestmark = pytest.mark.usefixtures("unchecked")
SMALL = Network(hidden=(20, 24))
TIGHT = Shapes(units=(16, 40), steps=(4, 8))
PLAIN = PPO(network=SMALL, rollout=8, epochs=1, minibatches=1)


def member_of(algorithm: Any, team: TeamSpec = TEAM) -> Member:
    return newborn(algorithm, team, 3, torch.Generator().manual_seed(0))


def drawn(mutation: Any, member: Member, seed: int = 0) -> Mutated | None:
    return mutation.mutated(member, torch.Generator().manual_seed(seed))


def counted(member: Member) -> int:
    learner = revived(member, torch.Generator())
    return sum(each.numel() for each in learner.policy.parameters() if each.requires_grad)


def test_every_kind_of_change_comes_within_bounds_and_is_told_as_it_is() -> None:
    member = member_of(PLAIN)
    found: dict[str, set[Any]] = {}
    for seed in range(40):
        done = drawn(Architecture(replace(TIGHT, new_layer=0.3)), member, seed)
        new, change = done.member, done.change
        assert change.before == value_at(member.algorithm, change.what)
        assert change.after == value_at(new.algorithm, change.what) != change.before
        weights = counted(new) - counted(member)
        assert weights and f"{weights:+d} weights, outputs moved by" in change.note
        found.setdefault(change.what, set()).add(change.after)
    assert found["algorithm.network.added"] == {(24,)}
    steps = {(20 + step, 24) for step in (-4, 4, 8)} | {(20, 24 + step) for step in (-8, -4, 4, 8)}
    assert found["algorithm.network.hidden"] == steps | {(20,)}


@pytest.mark.parametrize(("chance", "what"), [(1.0, {"added", "hidden"}), (0.0, {"hidden"})])
def test_the_chance_of_a_layer(chance: float, what: set[str]) -> None:
    changes = [
        drawn(Architecture(replace(TIGHT, new_layer=chance)), member_of(PLAIN), seed).change for seed in range(12)
    ]
    assert {each.what.rpartition(".")[2] for each in changes} == what
    assert all((len(each.before) != len(each.after)) == bool(chance) for each in changes)


def test_at_one_bound_another_change_is_drawn_and_at_all_none() -> None:
    bound = Shapes(new_layer=1.0, layers=(2, 2), units=(16, 24), steps=(4,))
    for seed in range(8):
        after = drawn(Architecture(bound), member_of(PLAIN), seed).change.after
        assert after in {(16, 24), (24, 24), (20, 20)}
    fixed = replace(bound, units=(20, 24), steps=(64,))
    assert drawn(Architecture(fixed), member_of(PLAIN)) is None
    assert drawn(Activation(Shapes(activations=("relu",))), member_of(PLAIN)) is None


def test_layers_go_the_last_added_first_and_one_stays() -> None:
    one = Shapes(new_layer=1.0, layers=(1, 2), units=(16, 16), steps=(1,))
    wide = replace(PLAIN, network=replace(SMALL, added=(16,)))
    first = drawn(Architecture(replace(one, layers=(1, 3))), member_of(wide), 1)
    assert (first.change.what, first.change.after) == ("algorithm.network.added", ())
    second = drawn(Architecture(replace(one, layers=(1, 2))), first.member)
    assert (second.change.what, second.change.after) == ("algorithm.network.hidden", (20,))
    third = drawn(Architecture(one), second.member)
    assert (third.change.what, third.change.after) == ("algorithm.network.added", (16,))


def test_growth_keeps_outputs_and_shrinkage_tells_how_far_they_moved() -> None:
    plan = a_plan(algorithm=PLAIN)
    member = child(outcome(members(plan, 1)[0], work(plan), Site()).member, 7)
    for seed in range(12):
        change = drawn(Architecture(TIGHT), member, seed).change
        moved = float(change.note.split("moved by ")[1].split()[0])
        assert moved <= 1e-5 if "+" in change.note.split()[0] else moved > 1e-4


@pytest.mark.parametrize(
    ("algorithm", "world", "what"),
    [
        (replace(PLAIN, critic="local"), "image", "channels"),
        (replace(PLAIN, network=replace(SMALL, memory="gru", memory_size=20)), "discrete", "memory_size"),
        (replace(PLAIN, critic_network=replace(SMALL, hidden=(30,))), "discrete", "hidden"),
        (Sable(network=SableShape(size=16)), "discrete", "feed_forward_size"),
        (MAT(network=MATShape(size=16)), "image", "channels"),
        (COMA(network=SMALL), "discrete", "added"),
        (q_plan().algorithm, "discrete", "added"),
        (MADDPG(network=SMALL), "continuous", "hidden"),
    ],
)
def test_a_line_of_mutations_lives_and_its_config_says_all_of_it(algorithm: Any, world: str, what: str) -> None:
    member, seen = member_of(algorithm, WORLDS[world].team), set[str]()
    mutation = Architecture(Shapes(new_layer=0.4, units=(8, 40), steps=(4, 8), channel_steps=(8,)))
    mutation.refuse_unfit(algorithm, member.team)
    for seed in range(10):
        done = drawn(mutation, member, seed)
        assert done.change.after != done.change.before
        member = done.member
        seen |= {done.change.what.rpartition(".")[2]}
        again = changed(type(algorithm)(), plain(member.algorithm), "algorithm")
        assert again == member.algorithm
        revived(replace(member, algorithm=again), torch.Generator())
    assert what in seen


@dataclass(frozen=True)
class ByGroup(PPO):
    """A network for policies and one for critics, by name."""

    networks: Mapping[str, Network] = field(default_factory=lambda: {"policy": SMALL, "critic": SMALL})

    def learner(self, team: TeamSpec, generator: torch.Generator) -> PPOLearner:
        return replace(PLAIN, network=self.networks["policy"], critic_network=self.networks["critic"]).learner(
            team, generator
        )


def test_one_network_changes_alone_or_all_alike() -> None:
    member = member_of(ByGroup())
    alone = Shapes(together=False, only=("algorithm.networks.policy", "algorithm.networks.critic"), steps=(16,))
    paths = set[str]()
    for seed in range(8):
        done = drawn(Architecture(alone), member, seed)
        paths.add(done.change.what.rpartition(".")[0])
        assert len({*map(str, done.member.algorithm.networks.values())}) == 2
        assert done.member.algorithm.network == member.algorithm.network
    assert paths == {*alone.only}
    both = drawn(Architecture(replace(alone, together=True)), member)
    assert both.member.algorithm.networks["policy"] == both.member.algorithm.networks["critic"] != SMALL
    assert both.change.what.startswith(alone.only[0]) and both.change.note.startswith(f"{alone.only[1]}.")


def test_a_change_that_changes_nothing_is_none() -> None:
    @dataclass(frozen=True)
    class Spare(PPO):
        spare: Network = SMALL

        def learner(self, team: TeamSpec, generator: torch.Generator) -> PPOLearner:
            return PLAIN.learner(team, generator)

    for mutation in (Architecture, Activation):
        assert drawn(mutation(Shapes(only=("algorithm.spare",))), member_of(Spare())) is None


def test_another_activation_leaves_every_weight() -> None:
    member = member_of(replace(PLAIN, critic_network=replace(SMALL, activation="tanh")))
    seen = set[str]()
    for seed in range(10):
        done = drawn(Activation(), member, seed)
        learner = done.member.learner
        assert all(torch.equal(each, learner["policy"][name]) for name, each in member.learner["policy"].items())
        assert done.change.kind == "activation" and "outputs moved by" in done.change.note
        for path in ("network", "critic_network"):
            seen.add(f"{path} {getattr(done.member.algorithm, path).activation}")
    assert len(seen) == 8


def test_same_seed_same_change_and_nothing_of_the_parent_is_written_to() -> None:
    member = member_of(PLAIN)
    kept = {name: each.clone() for name, each in member.learner["policy"].items()}
    one, two = (drawn(Architecture(TIGHT), member, 5) for _ in range(2))
    assert one.change == two.change
    for name, each in one.member.learner["policy"].items():
        assert torch.equal(each, two.member.learner["policy"][name])
    assert all(torch.equal(each, member.learner["policy"][name]) for name, each in kept.items())
    before = {each.data_ptr() for each in member.learner["policy"].values() if each.numel()}
    assert not before & {each.data_ptr() for each in one.member.learner["policy"].values() if each.numel()}


def test_a_memory_of_another_width_begins_anew() -> None:
    member = replace(member_of(replace(PLAIN, network=replace(SMALL, memory="gru"))), collector={"some": 1})
    done = [drawn(Architecture(), member, seed) for seed in range(12)]
    by_field = {each.change.what.rpartition(".")[2]: each.member.collector for each in done}
    assert by_field["memory_size"] is None and by_field["hidden"] == {"some": 1}


@dataclass(frozen=True)
class Untold(PPO):
    """A learner that does not say what it is made of."""

    def learner(self, team: TeamSpec, generator: torch.Generator) -> Any:
        made = PLAIN.learner(team, generator)
        made.__class__ = type("Quiet", (PPOLearner,), {"parts": {}})
        return made


@pytest.mark.parametrize(
    ("mutation", "algorithm", "error"),
    [
        (Architecture(), replace(PLAIN, network=Network(hidden=(8,))), "network.hidden is 8: .* within its bounds, 16"),
        (Architecture(Shapes(layers=(3, 3))), PLAIN, "network is 2 layers deep"),
        (Architecture(Shapes(only=("algorithm.critic",))), PLAIN, "no network.*did you mean 'algorithm.network'"),
        (Architecture(), Sable(network=SableShape(feed_forward=False)), "no width that can move"),
        (Architecture(), Untold(), "does not tell its `parts`"),
        (Activation(), Sable(network=SableShape()), "no other activation"),
        (Activation(Shapes(activations=("relu", "relu"))), PLAIN, "no other activation"),
    ],
)
def test_what_can_never_change_is_refused(mutation: Any, algorithm: Any, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        mutation.refuse_unfit(algorithm, TEAM)


@pytest.mark.parametrize(
    "values", [{"layers": (0, 2)}, {"units": (9, 8)}, {"steps": ()}, {"channel_steps": (0,)}, {"new_layer": 1.5}]
)
def test_bounds_that_cannot_be_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"shapes.{next(iter(values))} is"):
        Shapes(**values)


def test_a_population_whose_networks_change_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    evolution = replace(EVOLUTION, population=2, mutation=Chances(0, 0, 0, 1, 1), shapes=replace(TIGHT, units=(4, 40)))
    whole = evolved(a_plan(144), tmp_path / "whole", evolution)
    evolved(a_plan(96), tmp_path / "halves", evolution)
    halves = evolved(a_plan(144), tmp_path / "halves", evolution)
    assert {each.change.kind for each in whole.members} >= {"architecture"}
    assert all(same(*pair) for pair in zip(whole.members, halves.members, strict=True))
