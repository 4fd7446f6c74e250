"""What can go wrong for a user: each error is one clear message (what is wrong and what to do) and one exit code."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType


class MartesError(Exception):
    """An error that the user can act on; the command line prints its text alone and ends with `exit_code`."""

    exit_code = 1


class ConfigError(MartesError):
    """An unknown preset, key or name, or a value that cannot be."""

    exit_code = 2


class DataError(MartesError):
    """A field of a workspace or replay that is missing, has two writers, or the wrong shape or dtype."""

    exit_code = 3


class EnvError(MartesError):
    """An environment that breaks its contract: NaN, wrong shapes, spaces that differ inside a group."""

    exit_code = 4


class CheckpointError(MartesError):
    """A run folder or checkpoint that is corrupt, truncated or foreign, or that could not be written."""

    exit_code = 5


class NonFiniteError(MartesError):
    """A loss or gradient that is not finite; `batch` is what it came from."""

    exit_code = 6

    def __init__(self, message: str, batch: object = None) -> None:
        super().__init__(message)
        self.batch = batch


class MissingExtra(MartesError):
    """A package that only an extra of martes installs. `package` is its import name, `extra` the extra's."""

    exit_code = 7

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(package, extra)  # the arguments, not the text: the error crosses process borders by pickle
        self.package = package
        self.extra = extra

    def __str__(self) -> str:
        return f"{self.package} is not installed: pip install 'martes[{self.extra}]'"


def require(module: str, extra: str) -> ModuleType:
    """The imported module of an optional package.

    Raises `MissingExtra` if its package is not installed; an installed one that fails to import raises its own error.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtra(package, extra) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an unknown name's message: the nearest known name, if one is near, and all that are known."""
    names = sorted(known)
    as_known = {each.lower(): each for each in names}
    close = get_close_matches(name.lower(), as_known, n=1)
    guess = f"; did you mean {as_known[close[0]]!r}?" if close else ";"
    return f"{guess} known: {', '.join(names) or 'none'}"
