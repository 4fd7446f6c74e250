"""Games that a table decides: who pays attention to the other player's choice is paid best."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn.functional import embedding

from martes.data import Discrete, Fields, TeamSpec, Vector
from martes.envs.batched.cards import Row, card
from martes.envs.batched.engine import Outcome, State
from martes.envs.batched.rules import equals, refuse_below, table, unit_vectors
from martes.errors import ConfigError

Payoff = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class MatrixGame:
    """Two players choose at once, and a table pays them; after `steps` rounds the game is over.

    Each sees which seat is its own (one-hot) and which part of the rounds is over, from 0 to 1.

    Raises ConfigError where a table is not rectangular, where the two tables differ in shape, and for no rounds.
    """

    payoff: Payoff = ((11, -30, 0), (-30, 7, 6), (0, 0, 5))
    """What both are paid: a row for each action of the first player, a column for each of the second."""
    second: Payoff | None = None
    """What the second player is paid, where that differs."""
    steps: int = 1
    """Rounds of an episode."""

    def __post_init__(self) -> None:
        refuse_below(self, steps=1)
        shape = [len(self.payoff[0])] * len(self.payoff) if self.payoff else [0]
        for name, rows in (("payoff", self.payoff), ("second", self.second or self.payoff)):
            if [len(row) for row in rows] != shape or not all(shape):
                raise ConfigError(f"MatrixGame.{name} is {rows}: give rows of one length, as many in both tables")

    @property
    def best_return(self) -> float:
        """The largest return that two players can have, on average over both."""
        return self.steps * max((mine + other) / 2 for mine, other in self._cells)

    @property
    def chance_return(self) -> float:
        """The mean return of two players who choose at random, on average over both."""
        return self.steps * sum((mine + other) / 2 for mine, other in self._cells) / len(self._cells)

    @cached_property
    def _cells(self) -> Payoff:
        """What each joint action pays the two, row by row."""
        pairs = zip(self.payoff, self.second or self.payoff, strict=True)
        return tuple(cell for row, other in pairs for cell in zip(row, other, strict=True))

    @property
    def team(self) -> TeamSpec:
        """Two groups of one, since their numbers of actions may differ."""
        return TeamSpec(
            agents=("row", "column"),
            groups={"row": (0,), "column": (1,)},
            observation={"row": Vector(3), "column": Vector(3)},
            action={"row": Discrete(len(self.payoff)), "column": Discrete(len(self.payoff[0]))},
        )

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """`round`, counted from 0, and `chosen`: the last joint action, -1 before the first."""
        return {
            "round": torch.zeros(envs, dtype=torch.int64, device=generator.device),
            "chosen": torch.full((envs, 2), -1, device=generator.device),
        }

    def advance(self, state: State, action: Int[Tensor, "env 2"], generator: torch.Generator) -> Outcome:
        """What the table pays."""
        action = action.long()
        cell = action[:, 0] * len(self.payoff[0]) + action[:, 1]
        reward = embedding(cell, table(self._cells, action.device, torch.get_default_dtype()))
        elapsed = state["round"] + 1
        return Outcome({"round": elapsed, "chosen": action}, reward, over=elapsed == self.steps)

    def observe(self, state: State) -> Fields:
        """`obs`: seat and time."""
        seats = unit_vectors(2, state["round"].device, torch.get_default_dtype())
        passed = (state["round"] / self.steps).to(seats.dtype)
        return {
            "obs": torch.cat((seats.expand(len(passed), 2, 2), passed[:, None, None].expand(-1, 2, 1)), 2),
        }

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """The table of the first player, the last joint action framed."""
        first, second = (int(action) for action in state["chosen"][0])
        rows = [Row(f"row {i}", pays, second if i == first else None) for i, pays in enumerate(self.payoff)]
        return card("Choose a row, choose a column", rows, f"round {int(state['round'][0])} of {self.steps}")


def climbing(steps: int = 1) -> MatrixGame:
    """The climbing game: its best joint action (11) lies beside its worst (-30).

    Args:
        steps: Rounds of an episode.

    Source: Claus and Boutilier (1998), "The Dynamics of Reinforcement Learning in Cooperative Multiagent Systems".
    """
    return MatrixGame(((11, -30, 0), (-30, 7, 6), (0, 0, 5)), steps=steps)


def penalty(k: float = -100.0, steps: int = 1) -> MatrixGame:
    """The penalty game: two best joint actions (10), and a penalty `k` for who mixes them up.

    Args:
        k: What both are paid if one chooses the first action and the other the last; 0 or less.
        steps: Rounds of an episode.

    Raises ConfigError for a positive k. Source: Claus and Boutilier (1998), as `climbing`.
    """
    if not k <= 0:
        raise ConfigError(f"penalty.k is {k}: it must be 0 or less")
    return MatrixGame(((10, 0, k), (0, 2, 0), (k, 0, 10)), steps=steps)


@dataclass(frozen=True)
class TwoStep:
    """The first agent's first choice decides which table the second step is paid by: 7 for sure, or up to 8.

    Table A (first action 0) always pays 7; table B (action 1) pays 8 where both choose 1, 0 where both choose 0 and 1
    otherwise. The first step pays nothing. Everyone sees the state: before the choice, in A, or in B (one-hot).
    A method that cannot represent B's table settles for 7.

    Source: Rashid et al. (2018), "QMIX: Monotonic Value Function Factorisation for Deep Multi-Agent Reinforcement
    Learning", section 6.1.
    """

    PAYOFF = ((0.0,) * 4, (7.0,) * 4, (0.0, 1.0, 1.0, 8.0))
    """Before the choice, in A and in B: the pay of the joint actions 00, 01, 10, 11."""
    _PAYS = tuple((pay, pay) for row in PAYOFF for pay in row)

    @property
    def best_return(self) -> float:
        """Choose B, then 1 and 1."""
        return 8.0

    @property
    def chance_return(self) -> float:
        """A in one half of the episodes, B's mean in the other."""
        return (7.0 + 2.5) / 2

    @property
    def team(self) -> TeamSpec:
        """Two equals."""
        return equals(2, Vector(3), Discrete(2), state=Vector(3))

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """`stage`: 0 before the choice, 1 in A, 2 in B."""
        return {"stage": torch.zeros(envs, dtype=torch.int64, device=generator.device)}

    def advance(self, state: State, action: Int[Tensor, "env 2"], generator: torch.Generator) -> Outcome:
        """What the table of this stage pays."""
        stage, action = state["stage"], action.long()
        reward = embedding(
            4 * stage + 2 * action[:, 0] + action[:, 1], table(self._PAYS, stage.device, torch.get_default_dtype())
        )
        is_second = stage > 0
        return Outcome({"stage": stage + (1 + action[:, 0]) * ~is_second}, reward, over=is_second)

    def observe(self, state: State) -> Fields:
        """The stage, for everyone."""
        stage = embedding(state["stage"], unit_vectors(3, state["stage"].device, torch.get_default_dtype()))
        return {"obs": stage[:, None].expand(-1, 2, -1), "state": stage}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """The table that pays next."""
        stage = int(state["stage"][0])
        pays = self.PAYOFF[stage]
        title = ("The first agent chooses: A or B", "Table A", "Table B")[stage]
        return card(title, [Row("action 0", pays[:2]), Row("action 1", pays[2:])], "rows: first agent, columns: second")
