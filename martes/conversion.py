"""Dataclasses from plain trees (what YAML holds, what a person types) and back; every misfit is told by its path."""

import math
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Literal, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from martes.errors import ConfigError, nearest

Tree = Mapping[str, object]
"""Field name -> value, or a tree for a field that is a dataclass itself."""

Config = TypeVar("Config")
_WHOLE = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")


class Typed(str):
    """A value as typed on a command line: what it means is up to the field that takes it."""


def plain(value: object) -> object:
    """The value in terms of YAML: dataclasses and mappings as dicts, tuples as lists."""
    if is_dataclass(value) or _is_mapping(value):
        return branches(value)
    return [plain(each) for each in value] if _is_list(value) else value


def branches(node: object) -> dict[str, object]:
    """The plain values of a dataclass in the order of its fields, or of a mapping."""
    names = fields(node) if is_dataclass(node) else ()
    pairs = node.items() if _is_mapping(node) else ((each.name, getattr(node, each.name)) for each in names)
    return {str(name): plain(value) for name, value in pairs}


def as_typed(value: object) -> str:
    """The value as one would type it."""
    if _is_list(value):
        nests = any(_is_list(each) for each in value)
        parts = ",".join(f"[{as_typed(each)}]" if _is_list(each) else as_typed(each) for each in value)
        return f"[{parts}]" if nests else parts
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def nested(values: Iterable[tuple[str, object]]) -> dict[str, object]:
    """The tree of values given by dotted paths. Raises ConfigError where a path is given twice, or within another."""
    tree: dict[str, object] = {}
    for path, value in values:
        *above, name = path.split(".")
        branch = tree
        for each in above:
            inner = branch.setdefault(each, {})
            if not _is_branch(inner):
                raise ConfigError(f"{path} is given, and so is {each}, which holds it: give one of them")
            branch = inner
        if name in branch:
            raise ConfigError(f"{path} is given twice: {branch[name]!s} and {value!s}")
        branch[name] = value
    return tree


def changed(current: Config, tree: Tree, path: str) -> Config:
    """The dataclass with the fields that the tree names changed, at any depth.

    Raises ConfigError for a name that is no field, a value of the wrong type, and what the dataclass itself refuses.
    """
    assert is_dataclass(current) and not isinstance(current, type)
    refuse_unknown(path, tree, (each.name for each in fields(current)))
    hints = get_type_hints(type(current))
    new = {
        name: converted(hints[name], value, f"{path}.{name}", getattr(current, name)) for name, value in tree.items()
    }
    return replace(current, **new)


def refuse_unknown(path: str, names: Iterable[str], known: Iterable[str], others: Iterable[str] = ()) -> None:
    """Raises ConfigError for the first name that is not known at this path; `others` may be what was meant, too."""
    known = tuple(known)
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown key '{path}.{name}'{nearest(str(name), (*known, *others))}")


def converted(kind: object, value: object, path: str, current: object = None) -> object:
    """The value as one of the annotated type `kind`; a tree for a dataclass changes `current`, or a fresh one.

    Raises ConfigError naming path, value and what the field takes. A number is never a truth value, nor is it NaN or
    infinite; a whole number may be written 1e6.
    """
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _member(get_args(kind), value, path, current)
    if _is_config(kind):
        return _dataclass(kind, value, path, current)
    if origin is tuple:
        return _tuple(get_args(kind), value, path)
    if origin is Mapping and get_args(kind)[1] is not object:
        return _mapped(kind, value, path, current)
    if origin is Literal:
        found = [each for each in get_args(kind) if each == value or (isinstance(value, Typed) and str(each) == value)]
    else:
        found = _READ.get(origin or kind, _anything)(value)
    if not found:
        raise ConfigError(f"{path} is {_shown(value)}: it must be {described(kind)}")
    return found[0]


def described(kind: object) -> str:
    """What a field of this type takes, in words."""
    members = get_args(kind)
    match get_origin(kind) or kind:
        case origin if origin in (Union, types.UnionType):
            return " or ".join(described(each) for each in members)
        case origin if origin is Literal:
            return " or ".join(str(each) for each in members)
        case origin if origin is tuple:
            return _described_list(members)
        case origin if _is_config(origin):
            return f"the fields of {origin.__name__}"
        case origin:
            return _WORDS.get(origin, str(origin))


def _described_list(members: tuple[object, ...]) -> str:
    if members[-1] is Ellipsis:
        return f"a list, each {described(members[0])}"
    return f"a list of {len(members)}: {', '.join(described(each) for each in members)}"


