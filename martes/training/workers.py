"""Acting in worker processes: policy and environments together, into shared memory, while the learner does its part."""

import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from martes.data import Field, Fields, Schema, TeamSpec, VectorEnv, Workspace
from martes.data.trees import mapped
from martes.envs import worker
from martes.envs.process import Hosting, cores
from martes.envs.worker import ALIVE, DONE, Answer
from martes.envs.workforce import Workforce, shares
from martes.errors import ConfigError, EnvError
from martes.networks import TemporalModule
from martes.training.collect import Actor, Collector
from martes.training.seeding import generator_of, seed_of
from martes.training.weights import Allocate, SharedWeights

MakeLane = Callable[[], VectorEnv]
"""Makes the environments of one lane; sent to processes by value where a user's script defines it."""
BUFFERS = 2
"""Windows in memory: one is being written while the other is learned from."""
VERSION = Field((), torch.int64, "time env", doc="which weights chose the action", writer="the workers")


@dataclass(frozen=True)
class Asked:
    """What is asked of collected windows."""

    steps: int
    keeps_final: bool = False


@dataclass(frozen=True)
class Role:
    """What workers must know to act: a policy, what it and a learner write, how long a window is."""

    policy: TemporalModule
    fields: Mapping[str, Field]
    experience: Asked

    @classmethod
    def of(cls, learner: Actor) -> "Role":
        """The role of who acts for a learner."""
        asked = Asked(learner.experience.steps, learner.experience.keeps_final)
        return cls(learner.policy, learner.fields, asked)

    @classmethod
    def of_policy(cls, policy: TemporalModule, steps: int) -> "Role":
        """The role of who acts for its own sake, in windows of `steps` steps."""
        return cls(policy, policy.fields(), Asked(steps))


class Part(NamedTuple):
    """What a lane's window comes with."""

    final: Fields | None
    finished: dict[str, Tensor]


class Lane:
    """Some environments and who acts in them, from random streams of their own: alike in whichever process."""

    def __init__(self, make: MakeLane, role: Role, seed: int, index: int) -> None:
        self.env = make()
        self.collector = Collector(self.env, role, generator_of(seed, "acting", index))
        self.collector.start(seed_of(seed, "environment", index))

    def collect(self, into: Workspace, version: int) -> Part:
        """Writes the next window `into` these environments' columns, and the memory before it where theirs lies."""
        collector, before = self.collector, into.memory
        for name, field in into.schema.items():
            if field.extra_row:
                into[name][into.time].copy_(collector.window[name][into.time])
        collector.window = into
        window = collector.collect()
        window["version"].fill_(version)
        window.memory = mapped(Tensor.copy_, before, window.memory)  # in place: to pickle it took most of a short call
        return Part(collector.final, collector.episodes.taken())


