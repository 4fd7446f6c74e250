"""Connect four and its kin on batched tensors: two players put stones on a board by turns until one has a line.

With `rows` = `columns` = `length` = 3 and `gravity` off it is tic-tac-toe. Source: the rules of `connect_four_v3` and
`tictactoe_v3` of PettingZoo (Terry et al., 2021), https://github.com/Farama-Foundation/PettingZoo.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from martes.data import Discrete, Fields, Image, TeamSpec, Vector
from martes.envs.batched.drawing import INK, PALETTE, PAPER, Canvas, faded
from martes.envs.batched.engine import Outcome, State
from martes.envs.batched.rules import refuse_below, table
from martes.errors import ConfigError

PLAYERS = ("player_0", "player_1")
"""Who plays; the first opens."""
NOBODY = len(PLAYERS)
"""Whose turn it is once the game is over."""
_STONES = (PALETTE[1], PALETTE[6])
_WOOD = PALETTE[0]
_VIEWS = ((1.0,), (-1.0,), (-1.0,), (1.0,))  # what each player calls its own stones and the other's


@dataclass(frozen=True)
class ConnectFour:
    """By turns, each of two players drops a stone into a column; who first has `length` in a line wins
    (`connect_four_v3`).

    The winner is rewarded 1, the loser -1, and both 0 when the board is full; then the game is over. Who waits has one
    legal action, the last; who is on turn has the others, where there is room. An illegal one, though masked, ends the
    game with -1 for who is on turn. A player sees its own stones, then the other's, row by row from the top, and last
    whether it is on turn; the state is what the first player sees.

    Raises ConfigError for an option out of its range.
    """

    rows: int = 6
    """Rows of the board."""
    columns: int = 7
    """Columns of the board."""
    length: int = 4
    """Stones in a line, straight or diagonal, that win."""
    gravity: bool = True
    """Do stones fall to the bottom of a column, and are not put on any free cell?"""
    planes: Literal["vector", "image"] = "vector"
    """Is the board seen as one vector, for hidden layers, or as an image of three planes, for convolutions?"""

    def __post_init__(self) -> None:
        refuse_below(self, rows=1, columns=1, length=2)
        if self.length > max(self.rows, self.columns):
            raise ConfigError(
                f"ConnectFour.length is {self.length}: no line is so long on {self.rows} rows of {self.columns} columns"
            )

    @property
    def _slots(self) -> int:
        """Where a stone can be put: columns, or cells."""
        return self.columns if self.gravity else self.rows * self.columns

    @property
    def _depth(self) -> int:
        """Stones that each of these takes."""
        return self.rows if self.gravity else 1

    @property
    def team(self) -> TeamSpec:
        """Two equals of one group, so that one policy can play both sides."""
        seen = Vector(2 * self.rows * self.columns + 1)
        return TeamSpec(
            agents=PLAYERS,
            groups={"player": (0, 1)},
            observation={"player": seen if self.planes == "vector" else Image((3, self.rows, self.columns))},
            action={"player": Discrete(self._slots + 1)},
            state=seen,
            masks_actions=True,
        )

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """An empty `board`, how many stones each slot has `taken`, whose `turn` it is.

        A stone of the first player is a 1, one of the other a -1. One more slot, that of waiting, is always full.
        """
        device = generator.device
        taken = torch.zeros(envs, self._slots + 1, dtype=torch.int64, device=device)
        taken[:, -1] = self._depth
        return {
            "board": torch.zeros(envs, self.rows * self.columns, device=device),
            "taken": taken,
            "turn": torch.zeros(envs, dtype=torch.int64, device=device),
        }

    def advance(self, state: State, action: Int[Tensor, "env agent"], generator: torch.Generator) -> Outcome:
        """The result of what the player on turn does; the other one's action changes nothing."""
        board, taken, turn = state["board"], state["taken"], state["turn"]
        slot = action.long().gather(1, turn[:, None])
        level = taken.gather(1, slot)
        is_legal = level < self._depth
        cell = ((self._depth - 1 - level) * self._slots + slot) * is_legal  # an illegal stone is 0, and changes no cell
        board = board.scatter_add(1, cell, ((1 - 2 * turn[:, None]) * is_legal).to(board.dtype))
        taken = taken.scatter_add(1, slot, is_legal.long())

        lines = _lines(self.rows, self.columns, self.length, board.device, board.dtype)
        won = (board @ lines).abs().amax(1, keepdim=True) == self.length
        over = (won | ~is_legal).squeeze(1) | (taken == self._depth).all(1)
        win, loss = won.to(board.dtype), (~is_legal).to(board.dtype)
        return Outcome(
            {"board": board, "taken": taken, "turn": (1 - turn).masked_fill(over, NOBODY)},
            torch.where(_is_on_turn(turn), win - loss, 0 - win),
            over=over,
        )

    def observe(self, state: State) -> Fields:
        """`obs`, `state` and `action_mask`."""
        board, is_on_turn = state["board"], _is_on_turn(state["turn"])[..., None]
        stones = (board[:, None] * table(_VIEWS, board.device, board.dtype)).clamp_min(0.0)
        seen = torch.cat((stones.view(len(board), 2, -1), is_on_turn), 2)
        is_open = (state["taken"] < self._depth)[:, None]
        waits = torch.arange(self._slots + 1, device=board.device) == self._slots
        return {
            "obs": seen if self.planes == "vector" else self._image(seen),
            "state": seen[:, 0],
            "action_mask": torch.where(is_on_turn, is_open, waits),
        }

    def _image(self, seen: Float[Tensor, "env 2 number"]) -> UInt8[Tensor, "env 2 3 row column"]:
        bytes_ = (seen > 0).to(torch.uint8) * 255
        stones = bytes_[..., :-1].reshape(-1, 2, 2, self.rows, self.columns)
        return torch.cat((stones, bytes_[..., -1, None, None, None].expand_as(stones[:, :, :1])), 2)

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """The board, who moves or who has won, and with which stones."""
        board, turn = state["board"][0], int(state["turn"])
        lines = _lines(self.rows, self.columns, self.length, board.device, board.dtype)
        stones_in_line = board @ lines
        is_won = stones_in_line.abs() == self.length
        wins = (lines * is_won).any(1)
        side = max(self.columns, self.rows + 1.1) + 0.6
        middle, low = self.columns / 2, (self.rows + 1.1 - side) / 2
        canvas = Canvas((middle - side / 2, low, middle + side / 2, low + side))
        self._draw_wood(canvas, 1.2 * 400 / side)
        for cell, stone in enumerate(board):
            x, y = cell % self.columns + 0.5, self.rows - cell // self.columns - 0.5
            canvas.circle(x, y, 0.4, PAPER)
            if stone:
                canvas.circle(x, y, 0.4, _STONES[int(stone < 0)])
                canvas.circle(x, y, 0.29, faded(INK, 0.13))
            if wins[cell]:
                canvas.circle(x, y, 0.14, PAPER)
        told = f"{PLAYERS[turn]} to move" if turn != NOBODY else "a draw"
        if is_won.any():
            turn = int(stones_in_line[is_won][0] < 0)
            told = f"{PLAYERS[turn]} has won"
        canvas.text(middle, self.rows + 0.55, told, INK, 16)
        for radius, colour in ((0.2, INK), (0.17, _STONES[turn])) if turn != NOBODY else ():
            canvas.circle(middle - 1.7 * side / 8, self.rows + 0.55, radius * side / 8, colour)
        return canvas.array()

    def _draw_wood(self, canvas: Canvas, width: float) -> None:
        right, top = self.columns - 0.5, self.rows - 0.5
        for end in (0.5, right):
            canvas.line(end, 0.5, end, top, _WOOD, width)
        for end in (0.5, top):
            canvas.line(0.5, end, right, end, _WOOD, width)
        for row in range(1, self.rows - 1):
            for column in range(1, self.columns - 1):
                canvas.square(column + 0.5, row + 0.5, 1.02, _WOOD)


@lru_cache(maxsize=32)
def _lines(
    rows: int, columns: int, length: int, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "cell line"]:
    """1 where a cell is part of a line that wins."""
    cells = torch.arange(rows * columns).view(rows, columns)
    runs: list[Tensor] = []
    if length <= columns:
        runs.append(cells.unfold(1, length, 1))
    if length <= rows:
        runs.append(cells.unfold(0, length, 1))
    if length <= min(rows, columns):
        for board in (cells, cells.flip(1)):
            runs.append(board.unfold(0, length, 1).unfold(1, length, 1).diagonal(dim1=2, dim2=3))
    run = torch.cat([each.reshape(-1, length) for each in runs])
    return torch.zeros(rows * columns, len(run)).scatter_(0, run.t(), 1.0).to(device, dtype)


def _is_on_turn(turn: Int[Tensor, "env"]) -> Tensor:
    return turn[:, None] == torch.arange(len(PLAYERS), device=turn.device)
