"""What befalls worker processes is told in time, by name, and leaves nothing behind."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch

from martes.data import VectorEnv
from martes.envs.process import Hosting, process_env
from martes.envs.single import HostedEnv
from martes.errors import EnvError
from tests.envs.contract import played
from tests.envs.leftovers import blocks, descendants, left, nothing_left, soon
from tests.envs.singles import Faulty, Ramble, seed_of_copy

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ROOT = Path(__file__).parents[2]
QUICK = Hosting(workers=3, timeout=30, start_method="forkserver")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


# --------------------------------------------------------------------------------------------------------------- faults
HANGS = 3
"""Seconds after which who does not answer counts as hanging; more than a step takes where a core is not at hand."""


def faulty(fault: str, copy: int = 5, copies: int = 7, at: int = 3, timeout: float = 30) -> HostedEnv:
    make = partial(Faulty, fault, seed_of_copy(copy, copies), at)
    return process_env(make, copies, hosting=Hosting(3, timeout, "forkserver"))


SOON = 20
"""Seconds: a busy machine has time enough, and it is less than the timeout of those that do not test it."""


def fails(env: VectorEnv, after: float = 0) -> str:
    """The text of the error that it raises, timed; from then on it says that it is closed, and why."""
    began = time.monotonic()
    with pytest.raises(EnvError) as found:
        played(env, 0, 10)
    assert after <= time.monotonic() - began < after + SOON
    assert descendants(os.getpid()) == set()
    with pytest.raises(EnvError, match="closed") as closed:
        env.step(torch.zeros(7, 3, dtype=torch.int64))
    assert str(found.value).partition("\n")[0] in str(closed.value)
    with pytest.raises(EnvError, match="closed"):
        env.reset(0)
    with pytest.raises(EnvError, match="closed"):
        env.render()
    env.close()
    return str(found.value)


@pytest.mark.parametrize("at", [0, 3])
def test_what_an_environment_raises_comes_with_its_traceback(at):
    text = fails(faulty("raises", at=at))
    where = "step 3 of its episode" if at else "the start of an episode"
    assert text.startswith(f"environment copy 5, {where}: ZeroDivisionError: division by zero")
    assert "Traceback" in text
    assert "1 / 0" in text


def test_an_environment_cannot_end_its_worker_unseen():
    assert "copy 5, step 3 of its episode: SystemExit: 3" in fails(faulty("exits"))
    text = fails(faulty("leaves"))
    assert "ended with exit code 7" in text
    assert "copies 4 to 6" in text


def test_a_killed_worker_is_named():
    text = fails(faulty("is killed"))
    for part in ("worker 3 of 3", "copies 4 to 6", "step 3", "SIGKILL", "memory"):
        assert part in text


def test_a_crash_tells_its_line():
    text = fails(faulty("crashes", copy=0))
    for part in ("copies 0 to 1", "SIGSEGV", "in _act_up"):
        assert part in text


@pytest.mark.parametrize("fault", ["sleeps", "spins"])
def test_a_hanging_worker_is_named_and_killed(fault):
    text = fails(faulty(fault, timeout=HANGS), after=HANGS)
    for part in ("worker 3 of 3", "copies 4 to 6", "step 3", f"{HANGS} s", "env.timeout", "in _act_up"):
        assert part in text


def test_a_worker_that_dies_between_steps_is_named():
    with closing(faulty("raises", at=99)) as env:
        env.reset(0)
        os.kill(env._crew._force.workers[1].pid, signal.SIGTERM)
        time.sleep(0.2)
        with pytest.raises(EnvError, match=r"worker 2 of 3 \(environment copies 2 to 3\), step 1.*SIGTERM"):
            env.step(torch.zeros(7, 3, dtype=torch.int64))


def test_a_stopped_worker_counts_as_hanging():
    with closing(faulty("raises", at=99, timeout=HANGS)) as env:
        env.reset(0)
        os.kill(env._crew._force.workers[0].pid, signal.SIGSTOP)
        with pytest.raises(EnvError, match=r"worker 1 of 3.*no answer"):
            env.step(torch.zeros(7, 3, dtype=torch.int64))


def test_what_environments_start_is_killed_with_them():
    class Hydra(Faulty):
        def _act_up(self) -> None:
            if self._is_due and self._elapsed == 3:
                subprocess.run(["sleep", "1000"], check=True)

    seed = seed_of_copy(1, 7)
    fails(process_env(lambda: Hydra("raises", seed), 7, hosting=Hosting(2, HANGS, "forkserver")), after=HANGS)


def test_no_picture_is_no_reason_to_stop():
    with closing(faulty("raises", at=99)) as env:
        env.reset(0)
        with pytest.raises(EnvError, match=r"environment copy 6.*it draws nothing"):
            env.render(6)
        with pytest.raises(EnvError, match="no copy 7"):
            env.render(7)
        env.step(torch.zeros(7, 3, dtype=torch.int64))


def test_an_interrupted_step_closes(tmp_path):
    class Sleeper(Faulty):
        def _act_up(self) -> None:
            if self._is_due and self._elapsed == 3:
                (tmp_path / "asleep").touch()
            super()._act_up()

    def interrupt() -> None:
        soon((tmp_path / "asleep").exists, within=SOON)
        time.sleep(0.2)  # by now this process waits for the answer
        signal.raise_signal(signal.SIGINT)

    seed = seed_of_copy(5, 7)
    env = process_env(lambda: Sleeper("sleeps", seed), 7, hosting=QUICK)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        played(env, 0, 10)
    thread.join()
    with pytest.raises(EnvError, match="KeyboardInterrupt"):
        env.reset(0)


# -------------------------------------------------------------------------------------------------------------- closing
def test_close_frees_all_and_may_be_called_twice():
    def opened() -> int:
        gc.collect()  # else what tests before this one left might be closed amid the count
        env = process_env(Ramble, 4, hosting=QUICK)
        env.reset(0)
        env.close()
        env.close()
        assert blocks() == 0
        return len(os.listdir("/proc/self/fd"))

    assert opened() == opened()


def test_what_is_forgotten_is_closed():
    env = process_env(Ramble, 4, hosting=QUICK)
    env.reset(0)
    assert len(descendants(os.getpid())) == 3
    del env
    assert descendants(os.getpid()) == set()


SCRIPT = """
import os, sys, time
import torch
from martes.envs.process import Hosting, process_env
from tests.envs.leftovers import blocks, descendants, left, nothing_left, soon
from tests.envs.singles import Ramble, Faulty, seed_of_copy
from tests.envs.leftovers import descendants

