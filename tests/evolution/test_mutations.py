"""A mutation that is told is a change that is measured, and nothing else changes."""

from dataclasses import replace

import pytest
import torch

from martes.algorithms.off_policy import Store
from martes.algorithms.ppo import PPO
from martes.algorithms.soft_actor_critic import SAC
from martes.data import Continuous, TeamSpec
from martes.data.limits import Range
from martes.errors import ConfigError
from martes.evolution.generation import Site, outcome
from martes.evolution.member import UNCHANGED, Member, child, newborn, revived
from martes.evolution.mutations import Hyperparameter, Mutations, Parameters, Unchanged, free_of_stores
from martes.evolution.space import number_at, space_of
from martes.networks import Network
from tests.evolution.populations import TEAM, a_plan, members, q_plan, states, work

SPACE = {"algorithm.lr": Range(1e-4, 1e-2), "algorithm.epochs": Range(1, 4)}


@pytest.fixture(scope="module")
def member() -> Member:
    """One that has learned, so that its optimiser has moments."""
    plan = a_plan()
    return child(outcome(members(plan, 1)[0], work(plan), Site()).member, 7)


def drawn(mutation, member: Member, seed: int = 0):
    return mutation.mutated(member, torch.Generator().manual_seed(seed))


def test_one_hyperparameter_changes_and_nothing_that_was_learned(member):
    changed = {drawn(Hyperparameter(SPACE), member, seed) for seed in range(30)}
    assert {each.change.what for each in changed} == set(SPACE)
    for mutated, change in changed:
        assert mutated.learner is member.learner
        assert mutated.experience is member.experience
        assert change.before == number_at(member.algorithm, change.what)
        assert change.after == number_at(mutated.algorithm, change.what) != change.before
        (other,) = set(SPACE) - {change.what}
        assert number_at(mutated.algorithm, other) == number_at(member.algorithm, other)


