"""What the training loop knows of an algorithm: a policy to act with, the experience it wants, and `update`."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from martes.data import Field, TeamSpec, Workspace
from martes.data.experience import Experience
from martes.networks import TemporalModule
from martes.networks.growth import Parts

Metrics = dict[str, Tensor]
"""Name -> number (a tensor without axes, so that nothing waits for the device until it is logged)."""


@runtime_checkable
class Learner(Protocol):
    """One algorithm at work: its networks, optimisers and counters."""

    @property
    def policy(self) -> TemporalModule:
        """What acts."""
        ...

    @property
    def experience(self) -> Experience:
        """Where collected windows go and batches to learn from come from."""
        ...

    @property
    def fields(self) -> Mapping[str, Field]:
        """What it and its policy write into a workspace, beyond what the team's environments do."""
        ...

    def update(self, batch: Workspace) -> Metrics:
        """Learns from one batch: the only place with optimisers."""
        ...

    def state_dict(self) -> dict[str, object]:
        """Weights, optimisers, statistics, counters and random state; its entry `policy` is enough to act."""
        ...

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores `state_dict`."""
        ...


@runtime_checkable
class Scheduled(Protocol):
    """A learner some of whose hyperparameters move with the run."""

    progress: float
    """The share of the run that is done, from 0 to 1: whoever trains it says so before each update."""


@runtime_checkable
class Resizable(Protocol):
    """A learner whose networks can change their size without losing what was learned (`resizing.resized`)."""

    @property
    def parts(self) -> Parts:
        """Its networks, targets and optimisers by their names in `state_dict`; a whole stands before what it holds."""
        ...


@runtime_checkable
class Imitator(Protocol):
    """A learner of what others did: it needs a data set."""

    imitates: bool


@runtime_checkable
class Algorithm(Protocol):
    """Hyperparameters that make a learner: a frozen dataclass whose fields are the command line's options."""

    def learner(self, team: TeamSpec, generator: torch.Generator) -> Learner:
        """A fresh learner of this team; every random number it ever needs comes from `generator`."""
        ...
