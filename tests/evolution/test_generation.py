"""A member's life in a generation: a function of itself, that repeats bit for bit, and is the same steps for all."""

from dataclasses import replace
from math import inf, nan

import pytest
import torch

from martes.algorithms.off_policy import Store
from martes.data import VectorEnv
from martes.envs.catalogue import environment
from martes.envs.settings import Environment
from martes.errors import ConfigError, EnvError, NonFiniteError
from martes.evolution.fitness import fitness_named
from martes.evolution.generation import Site, outcome
from martes.evolution.member import child, revived
from martes.training.evaluate import Scores
from tests.evolution.populations import TEAM, a_plan, members, q_plan, same, states, work
from tests.training.walks import with_env


def lived(plan, member, generations: int, site: Site | None = None, **values: object):
    for nth in range(generations):
        member = outcome(member, work(plan, nth, 48 * (nth + 1), **values), site or Site()).member
    return member


@pytest.mark.parametrize("plan", [a_plan(), q_plan(), with_env(a_plan(), factory="tests.training.walks:forgetful")])
def test_a_generation_is_a_function_of_the_member_wherever_it_is_run(plan):
    """Whether environments are made anew or have seen others, one that cannot tell its state among them."""
    first, second = members(plan, 2)
    site = Site()
    outcome(second, work(plan), site)
    used = lived(plan, first, 2, site)
    fresh = lived(plan, first, 2)
    assert same(used, fresh)
    assert used.steps == 96
    assert len(used.fitness) == 2
    assert not same(used, lived(plan, second, 2))


def test_one_long_generation_learns_what_two_short_ones_do():
    """Nothing is lost between generations: episodes, experience and random streams go on."""
    plan = q_plan()
    long = outcome(members(plan, 1)[0], work(plan, 0, 96), Site()).member
    short = lived(plan, members(plan, 1)[0], 2)
    a, b = states(long), states(short)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_every_member_trains_the_same_steps_but_for_one_window_which_is_carried_over():
    plan = a_plan()
    odd = replace(plan, algorithm=replace(plan.algorithm, rollout=7))  # 14 steps a window
    member, made = members(odd, 1)[0], []
    for nth in range(5):
        member = outcome(member, work(odd, nth, 48 * (nth + 1)), Site()).member
        made.append(member.steps)
    assert made == [56, 98, 154, 196, 252]
    assert all(0 <= steps - 48 * (nth + 1) < 14 for nth, steps in enumerate(made))


def test_evaluation_changes_nothing_that_is_learned():
    plan = a_plan()
    more = replace(plan, evaluation=replace(plan.evaluation, episodes=7))
    one, other = (lived(each, members(plan, 1)[0], 2) for each in (plan, more))
    assert one.fitness != other.fitness
    a, b = states(one), states(other)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_copy_is_equal_shares_no_storage_and_goes_its_own_way():
    for plan in (a_plan(), q_plan()):
        parent = lived(plan, members(plan, 1)[0], 1)
        twins = [child(parent, number) for number in (5, 6)]
        learned = {name: each for name, each in states(parent).items() if "/collector/" not in name}
        assert any("exp_avg" in name for name in learned)
        for twin in twins:
            own = states(twin)
            assert own.keys() == learned.keys()
            assert all(torch.equal(own[name], learned[name]) for name in own)
            assert (twin.parent, twin.steps, twin.fitness) == (parent.id, parent.steps, parent.fitness)
        storages = [{each.untyped_storage().data_ptr() for each in states(m).values()} for m in (parent, *twins)]
        assert not storages[0] & storages[1] | storages[1] & storages[2] | storages[0] & storages[2]
        one, other = (lived(plan, twin, 2) for twin in twins)
        assert not torch.equal(*(each.collector["generator"] for each in (one, other)))
        assert one.fitness[1:] != other.fitness[1:], "twins draw from streams of their own"


def test_another_pace_of_updates_counts_from_where_it_begins():
    plan = q_plan()
    member = lived(plan, members(plan, 1)[0], 1)
    before = int(member.experience["counters"][1])
    faster = replace(member, algorithm=replace(member.algorithm, ratio=0.5))
    after = outcome(faster, work(plan, 1, 96), Site()).member
    made = after.learner["counters"]["updates"] - member.learner["counters"]["updates"]
    assert before > 0
    assert made == 24, "48 steps at a half each, and nothing for the past"


