"""Acting in processes: one record however many there are, whole versions of weights, faults told, nothing left."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from martes.algorithms.maddpg import MADDPG
from martes.algorithms.ppo import PPO
from martes.algorithms.q_learning import QLearning
from martes.data import VectorEnv, Workspace
from martes.data.experience import Rollouts
from martes.envs.batched.engine import BatchedEnv
from martes.envs.process import Hosting
from martes.envs.single import serial_env
from martes.errors import ConfigError, EnvError
from martes.networks import Network, Policy, TemporalModule
from martes.networks.deterministic import ActionNoise
from martes.networks.q_values import Exploration
from martes.training.collect import Collector
from martes.training.seeding import generator_of, seed_of
from martes.training.workers import Asked, Role, Workers
from tests.envs.leftovers import descendants, nothing_left
from tests.envs.singles import Ramble
from tests.worlds import World

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
GRU = Network(hidden=(8,), memory="gru", memory_size=4)


def hosted(workers: int, timeout: float = 30) -> Hosting:
    return Hosting(workers=workers, timeout=timeout, start_method="forkserver")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


def world_lane(**options: object) -> VectorEnv:
    return BatchedEnv(World(**options), 2)


def learner_of(world: World, rollout: int = 6):
    config = PPO(critic="local", network=GRU, rollout=rollout)
    learner = config.learner(world.team, torch.Generator().manual_seed(0))
    nn.init.normal_(learner.policy.actor.head.weight, generator=torch.Generator().manual_seed(1))
    return learner


def taken(workers: Workers, windows: int) -> list[dict[str, Tensor]]:
    found = []
    for _ in range(windows):
        window = workers.collected()
        found.append({name: window[name].clone() for name in window.names} | {"memory": window.memory[0].clone()})
    return found


# ---------------------------------------------------------------------------------------------------------- one record
def test_the_record_does_not_depend_on_the_processes(unchecked):
    role = Role.of(learner_of(World(ends=0.2)))
    records = []
    for count in (0, 1, 2, 4):
        with Workers(partial(world_lane, ends=0.2), role, lanes=4, seed=5, hosting=hosted(count)) as workers:
            assert len(descendants(os.getpid())) == count
            records.append(taken(workers, 3))
    for other in records[1:]:
        for one, two in zip(records[0], other, strict=True):
            assert all(torch.equal(one[name], two[name]) for name in one)
    obs = records[0][0]["obs"][0].flatten(1)
    assert len(obs.unique(dim=0)) == 8, "no two environments draw alike"


def test_a_lane_is_what_a_collector_gives(unchecked):
    learner = learner_of(World(ends=0.2))
    with Workers(partial(world_lane, ends=0.2), Role.of(learner), lanes=2, seed=5, hosting=hosted(1)) as workers:
        told = taken(workers, 2)
        assert workers.finished["return"].numel() > 0
    collector = Collector(world_lane(ends=0.2), learner, generator_of(5, "acting", 1))
    collector.start(seed_of(5, "environment", 1))
    for each in told:
        window = collector.collect()
        for name in window.names:
            assert torch.equal(window[name], each[name][:, 2:]), name


def test_last_observations_come_in_the_order_of_the_cuts(unchecked):
    learner = learner_of(World(ends=0.3))
    role = Role(learner.policy, learner.fields, Asked(6, keeps_final=True))
    finals = []
    for count in (0, 2):
        with Workers(partial(world_lane, ends=0.3), role, lanes=3, seed=1, hosting=hosted(count)) as workers:
            window = workers.collected()
            assert workers.final is not None
            assert len(workers.final["obs"]) == int(window["cut"].sum()) > 3
            finals.append(workers.final["obs"])
            values = window["next_value"][window["cut"]]
    assert torch.equal(*finals)
    assert values.abs().sum() > 0


def test_a_learner_learns_from_what_workers_collect(unchecked):
    learner = learner_of(World())
    assert isinstance(learner.experience, Rollouts)
    with Workers(world_lane, Role.of(learner), lanes=2, hosting=hosted(2)) as workers:
        workers.begin()
        for version in range(3):
            window = workers.collected()
            assert (window["version"] == max(1, version)).all(), "it was begun before the last push"
            workers.begin()
            learner.update(window)
            workers.push()
        workers.collected()


def test_copies_in_plain_python_act_in_workers_too(unchecked):
    def lane() -> VectorEnv:  # made in a function: it travels by value
        return serial_env(Ramble, 2)

    env = lane()
    policy = Policy(env.team, GRU, "shared", torch.Generator().manual_seed(0))
    with Workers(lane, Role.of_policy(policy, 5), lanes=2, hosting=hosted(2)) as workers:
        window = workers.collected()
    assert window["obs"].shape == (6, 4, 3, 2)
    assert window.mask.all()


# ------------------------------------------------------------------------------------------------------------- weights
class Scale(TemporalModule):
    """Writes the mean and the spread of all its weights."""

    reads, writes = ("obs",), ("action", "mean", "spread")

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.register_buffer("statistic", torch.zeros(size))
        self.dropout = nn.Dropout(0.5)
        self.rate = 0.0

    def fields(self):
        from martes.data import Field

        return {name: Field(writer="the scale") for name in ("mean", "spread")}

    def step(self, inputs, memory):
        both = torch.cat((self.weight, self.statistic))
        shape = inputs["obs"].shape[:2]
        dropped = self.dropout(torch.ones(1000)).std()
        return {
            "action": torch.zeros(shape, dtype=torch.int64),
            "mean": (both.double().mean() + self.rate).expand(shape),
            "spread": (both.amax() - both.amin() + 1000 * dropped * (not self.training)).expand(shape),
        }, memory


def test_each_window_is_acted_by_one_whole_version(unchecked):
    scale = Scale(200_000).eval()
    with Workers(world_lane, Role.of_policy(scale, 1), lanes=2, hosting=hosted(2)) as workers:
        seen: set[int] = set()
        for _ in range(30):
            workers.begin()
            while not workers.is_done():
                with torch.no_grad():
                    for each in (scale.weight, scale.statistic):
                        each.fill_(workers.version + 1)
                workers.push()
            window = workers.collected()
            assert (window["spread"] == 0).all(), "a torn read"
            assert ((window["mean"] == window["version"].unsqueeze(-1)) | (window["version"] == 1).unsqueeze(-1)).all()
            seen |= set(window["version"].flatten().tolist())
    assert len(seen) > 5


def test_modes_reach_a_running_pool_at_once(unchecked):
    class Mode(Scale):
        def step(self, inputs, memory):
            outputs, memory = super().step(inputs, memory)
            kept = self.dropout(torch.ones(1000)).eq(1).float().mean()
            return outputs | {"mean": kept.expand(outputs["mean"].shape)}, memory

    with Workers(world_lane, Role.of_policy(Mode(4), 3), lanes=2, hosting=hosted(2)) as workers:
        assert (workers.collected()["mean"] == 0).all()  # in training half is dropped, the rest is doubled
        for switch, expected in ((workers.eval, 1.0), (workers.train, 0.0)):
            workers.begin()
            switch()  # while they act: nobody is waited for, as the late worker below shows
            workers.collected()
            assert (workers.collected()["mean"] == expected).all()


def test_a_late_worker_acts_by_the_version_and_mode_of_the_begin(unchecked):
    late = Scale(3).eval()
    with Workers(world_lane, Role.of_policy(late, 1), lanes=2, hosting=hosted(2)) as workers:
        workers.collected()
        sleeper = max(descendants(os.getpid()))
        os.kill(sleeper, signal.SIGSTOP)
        workers.begin()
        for _ in range(2):
            late.weight.data += 1
            workers.push()
        workers.train()
        os.kill(sleeper, signal.SIGCONT)
        window = workers.collected()
        assert (window["version"] == 1).all() and (window["mean"] == 0).all() and (window["spread"] == 0).all()
        window = workers.collected()
        assert (window["version"] == 3).all() and (window["mean"] == 1).all()


def test_a_mode_that_was_set_outlives_a_push(unchecked):
    scale = Scale(3)
    with Workers(world_lane, Role.of_policy(scale, 1), lanes=1, hosting=hosted(0)) as workers:
        policy = workers._crew._policy  # pyright: ignore
        workers.eval()
        workers.collected()
        assert scale.training and not policy.training
        workers.push()
        workers.collected()
        assert not policy.training


@pytest.mark.parametrize("end", [0, 0.25])
def test_who_acts_at_random_at_first_stops_doing_so(end: float, unchecked):
    config = MADDPG(network=Network(hidden=(4,)), noise=ActionNoise(start=0.5, end=end, steps=10), rollout=2)
    learner = config.learner(World().team, torch.Generator().manual_seed(0))
    with Workers(world_lane, Role.of(learner), lanes=1, hosting=hosted(0)) as workers:
        policy = workers._crew._policy  # pyright: ignore
        workers.collected()
        assert policy.is_random and policy.rate == 0.5
        learner._explore(10)
        workers.push()
        workers.collected()
        assert policy.is_random is False and policy.rate == end


def test_a_rate_that_begins_as_a_whole_number_falls_in_workers_too(unchecked):
    config = QLearning(exploration=Exploration(start=1, end=0, steps=10))
    learner = config.learner(World().team, torch.Generator().manual_seed(0))
    with Workers(world_lane, Role.of(learner), lanes=1, hosting=hosted(0)) as workers:
        learner.policy.rate = config.exploration.rate(10)
        workers.push()
        workers.collected()
        assert workers._crew._policy.rate == 0  # pyright: ignore


def test_a_push_brings_parameters_buffers_and_rates(unchecked):
    scale = Scale(3).eval()
    with Workers(world_lane, Role.of_policy(scale, 2), lanes=1, hosting=hosted(1)) as workers:
        with torch.no_grad():
            scale.weight.fill_(2)
            scale.statistic.fill_(4)
        scale.rate = 0.25
        assert (workers.collected()["mean"] == 0).all()
        assert workers.push() == 2
        window = workers.collected()
    assert (window["mean"] == 3.25).all() and (window["version"] == 2).all()


# -------------------------------------------------------------------------------------------------------------- faults
class Breaks(BatchedEnv):
    """Raises at its fourth step."""

    def __init__(self, number: int) -> None:
        super().__init__(World(), 2)
        self.left = number

    def step(self, action: Tensor):
        self.left -= 1
        if self.left == 0:
            raise ZeroDivisionError("the fourth step")
        if self.left < -5:
            time.sleep(60)
        return super().step(action)


@pytest.mark.parametrize("count", [1, 2])
def test_what_goes_wrong_in_a_worker_is_raised_here(count, unchecked):
    policy = Policy(World().team, GRU, "shared", torch.Generator().manual_seed(0))
    with Workers(partial(Breaks, 4), Role.of_policy(policy, 3), lanes=2, hosting=hosted(count)) as workers:
        workers.collected()
        began = time.monotonic()
        with pytest.raises(EnvError, match=r"(?s)ZeroDivisionError: the fourth step.*Traceback.*in step"):
            workers.collected()
        assert time.monotonic() - began < 20, "before the timeout"
        assert descendants(os.getpid()) == set()
        with pytest.raises(EnvError, match="closed"):
            workers.begin()


def test_a_worker_that_hangs_is_killed(unchecked):
    policy = Policy(World().team, GRU, "shared", torch.Generator().manual_seed(0))
    with (
        Workers(partial(Breaks, -1), Role.of_policy(policy, 9), lanes=1, hosting=hosted(1, timeout=8)) as workers,
        pytest.raises(EnvError, match="acting: no answer for 8 s"),
    ):
        workers.collected()


def test_what_cannot_be_is_refused(unchecked):
    policy = Policy(World().team, GRU, "shared", torch.Generator().manual_seed(0))
    role = Role.of_policy(policy, 3)
    with pytest.raises(ConfigError, match="0 lanes"):
        Workers(world_lane, role, lanes=0)
    with Workers(world_lane, role, lanes=1, hosting=hosted(0)) as workers:
        workers.begin()
        with pytest.raises(EnvError, match="collected"):
            workers.begin()
        assert isinstance(workers.collected(), Workspace)
