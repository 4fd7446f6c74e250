"""Copies of a task in worker processes: one board in shared memory, and a byte a step to say that it is time."""

import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8

from martes.data import TeamSpec
from martes.envs import worker
from martes.envs.pace import medians
from martes.envs.single import Board, HostedEnv, Maker, counted, limited, serial_env
from martes.envs.worker import RECORDING, REFUSED, RENDER, RESET, SAVE, STEP, StartMethod
from martes.envs.workforce import Workforce, shares
from martes.errors import ConfigError, EnvError


@dataclass(frozen=True)
class Hosting:
    """Where the copies of a task in plain Python are stepped."""

    workers: int | Literal["auto"] = 0
    """Processes that step them; 0: this one does; auto: one a core if that proves faster here, which takes seconds."""
    timeout: float = 60.0
    """Seconds without an answer after which a worker counts as hanging: it is killed, and the run ends."""
    start_method: StartMethod = "spawn"
    """How workers begin: spawn works everywhere; forkserver and fork are quicker, fork only before threads run."""

    def __post_init__(self) -> None:
        if isinstance(self.workers, int) and self.workers < 0:
            raise ConfigError(f"env.workers is {self.workers}: give a number of processes, 0 for none, or auto")
        if self.workers and sys.platform == "win32":
            raise ConfigError(f"env.workers is {self.workers}: worker processes need Linux or macOS, take 0")
        if not self.timeout > 0:
            raise ConfigError(f"env.timeout is {self.timeout}: give the seconds that a step may take")


DEFAULT = Hosting()


def cores() -> int:
    """Processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """A crew of worker processes, each with a contiguous slice of the copies, on a board in shared memory.

    `hosting.workers` of them (one a core where that is no number), never more than copies. What goes wrong in one of
    them (an error, its death, silence for longer than `hosting.timeout`) is raised here, and closes the pool.
    """

    def __init__(self, make: Maker, copies: int, limit: int | None = None, hosting: Hosting = DEFAULT) -> None:
        counted(copies)
        self.stats: dict[int, Mapping[str, float]] = {}
        self._steps = 0
        count = hosting.workers if isinstance(hosting.workers, int) and hosting.workers else cores()
        carried = make if hosting.start_method == "fork" else worker.pickled(make)
        calling = partial(worker.stepping, make=carried, limit=limit)
        slices = shares(copies, min(copies, count))
        with Workforce(calling, slices, "making its environments", hosting.timeout, hosting.start_method) as force:
            self.team = limited(self._common_team(force), limit)
            handles: list[int] = []
            try:
                self.board = Board(self.team, copies, worker.shared(handles))
                force.share((self.team, copies), handles)  # each fills it, and nobody will do so again
            finally:
                for handle in handles:
                    os.close(handle)
        force.closing.callback(self.board.release)
        self._force = force

    @staticmethod
    def _common_team(force: Workforce) -> TeamSpec:
        """What the workers say that their copies are: this process makes none, and needs not know how."""
        answers = force.answers()
        teams: list[TeamSpec] = [pickle.loads(answers[each][1:]) for each in force.workers]
        for each, team in zip(force.workers, teams, strict=True):
            if team != teams[0]:
                raise EnvError(
                    f"{each} made {team}, but {force.workers[0]} made {teams[0]}: all copies must be of one team"
                )
        return teams[0]

    def reset(self, seeds: Sequence[int]) -> None:
        """Opens an episode in every copy."""
        self.stats, self._steps = {}, 0
        numbers = np.array(seeds, np.int64)
        slices = {each: numbers[each.copies.start : each.copies.stop] for each in self._force.workers}
        self._force.ordered({each: RESET + mine.tobytes() for each, mine in slices.items()}, "opening episodes")

    def step(self) -> None:
        """Steps every copy by its row of `board.action`. Raises EnvError for what goes wrong in a worker."""
        self.stats = {}
        self._steps += 1
        answers = self._force.ordered(dict.fromkeys(self._force.workers, STEP), f"step {self._steps} since the reset")
        for answer in answers.values():
            if len(answer) > 1:
                self.stats |= pickle.loads(answer[1:])

    def render(self, copy: int) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of one copy."""
        orders = {each: RENDER + str(copy).encode() for each in self._force.workers if copy in each.copies}
        (answer,) = self._force.ordered(orders, "drawing a picture").values()
        return pickle.loads(_granted(answer))

    def is_recording(self) -> bool:
        """Does every copy record its own episodes?"""
        answers = self._force.ordered(dict.fromkeys(self._force.workers, RECORDING), "telling what they record")
        return all(pickle.loads(_granted(answer)) for answer in answers.values())

    def save_replay(self) -> None:
        """Saves what each copy recorded."""
        for answer in self._force.ordered(dict.fromkeys(self._force.workers, SAVE), "saving replays").values():
            _granted(answer)

    def close(self) -> None:
        """Ends the workers; those that take more than some seconds to close their copies are killed."""
        self._force.close()


def _granted(answer: bytes) -> bytes:
    """What a worker was asked for, pickled. Raises what it refused with."""
    if answer[:1] == REFUSED:
        raise pickle.loads(answer[1:])
    return answer[1:]


# ------------------------------------------------------------------------------------------------------------- choosing
def hosted_env(
    make: Maker,
    copies: int,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    hosting: Hosting = DEFAULT,
) -> HostedEnv:
    """`copies` of a task where `hosting` wants them: here, in worker processes, or where they are faster."""
    if hosting.workers == "auto":
        return _faster(make, copies, device, limit, hosting)
    if hosting.workers == 0:
        return serial_env(make, copies, device, limit)
    return process_env(make, copies, device, limit, hosting)


def process_env(
    make: Maker, copies: int, device: torch.device | str = "cpu", limit: int | None = None, hosting: Hosting = DEFAULT
) -> HostedEnv:
    """`copies` of a task in worker processes: step for step what `serial_env` gives from the same seed.

    Raises what a worker raises as it makes its copies (MissingExtra, ConfigError, else EnvError), and ConfigError where
    `make` cannot be sent to a process.
    """
    pool = Pool(make, copies, limit, hosting)
    return HostedEnv(pool.team, pool.board, pool, device)


def _faster(make: Maker, copies: int, device: torch.device | str, limit: int | None, hosting: Hosting) -> HostedEnv:
    """Serial or in processes, whichever makes more steps a second now; `note` tells both rates."""
    if min(copies, cores()) == 1:
        env = serial_env(make, copies, device, limit)
        env.note = f"{copies} copies in this process: {cores()} cores leave nothing to share"
        return env
    with ExitStack() as closing:
        processes = process_env(make, copies, device, limit, hosting)  # first: a fork should inherit little
        closing.callback(processes.close)
        serial = serial_env(make, copies, device, limit)
        closing.callback(serial.close)
        in_processes, in_series = medians(processes, serial)
        rates = f"{in_processes:,.0f} steps/s in processes, {in_series:,.0f} in series"
        closing.pop_all()
    if in_processes > in_series:
        serial.close()
        processes.note = f"{copies} copies in {min(copies, cores())} worker processes: {rates}"
        return processes
    processes.close()
    serial.note = f"{copies} copies in this process: {rates}"
    return serial
