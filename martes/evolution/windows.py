"""Windows that are cut into parts to learn from: no member may come to want more parts than there are."""

from typing import Protocol, runtime_checkable

import torch

from martes.algorithms.learner import Algorithm
from martes.data import TeamSpec
from martes.errors import ConfigError
from martes.evolution.space import SECTION, Space

_FIELDS = ("minibatches", "accumulate", "rollout")


@runtime_checkable
class Cut(Protocol):
    """A config whose learner cuts each window into minibatches, and these into parts: its fields."""

    @property
    def rollout(self) -> int:
        """Steps of each environment in a window."""
        ...

    @property
    def minibatches(self) -> int:
        """Parts into which a window is cut."""
        ...

    @property
    def accumulate(self) -> int:
        """Parts into which each of them is cut."""
        ...


def refuse_uncut(algorithm: Algorithm, space: Space, team: TeamSpec, envs: int) -> None:
    """Raises ConfigError where the start, or any value between the bounds of a space, asks for more parts than rows.

    minibatches · accumulate <= envs where policies have memory, else <= envs · rollout: for the highest bounds of the
    first two, and the lowest of the last.
    """
    if not isinstance(algorithm, Cut):
        return
    minibatches, accumulate, rollout = (space.get(f"{SECTION}.{name}") for name in _FIELDS)
    most = algorithm.minibatches if minibatches is None else minibatches.ends(is_whole=True)[1]
    each = algorithm.accumulate if accumulate is None else accumulate.ends(is_whole=True)[1]
    steps = algorithm.rollout if rollout is None else rollout.ends(is_whole=True)[0]
    has_memory = algorithm.learner(team, torch.Generator()).policy.initial_memory(1) != ()
    rows, why = (envs, "policies have memory") if has_memory else (envs * steps, f"{steps} steps of each")
    if most * each > rows:
        raise ConfigError(
            f"algorithm.minibatches up to {most} x algorithm.accumulate up to {each} cut a window into {most * each} "
            f"parts, and of {envs} env.copies it has but {rows} rows ({why}): lower these, or their bounds in "
            "evolution.space, or raise env.copies"
        )
