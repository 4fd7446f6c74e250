"""Copies in worker processes: what they give is what a loop gives, and whatever befalls them leaves nothing behind."""

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from multiprocessing import current_process
from pathlib import Path

import numpy as np
import pytest
import torch

from martes.envs import process
from martes.envs.adapters.pettingzoo import pettingzoo
from martes.envs.pace import drawn_actions, medians
from martes.envs.process import Hosting, hosted_env, process_env
from martes.envs.single import HostedEnv, Maker, is_recording, save_replay, serial_env
from martes.errors import ConfigError, EnvError, MissingExtra
from tests.envs.contract import Promise, assert_same, check, played
from tests.envs.leftovers import descendants, nothing_left
from tests.envs.singles import TASKS, Ramble, Slow

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
QUICK = Hosting(workers=3, timeout=30, start_method="forkserver")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


def assert_as_serial(make: Maker, copies: int, hosting: Hosting, steps: int = 200, limit: int | None = None) -> None:
    ours, theirs = process_env(make, copies, limit=limit, hosting=hosting), serial_env(make, copies, limit=limit)
    with closing(ours), closing(theirs):
        assert ours.team == theirs.team
        for t, (one, other) in enumerate(zip(played(ours, 5, steps), played(theirs, 5, steps), strict=True)):
            assert_same(one, other, f"at step {t}")
            assert one.stats.keys() == other.stats.keys()
            for name, value in one.stats.items():
                assert torch.equal(value.nan_to_num(-7), other.stats[name].nan_to_num(-7))
        np.testing.assert_array_equal(ours.render(copies - 1), theirs.render(copies - 1))


# ------------------------------------------------------------------------------------------------------ equal to serial
@pytest.mark.parametrize("task", TASKS)
def test_processes_give_what_a_loop_gives(task, unchecked):
    assert_as_serial(partial(Ramble, **TASKS[task]), 7, QUICK)


@pytest.mark.parametrize(("copies", "workers"), [(1, 1), (1, 3), (2, 3), (5, 2)])
def test_any_split_of_the_copies_is_the_same_environment(copies, workers):
    assert_as_serial(partial(Ramble, stats=True), copies, Hosting(workers, start_method="forkserver"), steps=40)


def test_limit_cuts_in_workers_too():
    assert_as_serial(Ramble, 4, QUICK, steps=30, limit=3)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_every_start_method(method):
    extra = 0.25  # what a function holds travels with it
    assert_as_serial(lambda: Ramble(length=int(40 * extra)), 3, Hosting(2, start_method=method), steps=30)


def test_stats_come_from_all_workers(unchecked):
    with closing(process_env(partial(Ramble, stats=True, length=3), 6, hosting=QUICK)) as env:
        told = [(step.stats["range"], step.cut) for step in played(env, 0, 30) if "range" in step.stats]
        assert {copy for values, _ in told for copy in values.isfinite().nonzero()[:, 0].tolist()} == set(range(6))
        assert all(cut[values.isfinite()].all() for values, cut in told)


class Recorder(Ramble):
    """Strays about, and keeps what each copy did."""

    def __init__(self, folder: str | None) -> None:
        super().__init__()
        self.folder, self.steps = folder, 0

    def step(self, action, row):
        self.steps += 1
        return super().step(action, row)

    def is_recording(self) -> bool:
        return True

    def save_replay(self) -> None:
        if self.folder is None:
            raise EnvError("nothing was recorded")
        Path(self.folder, f"{id(self)}-{os.getpid()}").write_text(f"{self.steps}")


def test_replays_are_saved_by_the_workers_that_have_them(tmp_path, unchecked):
    with closing(process_env(partial(Recorder, str(tmp_path)), 3, hosting=QUICK)) as env:
        step = env.reset(0)
        env.step(drawn_actions(env.team, step, torch.Generator()))
        save_replay(env)
        assert [path.read_text() for path in tmp_path.iterdir()] == ["1"] * 3
    with closing(process_env(partial(Recorder, None), 2, hosting=QUICK)) as env:
        env.reset(0)
        with pytest.raises(EnvError, match=r"environment copy [01].*nothing was recorded"):
            save_replay(env)
        env.reset(1)  # it goes on


def test_workers_tell_whether_all_copies_record(unchecked):
    for make, expected in ((partial(Recorder, None), True), (Ramble, False)):
        with closing(process_env(make, 3, hosting=QUICK)) as env:
            env.reset(0)
            assert is_recording(env) is is_recording(serial_env(make, 3)) is expected


@pytest.mark.parametrize("task", ["dying", "masked", "image"])
def test_contract_of_processes(task, unchecked):
    make = partial(Ramble, **TASKS[task])
    check(Promise(lambda copies, limit: process_env(make, copies, limit=limit, hosting=QUICK), steps=60))


def test_contract_of_spread_in_processes(unchecked):
    make = partial(pettingzoo, "mpe2.simple_spread_v3", max_cycles=25)
    check(Promise(lambda copies, limit: process_env(make, copies, limit=limit, hosting=QUICK), steps=60))
    assert_as_serial(make, 5, QUICK, steps=60)


