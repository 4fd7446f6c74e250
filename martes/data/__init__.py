"""Facts of a team, the contract with environments, and the one store that everything reads and writes."""

from martes.data.schema import Field, Schema
from martes.data.team import (
    Action,
    Continuous,
    Discrete,
    Image,
    MultiDiscrete,
    Observation,
    TeamSpec,
    Vector,
    groups_from_names,
)
from martes.data.timestep import Fields, TimeStep, VectorEnv
from martes.data.trees import Memory
from martes.data.workspace import Workspace

__all__ = [
    "Action",
    "Continuous",
    "Discrete",
    "Field",
    "Fields",
    "Image",
    "Memory",
    "MultiDiscrete",
    "Observation",
    "Schema",
    "TeamSpec",
    "TimeStep",
    "Vector",
    "VectorEnv",
    "Workspace",
    "groups_from_names",
]
