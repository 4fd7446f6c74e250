"""An environment that remembers what was done in it: evaluations and training runs become data sets."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from martes.data import Fields, TimeStep, VectorEnv, Workspace
from martes.data.data_set import data_set


class Step(NamedTuple):
    """One step of all copies."""

    seen: Fields
    result: Fields
    """The action, and what came of it."""
    final: Fields | None
    """What was really seen last, where a copy was cut."""


class Recorder:
    """An environment that keeps every step that is made in it: `data` gives the episodes that have ended."""

    def __init__(self, env: VectorEnv) -> None:
        self._env = env
        self.team, self.num_envs = env.team, env.num_envs
        self._steps: list[Step] = []
        self._seen: Fields = {}

    def reset(self, seed: int) -> TimeStep:
        """The first step of every copy; unfinished episodes are forgotten, so are those before."""
        self._steps.clear()
        step = self._env.reset(seed)
        self._seen = _kept(step.seen)
        return step

    def step(self, action: Tensor) -> TimeStep:
        """The result of `action` [env agent ...] in every copy."""
        step = self._env.step(action)
        result = _kept({"action": action, "reward": step.reward, "discount": step.discount, "cut": step.cut})
        self._steps.append(Step(self._seen, result, None if step.final is None else _kept(step.final)))
        self._seen = _kept(step.seen)
        return step

    def data(self, episodes: int) -> Workspace:
        """The data set of the first `episodes` that ended, equal shares of every copy, as evaluations count them.

        Raises DataError where none has ended.
        """
        share, more = divmod(episodes, self.num_envs)
        played = [
            each
            for env in range(self.num_envs)
            for _, each in zip(range(share + (env < more)), self._episodes(env), strict=False)
        ]
        return data_set(self.team, played)

    def _episodes(self, env: int) -> Iterator[Fields]:
        """The whole episodes of one copy, in order."""
        begin = 0
        for t, ending in enumerate(self._steps):
            if ending.final is None or not bool(ending.result["cut"][env]):
                continue
            made, begin = self._steps[begin : t + 1], t + 1
            results = ((name, [each.result[name][env] for each in made]) for name in ("action", "reward", "discount"))
            seen = (
                (name, [*(each.seen[name][env] for each in made), last[env]]) for name, last in ending.final.items()
            )
            yield {name: torch.stack(rows) for name, rows in (*seen, *results)}

    def render(self, index: int = 0) -> UInt8[np.ndarray, "height width 3"]:
        """The environment's own picture."""
        return self._env.render(index)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()

    def state_dict(self) -> dict[str, object]:
        """The environment's own; what was recorded is not in it."""
        return self._env.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> TimeStep:
        """Restores `state_dict`; what was recorded is forgotten."""
        self._steps.clear()
        step = self._env.load_state_dict(state)
        self._seen = _kept(step.seen)
        return step


def _kept(seen: Fields) -> Fields:
    return {name: value.cpu().clone() for name, value in seen.items()}
