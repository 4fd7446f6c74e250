"""What experiments are called: by the algorithm whose preset is nearest, the task, and what else was set."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from martes.algorithms.registry import BUILT_IN, algorithm_named
from martes.conversion import branches
from martes.envs.settings import Environment
from martes.presets import ALGORITHMS, plain_name, values_of
from martes.report.records import Record, Value, flat, task_of

Settings = Mapping[str, Value]

SHOWN = 3
"""Settings that a label names at most, beside those that tell experiments apart."""

_MATTER = ("algorithm.", "env.")
_TITLE = ("algorithm.name", "env.name", "env.factory")
_NO_MATTER = (
    "training.seed",
    "training.device",
    "training.threads",
    "training.save_every",
    "training.keep",
    "env.workers",
    "env.timeout",
    "env.start_method",
    "env.compile",
    "evaluation.background",
    "logging.",
)
"""Settings that tell seeds, machines and habits apart, not experiments."""

_ALONE = ("a2c", "reinforce", "sac", "ddpg", "td3", "dqn")
"""What others call otherwise where several learn."""


class Label(NamedTuple):
    """What one experiment is called; as text, `vdn on two-step, lr 0.01`."""

    algorithm: str
    task: str
    details: str = ""

    def __str__(self) -> str:
        return self._joined(f"{self.algorithm} on {self.task}")

    @property
    def line(self) -> str:
        """What it is called where the task is known."""
        return self._joined(self.algorithm)

    def _joined(self, title: str) -> str:
        return f"{title}, {self.details}" if self.details else title


def experiments(runs: Sequence[Record]) -> dict[Label, list[Record]]:
    """Label -> the runs of one experiment, which differ in nothing but their seed.

    A label is algorithm, task, and what was set otherwise than a preset of both sets it: all that tells the experiments
    of this algorithm on this task apart, and the first few settings that they share.
    """
    titled: dict[Label, list[Record]] = {}
    for run in runs:
        titled.setdefault(Label(algorithm_of(run.config), task_of(run)), []).append(run)
    grouped: dict[Label, list[Record]] = {}
    for title, alike in titled.items():
        for run, details in zip(alike, _details(alike, preset_of(title.algorithm, title.task)), strict=True):
            grouped.setdefault(title._replace(details=details), []).append(run)
    return grouped


def algorithm_of(config: Settings) -> str:
    """The name of the algorithm whose preset has the most of a run's settings; of equals, the one that fits the team.

    An algorithm that is not the library's own has the name that the configuration says.
    """
    said = str(config.get("algorithm.name") or "unnamed")
    task = str(config.get("env.name"))
    is_alone = task.startswith("gymnasium:")

    def distance(name: str) -> tuple[int, int, bool]:
        variant = dict(flat(BUILT_IN[plain_name(name)].values, "algorithm."))
        others = (_differences(config, preset) for preset in (preset_of(name, task), variant))
        far, unlike = (sum(path.startswith("algorithm.") for path in paths) for paths in others)
        return far, unlike, (plain_name(name) in _ALONE) != is_alone

    place = BUILT_IN[said].place if said in BUILT_IN else None
    near = [name for name in ALGORITHMS if BUILT_IN[plain_name(name)].place == place]
    return min(near, key=distance, default=said)


@cache
def preset_of(algorithm: str, task: str) -> Settings:
    """Algorithm and environment of the preset of both, by path, whether there is one by this name or not.

    Nothing for an algorithm that is not the library's own.
    """
    if algorithm not in ALGORITHMS:
        return {}
    parts = {"algorithm": branches(algorithm_named(plain_name(algorithm))), "env": branches(Environment(task))}
    found = dict(flat(parts))
    for path, value in flat(branches(values_of(algorithm, task))):
        is_option = path.startswith("env.") and path not in found
        found[path.replace("env.", "env.options.") if is_option else path] = value
    return {path: value for path, value in found.items() if path.startswith(_MATTER) and _tells(path)}


def _tells(path: str) -> bool:
    """Does this setting tell experiments of one algorithm on one task apart?"""
    return path not in _TITLE and not path.startswith(_NO_MATTER)


def _differences(config: Settings, preset: Settings) -> list[str]:
    """The paths of a preset, or below what it leaves empty, that a configuration sets otherwise."""
    known = {*preset, "env.options"} if preset else set[str]()
    below = (path for path in config if path.rpartition(".")[0] in known and path not in preset)
    return [*(path for path in preset if path in config and config[path] != preset[path]), *below]


def _details(runs: Sequence[Record], preset: Settings) -> list[str]:
    """What is said of each of the runs of one algorithm on one task."""
    settings = [{**preset, **{path: value for path, value in run.config.items() if _tells(path)}} for run in runs]
    paths = dict.fromkeys(path for each in settings for path in each)
    varied = [path for path in paths if len({repr(each.get(path)) for each in settings}) > 1]
    shared = [path for path in _differences(settings[0], preset) if path not in varied]
    words = [path.rpartition(".")[2] for path in (*varied, *shared[:SHOWN])]
    more = [f"and {len(shared) - SHOWN} more"] if len(shared) > SHOWN else []

    def told(path: str, value: Value) -> str:
        word = path.rpartition(".")[2]
        is_clear = path.startswith(_MATTER) and words.count(word) == 1
        return f"{word if is_clear else path.removeprefix('algorithm.')} {value}"

    def said(each: Settings) -> str:
        own = [path for path in varied if path in each and (path not in preset or each[path] != preset[path])]
        return ", ".join([*(told(path, each[path]) for path in (*own, *shared[:SHOWN])), *more])

    return [said(each) for each in settings]
