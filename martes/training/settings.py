"""What a run is told besides its task and its algorithm. Every field is a command-line option."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from martes.algorithms.learner import Algorithm
from martes.envs.settings import Environment


@dataclass(frozen=True)
class Training:
    """How long, from which seed, where."""

    steps: int = 1_000_000
    """Environment steps of the whole team, all copies together."""
    seed: int = 0
    """The one seed: equal seeds give equal runs."""
    data: str | None = None
    """Learn from this data set alone and act in evaluations only: a file, or minari:<id>. Steps then only count."""
    device: str = "cpu"
    """Where networks, batched environments and experience live: cpu, cuda, cuda:1, ..."""
    threads: int = 0
    """Threads of torch; 0: one for each core. Beside other work take 1: threads that wait for each other spin."""
    save_every: int = 500_000
    """Environment steps between two checkpoints; one more is saved at the end."""
    keep: int = 3
    """Newest checkpoints that are kept."""


@dataclass(frozen=True)
class Evaluation:
    """Test episodes, in environments and from random streams of their own."""

    every: int = 100_000
    """Environment steps between two evaluations; one comes before the first step and one after the last update."""
    episodes: int = 32
    """Episodes of each evaluation."""
    greedy: bool = True
    """Take the most probable action (or sample as in training)?"""
    background: bool = False
    """Play them on the CPU in a process beside training, which goes on? It waits where the next is due meanwhile."""


@dataclass(frozen=True)
class Logging:
    """Where numbers go."""

    every: int = 20_000
    """Environment steps between two rows of training metrics."""
    tensorboard: bool = True
    """Write TensorBoard events?"""
    csv: bool = True
    """Write metrics.csv beside metrics.jsonl?"""
    wandb: str | None = None
    """Project of Weights & Biases to log to as well (needs the extra `wandb`)."""
    sacred: str | None = None
    """Folder for runs in Sacred's layout, under PyMARL's names of metrics (needs the extra `sacred`)."""
    progress: Literal["auto", "live", "plain", "none"] = "auto"
    """Live display, plain lines, or nothing; auto: live in a terminal, else plain."""


@runtime_checkable
class Plan(Protocol):
    """Everything that decides a run: what `experiment.Experiment` is, seen from below."""

    @property
    def env(self) -> Environment:
        """The task."""
        ...

    @property
    def algorithm(self) -> Algorithm:
        """The learner's hyperparameters."""
        ...

    @property
    def training(self) -> Training:
        """Length, seed, device."""
        ...

    @property
    def evaluation(self) -> Evaluation:
        """Test episodes."""
        ...

    @property
    def logging(self) -> Logging:
        """Where numbers go."""
        ...
