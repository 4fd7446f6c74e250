"""Environments by name: the library's own, those of installed packages, and a user's own function. Nothing is imported
before it is asked for."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from importlib import import_module
from typing import NamedTuple

import torch

from martes.conversion import converted, refuse_unknown
from martes.data import VectorEnv
from martes.data.options import Option, options_of, takes_anything
from martes.envs.batched.engine import BatchedEnv, Game
from martes.envs.names import CATALOGUE, FAMILIES, FORAGING, Entry, entries
from martes.envs.process import hosted_env
from martes.envs.settings import Environment
from martes.envs.single import SingleEnv
from martes.envs.wrappers import wrapped
from martes.errors import ConfigError, EnvError, nearest


def game_options(name: str) -> dict[str, Option]:
    """Option name -> option of the environment `name`, defaults as this name sets them.

    Raises ConfigError where no environment has this name.
    """
    entry = _entry(name)
    found = _own_options(_imported(entry.place), entry)
    return {each: option._replace(default=entry.options.get(each, option.default)) for each, option in found.items()}


def checked_options(
    name: str, options: Mapping[str, object], factory: str | None = None, others: Iterable[str] = ()
) -> dict[str, object]:
    """The options of the environment `name`, or of a `factory`, as their annotations want them.

    Raises ConfigError for a name that is no option (the nearest is sought among `others`, too) and for a value of
    another type.
    """
    entry = _entry(name) if factory is None else Entry(factory, "")
    maker = _imported(entry.place)
    known = _own_options(maker, entry)
    if not takes_anything(maker):
        refuse_unknown("env", options, known, others)
    kinds = {each: known[each].kind if each in known else object for each in options}
    return {each: converted(kinds[each], value, f"env.{each}") for each, value in options.items()}


def make_env(
    name: str,
    copies: int,
    device: torch.device | str = "cpu",
    factory: str | None = None,
    options: Mapping[str, object] | None = None,
) -> VectorEnv:
    """`copies` of the environment `name`, or of what the user's `factory` makes, in this process; see `environment`."""
    return environment(Environment(name, copies, factory, options or {}), copies, device)


def environment(
    task: Environment,
    copies: int | None = None,
    device: torch.device | str = "cpu",
    opposed: Callable[[VectorEnv], VectorEnv] | None = None,
) -> VectorEnv:
    """The copies of a task that its settings describe, wrapped as they say.

    `opposed` seats opponents (`wrap.against`) in the bare task: they are loaded from runs, of which nothing is known
    here.

    A factory ("module:function") is called with the options, and, where it takes `copies`, with these, and with
    `device` and `limit` (the time limit of `wrap`) if it takes them. It returns a VectorEnv of so many copies, a Game,
    or one copy of an environment of any kind that `martes.envs.adapters.adapted` knows. Raises ConfigError for a name,
    option or factory that does not exist and an option that cannot be, EnvError where a factory returns something else.
    """
    if opposed is None and task.wrap.against is not None:
        raise ConfigError(
            "env.wrap.against asks for opponents: martes.train and martes.evaluate seat them, or `opposed`"
        )
    copies = copies or task.copies
    make, place = _maker(task, copies, device)
    made, limit = make(), task.wrap.time_limit
    if isinstance(made, Game | VectorEnv) and task.workers not in (0, "auto"):
        raise ConfigError(f"env.workers is {task.workers}, and {place} steps all its copies at once: leave it 0")
    if isinstance(made, Game):
        env: VectorEnv = BatchedEnv(made, copies, device, limit, is_compiled=task.compile)
    elif task.compile:
        raise ConfigError(f"env.compile is true, and the rules of {place} are no functions of tensors: leave it false")
    elif isinstance(made, VectorEnv):
        env = _counted(made, place, copies, limit)
    else:
        _close(made)  # it told what it is; those who step it make their own
        env = hosted_env(partial(_single, make, place), copies, device, limit, task.hosting)
    with ExitStack() as unless_all_goes_well:
        unless_all_goes_well.callback(env.close)
        changed = wrapped(env if opposed is None else opposed(env), task.wrap)
        unless_all_goes_well.pop_all()
    return changed


class _Maker(NamedTuple):
    make: Callable[[], object]
    place: str


def _maker(task: Environment, copies: int, device: torch.device | str) -> _Maker:
    """What makes the task, its options given; it can be sent to another process."""
    entry = _entry(task.name) if task.factory is None else Entry(task.factory, "")
    maker = _imported(entry.place)
    known = options_of(maker)
    given = {**entry.options, **checked_options(task.name, task.options, task.factory)}
    missing = [each for each, option in _own_options(maker, entry).items() if option.is_required and each not in given]
    if missing:
        raise ConfigError(f"{task.name} needs the option {missing[0]!r}: give env.{missing[0]}=...")
    many = {"copies": copies, "device": device, "limit": task.wrap.time_limit} if "copies" in known else {}
    return _Maker(
        partial(maker, **given, **{each: value for each, value in many.items() if each in known}), entry.place
    )


def _close(made: object) -> None:
    close = getattr(made, "close", None)
    if callable(close):
        close()


def _single(make: Callable[[], object], place: str) -> SingleEnv:
    from martes.envs.adapters.adapted import adapted

    try:
        return adapted(make())
    except EnvError as error:
        raise EnvError(f"{place}: {error}; nor is it a Game or a VectorEnv of martes") from error


def _counted(made: VectorEnv, place: str, copies: int, limit: int | None) -> VectorEnv:
    if made.num_envs != copies:
        raise EnvError(f"{place} made {made.num_envs} copies where env.copies is {copies}: let it take `copies`")
    if limit is not None and (made.team.episode_limit or limit + 1) > limit:
        raise ConfigError(f"env.wrap.time_limit is {limit}, and {place} keeps its own time: let it take `limit`")
    return made


def _entry(name: str) -> Entry:
    known = entries()
    if name in known:
        return known[name]
    family, _, task = name.partition(":")
    if family in FAMILIES and task:
        return replace(FAMILIES[family], options={"task": task})
    if not name.startswith("lbf-"):
        families = (f"{each}:<task>" for each in FAMILIES)
        told = nearest(f"{family}:<task>" if task else name, [*known, FORAGING, *families])
        raise ConfigError(f"no environment {name!r}{told}")
    from martes.envs.batched.foraging import foraging

    game = foraging(name.replace("lbf", "Foraging", 1))
    variant = {each.name: getattr(game, each.name) for each in fields(game)}
    return replace(CATALOGUE["foraging"], options=variant)


def _imported(place: str) -> Callable[..., object]:
    """What stands at `module:name`. A module in the working folder is found too."""
    module, _, path = place.partition(":")
    if not module or not path:
        raise ConfigError(f"env.factory is {place!r}: write it as module:function")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script does not look there
    try:
        found: object = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # something that the user's module needs
        raise ConfigError(f"{place}: there is no module {error.name!r} here or among the installed packages") from None
    for part in path.split("."):
        if not hasattr(found, part):
            names = (each for each in vars(found) if not each.startswith("_"))
            raise ConfigError(f"{place}: {module} has no {path!r}{nearest(part, names)}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{place} is no function or class but {found!r}")
    return found


def _own_options(maker: Callable[..., object], entry: Entry) -> dict[str, Option]:
    """What a user may set: not the task that the name says, and not what the makers of many copies are given."""
    found = options_of(maker)
    ours = (
        *(("copies", "device", "limit") if "copies" in found else ()),
        *(("task",) if "task" in entry.options else ()),
    )
    return {name: option for name, option in found.items() if name not in ours}
