"""Algorithms by name: the library's own and those of installed packages. Nothing is imported before it is asked for."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from martes.conversion import changed, nested
from martes.errors import ConfigError, nearest

if TYPE_CHECKING:
    from martes.algorithms.learner import Algorithm

GROUP = "martes.algorithms"
"""The entry-point group under which a package declares its own configs."""


@dataclass(frozen=True)
class Entry:
    """One algorithm's name: where its config lives, the values that make the variant, and what it is."""

    place: str
    """`module:class`."""
    doc: str
    values: Mapping[str, object] = field(default_factory=dict[str, object])


_PPO = "martes.algorithms.ppo:PPO"
_SABLE = "martes.algorithms.autoregressive:Sable"
_Q = "martes.algorithms.q_learning:QLearning"
_MADDPG = "martes.algorithms.maddpg:MADDPG"
_TD3 = {"twin_critics": True, "policy_delay": 2, "target_noise": 0.2}
_DT = "martes.algorithms.decision_transformer:DecisionTransformer"
_SAC = "martes.algorithms.soft_actor_critic:SAC"
_ALONE = {"mixer": "none", "reward": "own"}
_PLAIN = {"epochs": 1, "minibatches": 1, "clip": None, "value_clip": None}

# The first name of a place is the one that config.yaml says.
BUILT_IN: dict[str, Entry] = {
    "ppo": Entry(_PPO, "clipped policy gradients for teams; `critic` says what the critic sees"),
    "ippo": Entry(_PPO, "PPO, each critic sees what its agent sees", {"critic": "local"}),
    "mappo": Entry(_PPO, "PPO, one critic sees the whole team", {"critic": "central"}),
    "a2c": Entry(_PPO, "policy gradient with a critic: PPO of one epoch, no clip", {"critic": "local"} | _PLAIN),
    "ia2c": Entry(_PPO, "A2C for teams, each critic sees what its agent sees", {"critic": "local"} | _PLAIN),
    "sable": Entry(_SABLE, "retention over agents and time; `network.memory` says whether over time"),
    "ff-sable": Entry(_SABLE, "Sable without memory: each step stands alone", {"network.memory": False}),
    "rec-sable": Entry(_SABLE, "Sable with memory over time", {"network.memory": True}),
    "mat": Entry("martes.algorithms.autoregressive:MAT", "the multi-agent transformer: attention over agents"),
    "maa2c": Entry(_PPO, "A2C for teams, one critic sees the whole team", {"critic": "central"} | _PLAIN),
    "reinforce": Entry("martes.algorithms.reinforce:Reinforce", "policy gradient by the returns of whole episodes"),
    "bc": Entry("martes.algorithms.imitation:BehaviourCloning", "does what was done in a data set (training.data)"),
    "dt": Entry(_DT, "the decision transformer: does what earned so much in a data set (training.data)"),
    "dt-1": Entry(_DT, "the decision transformer, one token a step in place of three", {"tokens": 1}),
    "sac": Entry(_SAC, "soft actor-critic: the best return of policies that stay undecided"),
    "masac": Entry(_SAC, "SAC for teams: critics see all and what all do"),
    "coma": Entry("martes.algorithms.coma:COMA", "policy gradient by what an agent's other actions were worth"),
    "qmix": Entry(_Q, "Q-learning for teams; `mixer` says what joins the agents' values: a monotone network"),
    "vdn": Entry(_Q, "Q-learning for teams, the agents' values sum up to the team's", {"mixer": "sum"}),
    "iql": Entry(_Q, "Q-learning of each agent for itself", _ALONE),
    "qtran": Entry(_Q, "Q-learning for teams, a joint value of its own", {"mixer": "joint", "mixing.width": 64}),
    "maddpg": Entry(_MADDPG, "deterministic policies, each climbs a critic that sees what all see and do"),
    "matd3": Entry(_MADDPG, "MADDPG with two critics, delayed policies and smoothed targets", _TD3),
    "ddpg": Entry(_MADDPG, "MADDPG for a team of one"),
    "td3": Entry(_MADDPG, "MATD3 for a team of one", _TD3),
    "dqn": Entry(_Q, "Q-learning from single steps, for a team of one", _ALONE | {"sequence": 1, "ratio": 0.25}),
}


def algorithm_entries() -> dict[str, Entry]:
    """Name -> entry of every algorithm that is installed."""
    found = {
        each.name: Entry(each.value, f"from the package {each.dist.name if each.dist else each.module}")
        for each in entry_points(group=GROUP)
    }
    return BUILT_IN | {name: entry for name, entry in found.items() if name not in BUILT_IN}


def algorithm_named(name: str) -> "Algorithm":
    """The algorithm's config at its untuned values. `name` is a listed name, or `module:class`.

    Raises ConfigError where there is none of this name, or where it is no config (a dataclass with `learner`).
    """
    entries = algorithm_entries()
    if name not in entries and ":" not in name:
        raise ConfigError(f"no algorithm {name!r}{nearest(name, entries)}, or module:class of your own")
    entry = entries.get(name) or Entry(name, "")
    config = config_class(entry.place)
    required = [each.name for each in fields(config) if each.default is each.default_factory is MISSING]
    if required:
        raise ConfigError(f"{entry.place} has no default for {', '.join(required)}: every hyperparameter needs one")
    return changed(config(), nested(entry.values.items()), "algorithm")


def config_class(place: str) -> type:
    """The config class at `module:class`. Raises ConfigError where there is none."""
    module, _, path = place.partition(":")
    try:
        found = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"algorithm {place!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and is_dataclass(found) and callable(getattr(found, "learner", None))):
        raise ConfigError(f"{place} is no algorithm: give a frozen dataclass with a method learner(team, generator)")
    return found


def algorithm_name(config: object) -> str:
    """The name by which `algorithm_named` finds the config's class."""
    kind = type(config)
    place = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for name, entry in algorithm_entries().items() if entry.place == place), place)
