"""A replay that a population shares: frozen while a generation lives, then filled in the members' order."""

from dataclasses import replace

import pytest
import torch

from martes.algorithms.off_policy import Store
from martes.data.experience import Replayed
from martes.errors import ConfigError
from martes.evolution.folder import PopulationFolder
from martes.evolution.generation import Site, outcome
from martes.evolution.places import Here
from martes.evolution.shared_replay import pooled
from tests.evolution.populations import EVOLUTION, TEAM, a_plan, evolved, members, q_plan, same, states, work

SHARED = replace(EVOLUTION, population=2, shared_replay=True)


def lived(plan, pool: dict, generation: int = 0, **values: object):
    job = work(plan, generation, 48 * (generation + 1), pool=pool, **values)
    return Here().outcomes(job, members(plan, 2))


def a_learner(plan):
    return plan.algorithm.learner(TEAM, torch.Generator())


def test_the_pool_holds_what_all_have_seen_in_their_order():
    plan = q_plan()
    outcomes = lived(plan, {})
    pool = pooled({}, [each.seen for each in outcomes], a_learner(plan))
    experience = a_learner(plan).experience
    assert isinstance(experience, Replayed)
    experience.load_state_dict({**experience.state_dict(), **pool})
    rewards = [window["reward"] for each in outcomes for window, _ in each.seen]
    assert sum(len(each) for each in rewards) == 2 * 24
    kept = pool["replay/rows/reward"]
    in_order = torch.cat([window["reward"][:, 0] for each in outcomes for window, _ in each.seen])
    stored = kept[0]
    places = [int((stored == row).all(-1).nonzero()[0]) for row in in_order if row.abs().sum() > 0]
    assert places == sorted(places)
    again = pooled(pool, [each.seen for each in outcomes], a_learner(plan))
    assert int(again["replay/end"][0]) == 2 * int(pool["replay/end"][0])


def test_a_member_draws_from_the_pool_and_what_it_saw_itself_and_from_no_other():
    """With a pool of the others' rows it learns otherwise; whether others live beside it changes nothing."""
    plan = q_plan()
    pool = pooled({}, [each.seen for each in lived(plan, {})], a_learner(plan))
    alone = outcome(members(plan, 2)[1], work(plan, pool=pool), Site()).member
    beside = lived(plan, pool)[1].member
    assert same(alone, beside)
    bare = lived(plan, {})[1].member
    assert any(not torch.equal(a, b) for a, b in zip(states(alone).values(), states(bare).values(), strict=True))
    assert not [name for name in alone.experience if name.startswith("replay/")], "rows lie in the pool alone"


def test_processes_and_a_resumed_run_share_alike(tmp_path):
    plan = q_plan()
    whole = evolved(plan, tmp_path / "whole", SHARED)
    apart = evolved(plan, tmp_path / "apart", replace(SHARED, place="processes", workers=2))
    assert all(same(a, b) for a, b in zip(whole.members, apart.members, strict=True))
    half = replace(plan, training=replace(plan.training, steps=96))
    evolved(half, tmp_path / "parts", SHARED)
    origin = PopulationFolder(tmp_path / "parts").run.newest_checkpoint()
    rest = evolved(plan, tmp_path / "parts", SHARED, origin)
    assert all(same(a, b) for a, b in zip(whole.members, rest.members, strict=True))
    own = evolved(plan, tmp_path / "own", replace(SHARED, shared_replay=False))
    assert own.history != whole.history


def test_priorities_are_shared_as_well(tmp_path):
    plan = q_plan(store=Store(alpha=0.6))
    assert evolved(plan, tmp_path, SHARED).is_finished


def test_where_there_is_nothing_to_share_it_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"evolution\.shared_replay: this algorithm does not learn from replay"):
        evolved(a_plan(), tmp_path, SHARED)
    with pytest.raises(ConfigError, match=r"algorithm\.store\.folder: members would write to the same files"):
        evolved(q_plan(store=Store(folder=str(tmp_path / "rows"))), tmp_path, EVOLUTION)
