"""Every algorithm of the library can be a member: copied, mutated, moved, resumed, whatever it learns with."""

from dataclasses import replace

import pytest
import torch

from martes.algorithms.learner import Imitator
from martes.algorithms.registry import BUILT_IN
from martes.envs.batched.engine import BatchedEnv
from martes.errors import ConfigError
from martes.evolution.generation import at_work, put_by
from martes.evolution.member import Member, child, newborn
from martes.evolution.mutations import Hyperparameter, Parameters
from martes.evolution.space import space_of
from tests.contracts.test_matrix import configured
from tests.evolution.populations import states
from tests.worlds import World

WORLD = World(has_masks=True, has_state=True)
NAMES = [name for name in BUILT_IN if name not in ("maa2c", "ia2c", "ippo", "iql", "vdn")]  # values of others


def lived(member: Member, env: BatchedEnv, windows: int = 1) -> Member:
    learner, collector = at_work(member, env, seed=0)
    steps = member.steps
    for _ in range(windows):
        window = collector.collect()
        steps += window.time * window.envs
        learner.experience.add(window, collector.final)
        for batch in learner.experience.due(steps):
            learner.update(batch)
    return put_by(member, learner, collector, steps, 0.0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", NAMES)
def test_a_member_with_this_algorithm(name: str):
    env = BatchedEnv(WORLD, 5)
    algorithm = configured(name, {})
    if hasattr(algorithm, "batch"):
        algorithm = replace(algorithm, batch=8)
    if isinstance(algorithm.learner(env.team, torch.Generator()), Imitator):
        with pytest.raises(ConfigError, match="name a data set"):
            at_work(_born(algorithm, env), env, 0)
        return
    member = lived(_born(algorithm, env), env)
    long, short = lived(_born(algorithm, env), env, 2), lived(member, env)
    a, b = states(long), states(short)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[each], b[each]) for each in a), "a member that is put by goes on as if it were not"
    copy = child(member, 9)
    learned = {each: value for each, value in states(member).items() if "/collector/" not in each}
    assert all(torch.equal(learned[each], states(copy)[each]) for each in learned)
    mutations = (Hyperparameter(space_of(algorithm)), Parameters())
    for mutation in mutations:
        mutation.refuse_unfit(algorithm, env.team)
        done = mutation.mutated(copy, torch.Generator().manual_seed(0))
        assert done is not None
        assert lived(replace(done.member, id=9), env).steps == member.steps + 40


def _born(algorithm, env: BatchedEnv) -> Member:
    return newborn(algorithm, env.team, 3, torch.Generator().manual_seed(1))
