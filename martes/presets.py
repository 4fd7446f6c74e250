"""Named experiments, `<algorithm>/<task>`: one set of untuned hyperparameters an algorithm, one budget a task."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from martes.errors import ConfigError, nearest

if TYPE_CHECKING:
    from martes.experiment import Experiment

DEFAULT = "mappo/mpe-spread"

# Algorithm -> what differs from its own untuned values, and what it is said to be in `martes list`.
_ON_POLICY: dict[str, object] = {"env.copies": 128, "algorithm.rollout": 25}
_GRU: dict[str, object] = {"algorithm.network.memory": "gru"}
ALGORITHMS: dict[str, dict[str, object]] = {
    "ippo": {"algorithm.name": "ippo", **_ON_POLICY},
    "mappo": {"algorithm.name": "mappo", **_ON_POLICY},
    "ippo-gru": {"algorithm.name": "ippo", **_ON_POLICY, **_GRU},
    "mappo-gru": {"algorithm.name": "mappo", **_ON_POLICY, **_GRU},
    "ia2c": {"algorithm.name": "ia2c", **_ON_POLICY, "algorithm.rollout": 5},
    "maa2c": {"algorithm.name": "maa2c", **_ON_POLICY, "algorithm.rollout": 5},
}

# Task -> environment steps. Every budget of the library stands here.
TASKS: dict[str, int] = {
    "mpe-spread": 2_000_000,
    "mpe-speaker-listener": 2_000_000,
}
