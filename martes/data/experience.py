"""What a learner is fed with: windows as they come, or episodes and transitions drawn from a store."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor, isfinite
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from martes.data.allocation import tensor_at
from martes.data.data_set import steps_of
from martes.data.priorities import Priorities, Prioritised
from martes.data.replay import Changes, Folder, Replay
from martes.data.schema import Schema
from martes.data.timestep import Fields
from martes.data.workspace import Workspace
from martes.errors import ConfigError, DataError
from martes.maths.statistics import Moments, merged_moments


@runtime_checkable
class Experience(Protocol):
    """Takes in every collected window and hands out the batches that are due."""

    steps: int
    """Steps of one collected window."""

    @property
    def keeps_final(self) -> bool:
        """Does `add` need the real last observation of each episode that was cut in the window?"""
        ...

    def add(self, window: Workspace, final: Fields | None = None) -> None:
        """Takes in a window; it is only lent, the collector writes into it again.

        `final` holds the real last observations, stacked in the order of `window["cut"].nonzero()`.
        """
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

    @property
    def keeps_final(self) -> bool:
        """What its windows need of the ends is in their field `next_value`."""
        return False

    def add(self, window: Workspace, final: Fields | None = None) -> None:
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


@dataclass
class Finished:
    """On-policy experience of whole episodes: each is learned from once, beside others that ended, then forgotten.

    A batch is `[longest, at least `episodes`]`: all that ended since the last one. Who learns between their first step
    and their last has acted in them by more than one policy.
    """

    schema: Schema
    """The fields to keep, in the dtypes to keep them in."""
    episodes: int
    """How many must have ended."""
    steps: int
    """Steps of one collected window."""
    capacity: int
    """Rows that may wait, of all environments; what has waited longest is forgotten."""
    device: torch.device | str = "cpu"
    """Where the rows lie, and the batches."""
    _replay: Replay | None = field(default=None, init=False)
    _waiting: Int64[Tensor, "place"] = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), init=False)

    @property
    def keeps_final(self) -> bool:
        """An episode holds what was really seen last."""
        return True

    def add(self, window: Workspace, final: Fields | None = None) -> None:
        """Takes in a window and the real last observations of the episodes that were cut in it.

        Raises DataError where no episode would ever be whole.
        """
        replay = self._opened(window.envs)
        changes = replay.add(window, final)
        left = self._waiting[~torch.isin(self._waiting, changes.written)]
        self._waiting = torch.cat((left, changes.episodes))
        if replay.is_full and not replay.episode_count:
            raise DataError(f"no episode of this task fits in {self.capacity} rows of {replay.columns} environments")

    def _opened(self, columns: int) -> Replay:
        if self._replay is None:
            self._replay = Replay(self.schema, columns=columns, capacity=self.capacity, device=self.device)
            self._waiting = self._waiting.to(self.device)
        return self._replay

    def due(self, env_steps: int) -> Iterator[Workspace]:
        """All episodes that wait, if they are enough."""
        if self._replay is not None and len(self._waiting) >= self.episodes:
            batch, self._waiting = self._replay.episodes(self._waiting), self._waiting[:0]
            yield batch

    def state_dict(self) -> dict[str, object]:
        """The episodes that wait and those that are unfinished: lent, to be saved or copied before `add`."""
        if self._replay is None:
            return {}
        rows = {f"replay/{name}": part for name, part in self._replay.state_dict().items()}
        return {"columns": self._replay.columns, "waiting": self._waiting, **rows}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores `state_dict`. Raises DataError where it is the state of another store."""
        columns = state.get("columns")
        if isinstance(columns, int):
            self._opened(columns).load_state_dict(_branch(state, "replay"))
            self._waiting = tensor_at(state, "waiting").to(self.device)