def _member(members: tuple[object, ...], value: object, path: str, current: object) -> object:
    """The value as the first of a union's members that takes it."""
    is_none = value is None or (isinstance(value, Typed) and value.lower() in ("none", "null"))
    if is_none and type(None) in members:
        return None
    kinds = [each for each in members if each is not type(None)]
    if len(kinds) == 1 and _is_config(kinds[0]) and _is_mapping(value):
        return converted(kinds[0], value, path, current)  # its own errors say more
    for each in kinds:
        try:
            return converted(each, value, path, current)
        except ConfigError:
            continue
    told = " or ".join(described(each) for each in members)
    raise ConfigError(f"{path} is {_shown(value)}: it must be {told}")


def _dataclass(kind: type, value: object, path: str, current: object) -> object:
    if isinstance(value, kind):
        return value
    if not _is_mapping(value):
        names = ", ".join(f"{path}.{each.name}" for each in fields(kind))
        raise ConfigError(f"{path} is {_shown(value)}: give its fields one by one: {names}")
    return changed(current if isinstance(current, kind) else kind(), _named(value), path)


def _tuple(members: tuple[object, ...], value: object, path: str) -> tuple[object, ...]:
    listed = _listed(value) if isinstance(value, Typed) else value
    many = members[-1] is Ellipsis
    if not _is_list(listed) or not (many or len(listed) == len(members)):
        raise ConfigError(f"{path} is {_shown(value)}: it must be {_described_list(members)}")
    pairs = zip(members[:1] * len(listed) if many else members, listed, strict=True)
    return tuple(converted(kind, each, f"{path}[{i}]") for i, (kind, each) in enumerate(pairs))


def _mapped(kind: object, value: object, path: str, current: object) -> dict[str, object]:
    """The mapping with what is given put in, each value as annotated; an empty one given empties it."""
    found = _mapping(value)
    if not found:
        raise ConfigError(f"{path} is {_shown(value)}: it must be {described(kind)}")
    before = _named(current) if _is_mapping(current) else {}
    inner = get_args(kind)[1]
    given = {name: converted(inner, each, f"{path}.{name}", before.get(name)) for name, each in found[0].items()}
    return {**before, **given} if given else {}


def _listed(text: str) -> object:
    """The list that was typed: `64,64`, `64 64`, `[64, 64]` or `[[1, 0], [0, 1]]`."""
    text = text.translate(str.maketrans("()", "[]"))
    return _understood(Typed(text if text.startswith("[") else f"[{', '.join(text.replace(',', ' ').split())}]"))


def _shown(value: object) -> str:
    return repr(str(value)) if isinstance(value, Typed) else repr(value)


def _named(mapping: Mapping[object, object]) -> dict[str, object]:
    """The mapping with text for its keys: YAML reads `1:` as a number."""
    return {str(name): each for name, each in mapping.items()}


# What isinstance finds out, with the types of what is inside spelt out.
def _is_mapping(value: object) -> TypeGuard[Mapping[object, object]]:
    return isinstance(value, Mapping)


def _is_branch(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _is_list(value: object) -> TypeGuard[list[object] | tuple[object, ...]]:
    return isinstance(value, list | tuple)


def _is_config(kind: object) -> TypeGuard[type]:
    return isinstance(kind, type) and is_dataclass(kind)


# Each reader gives [the value], or [] where it takes no such thing.
def _truth(value: object) -> list[bool]:
    words = {"true": True, "false": False}
    if isinstance(value, Typed):
        return [words[value.lower()]] if value.lower() in words else []
    return [value] if isinstance(value, bool) else []


def _real(value: object) -> list[float]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return []
    try:
        number = float(value)  # YAML reads 1e-3 as a word
    except ValueError:
        return []
    return [number] if math.isfinite(number) else []


def _whole(value: object) -> list[int]:
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return [int(value)]
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    return [int(number) for number in _real(value) if number.is_integer()]


def _text(value: object) -> list[str]:
    return [str(value)] if isinstance(value, str) else []


def _mapping(value: object) -> list[dict[str, object]]:
    tree = _understood(value)
    return [_named(tree)] if _is_mapping(tree) else []


def _anything(value: object) -> list[object]:
    return [_understood(value)]


def _understood(value: object) -> object:
    """What a typed value means where the field does not say: what YAML would read, and 1e-3 as a number."""
    if not isinstance(value, Typed):
        return value
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        return str(value)
    return next(iter(_real(read)), read) if isinstance(read, str) else read


_READ: Mapping[object, Callable[[object], Sequence[object]]] = {
    bool: _truth,
    int: _whole,
    float: _real,
    str: _text,
    Mapping: _mapping,
    dict: _mapping,
}
_WORDS: Mapping[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    Mapping: "a mapping of names to values",
    dict: "a mapping of names to values",
    type(None): "none",
}
