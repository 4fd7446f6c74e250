"""What a config, a game or a function of a user's lets one set: read from its signature and its docstrings."""

import inspect
from collections.abc import Callable, Iterable
from typing import NamedTuple

from docstring_parser import parse_from_object


class Option(NamedTuple):
    """One thing that can be set."""

    kind: object
    """Its annotation; `object` where there is none."""
    default: object
    """`inspect.Parameter.empty` where it must be given."""
    doc: str
    """The docstring beneath the field, or the parameter's line in a function's docstring, in one line."""

    @property
    def is_required(self) -> bool:
        """Must it be given?"""
        return self.default is inspect.Parameter.empty


def options_of(maker: Callable[..., object]) -> dict[str, Option]:
    """Name -> option of a dataclass, another class or a function, in order; `*args` and `**kwargs` are left out."""
    docs = _docs(maker)
    return {
        each.name: Option(_kind(each.annotation), each.default, docs.get(each.name, ""))
        for each in _parameters(maker)
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }


def takes_anything(maker: Callable[..., object]) -> bool:
    """Does it take names beyond its `options_of`?"""
    return any(each.kind is each.VAR_KEYWORD for each in _parameters(maker))


def _docs(maker: Callable[..., object]) -> dict[str, str]:
    """Name -> docstring; a field that a class inherits is described where it stands."""
    found: dict[str, str] = {}
    for each in reversed(maker.__mro__) if isinstance(maker, type) else (maker,):
        try:
            params = parse_from_object(each).params
        except (TypeError, OSError):  # a class of Python's own, without source
            continue
        found |= {param.arg_name: " ".join((param.description or "").split()) for param in params}
    return found


def _parameters(maker: Callable[..., object]) -> Iterable[inspect.Parameter]:
    try:
        return inspect.signature(maker, eval_str=True).parameters.values()
    except NameError:  # an annotation that only a type checker can read
        return inspect.signature(maker).parameters.values()
    except ValueError:  # some builtins tell nothing
        return ()


def _kind(annotation: object) -> object:
    return object if annotation is inspect.Parameter.empty or isinstance(annotation, str) else annotation
