"""One agent and the workspace: CartPole against Gymnasium's own vector, worker calls, replay in one pass."""

from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection

import gymnasium
import numpy as np
import torch

from martes.bench.timing import Measurement, Side, rates, ratios
from martes.data import Discrete, Schema, TeamSpec, Vector, Workspace
from martes.envs.catalogue import make_env
from martes.envs.worker import DONE, Answer
from martes.envs.workforce import Workforce
from martes.networks import Network, Policy, replay

COPIES, DRAWN = 8, 4096
"""Copies of CartPole, and how many joint actions are drawn beforehand."""


def sequential(repeats: int) -> list[Measurement]:
    """CartPole through the library to SyncVectorEnv; orders that two workers answer; replay to a loop of steps."""
    found = rates({"own": _vector(), "ours": _copies()}, repeats)
    cartpole = ratios(found["ours"], found["own"])
    workers = Workforce(idle, [range(1), range(1, 2)], "starting", 60.0, "spawn")
    try:
        workers.answers()
        calls = rates({"calls": partial(_calls, workers)}, repeats)["calls"]
    finally:
        workers.close()
    replayed = rates({"whole": _replayed(stepwise=False), "steps": _replayed(stepwise=True)}, repeats)
    return [
        Measurement(f"CartPole, {COPIES} copies in this process vs gymnasium's SyncVectorEnv", tuple(cartpole), 0.7),
        Measurement("orders to two workers, both answered", tuple(calls), 10_000, is_ratio=False),
        Measurement(
            "replay forward and backward, MLP, 100 steps of 32, in one pass vs step by step",
            tuple(ratios(replayed["whole"], replayed["steps"])),
            4.0,
        ),
    ]


def _vector() -> Side:
    env = gymnasium.make_vec("CartPole-v1", COPIES, vectorization_mode="sync")
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 2, (DRAWN, COPIES))

    def steps(count: int) -> int:
        for t in range(count):
            env.step(actions[t % DRAWN])
        return count * COPIES

    return steps


def _copies() -> Side:
    env = make_env("gymnasium:CartPole-v1", COPIES)
    env.reset(0)
    actions = torch.randint(2, (DRAWN, COPIES, 1), generator=torch.Generator().manual_seed(0))

    def steps(count: int) -> int:
        for t in range(count):
            env.step(actions[t % DRAWN])
        return count * COPIES

    return steps


def idle(pipe: Connection, copies: range, closing: ExitStack) -> Answer:
    """The calling of who does nothing, and says so."""
    pipe.send_bytes(DONE)
    return _done


def _done(order: bytes) -> bytes:
    return DONE


def _calls(workers: Workforce, count: int) -> int:
    for _ in range(count):
        workers.ordered(dict.fromkeys(workers.workers, b"s"), "nothing")
    return count


def _replayed(stepwise: bool) -> Side:
    team = TeamSpec.of_agents({"a_0": Vector(16)}, {"a_0": Discrete(4)})
    policy = Policy(team, Network(hidden=(64, 64)), "shared", torch.Generator().manual_seed(0))
    window = Workspace(Schema.from_team(team).extended(**policy.fields()), time=100, envs=32)
    window["obs"] = torch.randn(window["obs"].shape, generator=torch.Generator().manual_seed(1))

    def passes(count: int) -> int:
        for _ in range(count):
            replay(policy, window, given=("action",), stepwise=stepwise)["log_prob"].sum().backward()
        return count

    return passes
