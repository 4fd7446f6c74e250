"""Environments by name: the library's own, those of installed packages, and a user's own function. Nothing is imported
before it is asked for."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from importlib.metadata import entry_points

import torch

from martes.conversion import converted, refuse_unknown
from martes.data import VectorEnv
from martes.data.options import Option, options_of, takes_anything
from martes.envs.batched.engine import BatchedEnv, Game
from martes.errors import ConfigError, EnvError, nearest

GROUP = "martes.envs"
"""The entry-point group under which a package declares its own environments."""
FORAGING = "lbf-[<sight>s-]<rows>x<columns>-<agents>p-<food>f[-coop]"
"""The names of level-based foraging, read by `martes.envs.batched.foraging`."""


@dataclass(frozen=True)
class Entry:
    """One name: what makes the environment, what it is, and the options that make the variant."""

    place: str
    """`module:name` of a game's class, or of a function that returns a game or a vector environment."""
    doc: str
    options: Mapping[str, object] = field(default_factory=dict[str, object])


_MPE, _MATRIX = "martes.envs.batched.mpe", "martes.envs.batched.matrix"
_VALUE, _ACTION = "martes.envs.batched.value_probes", "martes.envs.batched.action_probes"
_CONTINUOUS = {"continuous": True}

CATALOGUE: Mapping[str, Entry] = {
    "mpe-spread": Entry(f"{_MPE}:Spread", "cover every landmark, do not collide"),
    "mpe-spread-continuous": Entry(f"{_MPE}:Spread", "mpe-spread with real-valued actions", _CONTINUOUS),
    "mpe-speaker-listener": Entry(f"{_MPE}:SpeakerListener", "one knows the goal, the other must go there"),
    "mpe-speaker-listener-continuous": Entry(
        f"{_MPE}:SpeakerListener", "mpe-speaker-listener with real-valued actions", _CONTINUOUS
    ),
    "foraging": Entry("martes.envs.batched.foraging:Foraging", "level-based foraging: lift food together"),
    "climbing": Entry(f"{_MATRIX}:climbing", "matrix game: the best joint action lies beside the worst"),
    "penalty": Entry(f"{_MATRIX}:penalty", "matrix game: two best joint actions, a penalty for mixing them up"),
    "matrix": Entry(f"{_MATRIX}:MatrixGame", "two players and any table"),
    "two-step": Entry(f"{_MATRIX}:TwoStep", "the first choice decides which table pays: 7 for sure or up to 8"),
    "memory-cue": Entry("martes.envs.batched.memory:MemoryCue", "remember a cue until asked for it"),
    "coordsum-3x10": Entry("martes.envs.batched.coordination:CoordSum", "sum to a target without a fixed convention"),
    "crowd": Entry("martes.envs.batched.crowd:Crowd", "thousands of agents that cost next to nothing"),
    "probe-constant": Entry(f"{_VALUE}:Lives", "one step that pays 1"),
    "probe-delayed": Entry(f"{_VALUE}:Lives", "two steps, the second pays 1", {"rewards": ((0.0, 1.0), (0.0, 1.0))}),
    "probe-death": Entry(f"{_VALUE}:Lives", "one agent dies, one plays on", {"rewards": ((1.0,) * 2, (1.0,) * 5)}),
    "probe-observed": Entry(f"{_VALUE}:ObservedReward", "the observation is the reward"),
    "probe-time-limit": Entry(f"{_VALUE}:TimeLimit", "1 for ever, cut by time limits"),
    "probe-unequal": Entry(f"{_ACTION}:UnequalTeam", "groups with unequal observations and actions"),
    "probe-continuous": Entry(f"{_ACTION}:Aim", "hit a target in real numbers"),
    "probe-multi-discrete": Entry(f"{_ACTION}:Combination", "set several dials at once"),
    "probe-image": Entry(f"{_ACTION}:Picture", "name the bright quarter of a picture"),
    "probe-parts": Entry(f"{_ACTION}:Picture", "a picture and a number, both needed", {"compass": True}),
}


def listed_envs() -> dict[str, str]:
    """Name -> description of every environment that is installed, and the grammar of foraging's names."""
    found = {name: entry.doc for name, entry in _entries().items()}
    return found | {FORAGING: "level-based foraging of any size, as in lbf-2s-8x8-2p-2f-coop"}


def game_options(name: str) -> dict[str, Option]:
    """Option name -> option of the environment `name`, defaults as this name sets them.

    Raises ConfigError where no environment has this name.
    """
    entry = _entry(name)
    found = _own_options(_imported(entry.place))
    return {each: option._replace(default=entry.options.get(each, option.default)) for each, option in found.items()}


def checked_options(
    name: str, options: Mapping[str, object], factory: str | None = None, others: Iterable[str] = ()
) -> dict[str, object]:
    """The options of the environment `name`, or of a `factory`, as their annotations want them.

    Raises ConfigError for a name that is no option (the nearest is sought among `others`, too) and for a value of
    another type.
    """
    maker = _imported(_entry(name).place if factory is None else factory)
    known = _own_options(maker)
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
    """`copies` of the environment `name`, or of what the user's `factory` ("module:function") returns.

    A factory is called with `copies` and `device`, where it has such parameters, and with the options; it returns a
    VectorEnv, or a Game to be run by BatchedEnv. Raises ConfigError for a name, option or factory that does not exist
    and an option that cannot be, EnvError where a factory returns something else.
    """
    entry = _entry(name) if factory is None else Entry(factory, "")
    maker = _imported(entry.place)
    known = options_of(maker)
    given = {**entry.options, **checked_options(name, options or {}, factory)}
    missing = [each for each, option in _own_options(maker).items() if option.is_required and each not in given]
    if missing:
        raise ConfigError(f"{name} needs the option {missing[0]!r}: give env.{missing[0]}=...")
    ours = {"copies": copies, "device": device}
    passed = {each: value for each, value in ours.items() if each in known or takes_anything(maker)}
    return _vectorised(maker(**given, **passed), entry.place, copies, device)


def _entries() -> dict[str, Entry]:
    """Every name; one of the library's own cannot be taken by a package."""
    found = {
        each.name: Entry(each.value, f"from the package {each.dist.name if each.dist else each.module}")
        for each in entry_points(group=GROUP)
    }
    return {**found, **CATALOGUE}


def _entry(name: str) -> Entry:
    entries = _entries()
    if name in entries:
        return entries[name]
    if not name.startswith("lbf-"):
        raise ConfigError(f"no environment {name!r}{nearest(name, [*entries, FORAGING])}")
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


def _own_options(maker: Callable[..., object]) -> dict[str, Option]:
    return {name: option for name, option in options_of(maker).items() if name not in ("copies", "device")}


def _vectorised(made: object, place: str, copies: int, device: torch.device | str) -> VectorEnv:
    if isinstance(made, VectorEnv):
        if made.num_envs != copies:
            raise EnvError(f"{place} made {made.num_envs} copies where env.copies is {copies}: let it take `copies`")
        return made
    if isinstance(made, Game):
        return BatchedEnv(made, copies, device)
    told = " and ".join(f"to be a {kind.__name__} it lacks {_lacking(made, kind)}" for kind in (Game, VectorEnv))
    raise EnvError(f"{place} returned {type(made).__name__}, which is neither a Game nor a VectorEnv: {told}")


def _lacking(made: object, protocol: type) -> str:
    members = (each for each in (*vars(protocol), *protocol.__annotations__) if not each.startswith("_"))
    return ", ".join(each for each in members if not hasattr(made, each))
