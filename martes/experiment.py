"""Everything that decides a run, as one value: from and to YAML, and with single values changed by their path."""

import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import NamedTuple

import torch
import yaml

from martes.algorithms.learner import Algorithm
from martes.algorithms.registry import algorithm_name, algorithm_named
from martes.conversion import Tree, branches, changed, converted, nested
from martes.data.options import options_of
from martes.envs.catalogue import checked_options, game_options
from martes.envs.settings import Environment
from martes.errors import ConfigError, nearest
from martes.training.settings import Evaluation, Logging, Training

_LEAST = {
    "env.copies": 1,
    "training.steps": 1,
    "training.seed": 0,
    "training.threads": 0,
    "training.save_every": 1,
    "training.keep": 1,
    "evaluation.every": 1,
    "evaluation.episodes": 1,
    "logging.every": 1,
}


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run. Never written to; `changed` returns another.

    Raises ConfigError for values that cannot be, options that the task does not have among them.
    """

    env: Environment
    """The task, and how many copies of it are stepped together."""
    algorithm: Algorithm
    """What learns, and its hyperparameters."""
    training: Training = field(default_factory=Training)
    """How long, from which seed, where."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """Test episodes."""
    logging: Logging = field(default_factory=Logging)
    """Where numbers go."""

    def __post_init__(self) -> None:
        names = (each.name for each in fields(self.env))
        options = checked_options(self.env.name, self.env.options, self.env.factory, names)
        object.__setattr__(self, "env", replace(self.env, options=options))
        for path, least in _LEAST.items():
            section, name = path.split(".")
            value = getattr(getattr(self, section), name)
            if value < least:
                raise ConfigError(f"{path} is {value}: it must be at least {least}")
        try:
            torch.device(self.training.device)
        except RuntimeError as error:
            raise ConfigError(f"training.device is {self.training.device!r}: give cpu, cuda, cuda:1, ...") from error

    def changed(self, values: Mapping[str, object] | list[tuple[str, object]]) -> "Experiment":
        """This experiment with values changed by their dotted path: {"algorithm.lr": 1e-3, "env.agents": 5}.

        `env.<option>` is an option of the task; `env.name` takes another task and forgets the options of the old one;
        `algorithm.name` takes another algorithm at its untuned values. Raises ConfigError for an unknown path (naming
        the nearest), a path given twice, a value of the wrong type, and one that cannot be.
        """
        pairs = values.items() if isinstance(values, Mapping) else values
        return self._with(nested((re.sub(r"^env\.options\.", "env.", path), value) for path, value in pairs))

    def _with(self, tree: Tree) -> "Experiment":
        sections = {each.name: getattr(self, each.name) for each in fields(self)}
        new: dict[str, object] = {}
        for name, value in tree.items():
            if name not in sections:
                raise ConfigError(f"unknown key {name!r}{_nearest_path(name, sections)}")
            if not isinstance(value, Mapping):
                new[name] = converted(type(sections[name]), value, name)
            elif name == "env":
                new[name] = _environment(self.env, value)
            elif name == "algorithm":
                new[name] = _algorithm(self.algorithm, value)
            else:
                new[name] = changed(sections[name], value, name)
        return replace(self, **new)

    def tree(self) -> Tree:
        """Every value of every field, in the fields' order, and the algorithm's name."""
        values = {each.name: branches(getattr(self, each.name)) for each in fields(self)}
        return values | {"algorithm": {"name": algorithm_name(self.algorithm)} | values["algorithm"]}

    def to_yaml(self) -> str:
        """The complete experiment as YAML."""
        return yaml_of(self.tree())

    @classmethod
    def from_yaml(cls, text: str, start: "Experiment | None" = None, source: str = "the configuration") -> "Experiment":
        """The experiment that `to_yaml` wrote. What the text leaves out is as in `start`, else as the fields' defaults.

        Raises ConfigError, naming `source`, where the text is not YAML of this form.
        """
        tree = read_tree(text, source)
        try:
            return cls.from_tree(tree, start)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error

    @classmethod
    def from_tree(cls, tree: Tree, start: "Experiment | None" = None) -> "Experiment":
        """The experiment of such a YAML text that was read."""
        return (start or cls(Environment(), _named_algorithm(tree)))._with(tree)


def read_tree(text: str, source: str) -> Tree:
    """The keys and values of a YAML text. Raises ConfigError, naming `source`, where it is none."""
    try:
        tree = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{source} holds no configuration: it is {type(tree).__name__}, not keys and values")
    return tree


def yaml_of(tree: Tree) -> str:
    """A tree of plain values as YAML, in its order, lists in one line."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=120)


class Setting(NamedTuple):
    """One value of an experiment that can be changed."""

    path: str
    value: object
    kind: object
    doc: str


def settings_of(experiment: Experiment) -> Iterator[Setting]:
    """Every value of an experiment, options of its task among them, in the order of config.yaml."""
    for section in fields(experiment):
        yield from settings_in(getattr(experiment, section.name), section.name)
        if section.name == "env" and experiment.env.factory is None:
            for name, option in game_options(experiment.env.name).items():
                yield Setting(f"env.{name}", experiment.env.options.get(name, option.default), option.kind, option.doc)


def settings_in(config: object, path: str) -> Iterator[Setting]:
    """Every value of a config, at any depth, below this path; mappings are left out."""
    for name, option in options_of(type(config)).items():
        value = getattr(config, name)
        if is_dataclass(value):
            yield from settings_in(value, f"{path}.{name}")
        elif not isinstance(value, Mapping):
            yield Setting(f"{path}.{name}", value, option.kind, option.doc)


def _named_algorithm(tree: Tree) -> Algorithm:
    algorithm = tree.get("algorithm")
    if not isinstance(algorithm, Mapping) or "name" not in algorithm:
        raise ConfigError("algorithm.name is missing: say which algorithm it configures")
    return algorithm_named(str(algorithm["name"]))


def _algorithm(current: Algorithm, tree: Tree) -> Algorithm:
    values = dict(tree)
    name = values.pop("name", None)
    return changed(current if name is None else algorithm_named(str(name)), values, "algorithm")


def _environment(current: Environment, tree: Tree) -> Environment:
    """The task changed by a tree whose names are fields of Environment, or else options of the task."""
    own = {each.name for each in fields(Environment)}
    new = changed(current, {name: value for name, value in tree.items() if name in own}, "env")
    extra = {name: value for name, value in tree.items() if name not in own}
    twice = extra.keys() & new.options if "options" in tree else ()
    if twice:
        raise ConfigError(f"env.{min(twice)} and env.options.{min(twice)} are the same option: give one of them")
    is_same = (new.name, new.factory) == (current.name, current.factory)
    kept = new.options if "options" in tree or is_same else {}
    return replace(new, options={**kept, **extra})


def _nearest_path(name: str, sections: Mapping[str, object]) -> str:
    """The end of an unknown key's message; a field of some section, given without it, is nearest."""
    for section, value in sections.items():
        if name in branches(value):
            return f"; did you mean '{section}.{name}'?"
    return nearest(name, sections)


class _Dumper(yaml.SafeDumper):
    """Lists in one line, everything else in rows of its own."""


_Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        """The mapping, refused where a key stands twice."""
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)