def test_a_member_that_diverges_is_put_last_and_stays_as_it_was(monkeypatch):
    plan = a_plan()
    member = lived(plan, members(plan, 1)[0], 1)

    def broken(*_: object) -> None:
        raise NonFiniteError("the loss is not finite")

    monkeypatch.setattr("martes.algorithms.ppo.PPOLearner.update", broken)
    told = outcome(member, work(plan, 1, 96), Site())
    assert told.scores is None
    assert "not finite" in told.note
    assert told.member.fitness == (*member.fitness, -inf)
    assert told.member.learner is member.learner
    monkeypatch.undo()
    again = outcome(told.member, work(plan, 2, 144), Site())
    assert again.member.fitness[-1] == -inf
    assert again.member.steps == member.steps


def test_a_member_whose_store_can_never_hold_a_batch_is_put_last_and_not_the_end():
    """Two environments keep 5 rows each, of which one is what they see now."""
    plan = q_plan(store=Store(capacity=10), batch=10)
    told = outcome(members(plan, 1)[0], work(plan), Site())
    assert told.member.fitness == (-inf,)
    assert "is full and holds" in told.note


def test_a_fitness_that_is_no_number_counts_as_having_diverged():
    plan = a_plan()
    member = members(plan, 1)[0]
    told = outcome(member, work(plan, fitness=lambda scores, team: nan), Site())
    assert told.member.fitness == (-inf,)
    assert told.member.learner is member.learner
    assert told.note == "its fitness is nan"


def test_every_training_episode_is_told_once():
    plan, site = a_plan(), Site()
    member, told = members(plan, 1)[0], 0
    for nth in range(3):
        done = outcome(member, work(plan, nth, 48 * (nth + 1)), site)
        member, told = done.member, told + int(done.episodes["length"].sum())
        assert told <= member.steps
    site.close()
    assert told > 96, "of 144 steps"


def test_a_team_that_changes_between_generations_is_refused():
    plan = a_plan()
    other = replace(plan, env=Environment("walk", 2, "tests.training.walks:Walk", {"limit": 9}))
    with pytest.raises(EnvError, match="the team changed between generations: member 0 was made for a_0, a_1"):
        outcome(members(plan, 1)[0], work(other), Site())


def test_environments_are_closed_where_a_generation_fails(monkeypatch):
    plan, site, closed = a_plan(), Site(), []

    def made(*arguments: object) -> VectorEnv:
        env = environment(*arguments)
        monkeypatch.setattr(env, "close", lambda: closed.append(env))
        return env

    def worth(scores: Scores, team: object) -> float:
        raise ConfigError("no such count")

    with pytest.raises(ConfigError, match="no such count"):
        outcome(members(plan, 1)[0], work(plan, make=made, make_test=made, fitness=worth), site)
    assert len(closed) == 2


def test_a_state_of_another_shape_is_refused_with_its_reason():
    plan = a_plan()
    member = members(plan, 1)[0]
    wider = replace(plan.algorithm, network=replace(plan.algorithm.network, hidden=(9,)))
    with pytest.raises(ConfigError, match="does not fit its hyperparameters"):
        revived(replace(member, algorithm=wider), torch.Generator())


# ------------------------------------------------------------------------------------------------------------- fitness
SCORES = Scores(torch.tensor([3.0, 7.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([4, 5]), {"won": 0.25})


@pytest.mark.parametrize(
    ("name", "worth"), [("team", 5.0), ("a", 5.0), ("a_0", 2.0), ("a_1", 3.0), ("stats.won", 0.25)]
)
def test_fitness_is_the_return_of_whom_it_names(name: str, worth: float):
    assert fitness_named(name, TEAM)(SCORES, TEAM) == worth


def shortest(scores: Scores, team: object) -> float:
    return -float(scores.lengths.double().mean())


def wordy(scores: Scores, team: object) -> str:
    return "good"


def test_fitness_may_be_a_function_of_the_users():
    assert fitness_named(f"{__name__}:shortest", TEAM)(SCORES, TEAM) == -4.5
    with pytest.raises(ConfigError, match="returned 'good' in place of a number"):
        fitness_named(f"{__name__}:wordy", TEAM)(SCORES, TEAM)


@pytest.mark.parametrize(
    ("name", "told"),
    [("a_2", "did you mean 'a_[01]'"), ("no_such:thing", "cannot be imported"), ("stats.lost", "known: won")],
)
def test_an_unknown_fitness_is_refused(name: str, told: str):
    with pytest.raises(ConfigError, match=told):
        fitness_named(name, TEAM)(SCORES, TEAM)
