"""A replay in a folder: it outlives its process, whenever that is killed, and says what is wrong with its files."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from martes.data import Field
from martes.data.replay import Folder, Replay
from martes.errors import DataError
from tests.data.histories import SCHEMA, History
from tests.data.test_replay import assert_replay, tell

ROOT = Path(__file__).parents[2]
CUTS = [[False, False], [True, False], [False, True]]


def replay_in(folder: Path, copied: bool = True, rows: int = 20) -> Replay:
    return Replay(SCHEMA, columns=2, capacity=2 * rows, folder=Folder(folder, copied))


def copied(state: dict[str, object]) -> dict[str, object]:
    return {name: part.clone() if isinstance(part, torch.Tensor) else part for name, part in state.items()}


def test_what_lies_in_a_folder_is_there_when_it_is_opened_again(tmp_path):
    history, replay = History(2), replay_in(tmp_path / "a" / "b")
    for _ in range(9):
        tell(history, [replay], CUTS)
        assert_replay(history, replay_in(tmp_path / "a" / "b"), 3, 2)
    del replay
    again = replay_in(tmp_path / "a" / "b")
    tell(history, [again], CUTS)
    assert_replay(history, again, 3, 2)


@pytest.mark.parametrize("windows", [3, 5, 20])
def test_a_state_with_a_copy_of_the_rows_loses_nothing(tmp_path, windows):
    history, replay = History(2), replay_in(tmp_path)
    for _ in range(windows):
        tell(history, [replay], CUTS)
    state = copied(replay.state_dict())
    for _ in range(7):
        replay.add(*History(2).window([[True, True]]))  # what a killed run did after it was saved
    again = replay_in(tmp_path)
    again.load_state_dict(state)
    assert_replay(history, again, 3, 2)


def test_a_state_without_the_rows_is_small_and_finds_those_that_were_not_written_over(tmp_path):
    history, replay = History(2), replay_in(tmp_path / "live", copied=False)
    for _ in range(2):
        tell(history, [replay], CUTS)
    state, future = copied(replay.state_dict()), deepcopy(history)
    assert sum(part.nbytes for part in state.values() if isinstance(part, torch.Tensor)) < 100
    for lost in (0, 0, 1, 5):  # of each ring of 20 rows, of which a window takes four
        tell(future, [replay], CUTS)
        shutil.copytree(tmp_path / "live", tmp_path / "left", dirs_exist_ok=True)  # a kill leaves this
        again = replay_in(tmp_path / "left", copied=False)
        again.load_state_dict(state)
        known = {
            column * 20 + index: row.seen
            for column in range(2)
            for index, row in enumerate(history.rows[column])
            if row.is_step and index >= lost
        }
        places = again.streams.lengths.ge(0).nonzero().squeeze(1)
        assert dict(zip(places.tolist(), again.sequences(places)["obs"][0, :, 0, 0].tolist(), strict=True)) == known
        if lost == 0:
            assert_replay(history, again, 3, 2)


KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.data.histories import History
from tests.data.test_allocation import CUTS, replay_in

replay, history = replay_in(Path(sys.argv[1]), rows=50), History(2)
for number in range(100_000):
    window, final = history.window(CUTS)
    replay.add(window, final)
    if number % 10 == 0:
        print(number, flush=True)
"""


@pytest.mark.parametrize("windows", [1, 60])
def test_a_process_killed_at_any_moment_leaves_whole_rows_in_order(tmp_path, windows):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        done = 0
        while done < windows:
            done = int(process.stdout.readline())
        time.sleep(random.random() / 50)
        process.send_signal(signal.SIGKILL)
        done = int((process.stdout.read().split() or [done])[-1])
    replay, history = replay_in(tmp_path, rows=50), History(2)
    while history.rows[0][-1:] == [] or len(history.rows[0]) < int(replay.streams.end[0]) - 1:
        history.window(CUTS)
    assert len(history.rows[0]) >= 4 * done
    # The oldest rows may have been about to be written over; whatever is held is what was written.
    steps = replay.streams.lengths.ge(0).nonzero().squeeze(1)
    assert len(steps) >= min(2 * 3 * (done + 1), 2 * (50 - 2 * 5) * 3 // 4) - 6
    known = {
        history.place(column, 50, index): row.seen
        for column in range(2)
        for index, row in enumerate(history.kept(column, 50))
        if row.is_step
    }
    batch = replay.sequences(steps)
    assert batch["obs"][0, :, 0, 0].tolist() == [known[place] for place in steps.tolist()]


# --------------------------------------------------------------------------------------------------------- bad files
def test_another_schema_capacity_or_number_of_environments_is_named(tmp_path):
    replay_in(tmp_path)
    with pytest.raises(DataError, match=r"another one than asked for: rows of each 20 in place of 30"):
        replay_in(tmp_path, rows=30)
    with pytest.raises(DataError, match=r"field bonus None in place of 'torch.float32 \[2\] time env agent"):
        Replay(SCHEMA.extended(bonus=Field()), columns=2, capacity=40, folder=Folder(tmp_path))
    with pytest.raises(DataError, match=r"the saved replay is another one .* rows of each 20 in place of 30"):
        Replay(SCHEMA, columns=2, capacity=60).load_state_dict(replay_in(tmp_path).state_dict())


def test_a_damaged_folder_is_named(tmp_path):
    replay_in(tmp_path)
    file = tmp_path / "rows%2Fobs.bin"
    os.truncate(file, 100)
    with pytest.raises(DataError, match=r"rows%2Fobs.bin has 100 bytes in place of 640"):
        replay_in(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"rows%2Fobs.bin has 0 bytes"):
        replay_in(tmp_path)
    (tmp_path / "replay.json").write_text("{")
    with pytest.raises(DataError, match=r"replay.json is damaged"):
        replay_in(tmp_path)
    (tmp_path / "replay.json").write_text(json.dumps({"identity": 1, "form": []}))
    with pytest.raises(DataError, match=r"another one"):
        replay_in(tmp_path)


def test_a_state_without_rows_needs_its_own_folder(tmp_path):
    replay = replay_in(tmp_path / "one", copied=False)
    tell(History(2), [replay], CUTS)
    state = replay.state_dict()
    with pytest.raises(DataError, match="this one has no folder"):
        Replay(SCHEMA, columns=2, capacity=40).load_state_dict(state)
    with pytest.raises(DataError, match="two, which is another or an older one"):
        replay_in(tmp_path / "two", copied=False).load_state_dict(state)
    with pytest.raises(DataError, match="cannot lie on meta"):
        Replay(SCHEMA, columns=2, capacity=40, folder=Folder(tmp_path), device="meta")


FULL = """
import os, resource, sys
from pathlib import Path
from martes.errors import DataError
from tests.data.test_allocation import replay_in
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    replay_in(Path(sys.argv[1]), rows=200)
except DataError as error:
    print(error)
print(os.listdir(sys.argv[1]))
"""


def test_a_disk_without_room_is_one_clear_error_and_leaves_nothing(tmp_path):
    run = subprocess.run([sys.executable, "-c", FULL, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    told, left = run.stdout.splitlines()
    assert told.startswith("cannot keep a replay of ")
    assert told.endswith(
        f"bytes in {tmp_path}: File too large. Make room, keep fewer rows, or name a folder that can be written to"
    )
    assert left == "[]"
