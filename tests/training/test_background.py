"""Evaluation in a process of its own: nobody waits, results belong to a version, failures are told."""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from martes.data import VectorEnv
from martes.envs.batched.engine import BatchedEnv
from martes.envs.process import Hosting
from martes.errors import EnvError
from martes.networks import Network, Policy
from martes.training.background import Evaluated, Evaluator
from martes.training.evaluate import evaluate
from tests.envs.leftovers import descendants, nothing_left, soon
from tests.worlds import World

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
WORLD = World(limit=9)
HOSTING = Hosting(workers=1, timeout=20, start_method="forkserver")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


def world(copies: int = 3) -> VectorEnv:
    return BatchedEnv(WORLD, copies)


def policy() -> Policy:
    made = Policy(WORLD.team, Network(hidden=(8,)), "shared", torch.Generator().manual_seed(0))
    nn.init.normal_(made.head.weight, generator=torch.Generator().manual_seed(1))
    return made


def test_a_result_is_that_of_the_version_that_was_begun(unchecked):
    actor = policy()
    with Evaluator(world, actor, 6, hosting=HOSTING) as evaluator:
        for seed in (1, 2):
            expected = evaluate(actor, world(), 6, seed)
            version = evaluator.begin(seed)
            assert version == seed
            with torch.no_grad():
                for each in actor.parameters():
                    each.mul_(-2)  # what is learned meanwhile does not matter
            found = evaluator.result()
            assert found is not None and found.version == version
            assert torch.equal(found.scores.returns, expected.returns)
            assert evaluator.poll() is None, "a result is handed out once"


class Gated(BatchedEnv):
    """Steps once there is a certain file; who waits for it without making one waits for long."""

    def __init__(self, gate: Path) -> None:
        super().__init__(WORLD, 2)
        self.gate = gate

    def step(self, action: Tensor):
        soon(self.gate.exists, within=15)
        return super().step(action)


def test_the_learner_never_waits(tmp_path, unchecked):
    with Evaluator(partial(Gated, tmp_path / "gate"), policy(), 4, hosting=HOSTING) as evaluator:
        evaluator.begin(0)
        polls = [evaluator.poll() for _ in range(20)]
        assert evaluator.begin(1) is None, "one test at a time"
        assert polls == [None] * 20 and evaluator.is_busy
        (tmp_path / "gate").touch()
        found: list[Evaluated] = []

        def is_found() -> bool:
            told = evaluator.poll()
            found.extend([] if told is None else [told])
            return bool(found)

        assert soon(is_found, within=20)
        assert [each.version for each in found] == [1]
        assert not evaluator.is_busy


class Broken(BatchedEnv):
    """Raises in the episodes of an odd seed."""

    def __init__(self) -> None:
        super().__init__(WORLD, 2)

    def reset(self, seed: int):
        if seed % 2:
            raise ZeroDivisionError("an odd seed")
        return super().reset(seed)


def test_a_failure_is_raised_with_its_traceback(unchecked):
    with Evaluator(Broken, policy(), 2, hosting=HOSTING) as evaluator:
        evaluator.begin(1)
        with pytest.raises(EnvError, match=r"(?s)ZeroDivisionError: an odd seed.*Traceback.*in reset"):
            evaluator.result()
        assert descendants(os.getpid()) == set()


def test_or_training_goes_on_and_later_tests_run(unchecked):
    with Evaluator(Broken, policy(), 2, on_failure="warn", hosting=HOSTING) as evaluator:
        assert evaluator.begin(1) == 1
        with pytest.warns(UserWarning, match=r"(?s)training goes on.*an odd seed.*Traceback"):
            assert evaluator.result() is None
        assert evaluator.begin(2) == 2
        found = evaluator.result()
        assert found is not None and found.version == 2


def unmakable() -> VectorEnv:
    raise ValueError("no such game")


def test_what_cannot_be_made_is_told(unchecked):
    evaluator = Evaluator(partial(unmakable), policy(), 2, hosting=HOSTING)
    with pytest.raises(EnvError, match="no such game"):
        evaluator.begin(0)
    evaluator.close()


def test_drawn_actions_are_those_of_the_seed(unchecked):
    with Evaluator(world, policy(), 6, greedy=False, hosting=HOSTING) as evaluator:
        evaluator.begin(7)
        found = evaluator.result()
    assert found is not None
    assert torch.equal(found.scores.returns, evaluate(policy(), world(), 6, 7, greedy=False).returns)
