"""Named experiments, `<algorithm>/<task>`: one set of untuned hyperparameters an algorithm, one budget a task."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from martes.envs.names import FAMILIES
from martes.errors import ConfigError, nearest

if TYPE_CHECKING:
    from martes.experiment import Experiment

DEFAULT = "rec-sable/lbf-8x8-2p-2f-coop"

_ROLLOUTS: dict[str, object] = {
    "env.copies": 128,
    "algorithm.rollout": 25,
    "algorithm.lr": 1e-3,
    "algorithm.network.hidden": (128, 128),
    "algorithm.network.agent_id": True,
    "evaluation.greedy": False,  # what was trained is a distribution: its mode may deadlock where a draw does not
}
_GRU: dict[str, object] = {"algorithm.network.memory": "gru"}
_ATTENTION: dict[str, object] = {"algorithm.network.memory": "attention"}
_RETENTION: dict[str, object] = {"algorithm.network.memory": "retention"}
_MEMORY = re.compile("-(gru|attention|retention)$")
# One gradient step a rollout: fewer copies and short rollouts, for more of them. Where rewards are rare, the critic
# prefers some action before it has seen any: who follows it alone stops exploring; who follows returns does not.
_COUNTERFACTUAL: dict[str, object] = _ROLLOUTS | {
    "env.copies": 32,
    "algorithm.rollout": 10,
    "algorithm.reward": "mean",
    "algorithm.td_lambda": 0.95,
    "algorithm.advantage": "return",
    "algorithm.scale_advantage": True,
    "algorithm.entropy": 0.05,
    "algorithm.critic_lr": 1e-3,
    "algorithm.critic_epochs": 4,
    "algorithm.target_every": 10,
}
# What a team is paid is the mean of what its members are; the rest as in Hu et al. 2021 (PyMARL2), but for the batch
# and a lambda of 0.8 in place of 0.6.
_SINGLE: dict[str, object] = {"env.copies": 8, "algorithm.lr": 1e-3}
# One gradient step a rollout, and no clip to hold it: returns that lean on no critic, steps that become smaller,
# and advantages as they are, since those of a policy that is good already are small.
_STEADY: dict[str, object] = {
    "env.copies": 32,
    "algorithm.gae_lambda": 1.0,
    "algorithm.lr": 2e-3,
    "algorithm.anneal": True,
    "algorithm.standardise_advantage": False,
}
# Rewards that are the same at every step: long returns tell good states apart, and wide networks keep them so.
_LONG: dict[str, object] = _SINGLE | {
    "algorithm.rollout": 32,
    "algorithm.n_step": 10,
    "algorithm.warmup": 1_000,
    "algorithm.batch": 64,
    "algorithm.target_every": 128,
    "algorithm.network.hidden": (256, 256),
    "algorithm.exploration.steps": 10_000,
}
_VALUES: dict[str, object] = _SINGLE | {
    "env.copies": 16,
    "algorithm.td_lambda": 0.8,
    "algorithm.exploration.steps": 100_000,
}
_TEAM: dict[str, object] = _VALUES | {"algorithm.reward": "mean"}
_IN_TURN: dict[str, object] = {
    "env.copies": 128,
    "algorithm.rollout": 25,
    "algorithm.lr": 1e-3,
    "algorithm.anneal": True,
    "algorithm.network.heads": 4,
    "evaluation.greedy": False,
}

_DETERMINISTIC: dict[str, object] = {
    "env.copies": 16,
    "algorithm.rollout": 25,
    "algorithm.ratio": 0.04,
    "algorithm.warmup": 5_000,
    "algorithm.noise.start": 0.3,
    "algorithm.noise.end": 0.05,
    "algorithm.noise.steps": 300_000,
}

# Algorithm (`-gru`, `-attention`, `-retention`: with such a memory) -> what its experiments set beyond its defaults.
ALGORITHMS: dict[str, dict[str, object]] = {
    "ippo": _ROLLOUTS,
    "mappo": _ROLLOUTS,
    "ippo-gru": _ROLLOUTS | _GRU,
    "mappo-gru": _ROLLOUTS | _GRU,
    "ippo-attention": _ROLLOUTS | _ATTENTION,
    "mappo-attention": _ROLLOUTS | _ATTENTION,
    "ippo-retention": _ROLLOUTS | _RETENTION,
    "mappo-retention": _ROLLOUTS | _RETENTION,
    "ia2c": _ROLLOUTS,
    "maa2c": _ROLLOUTS,
    "ff-sable": _IN_TURN,
    "rec-sable": _IN_TURN | {"algorithm.network.decay_scale": 1.0},
    "mat": _IN_TURN,
    "a2c": _STEADY,
    "reinforce": _SINGLE,
    "sac": _SINGLE,
    "masac": _SINGLE,
    "bc": {},
    "dt": {"algorithm.batch": 4, "algorithm.ratio": 0.004},
    "dt-1": {"algorithm.batch": 4, "algorithm.ratio": 0.004},
    "coma": _COUNTERFACTUAL,
    "coma-gru": _COUNTERFACTUAL | _GRU,
    "maddpg": _DETERMINISTIC,
    "matd3": _DETERMINISTIC,
    "ddpg": _DETERMINISTIC,
    "td3": _DETERMINISTIC,
    "dqn": _LONG,
    "iql": _VALUES,
    "iql-gru": _VALUES | _GRU,
    "vdn": _TEAM,
    "vdn-gru": _TEAM | _GRU,
    "qmix": _TEAM,
    "qmix-gru": _TEAM | _GRU,
    "qtran": _TEAM,
    "qtran-gru": _TEAM | _GRU,
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
    "lbf-8x8-2p-2f-coop": 1_000_000,
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
    "smax-8m": 1_000_000,
    "smax-5m_vs_6m": 2_000_000,
    "smax-2s3z": 1_000_000,
    "smax-3s5z": 2_000_000,
    "smax-smacv2_5_units": 2_000_000,
    "overcooked-cramped-room": 3_000_000,
    "hanabi-small": 4_000_000,
    "mamujoco-halfcheetah-2x3": 1_000_000,
    "magent2-battle": 10_000,
}
_NO_SINGLE_CHOICE = frozenset(
    {
        "mpe-spread-continuous",
        "mpe-speaker-listener-continuous",
        "probe-continuous",
        "probe-multi-discrete",
        "mamujoco-halfcheetah-2x3",
    }
)
# Algorithm -> tasks that it refuses: it needs one discrete action an agent, or (SAC) not several at once.
_ONE_CHOICE = ("coma", "dqn", "iql", "vdn", "qmix", "qtran")
UNFIT: dict[str, frozenset[str]] = {
    name: _NO_SINGLE_CHOICE for name in ALGORITHMS if _MEMORY.sub("", name) in _ONE_CHOICE
} | {name: frozenset({"probe-multi-discrete"}) for name in ("sac", "masac")}
ANY_TASK = 1_000_000
"""Environment steps of a task that is named by family, as in ippo/gymnasium:CartPole-v1."""
_ANY = tuple(f"{family}:<task>" for family in FAMILIES)

# Games of one or two steps: longer targets only tell of what explorers did next; there is no long way to shorten.
_SHORT = ("climbing", "penalty", "two-step")
_MIXED = ("iql", "vdn", "qmix", "qtran")
# Algorithm -> task -> what it sets there in place of what it sets elsewhere.
ADAPTED: dict[str, dict[str, dict[str, object]]] = {
    name: {task: {"algorithm.td_lambda": 0.0} for task in _SHORT}
    for name in ALGORITHMS
    if _MEMORY.sub("", name) in _MIXED
}

# What the size of a task, or of all tasks of a family, makes necessary, whatever the algorithm.
SIZES: dict[str, dict[str, object]] = {
    "magent2-battle": {"env.copies": 4, "evaluation.episodes": 4},  # 162 agents, each with a picture
    "smac": {"env.copies": 4, "env.workers": 4},  # a game of StarCraft II for each copy
    "smacv2": {"env.copies": 4, "env.workers": 4},
    # Pictures of 457 x 120 pixels, and a state that is one of 560 x 880 as real numbers.
    "pettingzoo:pettingzoo.butterfly.pistonball_v6": {
        "env.copies": 4,
        "env.state": False,
        "env.wrap.shrink": 8,
        "evaluation.episodes": 8,
    },
}


def plain_name(algorithm: str) -> str:
    """The name of the algorithm without that of a memory: `qmix` of `qmix-gru`."""
    return _MEMORY.sub("", algorithm)


def values_of(algorithm: str, task: str) -> dict[str, object]:
    """What experiments of an algorithm set on a task beyond all defaults, by path; but for the budget."""
    sizes = SIZES.get(task, SIZES.get(task.partition(":")[0], {}))
    return ALGORITHMS[algorithm] | ADAPTED.get(algorithm, {}).get(task, {}) | sizes


class Presets(Mapping[str, "Experiment"]):
    """Preset name -> experiment, made when it is asked for: to list the names imports nothing."""

    def __getitem__(self, name: str) -> "Experiment":
        """The experiment of this name. Raises ConfigError, naming the nearest, where there is none."""
        algorithm, _, task = name.partition("/")
        if task in UNFIT.get(algorithm, ()):
            raise ConfigError(f"{algorithm} needs other actions than those of {task}: take mappo/{task}")
        if name not in self:
            part, known = (task, (*TASKS, *_ANY)) if algorithm in ALGORITHMS else (algorithm, ALGORITHMS)
            told = nearest(re.sub(":.*", ":<task>", part), known)
            raise ConfigError(f"no preset {name!r} of <algorithm>/<task>: {part!r} is unknown{told}")
        from martes.algorithms.registry import algorithm_named
        from martes.envs.settings import Environment
        from martes.experiment import Experiment

        steps = TASKS.get(task, ANY_TASK)
        schedule = {"training.steps": steps, "training.save_every": steps // 4, "logging.every": steps // 100}
        values = schedule | {"evaluation.every": steps // 20} | values_of(algorithm, task)
        return Experiment(Environment(task), algorithm_named(plain_name(algorithm))).changed(values)

    def __contains__(self, name: object) -> bool:
        algorithm, _, task = str(name).partition("/")
        if algorithm not in ALGORITHMS or task in UNFIT.get(algorithm, ()):
            return False
        return task in TASKS or (":" in task and task.partition(":")[0] in FAMILIES)

    def __iter__(self) -> Iterator[str]:
        names = (f"{algorithm}/{task}" for algorithm in ALGORITHMS for task in TASKS)
        return (name for name in names if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


PRESETS = Presets()