def test_worker_slices_are_contiguous_and_complete():
    with closing(process_env(Ramble, 7, hosting=QUICK)) as env:
        slices = [each.copies for each in env._crew._force.workers]
    assert [copy for each in slices for copy in each] == list(range(7))
    assert {len(each) for each in slices} == {2, 3}


# --------------------------------------------------------------------------------------------------------------- making
def raising(error: Exception) -> Ramble:
    raise error


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (MissingExtra("rware", "rware"), MissingExtra, "martes.rware."),
        (ConfigError("no task"), ConfigError, "no task"),
        (ValueError("odd"), EnvError, "copy . could not be made: ValueError: odd\n\n.*Traceback"),
    ],
)
def test_errors_of_making_keep_their_class(error, kind, text):
    with pytest.raises(kind, match=f"(?s){text}") as found:
        process_env(partial(raising, error), 4, hosting=QUICK)
    assert found.value.exit_code == kind.exit_code


class OwnError(EnvError):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")  # cannot be unpickled


def test_an_error_that_cannot_travel_is_told():
    with pytest.raises(EnvError, match="1 and 2"):
        process_env(lambda: raising(OwnError(1, 2)), 2, hosting=QUICK)


def test_making_may_take_longer_than_a_step_but_not_for_ever():
    def slow(seconds: float) -> Ramble:
        time.sleep(seconds)
        return Ramble()

    process_env(partial(slow, 0.5), 8, hosting=Hosting(1, 3.5, "forkserver")).close()  # four seconds in all
    began = time.monotonic()
    with pytest.raises(EnvError, match=r"making its environments: no answer for 0\.2 s"):
        process_env(partial(slow, 60), 4, hosting=Hosting(2, 0.2, "forkserver"))
    assert time.monotonic() - began < 30


def test_all_copies_are_of_one_team():
    def either() -> Ramble:
        return Ramble(unequal=current_process().name == "worker 2 of 3")

    with pytest.raises(EnvError, match=r"worker 2 of 3 .*must be of one team"):
        process_env(either, 3, hosting=QUICK)


def test_what_cannot_be_sent_is_refused():
    lock = threading.Lock()

    def locked() -> Ramble:
        with lock:
            return Ramble()

    with pytest.raises(ConfigError, match=r"cannot be sent.*lock.*env\.start_method=fork"):
        process_env(locked, 2, hosting=QUICK)
    process_env(locked, 2, hosting=Hosting(2, start_method="fork")).close()


@pytest.mark.parametrize(
    ("wrong", "text"), [({"workers": -1}, "env.workers is -1"), ({"timeout": 0}, "env.timeout is 0")]
)
def test_impossible_hosting_is_refused(wrong, text):
    with pytest.raises(ConfigError, match=text):
        Hosting(**wrong)


def test_no_copies_are_refused():
    with pytest.raises(EnvError, match="at least one copy"):
        process_env(Ramble, 0, hosting=QUICK)


def alone() -> Ramble:
    """Fails unless its process computes with one thread, hears no Ctrl-C and does not know the tests' script."""
    assert torch.get_num_threads() == 1
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not hasattr(sys.modules["__main__"], "__file__")
    return Ramble()


def test_workers_are_quiet_and_this_process_is_as_before(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    before = dict(os.environ), sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, ())
    process_env(alone, 2, hosting=Hosting(1, start_method="spawn")).close()
    assert before == (dict(os.environ), sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, ()))


# ----------------------------------------------------------------------------------------------------- what is quicker?
@pytest.mark.parametrize(("in_processes", "in_series", "workers"), [(2_000.0, 1_000.0, 3), (1_000.0, 2_000.0, 0)])
def test_auto_takes_what_is_quicker_and_says_so(monkeypatch, in_processes, in_series, workers):
    def timed(*envs: HostedEnv) -> list[float]:
        medians(*envs, seconds=0)  # really: what is timed has been stepped; but which is quicker, is said here
        return [in_processes if isinstance(each._crew, process.Pool) else in_series for each in envs]

    monkeypatch.setattr(process, "cores", lambda: 3)
    monkeypatch.setattr(process, "medians", timed)
    with closing(hosted_env(Ramble, 5, hosting=Hosting("auto", start_method="forkserver"))) as env:
        assert len(descendants(os.getpid())) == workers
        where = "3 worker processes" if workers else "this process"
        assert env.note == f"5 copies in {where}: {in_processes:,.0f} steps/s in processes, {in_series:,.0f} in series"
        with closing(serial_env(Ramble, 5)) as plain:
            assert_same(played(env, 4, 5)[-1], played(plain, 4, 5)[-1], "after it was timed")


def test_auto_asks_nothing_where_nothing_can_be_shared():
    with closing(hosted_env(Slow, 1, hosting=Hosting("auto"))) as env:
        assert "this process" in env.note


def test_hosting_by_number():
    with closing(hosted_env(Ramble, 4)) as env, closing(hosted_env(Ramble, 4, hosting=QUICK)) as other:
        assert_same(env.reset(0), other.reset(0), "wherever")
        assert len(descendants(os.getpid())) == 3
        assert (env.note, other.note) == ("", "")


def test_hosting_travels():
    assert pickle.loads(pickle.dumps(QUICK)) == QUICK
