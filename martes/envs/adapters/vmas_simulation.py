"""What VMAS lacks: random numbers of an environment's own, and new episodes in some copies at once."""

import inspect
import random
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from types import MethodType
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

States = tuple[Tensor, dict[str, object] | tuple[str, np.ndarray, int, int, float], tuple[object, ...]]
"""Of the generators of torch, NumPy and Python."""


@runtime_checkable
class Simulation(Protocol):
    """What is used of VMAS's environment."""

    agents: Sequence["Named"]
    num_envs: int
    device: torch.device
    max_steps: int | None
    viewer: object

    def get_agent_action_space(self, agent: "Named") -> object: ...
    def get_from_scenario(
        self, get_observations: bool, get_rewards: bool, get_infos: bool, get_dones: bool
    ) -> list[list[object]]: ...
    def step(
        self, actions: list[Tensor]
    ) -> tuple[list[object], list[Tensor], Tensor, Tensor, list[Mapping[str, Tensor]]]: ...
    def reset(self, seed: int | None = None, return_observations: bool = True) -> list[object]: ...
    def reset_at(self, index: int, return_observations: bool = True) -> list[object]: ...
    def render(self, mode: str = "human", env_index: int = 0) -> np.ndarray: ...


@runtime_checkable
class Named(Protocol):
    """An agent of VMAS."""

    name: str


class Chance:
    """The random numbers of one environment.

    VMAS draws from global generators, and lends them a state that all its environments in a process share. Here each
    environment has its own, and the global ones stay where they were, even if a step fails.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Starts anew, as VMAS's own `seed` does."""
        self._states = begun(seed)
        if self._device.type != "cpu":
            self._on_device = torch.Generator(self._device).manual_seed(seed).get_state()

    @contextmanager
    def drawn(self) -> Generator[None]:
        """The global generators are this environment's within."""
        before = torch.get_rng_state(), np.random.get_state(), random.getstate()
        _set(self._states)
        try:
            with self._drawn_on_device():
                yield
        finally:
            self._states = torch.get_rng_state(), np.random.get_state(), random.getstate()
            _set(before)

    @contextmanager
    def _drawn_on_device(self) -> Generator[None]:
        if self._device.type == "cpu":
            yield
            return
        module = torch.get_device_module(self._device)
        before = module.get_rng_state(self._device)
        module.set_rng_state(self._on_device, self._device)
        try:
            yield
        finally:
            self._on_device = module.get_rng_state(self._device)
            module.set_rng_state(before, self._device)


def begun(seed: int) -> States:
    """The states of the generators of torch, NumPy and Python after `seed`, none of them touched."""
    on_host = torch.Generator().manual_seed(seed).get_state()
    return on_host, np.random.RandomState(seed).get_state(), random.Random(seed).getstate()


def _set(states: States) -> None:
    on_host, by_numpy, by_python = states
    torch.set_rng_state(on_host)
    np.random.set_state(by_numpy)
    random.setstate(by_python)


def plain(method: MethodType) -> MethodType:
    """The method without what VMAS wraps around it: its own lending of random states."""
    return MethodType(inspect.unwrap(method), method.__self__)


def observed_in(simulation: Simulation) -> list[object]:
    """What each agent sees."""
    return plain(simulation.get_from_scenario)(True, False, False, False)[0]


def reopened(simulation: Simulation, ended: Bool[Tensor, "env"]) -> list[object]:
    """What is seen after new episodes have opened in the copies that ended, the others left as they were.

    VMAS resets one copy, or all. One after the other would cost a reset each; so where several end, all are reset at
    once, and what the others held is put back.
    """
    index = ended.nonzero().squeeze(1).tolist()
    if len(index) == 1:
        return plain(simulation.reset_at)(index[0])
    others = None if len(index) == len(ended) else Held(simulation)
    plain(simulation.reset)(return_observations=False)
    if others is not None:
        others.put_back(~ended)
    return observed_in(simulation)


class Held:
    """All that hangs on a simulation: objects, lists and dicts, and the tensors in them, as they stand now."""

    def __init__(self, simulation: Simulation) -> None:
        self._copies = simulation.num_envs
        self._device = simulation.device
        self._content: dict[int, tuple[object, dict[object, object]]] = {}
        self._kept: dict[int, Tensor] = {}
        waiting: list[object] = [simulation]
        while waiting:
            each = waiting.pop()
            if isinstance(each, Tensor) and id(each) not in self._kept:
                self._kept[id(each)] = each.clone()
            elif _holds(each) and id(each) not in self._content:
                content = dict(_items(each))
                self._content[id(each)] = each, content
                waiting.extend(content.values())

    def put_back(self, stays: Bool[Tensor, "env"]) -> None:
        """Gives the copies that stay their rows of every tensor again; what has no rows is put back as a whole."""
        replacing: dict[int, object] = {}  # a list or dict of before -> what a reset made in its place
        merged: dict[tuple[int, int], Tensor] = {}  # one tensor in two places stays one
        for holder, content in self._content.values():
            there = dict(_items(holder))
            now = dict(_items(replacing[id(holder)])) if id(holder) in replacing else there
            for key, old in content.items():
                new = now.get(key)
                if isinstance(old, Tensor):
                    place = id(old), id(new)
                    if place not in merged:
                        merged[place] = self._merged(old, new, stays)
                    new = merged[place]
                elif old is not None:
                    if isinstance(old, list | dict) and type(new) is type(old) and new is not old:
                        replacing[id(old)] = new
                    new = old
                if new is not there.get(key):
                    _put(holder, key, new)

    def restore(self) -> None:
        """Puts everything back, and forgets what has come since: some scenarios' resets leave something behind."""
        self.put_back(torch.ones(self._copies, dtype=torch.bool, device=self._device))
        for holder, content in self._content.values():
            there = holder if isinstance(holder, dict) else getattr(holder, "__dict__", {})
            for key in there.keys() - content.keys():
                del there[key]

    def _merged(self, old: Tensor, new: object, stays: Bool[Tensor, "env"]) -> Tensor:
        kept = self._kept[id(old)]
        if isinstance(new, Tensor) and new.shape == old.shape and old.shape[:1] == (self._copies,):
            kept = torch.where(stays.reshape(-1, *(1,) * (old.ndim - 1)), kept, new)
            if new is not old:
                return kept
        return kept.clone() if 0 in old.stride() else old.copy_(kept)  # in place: views of it see it, too


def _holds(each: object) -> bool:
    """Is it part of a simulation, and not a number, a window or a library?"""
    module = type(each).__module__
    own = module.partition(".")[0] in ("vmas", "") and not module.endswith(
        "rendering"
    )  # a scenario's module has no name
    return isinstance(each, list | dict | tuple) or (own and hasattr(each, "__dict__") and not isinstance(each, Enum))


def _items(holder: object) -> Iterable[tuple[object, object]]:
    if isinstance(holder, list | tuple):
        return enumerate(holder)
    return (holder if isinstance(holder, dict) else vars(holder)).items()


def _put(holder: object, key: object, value: object) -> None:
    match holder:
        case tuple():  # only what is in it can change
            pass
        case list() if isinstance(key, int):
            holder[key] = value
        case dict():
            holder[key] = value
        case _:
            vars(holder)[str(key)] = value
