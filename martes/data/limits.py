"""What numbers of a config may be."""

from collections.abc import Callable
from typing import NamedTuple

from martes.errors import ConfigError


class Limit(NamedTuple):
    """A condition, and how a message says it."""

    cure: str
    holds: Callable[[float], bool]


def _at_least_1(x: float) -> bool:
    return x >= 1


def _at_least_0(x: float) -> bool:
    return x >= 0


def _share(x: float) -> bool:
    return 0 <= x <= 1


def _above_0(x: float) -> bool:
    return x > 0


COUNT = Limit("an integer >= 1", _at_least_1)
NATURAL = Limit("0 or more", _at_least_0)
SHARE = Limit("between 0 and 1", _share)
POSITIVE = Limit("above 0", _above_0)


def refuse(name: str, value: object, is_wrong: bool, cure: str) -> None:
    """Raises ConfigError, naming value and cure, where it is wrong."""
    if is_wrong:
        raise ConfigError(f"{name} is {value}: it must be {cure}")


def refuse_beyond(config: object, limit: Limit, *names: str, path: str = "algorithm.", or_none: bool = False) -> None:
    """Raises ConfigError for the first of these fields that does not keep the limit; `or_none`: none is kept, too."""
    cure = f"{limit.cure}, or none" if or_none else limit.cure
    for name in names:
        value: float | None = getattr(config, name)
        holds = or_none if value is None else limit.holds(value)
        refuse(path + name, value, not holds, cure)
