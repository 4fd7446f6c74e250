"""The Python face of evolution: a population of an experiment, evolved, resumed, and found again on disk."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from martes import api
from martes.algorithms.learner import Algorithm
from martes.conversion import branches, changed, nested
from martes.data import VectorEnv
from martes.envs.settings import Environment
from martes.errors import CheckpointError, ConfigError
from martes.evolution import loop
from martes.evolution.folder import PopulationFolder
from martes.evolution.loop import Result, Surroundings
from martes.evolution.settings import Evolution, bounds_listed
from martes.experiment import Experiment, read_tree, yaml_of
from martes.presets import DEFAULT, PRESETS
from martes.report.lineage import lineage_picture
from martes.training.log import Log

_SHORT = {"population": "evolution.population", "steps": "training.steps", "seed": "training.seed"}
_MAY_CHANGE = re.compile(
    r"training\.(steps|save_every|keep)$|logging\.|env\.(workers|timeout|start_method|compile)$"
    r"|evolution\.(target|place|workers)$"
)
"""What a resumed evolution may be told anew: nothing that decides what comes out of a generation."""


@dataclass(frozen=True)
class Evolving:
    """An experiment and how a population of it evolves. Never written to; `changed` returns another."""

    experiment: Experiment
    evolution: Evolution = field(default_factory=Evolution)

    def changed(self, values: Mapping[str, object] | list[tuple[str, object]]) -> "Evolving":
        """This one with values changed by their dotted path, `evolution.population` or any of an experiment.

        Raises ConfigError for an unknown path, a value of the wrong type, and one that cannot be.
        """
        pairs = list(values.items() if isinstance(values, Mapping) else values)
        own = [(path.removeprefix("evolution."), each) for path, each in pairs if path.startswith("evolution.")]
        others = [(path, each) for path, each in pairs if not path.startswith("evolution.")]
        space = {path.removeprefix("space."): each for path, each in own if path.startswith("space.")}
        tree = nested([(path, each) for path, each in own if not path.startswith("space.")])
        if space:
            tree["space"] = {**self.evolution.space, **dict(bounds_listed(space))}
        return Evolving(self.experiment.changed(others), changed(self.evolution, tree, "evolution"))

    def to_yaml(self) -> str:
        """Everything as YAML: the experiment, and a section `evolution`."""
        return self.experiment.to_yaml() + yaml_of({"evolution": branches(self.evolution)})

    @classmethod
    def from_yaml(cls, text: str, start: "Evolving | None" = None, source: str = "the configuration") -> "Evolving":
        """What `to_yaml` wrote; a file without a section `evolution` is an experiment's.

        Raises ConfigError, naming `source`, where the text is not YAML of this form.
        """
        tree = dict(read_tree(text, source))
        evolution = tree.pop("evolution", {})
        try:
            if not isinstance(evolution, Mapping):
                raise ConfigError("evolution holds no values")
            named = {str(name): each for name, each in evolution.items()}
            if isinstance(space := named.get("space"), Mapping):
                named["space"] = dict(bounds_listed({str(path): each for path, each in space.items()}))
            experiment = Experiment.from_tree(tree, None if start is None else start.experiment)
            begun = Evolution() if start is None else start.evolution
            return cls(experiment, changed(begun, named, "evolution"))
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error


def evolve(
    preset: str | Experiment | Evolving = DEFAULT,
    *,
    run_dir: api.Place | None = None,
    resume: api.Place | None = None,
    **values: object,
) -> Result:
    """The result of evolving a population of a preset, or of your own experiment: its members, elite and history.

    `values` change the experiment: population=, steps= (of each member), seed=, or any path, as in
    **{"evolution.space.algorithm.lr": (1e-4, 1e-2)}. `resume` goes on with a population, as if it had never stopped;
    then only its length, target and place, its logging and who steps the copies may change. Raises ConfigError for what
    is unknown or cannot be, and where the folder holds a run; CheckpointError where it cannot be written or read.
    """
    changes = {_SHORT.get(name, name): value for name, value in values.items()}
    if resume is not None:
        folder = located(resume)
        return evolved(continued(folder, changes), folder, folder.run.newest_checkpoint())
    if isinstance(preset, str):
        evolving, title = Evolving(PRESETS[preset]), preset
    else:
        evolving, title = (preset if isinstance(preset, Evolving) else Evolving(preset)), ""
    evolving = evolving.changed(changes)
    return evolved(evolving, new_folder(evolving, run_dir, title))


def new_folder(evolving: Evolving, run_dir: api.Place | None = None, preset: str = "") -> PopulationFolder:
    """The folder `run_dir`, or a new one below runs/. Raises ConfigError if it holds a run."""
    title = f"evolved-{preset.partition('/')[0] or api.name_of(evolving.experiment)}"
    return PopulationFolder(api.new_folder(evolving.experiment, run_dir, title).path)


def located(run: api.Place) -> PopulationFolder:
    """The folder of a population. Raises CheckpointError where there is none, or nothing is saved yet."""
    folder = PopulationFolder(run)
    if not folder.lineage.exists():
        raise CheckpointError(f"no population in {run}: there is no {folder.lineage.name}")
    if folder.run.newest_checkpoint() is None:
        raise CheckpointError(f"{run} has no checkpoint yet: start it again in another folder")
    return folder


def continued(folder: PopulationFolder, changes: Mapping[str, object] | list[tuple[str, object]]) -> Evolving:
    """What config.yaml of a population says, changed. Raises ConfigError for a change of what comes out of it."""
    for path in dict(changes):
        if not _MAY_CHANGE.match(path):
            raise ConfigError(f"{path} decides what comes out and cannot change on the way: start another evolution")
    text = folder.run.config.read_text(encoding="utf-8")
    return Evolving.from_yaml(text, source=str(folder.run.config)).changed(changes)


def evolved(evolving: Evolving, folder: PopulationFolder, origin: Path | None = None) -> Result:
    """The result of an evolution in its folder, config.yaml and picture included, from `origin` on, if given."""
    experiment, evolution = evolving.experiment, evolving.evolution
    if experiment.evaluation.background:
        raise ConfigError("evaluation.background is true, but members are selected by their scores: take false")
    task = experiment.env.factory or experiment.env.name
    title = f"{evolution.population} x {api.name_of(experiment)} on {task}, seed {experiment.training.seed}"
    guest = None if evolution.against is None else api.Guest(evolution.against, evolution.against_agents)
    make_test = api.made_env if guest is None else partial(_met, guest=guest)
    around = Surroundings(api.made_env, make_test, partial(_described, experiment))
    steps, greedy = experiment.training.steps, experiment.evaluation.greedy
    logged = Log(folder.path, experiment.logging, steps, title, greedy)
    with api.described(folder.run, evolving.to_yaml()), logged as log:
        result = loop.evolve(experiment, evolution, folder, log, around, origin)
    if result.history:
        lineage_picture(folder.lineage, folder.picture)
    return result


def _described(experiment: Experiment, algorithm: Algorithm) -> str:
    return replace(experiment, algorithm=algorithm).to_yaml()


def _met(task: Environment, copies: int, device: str, guest: api.Guest) -> VectorEnv:
    return api.made_env(task, copies, device, guest)
