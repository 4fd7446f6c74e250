"""Runs a game on batched tensors: many copies, time limit, resets in place, episode by episode, on any device."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from martes.compiling import compiled
from martes.data import Discrete, Fields, TeamSpec, TimeStep
from martes.envs.single import counted, limited
from martes.errors import EnvError

State = dict[str, Tensor]
"""Everything that a game's future depends on, but for chance: tensors `env ...`."""


class Outcome(NamedTuple):
    """What a joint action led to."""

    state: State
    reward: Float[Tensor, "env agent"]
    discount: Float[Tensor, "env agent"] | None = None
    """0 where an agent terminates while others play on; None where nobody ever does so alone."""
    over: Bool[Tensor, "env"] | None = None
    """Does the game itself end here? None where it never does."""


AHEAD = 64
"""The least number of episodes that are drawn at once."""


class _Played(NamedTuple):
    """What follows from an action, before anything is restarted."""

    state: State
    elapsed: Int[Tensor, "env"]
    seen: dict[str, Tensor]
    reward: Float[Tensor, "env agent"]
    discount: Float[Tensor, "env agent"]
    cut: Bool[Tensor, "env"]


@runtime_checkable
class Game(Protocol):
    """The rules of a game as pure functions of tensors with leading axis `env`: a frozen dataclass of options."""

    @property
    def team(self) -> TeamSpec:
        """The facts of the task."""
        ...

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """Fresh states, drawn on the generator's device."""
        ...

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> Outcome:
        """The result of `action` [env agent ...]; `state` is left as it was."""
        ...

    def observe(self, state: State) -> Fields:
        """`obs` and, where the team has them, `state`, `action_mask`; `agent_mask` only if agents die or join."""
        ...


