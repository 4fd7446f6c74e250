"""What a learner is fed with: windows as they come, or (for other learners) episodes and transitions from a store."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from martes.data.workspace import Workspace


@runtime_checkable
class Experience(Protocol):
    """Takes in every collected window and hands out the batches that are due."""

    steps: int
    """Steps of one collected window."""

    def add(self, window: Workspace) -> None:
        """Takes in a window; it is only lent, the collector writes into it again."""
        ...

    def due(self, env_steps: int) -> Iterator[Workspace]:
        """The batches to learn from, now that `env_steps` steps were made in all."""
        ...

    def state_dict(self) -> dict[str, object]:
        """Everything that it holds from window to window."""
        ...

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores `state_dict`."""
        ...


@dataclass
class Rollouts:
    """On-policy experience: each window of `steps` steps is learned from once, then forgotten."""

    steps: int
    _window: Workspace | None = None

    def add(self, window: Workspace) -> None:
        """Keeps the window until it is handed out."""
        self._window = window

    def due(self, env_steps: int) -> Iterator[Workspace]:
        """The window that was just collected."""
        if self._window is not None:
            window, self._window = self._window, None
            yield window

    def state_dict(self) -> dict[str, object]:
        """Nothing: between windows it is empty."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Nothing to restore."""