def test_another_step_size_reaches_the_optimiser_and_leaves_its_moments(member):
    mutated, change = drawn(Hyperparameter({"algorithm.lr": SPACE["algorithm.lr"]}), member)
    learner = revived(mutated, torch.Generator())
    assert learner.optimiser.param_groups[0]["lr"] == change.after
    before, after = states(member), dict(states(replace(member, learner=learner.state_dict())))
    assert before.keys() == after.keys()
    assert any("exp_avg" in name for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_four_first_steps_are_each_one_factor_from_the_start_and_drawn_apart(member):
    """A search space that members share is never written to."""
    mutation = Hyperparameter({"algorithm.lr": SPACE["algorithm.lr"]})
    found = [drawn(mutation, member, seed).member.algorithm.lr for seed in range(20)]
    assert set(found) == {5e-4 * 1.2, 5e-4 * 0.8}
    assert mutation.space == {"algorithm.lr": Range(1e-4, 1e-2)}


def test_at_a_bound_the_other_way_is_taken_and_at_both_another_number(member):
    low = replace(member, algorithm=replace(member.algorithm, lr=1e-4, epochs=1))
    ups = [drawn(Hyperparameter(SPACE), low, seed).change for seed in range(20)]
    assert {(each.what, each.after) for each in ups} == {("algorithm.lr", 1e-4 * 1.2), ("algorithm.epochs", 2)}
    stuck = {"algorithm.lr": Range(5e-4, 5.00001e-4), "algorithm.epochs": Range(1, 4)}
    at_its_end = replace(member, algorithm=replace(member.algorithm, lr=5.00001e-4))
    assert drawn(Hyperparameter({"algorithm.epochs": Range(2, 2.5)}), at_its_end) is None
    assert drawn(Hyperparameter(stuck), at_its_end) is not None


def test_all_at_once_moves_every_number(member):
    mutated, change = drawn(Hyperparameter(SPACE, all_at_once=True), member)
    moved = dict(zip(change.what.split(", "), zip(change.before, change.after, strict=True), strict=True))
    assert set(moved) == set(SPACE)
    for path, (before, after) in moved.items():
        assert number_at(mutated.algorithm, path) == after != before == number_at(member.algorithm, path)


def test_a_value_that_the_algorithm_refuses_is_never_reached(member):
    high = replace(member, algorithm=replace(member.algorithm, gamma=0.99))
    for seed in range(10):
        assert drawn(Hyperparameter(space_of(PPO(), {"algorithm.gamma": ()})), high, seed).change.after < 0.99


def test_a_number_that_shapes_networks_is_refused_when_it_is_configured():
    plan = a_plan()
    gru = replace(plan.algorithm, network=replace(plan.algorithm.network, memory="gru"))
    mutation = Hyperparameter({"algorithm.network.memory_size": Range(4, 64)})
    with pytest.raises(ConfigError, match=r"algorithm\.network\.memory_size cannot be searched"):
        mutation.refuse_unfit(gru, TEAM)
    Hyperparameter(SPACE).refuse_unfit(plan.algorithm, TEAM)
    with pytest.raises(ConfigError, match=r"evolution\.mutation\.hyperparameter=0"):
        Hyperparameter({}).refuse_unfit(plan.algorithm, TEAM)


def test_noise_reaches_a_share_of_the_acting_weights_and_nothing_else(member):
    kinds = set[str]()
    for seed in range(8):
        mutated, change = drawn(Parameters(share=0.3), member, seed)
        before, after = states(member), states(mutated)
        moved = {name: int((before[name] != after[name]).sum()) for name in before}
        moved = {name: count for name, count in moved.items() if count}
        assert sum(moved.values()) == int(change.note.split()[0]) > 0
        assert {name.rpartition("/")[2] for name in moved} == set(change.what.removeprefix("rms of ").split(", "))
        assert all(name.startswith("/learner/policy/") and "bias" not in name for name in moved)
        kinds |= set(moved)
    critic = [name for name in kinds if "members.1" in name]
    assert not critic, "critics, targets and moments stay"


def test_noise_is_as_large_as_told_and_padding_stays_zero():
    algorithm = PPO(network=a_plan().algorithm.network, critic="local", sharing="group")
    spec = Walk2.team
    member = newborn(algorithm, spec, 0, torch.Generator().manual_seed(0))
    mutated, _ = Parameters(share=1.0, sd=0.5).mutated(member, torch.Generator().manual_seed(1))
    checked = 0
    for name, before in member.learner["policy"].items():
        after = mutated.learner["policy"][name]
        if not torch.equal(before, after):
            assert torch.equal(before == 0, after == 0)
            rms = before.square().mean().sqrt()
            difference = (after - before)[before != 0]
            assert float(difference.std() / rms) == pytest.approx(0.5, rel=0.35)
            checked += 1
    assert checked


class Walk2:
    """Two roles that see unequal much: their padded weights are exactly 0."""

    team = TeamSpec(
        ("a_0", "b_0"),
        {"a": (0,), "b": (1,)},
        {"a": TEAM.observation["a"], "b": type(TEAM.observation["a"])(7)},
        {"a": TEAM.action["a"], "b": TEAM.action["a"]},
        None,
        7,
    )


def test_kinds_come_by_their_chances_and_the_member_tells_which(member):
    mutations = Mutations(((Unchanged(), 2.0), (Hyperparameter(SPACE), 1.0), (Parameters(), 1.0)))
    told = [mutations.mutated(member, torch.Generator().manual_seed(seed)) for seed in range(200)]
    kinds = [each.change.kind for each in told]
    assert 75 < kinds.count("none") < 125
    assert 30 < kinds.count("parameters") < 75
    for each in told:
        moved = each.algorithm != member.algorithm, each.learner is not member.learner
        assert moved == (each.change.kind == "hyperparameter", each.change.kind == "parameters")


def test_where_a_kind_can_change_nothing_another_is_drawn(member):
    stuck = Hyperparameter({"algorithm.epochs": Range(2, 2.5)})
    mutations = Mutations(((stuck, 100.0), (Parameters(), 0.001)))
    assert mutations.mutated(member, torch.Generator()).change.kind == "parameters"
    assert Mutations(((stuck, 1.0),)).mutated(member, torch.Generator()).change == UNCHANGED


def test_impossible_chances_are_refused():
    for chances in ((), ((Unchanged(), 0.0),), ((Unchanged(), 1.0), (Parameters(), -1.0))):
        with pytest.raises(ConfigError, match="chances of mutations"):
            Mutations(chances)
    with pytest.raises(ConfigError, match="share is 2"):
        Parameters(share=2)


def test_the_target_network_of_a_learner_stays_where_it_is():
    plan = q_plan()
    member = outcome(members(plan, 1)[0], work(plan), Site()).member
    mutated, _ = drawn(Parameters(share=1.0), member)
    before, after = states(member), states(mutated)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("/learner/policy/") for name in moved)
    learner = revived(mutated, torch.Generator())
    assert any(
        not torch.equal(a, b) for a, b in zip(learner.target.parameters(), learner.online.parameters(), strict=True)
    )


