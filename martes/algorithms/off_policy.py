"""What learners from replay have in common: which fields of the past are kept, how, and what is drawn of them."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch

from martes.data import Field, Schema, TeamSpec, Vector
from martes.data.experience import Episodes, Replayed, Transitions
from martes.data.priorities import Prioritised
from martes.data.replay import Folder
from martes.errors import ConfigError
from martes.maths.schedules import Constant, Linear

OPTIMISERS = {"adam": partial(torch.optim.Adam, fused=True), "rmsprop": torch.optim.RMSprop}
"""By name; RMSprop averages squared gradients at torch's own rate, 0.99."""
_EVERY_LEARNER = ("agent_mask", "start", "cut", "reward", "discount", "action")


@runtime_checkable
class Pace(Protocol):
    """How often one acts and learns: fields of a learner's config."""

    @property
    def ratio(self) -> float:
        """Gradient steps for each environment step."""
        ...

    @property
    def warmup(self) -> int:
        """Environment steps before learning starts."""
        ...

    @property
    def rollout(self) -> int:
        """Steps of each environment between two looks at which updates are due."""
        ...


@dataclass(frozen=True)
class Store:
    """What is kept of the past, and which of it is drawn. Raises ConfigError for values that cannot be."""

    capacity: int = 250_000
    """Steps kept, of all environments together; each episode takes one more, for its last observation."""
    seen_as: Literal["float32", "float16", "int16", "int8", "uint8"] = "float32"
    """How the numbers that are seen are kept: a narrow kind is refused at the first one that it cannot hold."""
    device: Literal["learner", "cpu"] = "learner"
    """Where it lies: beside the networks, or in the memory of the host."""
    folder: str | None = None
    """Where it lies in files, for more than the memory holds; none: in memory."""
    alpha: float = 0.0
    """0: all draws are equally likely; up to 1: in proportion to the error^alpha (Schaul et al. 2016)."""
    beta: float = 0.4
    """How much of the bias of unequal draws importance weights take back at first; 1: all of it."""
    beta_steps: int = 0
    """Environment steps over which beta rises to 1; 0: it stays."""

    def __post_init__(self) -> None:
        if self.capacity < 1 or self.beta_steps < 0:
            raise ConfigError(f"store is {self}: capacity must be 1 or more, beta_steps 0 or more")
        if self.alpha < 0 or not 0 <= self.beta <= 1:
            raise ConfigError(f"store is {self}: alpha must be 0 or more, beta between 0 and 1")

    def schema(self, team: TeamSpec, reads: tuple[str, ...]) -> Schema:
        """The fields `reads` of a team and those that every learner needs, as they are kept."""
        whole = Schema.from_team(team)
        return Schema({name: self._kept(team, name, whole[name]) for name in (*reads, *_EVERY_LEARNER)}, team.size)

    def _kept(self, team: TeamSpec, name: str, field: Field) -> Field:
        if field.dtype == torch.int64:  # of a joint action each part is small
            most = max(size for sizes in team.action_sizes for size in sizes)
            return replace(field, dtype=torch.uint8 if most <= 256 else torch.int16)
        is_seen = name == "state" or isinstance(team.parts.get(name), Vector)
        return replace(field, dtype=getattr(torch, self.seen_as)) if is_seen else field

    def replayed(
        self,
        team: TeamSpec,
        reads: tuple[str, ...],
        of: Transitions | Episodes,
        pace: Pace,
        generator: torch.Generator,
    ) -> Replayed:
        """The experience of a learner of this team that reads these fields, in batches that `of` describes."""
        return Replayed(
            self.schema(team, reads),
            generator,
            of,
            self.capacity,
            ratio=pace.ratio,
            warmup=pace.warmup,
            steps=pace.rollout,
            prioritised=self.prioritised,
            folder=self.place,
            device=generator.device if self.device == "learner" else "cpu",
        )

    @property
    def prioritised(self) -> Prioritised | None:
        """How errors make a draw likelier; None where all are equally likely."""
        if self.alpha == 0:
            return None
        rises = Linear(self.beta, 1.0, self.beta_steps) if self.beta_steps else Constant(self.beta)
        return Prioritised(self.alpha, rises)

    @property
    def place(self) -> Folder | None:
        """The folder of its files."""
        return None if self.folder is None else Folder(Path(self.folder))
