"""Named experiments, `<algorithm>/<task>`: one set of untuned hyperparameters an algorithm, one budget a task."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from martes.envs.names import FAMILIES
from martes.errors import ConfigError, nearest

if TYPE_CHECKING:
    from martes.experiment import Experiment

DEFAULT = "mappo/mpe-spread"

_ROLLOUTS: dict[str, object] = {
    "env.copies": 128,
    "algorithm.rollout": 25,
    "algorithm.lr": 1e-3,
    "algorithm.network.hidden": (128, 128),
    "algorithm.network.agent_id": True,
    "evaluation.greedy": False,  # what was trained is a distribution: its mode may deadlock where a draw does not
}
_GRU: dict[str, object] = {"algorithm.network.memory": "gru"}

# Algorithm (`-gru`: with memory) -> what its experiments set beyond its own defaults, whatever the task.
ALGORITHMS: dict[str, dict[str, object]] = {
    "ippo": _ROLLOUTS,
    "mappo": _ROLLOUTS,
    "ippo-gru": _ROLLOUTS | _GRU,
    "mappo-gru": _ROLLOUTS | _GRU,
    "ia2c": _ROLLOUTS,
    "maa2c": _ROLLOUTS,
}

# Task -> environment steps: every budget stands here.
TASKS: dict[str, int] = {
    "mpe-spread": 2_000_000,
    "mpe-spread-continuous": 2_000_000,
    "mpe-speaker-listener": 2_000_000,
    "mpe-speaker-listener-continuous": 2_000_000,
    "mpe-reference": 2_000_000,
    "mpe-tag": 2_000_000,
    "mpe-adversary": 2_000_000,
    "lbf-8x8-2p-2f-coop": 2_000_000,
    "lbf-2s-8x8-2p-2f-coop": 3_000_000,
    "lbf-10x10-3p-3f": 6_000_000,
    "lbf-15x15-3p-5f": 10_000_000,
    "lbf-15x15-4p-5f": 10_000_000,
    "climbing": 100_000,
    "penalty": 100_000,
    "two-step": 100_000,
    "memory-cue": 500_000,
    "coordsum-3x10": 500_000,
    "probe-constant": 20_000,
    "probe-delayed": 20_000,
    "probe-death": 20_000,
    "probe-observed": 20_000,
    "probe-time-limit": 50_000,
    "probe-unequal": 50_000,
    "probe-continuous": 50_000,
    "probe-multi-discrete": 50_000,
    "connect-four": 3_000_000,
    "mpe2-spread": 1_000_000,
    "mpe2-speaker-listener": 1_000_000,
    "mpe2-reference": 1_000_000,
    "mpe2-tag": 1_000_000,
    "mpe2-adversary": 1_000_000,
    "rware-tiny-2ag": 4_000_000,
    "smax-3m": 500_000,
    "smax-2s3z": 1_000_000,
    "overcooked-cramped-room": 3_000_000,
    "hanabi-small": 4_000_000,
    "mamujoco-halfcheetah-2x3": 1_000_000,
    "magent2-battle": 10_000,
}
ANY_TASK = 1_000_000
"""Environment steps of a task that is named by family, as in ippo/gymnasium:CartPole-v1."""
_ANY = tuple(f"{family}:<task>" for family in FAMILIES)

# What a task's size makes necessary, whatever the algorithm.
SIZES: dict[str, dict[str, object]] = {
    "magent2-battle": {"env.copies": 4, "evaluation.episodes": 4},  # 162 agents, each with a picture
}


class Presets(Mapping[str, "Experiment"]):
    """Preset name -> experiment, made when it is asked for: to list the names imports nothing."""

    def __getitem__(self, name: str) -> "Experiment":
        """The experiment of this name. Raises ConfigError, naming the nearest, where there is none."""
        algorithm, _, task = name.partition("/")
        if name not in self:
            part, known = (task, (*TASKS, *_ANY)) if algorithm in ALGORITHMS else (algorithm, ALGORITHMS)
            told = nearest(re.sub(":.*", ":<task>", part), known)
            raise ConfigError(f"no preset {name!r} of <algorithm>/<task>: {part!r} is unknown{told}")
        from martes.algorithms.registry import algorithm_named
        from martes.envs.settings import Environment
        from martes.experiment import Experiment

        steps = TASKS.get(task, ANY_TASK)
        schedule = {"training.steps": steps, "training.save_every": steps // 4, "logging.every": steps // 100}
        values = ALGORITHMS[algorithm] | schedule | {"evaluation.every": steps // 20} | SIZES.get(task, {})
        return Experiment(Environment(task), algorithm_named(algorithm.removesuffix("-gru"))).changed(values)

    def __contains__(self, name: object) -> bool:
        algorithm, _, task = str(name).partition("/")
        return algorithm in ALGORITHMS and (task in TASKS or (":" in task and task.partition(":")[0] in FAMILIES))

    def __iter__(self) -> Iterator[str]:
        return (f"{algorithm}/{task}" for algorithm in ALGORITHMS for task in TASKS)

    def __len__(self) -> int:
        return len(ALGORITHMS) * len(TASKS)


PRESETS = Presets()
