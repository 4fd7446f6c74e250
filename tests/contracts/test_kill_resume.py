"""A run killed at any moment and resumed gives, bit for bit, the parameters and rows of one never killed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from martes.training import checkpoint
from martes.training.packing import Packing

ROOT = Path(__file__).parents[2]

WHOLE = """
import sys
from pathlib import Path
from time import perf_counter
import torch, torch._dynamo
torch.set_num_threads(1)
from tests.training.walks import a_run, trained

began = perf_counter()
trained(a_run(sys.argv[1], steps=480), Path(sys.argv[2]))
print(perf_counter() - began)
"""

# One interpreter lives many lives: each is a process of its own, killed by SIGKILL, but needs no import of torch, nor
# of what an optimiser imports when it is first used: its seconds are seconds of training.
# A life ends after so many seconds, or amid its n-th operation on files of the run (inside a save, or anywhere).
KILLED = """
import json, os, signal, sys, time
from pathlib import Path
import torch, torch._dynamo
torch.set_num_threads(1)
from tests.training.walks import a_run, trained

memory, path, moments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
left = None

def counted(event, arguments):
    global left
    if left is not None and event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
        if str(arguments[0]).startswith(str(place)):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(counted)
lives = []
for kind, moment in moments:
    life = os.fork()
    if life == 0:
        place = Path(path, "checkpoints") if kind == "save" else Path(path)
        left = None if kind == "time" else moment
        trained(a_run(memory, steps=480), Path(path))
        os._exit(0)
    if kind == "time":
        time.sleep(moment)
        os.kill(life, signal.SIGKILL)
    status = os.waitpid(life, 0)[1]
    assert status in (0, signal.SIGKILL), status
    folder = Path(path, "checkpoints")
    there = [each.name for each in folder.iterdir()] if folder.exists() else []
    lives.append([kind, status, [name for name in there if name.startswith(".")], max(there, default="")])
print(json.dumps(lives))
"""


def run(script: str, *words: str, hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def moments(number: int, whole: float) -> list[tuple[str, float]]:
    """When lives end: amid early and late operations of saving, amid any operation on files, and by the clock.

    The clock leaves each at most a tenth of the seconds of a whole run: a fast machine is not to be done before.
    """
    draw = random.Random(number)
    saves = [("save", draw.randrange(3, 25)) for _ in range(5)]
    files = [("file", draw.randrange(0, 60)) for _ in range(4)]
    times = [("time", min(draw.uniform(0.05, 0.3), whole / 10)) for _ in range(4)]
    mixed: list[tuple[str, float]] = [*saves, *files, *times]
    draw.shuffle(mixed)
    return [*mixed, ("file", 10**9)]


def rows(path: Path) -> list[dict[str, object]]:
    read = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if not name.startswith(("time", "speed/"))} for row in read]


def bits(path: Path) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    """Every tensor of the last checkpoint."""
    newest = checkpoint.newest(path / "checkpoints")
    assert newest is not None
    packing = Packing()
    packing.packed(checkpoint.load(newest))
    return {name: (each.dtype, each.shape, each.numpy().tobytes()) for name, each in packing.tensors.items()}


@pytest.mark.parametrize(("memory", "number"), [("none", 1), ("gru", 2)])
def test_killed_and_resumed_is_never_killed(tmp_path, memory, number):
    seconds = float(run(WHOLE, memory, str(tmp_path / "whole"), hash_seed="1"))
    ends = json.dumps(moments(number, seconds))
    lives = json.loads(run(KILLED, memory, str(tmp_path / "killed"), ends, hash_seed="2"))

    killed = [life for life in lives if life[1] != 0]
    assert len(killed) >= 8, lives
    assert sum(bool(drafts) for _, _, drafts, _ in killed) >= 2, "no life ended amid a save"
    assert len({newest for *_, newest in killed}) >= 3, "the lives made no way between two kills"
    assert lives[-1][1] == 0

    whole, resumed = bits(tmp_path / "whole"), bits(tmp_path / "killed")
    assert len(whole) > 20
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if whole[name] != resumed[name]] == []
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    table = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("whole", "killed")]
    assert len(table[0]) == len(table[1]) == len(rows(tmp_path / "whole")) + 1
