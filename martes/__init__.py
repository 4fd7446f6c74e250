"""Learning to act in sequence, alone or in a team. Names are imported on first use: `import martes` loads nothing."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from martes import sable
    from martes.api import load, read_runs, train
    from martes.data import TeamSpec, Workspace
    from martes.evolving import evolve

__version__ = "0.1.0"
__all__ = ["TeamSpec", "Workspace", "__version__", "evolve", "load", "read_runs", "sable", "train"]

_home = {
    "TeamSpec": "martes.data",
    "Workspace": "martes.data",
    "evolve": "martes.evolving",
    "load": "martes.api",
    "read_runs": "martes.api",
    "sable": "martes",
    "train": "martes.api",
}


def __getattr__(name: str) -> object:
    if name not in _home:
        raise AttributeError(f"module 'martes' has no attribute {name!r}")
    home = _home[name]
    value = import_module(f"{home}.{name}") if home == __name__ else getattr(import_module(home), name)
    globals()[name] = value  # the next access is a plain attribute
    return value


def __dir__() -> list[str]:
    return __all__
