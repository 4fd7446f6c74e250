"""Which task, how many copies of it, who steps them and what is changed on the way."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from martes.envs.process import Hosting, StartMethod
from martes.envs.wrappers import Wrap


@dataclass(frozen=True)
class Environment:
    """Which task, and how many copies of it are stepped together."""

    name: str = "mpe-spread"
    """A name that `martes list envs` shows."""
    copies: int = 64
    """Copies that are stepped together."""
    factory: str | None = None
    """`module:function` that makes the environment, in place of a listed name."""
    options: Mapping[str, object] = field(default_factory=dict[str, object])
    """Options of the task itself; on the command line `env.agents=5` or `--env.agents 5`."""
    wrap: Wrap = field(default_factory=Wrap)
    """What is changed in what agents see, do and earn."""
    workers: int | Literal["auto"] = 0
    """Processes that step a task written in plain Python; 0: none; auto: as many as cores, where that is faster."""
    timeout: float = 60.0
    """Seconds that a worker may take for one step of its copies."""
    start_method: StartMethod = "spawn"
    """How workers are started."""
    compile: bool = False
    """Compile the rules of a batched task for this machine? It pays where copies are few."""

    def __post_init__(self) -> None:
        Hosting(self.workers, self.timeout, self.start_method)  # refuses what cannot be, before anything is made

    @property
    def hosting(self) -> Hosting:
        """Where the copies of a task in plain Python are stepped."""
        return Hosting(self.workers, self.timeout, self.start_method)
