"""Tasks of packages that speak PettingZoo: MPE2, PettingZoo's own, MAgent2, multi-agent MuJoCo."""

import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from warnings import catch_warnings, simplefilter

import numpy as np
from pettingzoo.utils.env import AECEnv, ParallelEnv

from martes.envs.adapters.parallel import ParallelTeam
from martes.envs.adapters.turns import turn_team
from martes.errors import ConfigError, MissingExtra, nearest, require

EXTRAS = {"mpe2": "mpe", "magent2": "magent", "gymnasium_robotics": "mamujoco"}
"""Package -> the extra of martes that installs it."""
DRAW_ALWAYS = ("pettingzoo.classic.hanabi_v5",)
"""Tasks that draw at every step once they are told to, which takes many times longer than the step."""
BODIES = (
    "Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum", "InvertedPendulum",
    "Pusher", "Reacher", "Swimmer", "Walker2d", "CoupledHalfCheetah", "ManySegmentAnt", "ManySegmentSwimmer",
)  # fmt: skip
"""The bodies of multi-agent MuJoCo."""


def pettingzoo(task: str, state: bool = True, **options: object) -> ParallelTeam:
    """One copy of a task of any package whose modules have `parallel_env` or `env`, as PettingZoo's do.

    Args:
        task: the module of the task, `mpe2.simple_spread_v3`; further options go to what makes the environment
        state: is the environment's own `state()`, where it has one, shown to central critics?

    Raises ConfigError for an unknown task (the nearest are named) or option, MissingExtra where its package is missing.
    """
    module = _module(task)
    makers = [made for name in ("parallel_env", "env") if callable(made := getattr(module, name, None))]
    if not makers:
        raise ConfigError(f"{task} has neither parallel_env nor env: it is no task of PettingZoo's kind")
    env = _made(task, makers[0], options)
    if isinstance(env, AECEnv):
        return turn_team(env, state)
    if not isinstance(env, ParallelEnv):
        raise ConfigError(f"{task} made {type(env).__name__}, which is neither a ParallelEnv nor an AECEnv")
    return ParallelTeam(env, _map_of(env) if state and task.startswith("magent2.") else state)


def mpe2(task: str, state: bool = True, **options: object) -> ParallelTeam:
    """One copy of a task of MPE2.

    Args:
        task: its name, `simple_spread_v3`; further options go to its `parallel_env` (`continuous_actions`)
        state: is what all see, joined, shown to central critics? They join it themselves where there is none
    """
    return pettingzoo(f"mpe2.{task}", state, **options)


def magent2(task: str, state: bool = True, **options: object) -> ParallelTeam:
    """One copy of a task of MAgent2, where hundreds fight, hunt or gather.

    Args:
        task: its name, `battle_v4`; further options go to its `parallel_env` (`map_size`, `max_cycles`)
        state: is the map shown to central critics? To draw it takes a third of the time of a step
    """
    return pettingzoo(f"magent2.environments.{task}", state, **options)


def mamujoco(task: str, state: bool = True, **options: object) -> ParallelTeam:
    """One copy of multi-agent MuJoCo: a body whose joints are shared out among agents.

    Args:
        task: the body and how its joints are shared out: `HalfCheetah-2x3`, two agents of three joints each;
            `Humanoid-9|8`; further options go to gymnasium_robotics' mamujoco_v1.parallel_env (`agent_obsk`)
        state: is the observation of the whole body shown to central critics?

    Raises ConfigError for an unknown body or partition, MissingExtra where the package is missing.
    """
    _draw_without_screen()
    require("mujoco", "mamujoco")
    module = require("gymnasium_robotics", "mamujoco").mamujoco_v1
    body, _, partition = task.partition("-")
    if body not in BODIES:
        raise ConfigError(f"no body {body!r} of multi-agent MuJoCo (<body>-<partition>){nearest(body, BODIES)}")

    def make(**options: object) -> object:
        try:
            return module.parallel_env(body, partition, **options)
        except TypeError:
            raise
        except Exception as error:  # an unknown partition: the package raises nothing narrower
            raise ConfigError(f"multi-agent MuJoCo cannot share out {body} as {partition!r}: {error}") from error

    env = _made(task, make, options)
    assert isinstance(env, ParallelEnv)
    spec = getattr(getattr(env, "single_agent_env", None), "spec", None)
    return ParallelTeam(env, state, episode_limit=getattr(spec, "max_episode_steps", None))


def _module(task: str) -> ModuleType:
    package = task.partition(".")[0]
    try:
        with catch_warnings():
            simplefilter("ignore", DeprecationWarning)  # PettingZoo wants its registry to be used
            return import_module(task)
    except ModuleNotFoundError as error:
        lacking = error.name or ""
        if lacking == package and package in EXTRAS:
            raise MissingExtra(package, EXTRAS[package]) from None
        if not f"{task}.".startswith(f"{lacking}."):  # something that the task needs
            family = task.split(".")[1] if task.startswith("pettingzoo.") else ""
            cure = f"'pettingzoo[{family}]'" if family else lacking
            raise ConfigError(f"{task} needs {lacking}, which is not installed: pip install {cure}") from None
        packages = (package,) if lacking != package else ("pettingzoo", *EXTRAS)
        known = [each for one in packages for each in tasks(one)]
        raise ConfigError(f"no task {task!r}{nearest(task, known)}") from None
    except ImportError as error:  # what has moved says so
        raise ConfigError(f"{task}: {error}") from error


def tasks(package: str) -> list[str]:
    """The modules of a package that are tasks by their name (`..._v3`), found without importing them."""
    spec = find_spec(package)
    return sorted(_tasks_in(package, list(spec.submodule_search_locations or ()))) if spec else []


def _tasks_in(package: str, folders: list[str]) -> Iterator[str]:
    for found in pkgutil.iter_modules(folders):
        name = f"{package}.{found.name}"
        if re.fullmatch(r".+_v\d+", found.name):
            yield name
        elif found.ispkg:
            yield from _tasks_in(name, [f"{folder}/{found.name}" for folder in folders])


def _made(task: str, make: Callable[..., object], options: dict[str, object]) -> object:
    """The environment, able to draw itself where it takes `render_mode` and does so when it is asked alone."""
    picture = {} if task in DRAW_ALWAYS else {"render_mode": "rgb_array"}
    try:
        try:
            return make(**{**picture, **options})
        except TypeError:
            return make(**options)
    except (TypeError, ImportError) as error:
        raise ConfigError(f"{task} cannot be made with {options or 'no options'}: {error}") from error


def _draw_without_screen() -> None:
    """Where there is no screen, MuJoCo's default (a hidden window) ends the whole process when a picture is asked."""
    has_screen = sys.platform != "linux" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if not has_screen and find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def _map_of(env: ParallelEnv) -> Callable[[], np.ndarray]:
    """What tells MAgent2's map. Its own `state` fails where a kind of agent has died out: those are left out."""
    inside = vars(env.unwrapped)
    kinds = inside["_all_handles"]

    def told() -> np.ndarray:
        inside["_all_handles"] = [kind for kind in kinds if inside["env"].get_num(kind)]
        return env.unwrapped.state()

    return told