class Mine(Faulty):
    pass

fault, method, rest = sys.argv[1:]
env = process_env(lambda: Mine(fault, seed_of_copy(0, 4)), 4, hosting=Hosting(2, 60, method))
env.reset(0)
print(*descendants(os.getpid()), flush=True)
for _ in range({"ends": 1, "raises": 1}.get(rest, 10**9)):
    env.step(torch.zeros(4, 3, dtype=torch.int64))
if rest == "raises":
    1 / 0
"""


def script(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    """A user's script, without any `if __name__`, that has made an environment and forgets to close it."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(path), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environ, text=True, start_new_session=True, cwd=tmp_path, **pipes)


@pytest.mark.parametrize(("method", "rest"), [("spawn", "raises"), ("fork", "ends")])
def test_the_end_of_the_interpreter_closes(tmp_path, method, rest):
    with script(tmp_path, "is killed", method, rest) as running:
        out, err = running.communicate(timeout=60)
    workers = {int(pid) for pid in out.split()}
    assert len(workers) == 2
    assert not left(workers)
    assert running.returncode == (rest == "raises"), err
    assert err.count("Traceback") == (rest == "raises"), err


@pytest.mark.parametrize(("method", "fault"), [("spawn", "spins"), ("fork", "sleeps")])
def test_workers_die_with_their_parent(tmp_path, method, fault):
    at_dev_shm = set(os.listdir("/dev/shm"))
    with script(tmp_path, fault, method, "goes on") as running:
        workers = {int(pid) for pid in running.stdout.readline().split()}
        assert len(workers) == 2
        time.sleep(0.3)
        running.kill()
        running.communicate(timeout=60)
    assert soon(lambda: not left(workers), within=SOON), "a worker outlives its parent"
    assert soon(lambda: set(os.listdir("/dev/shm")) <= at_dev_shm)


def test_interrupted_workers_leave_the_talking_to_their_parent(tmp_path):
    with script(tmp_path, "sleeps", "spawn", "goes on") as running:
        workers = {int(pid) for pid in running.stdout.readline().split()}
        for pid in workers:
            os.kill(pid, signal.SIGINT)
        time.sleep(0.3)
        assert len(left(workers)) == 2
        os.killpg(running.pid, signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert err.count("Traceback") == 1, err
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert not left(workers)


def test_interrupted_as_workers_start(tmp_path):
    with script(tmp_path, "sleeps", "spawn", "goes on") as running:
        assert soon(lambda: len(descendants(running.pid)) == 2, within=100)  # it imports torch before
        for pid in (*descendants(running.pid), running.pid):
            os.kill(pid, signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert err.count("Traceback") == 1, err
    assert soon(lambda: not descendants(running.pid), within=SOON)
