import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

from martes.data.options import Option, options_of, takes_anything

if TYPE_CHECKING:
    from decimal import Decimal


@dataclass(frozen=True)
class Config:
    """A config."""

    rate: float
    """How fast
    it goes."""
    sizes: tuple[int, ...] = (64, 64)
    """Widths."""
    bare: bool = False


class Plain:
    """Not a dataclass."""

    size: str = "a class attribute, no option"

    def __init__(self, size: int = 3, **rest: object) -> None: ...


def function(name: str, *args: int, copies: int = 1, untyped=None, unread: "Decimal | None" = None) -> None:
    """One line.

    Args:
        name: What it is called,
            in two lines.
        copies: How many.
    """


def test_options_of_a_dataclass_with_the_docstrings_beneath_its_fields():
    assert options_of(Config) == {
        "rate": Option(float, inspect.Parameter.empty, "How fast it goes."),
        "sizes": Option(tuple[int, ...], (64, 64), "Widths."),
        "bare": Option(bool, False, ""),
    }
    assert [name for name, option in options_of(Config).items() if option.is_required] == ["rate"]


def test_options_of_a_function_with_its_docstring():
    options = options_of(function)
    assert list(options) == ["name", "copies", "untyped", "unread"]
    assert options["name"].doc == "What it is called, in two lines."
    assert options["copies"].doc == "How many."
    assert options["untyped"] == Option(object, None, "")
    assert options["unread"].kind is object  # its annotation exists for type checkers only


def test_options_of_another_class_are_those_of_its_init():
    assert options_of(Plain) == {"size": Option(int, 3, "")}


def test_who_takes_anything():
    assert takes_anything(Plain)
    assert not takes_anything(function)
    assert not takes_anything(Config)


def test_a_builtin_that_tells_nothing_has_no_options():
    assert options_of(dict) == {}


@dataclass(frozen=True)
class Inherited(Config):
    """A config with one value more."""

    more: int = 1
    """More."""


def test_inherited_fields_are_described_where_they_stand():
    docs = {name: option.doc for name, option in options_of(Inherited).items()}
    assert docs == {"rate": "How fast it goes.", "sizes": "Widths.", "bare": "", "more": "More."}