@runtime_checkable
class Drawn(Protocol):
    """A game that can show itself; without this it trains, but cannot be watched."""

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of a state with one environment."""
        ...


class BatchedEnv:
    """`copies` of a game as one VectorEnv. Episodes end when the game is over or at the team's `episode_limit`.

    `limit` is a shorter one. `is_compiled`: compile the rules at the first step, for these copies on this machine.
    """

    def __init__(
        self,
        game: Game,
        copies: int,
        device: torch.device | str = "cpu",
        limit: int | None = None,
        *,
        is_compiled: bool = False,
    ) -> None:
        self.game = game
        self.team = limited(game.team, limit)
        self.num_envs = counted(copies)
        self.device = torch.device(device)
        choices = () if self.team.action_kind is Discrete else self.team.legal_actions.shape[1:2]
        self._action_shape = (copies, self.team.size, *choices)
        self._limit = self.team.episode_limit
        self._generator = torch.Generator(self.device)
        ones = torch.ones(copies, self.team.size, device=self.device)
        self._alive = ones.bool()  # shared by every step of a game in which nobody dies
        self._going_on = ones
        self._state: State = {}
        self._elapsed = torch.zeros(copies, dtype=torch.int32, device=self.device)
        self._ahead = max(copies, AHEAD)
        self._stock: tuple[State, dict[str, Tensor]] = {}, {}
        self._drawn_from = self._generator.get_state()
        self._used = self._ahead
        self._played = compiled(self._advanced, self.device, is_small=True) if is_compiled else self._advanced

    def reset(self, seed: int) -> TimeStep:
        """The first step of every copy; equal seeds give equal futures."""
        self._generator.manual_seed(seed)
        self._state = self.game.initial(self.num_envs, self._generator)
        self._elapsed.zero_()
        self._used = self._ahead
        return self._first()

    def _first(self) -> TimeStep:
        start = self._elapsed == 0
        return TimeStep(
            self._seen(self._state), start, torch.zeros_like(self._going_on), self._going_on, torch.zeros_like(start)
        )

    def _seen(self, state: State) -> dict[str, Tensor]:
        seen = dict(self.game.observe(state))
        seen.setdefault("agent_mask", self._alive)
        return seen

    def step(self, action: Tensor) -> TimeStep:
        """The result of `action` [env agent ...] in every copy; copies that ended open their next episode."""
        if not self._state:
            raise EnvError("step() before reset(): call reset(seed) first")
        if action.shape != self._action_shape:
            raise EnvError(f"actions have the shape {list(action.shape)}, this task takes {list(self._action_shape)}")
        played = self._played(self._state, self._elapsed, action)
        self._state, self._elapsed, seen, cut, final = played.state, played.elapsed, played.seen, played.cut, None
        ended = int(cut.count_nonzero())
        if ended:
            final, seen = seen, self._restarted(cut, ended, seen)
        return TimeStep(seen, cut, played.reward, played.discount, cut, final)

    def _advanced(self, state: State, elapsed: Int[Tensor, "env"], action: Tensor) -> "_Played":
        outcome = self.game.advance(state, action, self._generator)
        elapsed = elapsed + 1
        over = torch.zeros_like(self._alive[:, 0]) if outcome.over is None else outcome.over
        cut = over if self._limit is None else over | (elapsed >= self._limit)
        discount = self._going_on if outcome.discount is None else outcome.discount
        if outcome.over is not None:
            discount = discount * ~over[:, None]
        return _Played(outcome.state, elapsed, self._seen(outcome.state), outcome.reward, discount, cut)

    def _restarted(self, cut: Tensor, ended: int, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        state, shown = self._fresh(ended)
        self._elapsed.masked_fill_(cut, 0)
        if ended == self.num_envs:
            self._state = state
            return shown
        index = cut.nonzero().squeeze(1)
        self._state = {name: old.index_copy(0, index, state[name]) for name, old in self._state.items()}
        return {name: old.index_copy(0, index, shown[name]) for name, old in seen.items()}

    def _fresh(self, count: int) -> tuple[State, dict[str, Tensor]]:
        """The next `count` episodes of a stock drawn ahead (many cost no more than one), and what they show first."""
        if self._used + count > self._ahead:
            self._drawn_from = self._generator.get_state()
            self._draw_stock()
            self._used = 0
        state, shown = (
            {name: held[self._used : self._used + count] for name, held in part.items()} for part in self._stock
        )
        self._used += count
        return state, shown

    def _draw_stock(self) -> None:
        state = self.game.initial(self._ahead, self._generator)
        alive = self._alive[:1].expand(self._ahead, -1)
        self._stock = state, {"agent_mask": alive, **self.game.observe(state)}

    def detach(self) -> None:
        """Lets go of the past of a tape: a gradient ends here."""
        self._state = {name: tensor.detach() for name, tensor in self._state.items()}

    def render(self, index: int = 0) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of copy `index` as it stands. Raises EnvError where the game draws none."""
        if not isinstance(self.game, Drawn):
            raise EnvError(
                f"{type(self.game).__name__} has no picture of itself: give it frame(state) to watch it play"
            )
        return self.game.frame({name: tensor[index : index + 1].cpu() for name, tensor in self._state.items()})

    def close(self) -> None:
        """Forgets the state."""
        self._state = {}

    def state_dict(self) -> dict[str, object]:
        """State, clock and random state: the future is a function of these and of the actions."""
        return {
            "state": {name: tensor.clone() for name, tensor in self._state.items()},
            "elapsed": self._elapsed.clone(),
            "generator": self._generator.get_state(),
            "stock": self._drawn_from.clone(),
            "used": self._used,
        }

    def load_state_dict(self, state: dict[str, object]) -> TimeStep:
        """Restores `state_dict` and returns the step that the next action is chosen from.

        Raises EnvError where it is no such state, or that of another game, of other options or of other copies.
        """
        held, used = state.get("state"), state.get("used")
        elapsed, generator, drawn_from = (state.get(name) for name in ("elapsed", "generator", "stock"))
        if not (isinstance(held, dict) and isinstance(elapsed, Tensor) and isinstance(generator, Tensor)):
            raise EnvError(
                "this is not the state of a batched environment: `state`, `elapsed` or `generator` is missing"
            )
        if not (isinstance(drawn_from, Tensor) and isinstance(used, int)):
            raise EnvError("this state of a batched environment is of an older version: `stock` or `used` is missing")
        if elapsed.shape != self._elapsed.shape:
            raise EnvError(
                f"the saved environment has {len(elapsed)} copies, this one {self.num_envs}: make them equal"
            )
        saved: State = dict(held)  # pyright: ignore[reportUnknownArgumentType]
        expected = _shapes(self.game.initial(self.num_envs, torch.Generator(self.device)))
        if _shapes(saved) != expected:
            raise EnvError(f"the saved state {_shapes(saved)} is of another game or other options: this has {expected}")
        self._state = {name: tensor.to(self.device) for name, tensor in saved.items()}
        self._elapsed.copy_(elapsed)
        self._used, drawn_from = int(used), drawn_from.cpu()
        if self._used < self._ahead:
            self._drawn_from = drawn_from
            self._generator.set_state(drawn_from)
            self._draw_stock()
        self._generator.set_state(generator.cpu())
        return self._first()


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