class Workers:
    """`lanes` of environments, each with the policy beside it, in worker processes: they act while you learn.

    `begin` tells all to act and goes on at once; `collected` is the window when it is done. It is lent until the second
    `begin` after it. `push` publishes the policy's weights: each window is acted, by all, by the version that was the
    newest when it was begun; its field `version` tells which. A lane has random streams of its own, so the record
    depends on `lanes` and `seed`, and not on how many processes there are (0: this one). What goes wrong in a worker is
    raised here with its traceback, and ends all. Leaving the context ends them, too.
    """

    def __init__(self, make: MakeLane, role: Role, *, lanes: int, seed: int = 0, hosting: Hosting | None = None):
        hosting = hosting or Hosting(workers="auto")
        if lanes < 1:
            raise ConfigError(f"{lanes} lanes: there must be one at least")
        self.role = Role(role.policy, {**role.fields, "version": VERSION}, role.experience)
        self.final: Fields | None = None
        """The real last observations of the episodes cut in the last window, where they are wanted."""
        self.finished: dict[str, Tensor] = {}
        """What the episodes came to that ended in the last window: name -> one entry an episode."""
        self._current, self._is_acting = 0, False
        count = min(lanes, cores() if hosting.workers == "auto" else hosting.workers)
        self._crew: _Processes | _Here
        if count:
            self._crew = _Processes(make, self.role, shares(lanes, count), seed, hosting)
        else:
            self._crew = _Here(make, self.role, lanes, seed)
        self._memories = [window.memory for window in self._crew.windows]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    @property
    def team(self) -> TeamSpec:
        """The facts of the task."""
        return self._crew.team

    @property
    def version(self) -> int:
        """The newest version of the weights."""
        return self._crew.weights.version

    def push(self) -> int:
        """Publishes the policy's weights as they are now; the number of this version."""
        return self._crew.weights.publish(self.role.policy)

    def eval(self) -> None:
        """Lets every worker's policy evaluate (no dropout) from its next window on."""
        self._crew.weights.set_mode(False)

    def train(self) -> None:
        """Lets every worker's policy train from its next window on."""
        self._crew.weights.set_mode(True)

    def begin(self) -> None:
        """Tells all to act one window, and goes on at once. Raises EnvError where they are acting already."""
        if self._is_acting:
            raise EnvError("these workers are acting: take what they have collected() before they begin() again")
        self._current = (self._current + 1) % BUFFERS
        self._crew.weights.lend()  # nobody acts now, so nobody is still to load what was lent before
        self._crew.begin(self._current)
        self._is_acting = True

    def is_done(self) -> bool:
        """Is the window that was begun complete? Nobody is waited for."""
        return self._is_acting and self._crew.is_done()

    def collected(self) -> Workspace:
        """The window that was begun, of all lanes side by side; waits for it. Begins one if none was begun."""
        if not self._is_acting:
            self.begin()
        self._is_acting = False
        parts = self._crew.parts()
        window = self._crew.windows[self._current]
        window.memory = self._memories[self._current]
        self.finished = _joined([part.finished for part in parts])
        self.final = _in_order(window, parts) if self.role.experience.keeps_final else None
        return window

    def close(self) -> None:
        """Ends the workers and closes their environments."""
        self._crew.close()


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}


def _in_order(window: Workspace, parts: list[Part]) -> Fields | None:
    """The last observations of all lanes, in the order of the whole window's cuts: by step, then environment."""
    told = [part.final for part in parts if part.final is not None]
    if not told:
        return None
    cuts = window["cut"]
    envs = window.envs // len(parts)
    places = torch.cat(
        [lane.nonzero() + torch.tensor([0, index * envs]) for index, lane in enumerate(cuts.split(envs, dim=1))]
    )
    order = (places[:, 0] * window.envs + places[:, 1]).argsort()
    return {name: torch.cat([each[name] for each in told])[order] for name in told[0]}


def _windows(role: Role, team: TeamSpec, envs: int, allocate: Allocate) -> list[Workspace]:
    """Workspaces whose tensors lie where `allocate` puts them, and so does the memory before each."""
    schema, steps = Schema.from_team(team).extended(**role.fields), role.experience.steps
    memory = role.policy.initial_memory(envs)

    def tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(allocate(shape, torch.empty(0, dtype=dtype).numpy().dtype))

    def window() -> Workspace:
        tensors = {name: tensor(schema.shape(name, steps, envs), field.dtype) for name, field in schema.items()}
        for name, field in schema.items():
            tensors[name].fill_(field.fill)
        made = Workspace.of(schema, tensors, tensor((steps, envs), torch.bool))
        made.memory = mapped(lambda leaf: tensor(tuple(leaf.shape), leaf.dtype), memory)
        return made

    return [window() for _ in range(BUFFERS)]


def _of_lanes(window: Workspace, lanes: Iterable[int], envs: int) -> list[Workspace]:
    """The columns of each of these lanes, with their part of the memory."""
    found: list[Workspace] = []
    for first in (lane * envs for lane in lanes):
        found.append(window.columns(first, first + envs))
        found[-1].memory = mapped(lambda leaf, at=slice(first, first + envs): leaf[at], window.memory)
    return found