def test_a_number_that_shapes_the_store_is_refused_and_never_moves():
    algorithm = q_plan(store=Store(capacity=500)).algorithm
    mutation = Hyperparameter({"algorithm.store.capacity": Range(100, 1000)})
    with pytest.raises(ConfigError, match=r"algorithm\.store\.capacity cannot be searched: a value that shapes stores"):
        mutation.refuse_unfit(algorithm, TEAM)
    assert drawn(mutation, newborn(algorithm, TEAM, 0, torch.Generator())) is None


def test_a_batch_never_grows_beyond_the_store():
    algorithm = q_plan(store=Store(capacity=100), batch=90).algorithm
    mutation = Hyperparameter({"algorithm.batch": Range(8, 512)})
    mutation.refuse_unfit(algorithm, TEAM)
    full = newborn(algorithm, TEAM, 0, torch.Generator())
    assert {drawn(mutation, full, seed).change.after for seed in range(10)} == {72}


def test_numbers_that_touch_no_store_are_found_once_and_mutate_alike():
    algorithm = q_plan(store=Store(capacity=100), batch=90).algorithm
    space = space_of(algorithm, {"algorithm.lr": (), "algorithm.batch": (8, 512), "algorithm.ratio": ()})
    free = free_of_stores(algorithm, space, TEAM)
    assert free == {"algorithm.lr", "algorithm.ratio"}, "512 is more than the store has"
    fitting = space | {"algorithm.batch": Range(8, 100.5)}
    assert free_of_stores(algorithm, fitting, TEAM) == set(space)
    assert not free_of_stores(algorithm, {"algorithm.store.capacity": Range(90, 500)}, TEAM)
    member = newborn(algorithm, TEAM, 0, torch.Generator())
    for seed in range(8):
        slow, fast = (drawn(Hyperparameter(space, True, each), member, seed).change for each in (frozenset(), free))
        assert slow == fast


def test_the_weights_that_act_are_remembered_by_the_form_of_the_policy(member, monkeypatch):
    mutation, made = Parameters(share=1.0), list[object]()
    learner = PPO.learner
    monkeypatch.setattr(PPO, "learner", lambda *given: made.append(given) or learner(*given))
    changes = [drawn(mutation, member, seed).change for seed in range(4)]
    assert len(made) == 1
    assert changes == [drawn(Parameters(share=1.0), member, seed).change for seed in range(4)]
    wide = replace(member.algorithm, network=replace(member.algorithm.network, hidden=(16, 16)))
    drawn(mutation, newborn(wide, TEAM, 0, torch.Generator()))
    assert len(made) == 1 + 4 + 2


@pytest.mark.parametrize(
    ("algorithm", "path"),
    [(SAC(network=Network(hidden=(4,))), "temperature"), (replace(q_plan().algorithm, warmup=50), "warmup")],
)
def test_a_number_that_only_says_how_learning_begins_is_refused(algorithm, path: str):
    """What the member has learned, or counted, stands in its place."""
    value = getattr(algorithm, path)
    with pytest.raises(ConfigError, match=rf"evolution\.space\.algorithm\.{path} cannot be searched: it says only how"):
        Hyperparameter({f"algorithm.{path}": Range(value / 2, value * 2)}).refuse_unfit(algorithm, TEAM)
    Hyperparameter({"algorithm.ratio": Range(1e-3, 4.0)}).refuse_unfit(algorithm, TEAM)


def test_noise_reaches_no_gain_and_no_deviation():
    """Of vectors each slot has a row, so that they have two axes, as matrices have without slots."""
    team = replace(TEAM, action={"a": Continuous((-1.0,), (1.0,))})
    algorithm = PPO(network=Network(hidden=(4,), layer_norm=True, memory="gru", memory_size=4), sharing="agent")
    member = newborn(algorithm, team, 0, torch.Generator())
    named = {name: each.ndim for name, each in member.learner["policy"].items()}
    assert any("log_std" in name and ndim > 1 for name, ndim in named.items())
    for seed in range(8):
        mutated, _ = drawn(Parameters(share=1.0), member, seed)
        moved = {name for name, each in member.learner["policy"].items() if each is not mutated.learner["policy"][name]}
        assert moved
        assert all(name.endswith("weight") and named[name] == 3 for name in moved), "slot out in"
