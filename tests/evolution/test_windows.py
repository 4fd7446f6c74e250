"""No bounds reach further than a window can be cut, so that no member stops the run generations later."""

from dataclasses import replace

import pytest

from martes.algorithms.ppo import PPO
from martes.errors import ConfigError
from martes.evolution.generation import Site, outcome
from martes.evolution.space import space_of, with_numbers
from martes.evolution.windows import refuse_uncut
from tests.evolution.populations import EVOLUTION, TEAM, a_plan, evolved, members, q_plan, work

COPIES = 4
PLAN = a_plan(env=replace(a_plan().env, copies=COPIES))
MEMORYLESS = replace(PLAN.algorithm, rollout=4, minibatches=1, network=replace(PLAN.algorithm.network, memory="none"))
RECURRENT = replace(MEMORYLESS, network=replace(PLAN.algorithm.network, memory="gru"))
CASES = [(RECURRENT, COPIES), (MEMORYLESS, COPIES * 2)]


def refused(algorithm: PPO, **bounds: tuple[float, float]) -> None:
    space = space_of(algorithm, {f"algorithm.{name}": each for name, each in bounds.items()})
    refuse_uncut(algorithm, space, TEAM, COPIES)


@pytest.mark.parametrize(("algorithm", "rows"), CASES)
def test_bounds_reach_as_far_as_rows_do_and_no_further(algorithm: PPO, rows: int):
    refused(algorithm, minibatches=(1, rows + 0.9), rollout=(1.5, 8))
    with pytest.raises(ConfigError, match=rf"minibatches up to {rows + 1} x .* up to 1 cut a window into {rows + 1} p"):
        refused(algorithm, minibatches=(1, rows + 1), rollout=(1.5, 8))
    refused(algorithm, minibatches=(1, rows // 2), accumulate=(1, 2), rollout=(2, 8))
    with pytest.raises(ConfigError, match=rf"accumulate up to 3 .* of {COPIES} env.copies it has but {rows} rows"):
        refused(algorithm, minibatches=(1, rows // 2), accumulate=(1, 3), rollout=(2, 8))


@pytest.mark.parametrize(("algorithm", "rows"), CASES)
def test_at_the_corner_of_the_bounds_a_member_learns_and_beyond_it_none_can(algorithm: PPO, rows: int):
    plan = replace(PLAN, algorithm=replace(algorithm, rollout=2))
    (member,) = members(plan, 1)
    for minibatches, accumulate, learns in ((rows, 1, True), (rows // 2, 2, True), (rows + 1, 1, False)):
        numbers = {"algorithm.minibatches": minibatches, "algorithm.accumulate": accumulate}
        told = outcome(replace(member, algorithm=with_numbers(plan.algorithm, numbers)), work(plan, until=8), Site())
        assert (told.scores is not None) == learns, told.note


def test_a_run_is_refused_before_its_first_generation(tmp_path):
    plan = replace(PLAN, algorithm=RECURRENT)
    space = {"algorithm.minibatches": (1.0, 64.0)}
    with pytest.raises(ConfigError, match="policies have memory"):
        evolved(plan, tmp_path, replace(EVOLUTION, space=space, selection="random"))
    with pytest.raises(ConfigError, match="minibatches up to 40"):
        evolved(replace(plan, algorithm=replace(RECURRENT, minibatches=40)), tmp_path)
    refuse_uncut(q_plan().algorithm, {}, TEAM, 1)