# ------------------------------------------------------------------------------------------------------- what is drawn
@dataclass(frozen=True)
class Transitions:
    """Batches `[length + 1, batch, agent]` of successive rows: 1 for a transition, n for n-step targets.

    More, with burn-in, are sequences for policies with memory. An n-step target is `maths.returns.n_step_returns` over
    the batch, at step 0: it stops at a cut, where the next row is the real last observation.
    """

    batch: int = 256
    length: int = 1
    burn_in: int = 0
    """Steps before those to learn from, of the same episode: `counted` is false there."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.length < 1 or self.burn_in < 0:
            raise ConfigError(f"{self}: batch and length must be 1 or more, burn_in 0 or more")

    def drawn(self, replay: Replay, generator: torch.Generator) -> Int64[Tensor, "batch"]:
        """Places to begin at, all equally likely, with replacement."""
        return replay.streams.drawn_steps(self.batch, generator)

    def gathered(self, replay: Replay, place: Int64[Tensor, "batch"]) -> Workspace:
        """The batch that begins at these places."""
        return replay.sequences(place, self.length, self.burn_in)

    def entered(self, changes: Changes) -> Int64[Tensor, "place"]:
        """The places that can be drawn from now on."""
        return changes.steps

    def is_drawable(self, replay: Replay) -> Bool[Tensor, "place"]:
        """Which places can be drawn?"""
        return replay.streams.lengths >= 0

    def held(self, replay: Replay) -> int:
        """How many rows there are to draw from."""
        return replay.rows


@dataclass(frozen=True)
class Episodes:
    """Batches of whole episodes, cropped to the longest of each batch; without priorities no episode comes twice."""

    batch: int = 32

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"{self}: batch must be 1 or more")

    def drawn(self, replay: Replay, generator: torch.Generator) -> Int64[Tensor, "batch"]:
        """Places where different episodes begin, all equally likely."""
        return replay.streams.drawn_episodes(self.batch, generator)

    def gathered(self, replay: Replay, place: Int64[Tensor, "batch"]) -> Workspace:
        """The batch of the episodes that begin at these places."""
        return replay.episodes(place)

    def entered(self, changes: Changes) -> Int64[Tensor, "place"]:
        """The places that can be drawn from now on."""
        return changes.episodes

    def is_drawable(self, replay: Replay) -> Bool[Tensor, "place"]:
        """Which places can be drawn?"""
        return replay.streams.lengths > 0

    def held(self, replay: Replay) -> int:
        """How many whole episodes there are to draw from."""
        return replay.episode_count


# ---------------------------------------------------------------------------------------------------------- the store
@dataclass
class Replayed:
    """Off-policy experience: windows go to a `Replay`, batches are drawn from it, `ratio` for each environment step.

    Raises ConfigError for settings that cannot be.
    """

    schema: Schema
    """The fields to keep, in the dtypes to keep them in."""
    generator: torch.Generator
    """What draws; it is saved and restored with the rest."""
    of: Transitions | Episodes
    """What a batch is made of."""
    capacity: int
    """Rows kept, of all environments; an episode of T steps takes T + 1, and each environment one for what it sees."""
    ratio: float = 1.0
    """Updates for each environment step, whatever the number of environments."""
    warmup: int = 0
    """Environment steps before learning starts; it also waits until a batch is there."""
    steps: int = 1
    """Steps of one collected window."""
    prioritised: Prioritised | None = None
    """How errors make a draw likelier; none: all are equally likely."""
    folder: Folder | None = None
    """Where the rows lie in files; none: in memory."""
    device: torch.device | str = "cpu"
    """Where the rows lie, and the batches."""
    earned: Moments | None = None
    """The rewards of agents who were there, of all or of each, each counted once, however often it is drawn; none:
    nobody asks."""
    _replay: Replay | None = field(default=None, init=False)
    _priorities: Priorities | None = field(default=None, init=False)
    _is_given: bool = field(default=False, init=False)
    """Does it hold a data set, and take in nothing else?"""
    _began: int = field(default=0, init=False)
    """The environment steps from which updates are counted."""
    _updates: int = field(default=0, init=False)
    env_steps: int = field(default=0, init=False)
    """The environment steps made in all when it was last asked what is due: what schedules go by."""

    def __post_init__(self) -> None:
        if not (self.ratio > 0 and isfinite(self.ratio)) or self.warmup < 0 or self.steps < 1:
            raise ConfigError(
                f"ratio is {self.ratio}, warmup {self.warmup}, steps {self.steps}: "
                "they must be above 0, 0 or more, and 1 or more"
            )
        if self.capacity < self.of.batch:
            raise ConfigError(f"a replay of {self.capacity} rows is smaller than a batch of {self.of}: raise capacity")
        self._began = self.warmup

    @property
    def keeps_final(self) -> bool:
        """A replay holds what was really seen last."""
        return True

    def add(self, window: Workspace, final: Fields | None = None) -> None:
        """Takes in a window and the real last observations of the episodes that were cut in it.

        Raises DataError where they do not fit the store, or its folder holds the rows of another run.
        """
        if self._replay is None and self._opened(window.envs).rows:
            raise DataError(f"{self.folder} holds the rows of an earlier run: resume that run, or name an empty folder")
        replay = self._opened(window.envs)
        changes = replay.add(window, final)
        if self._priorities is not None:
            self._priorities.renew(changes.written, self.of.entered(changes))
        if self.earned is not None:
            before = Moments(*(each.to(window.device) for each in self.earned))
            reward, there = (each.movedim(-1, 0) for each in (window["reward"], window.mask))
            self.earned = merged_moments(before, reward, there)

    def take(self, data: Workspace) -> None:
        """Holds a data set, whole and for good, in place of what acting brings; no saved state repeats it.

        Raises DataError where it lacks a field, or does not fit the store.
        """
        window, final = steps_of(data)
        self.capacity, self.warmup, self._began = data.time + 2, 0, 0
        self.add(window, final)
        self._is_given = True

    def _opened(self, columns: int) -> Replay:
        if self._replay is None:
            self._replay = Replay(
                self.schema, columns=columns, capacity=self.capacity, folder=self.folder, device=self.device
            )
            if self.prioritised is not None:
                self._priorities = Priorities(self.prioritised, len(self._replay.streams.lengths), self.device)
        return self._replay

    def due(self, env_steps: int) -> Iterator[Workspace]:
        """floor(ratio * steps since learning began) batches in all, less those handed out before.

        Raises DataError where the store is full and yet too small for a batch.
        """
        self.env_steps = env_steps
        replay = self._replay
        if replay is None:
            return
        held = self.of.held(replay)
        if held < self.of.batch:
            if replay.is_full or self._is_given:
                raise DataError(
                    f"a replay of {self.capacity} rows for {replay.columns} environments is full and holds {held} of "
                    f"the {self.of.batch} that a batch of {type(self.of).__name__} takes: raise its capacity"
                    + " (or give more data, or a smaller batch)"
                    * self._is_given
                )
            self._began, self._updates = max(self._began, env_steps), 0  # what was due while it waited is not made up
            return
        ratio = Fraction(self.ratio).limit_denominator(1_000_000)  # of floats, 0.29 * 100 is less than 29
        while self._updates < floor(ratio * (env_steps - self._began)):
            self._updates += 1
            yield self._drawn(replay, env_steps).to(self.generator.device)

    def _drawn(self, replay: Replay, env_steps: int) -> Workspace:
        if self._priorities is None:
            return self.of.gathered(replay, self.of.drawn(replay, self.generator))
        beta = self._priorities.config.beta(env_steps)
        place, weight = self._priorities.drawn(self.of.batch, beta, self.generator)
        batch = self.of.gathered(replay, place)
        batch["weight"] = weight
        return batch

    def prioritise(self, batch: Workspace, error: Float[Tensor, "batch"] | None) -> None:
        """Makes what a batch was made of likelier, or less likely, by the error that was found in it.

        Does nothing where all are equally likely. Raises DataError where an error is not finite.
        """
        if self._priorities is not None:
            assert error is not None, "the learner's loss does not tell how far off each draw is"
            self._priorities.update(batch["place"], error)

    def state_dict(self) -> dict[str, object]:
        """The store, its priorities, its counters and the random state: lent, to be saved or copied before `add`."""
        state: dict[str, object] = {
            "counters": torch.tensor([self._began, self._updates]),
            "pace": torch.tensor([self.ratio, self.env_steps], dtype=torch.float64),
            "generator": self.generator.get_state(),
        }
        if self.earned is not None:
            state["earned"] = torch.stack(self.earned)
        if self._replay is not None and not self._is_given:
            state["columns"] = self._replay.columns
            state |= {f"replay/{name}": part for name, part in self._replay.state_dict().items()}
        if self._priorities is not None:
            state |= {f"priorities/{name}": part for name, part in self._priorities.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores `state_dict`; saved at another `ratio`, it counts the updates that are due from there on.

        Raises DataError where it is the state of another store.
        """
        began, updates = tensor_at(state, "counters").unbind()
        self._began, self._updates = int(began), int(updates)
        if "pace" in state:
            ratio, env_steps = tensor_at(state, "pace").unbind()
            if float(ratio) != self.ratio:  # what was due at another pace is done
                self._began, self._updates = max(self._began, int(env_steps)), 0
        self.generator.set_state(tensor_at(state, "generator"))
        if self.earned is not None:
            self.earned = Moments(*tensor_at(state, "earned").unbind())
        columns = state.get("columns")
        if isinstance(columns, int):
            self._opened(columns).load_state_dict(_branch(state, "replay"))
        if self._priorities is not None and self._replay is not None:
            self._priorities.load_state_dict(_branch(state, "priorities"))
            self._priorities.keep(self.of.is_drawable(self._replay))


def _branch(state: dict[str, object], name: str) -> dict[str, object]:
    return {key.removeprefix(f"{name}/"): part for key, part in state.items() if key.startswith(f"{name}/")}