class _Here:
    """All lanes in this process."""

    def __init__(self, make: MakeLane, role: Role, lanes: int, seed: int) -> None:
        own = Role(deepcopy(role.policy).cpu(), role.fields, role.experience)
        self._policy = own.policy
        self._lanes = [Lane(make, own, seed, index) for index in range(lanes)]
        self.team = self._lanes[0].env.team
        self.weights = SharedWeights(role.policy, np.zeros)
        self.weights.publish(role.policy)
        envs = self._lanes[0].env.num_envs
        self.windows = _windows(role, self.team, lanes * envs, np.zeros)
        self._columns = [_of_lanes(window, range(lanes), envs) for window in self.windows]
        self._parts: list[Part] = []

    def begin(self, buffer: int) -> None:
        version = self.weights.load(self._policy)
        columns = self._columns[buffer]
        self._parts = [lane.collect(into, version) for lane, into in zip(self._lanes, columns, strict=True)]

    def is_done(self) -> bool:
        return True

    def parts(self) -> list[Part]:
        return self._parts

    def close(self) -> None:
        for lane in self._lanes:
            lane.env.close()
        self._lanes = []


class _Processes:
    """The lanes in the pool's worker processes; windows and weights in memory that all see."""

    def __init__(self, make: MakeLane, role: Role, slices: list[range], seed: int, hosting: Hosting) -> None:
        own = Role(deepcopy(role.policy).cpu(), role.fields, role.experience)
        told = (make, own, seed, slices[-1].stop)
        carried = told if hosting.start_method == "fork" else worker.pickled(told)
        calling = partial(acting, told=carried)
        force = Workforce(calling, slices, "making its environments", hosting.timeout, hosting.start_method)
        with force:
            answers = [pickle.loads(answer[1:]) for answer in force.answers().values()]
            self.team, envs = answers[0]
            handles: list[int] = []
            try:
                self.weights = SharedWeights(role.policy, worker.shared(handles))
                self.weights.publish(role.policy)
                self.windows = _windows(role, self.team, slices[-1].stop * envs, worker.shared(handles))
                force.share(None, handles)
            finally:
                for handle in handles:
                    os.close(handle)
        self._force = force

    def begin(self, buffer: int) -> None:
        self._force.order(dict.fromkeys(self._force.workers, bytes([buffer])), "acting")

    def is_done(self) -> bool:
        return self._force.is_done()

    def parts(self) -> list[Part]:
        answers = self._force.answers()
        told = [answers[each][1:] for each in self._force.workers]
        return [
            part
            for each, answer in zip(self._force.workers, told, strict=True)
            for part in (pickle.loads(answer) if answer else [Part(None, {})] * len(each.copies))
        ]

    def close(self) -> None:
        self._force.close()


def acting(
    pipe: Connection, copies: range, closing: ExitStack, told: bytes | tuple[MakeLane, Role, int, int]
) -> Answer:
    """The calling of who acts in some lanes, with the lent weights, into its columns of the parent's windows."""
    make, role, seed, total = pickle.loads(told) if isinstance(told, bytes) else told
    lanes: list[Lane] = []
    for index in copies:
        lanes.append(Lane(make, role, seed, index))
        closing.callback(lanes[-1].env.close)
        pipe.send_bytes(ALIVE)
    envs = lanes[0].env.num_envs
    pipe.send_bytes(DONE + pickle.dumps((lanes[0].env.team, envs)))
    pipe.recv()
    allocate = worker.received(pipe)
    weights = SharedWeights(role.policy, allocate)
    windows = _windows(role, lanes[0].env.team, total * envs, allocate)
    columns = [_of_lanes(window, copies, envs) for window in windows]
    pipe.send_bytes(DONE)

    def answer(order: bytes) -> bytes:
        version = weights.load(role.policy)
        parts = [lane.collect(into, version) for lane, into in zip(lanes, columns[order[0]], strict=True)]
        is_told = any(part.final is not None or part.finished for part in parts)
        return DONE + (pickle.dumps(parts) if is_told else b"")

    return answer
