"""Connect four and tic-tac-toe are PettingZoo's: equal boards, masks, rewards and ends, move for move."""

from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pettingzoo import AECEnv
from pettingzoo.classic.connect_four import connect_four
from pettingzoo.classic.tictactoe import tictactoe

from martes.data import Discrete, Image, TimeStep, Vector
from martes.envs.batched.connect_four import NOBODY, ConnectFour
from martes.envs.batched.engine import BatchedEnv, Outcome, State
from martes.errors import ConfigError
from tests.envs.contract import Promise, check

GENERATOR = torch.Generator()  # nothing is left to chance
TICTACTOE = ConnectFour(rows=3, columns=3, length=3, gravity=False)
WAIT = 7
DIRECTIONS = {"horizontal": (0, 1), "vertical": (1, 0), "falling": (1, 1), "rising": (-1, 1)}


@lru_cache
def runs(rows: int, columns: int, length: int) -> dict[str, np.ndarray]:
    """Direction -> the cells [line length] of each line, found cell by cell."""
    found = {}
    for name, (down, right) in DIRECTIONS.items():
        lines = [
            [(row + step * down, column + step * right) for step in range(length)]
            for row, column in np.ndindex(rows, columns)
        ]
        inside = [line for line in lines if 0 <= line[-1][0] < rows and line[-1][1] < columns]
        found[name] = np.array([[r * columns + c for r, c in line] for line in inside], dtype=int).reshape(-1, length)
    return found


def lines_of(stones: np.ndarray, length: int) -> set[str]:
    """The directions in which so many of the stones stand in a line."""
    return {name for name, lines in runs(*stones.shape, length).items() if stones.ravel()[lines].all(1).any()}


def after(board: np.ndarray, player: int, action: int, gravity: bool) -> np.ndarray:
    """The board [row column 2] with one more stone."""
    board = board.copy()
    row, column = divmod(action, board.shape[1])
    if gravity:
        row = int((board[:, action].sum(1) == 0).sum()) - 1
    board[row, column, player] = 1
    return board


def planes(seen: torch.Tensor, game: ConnectFour) -> np.ndarray:
    """What a player sees of the stones, as PettingZoo shows it: row, column, own and other."""
    return seen[:-1].view(2, game.rows, game.columns).permute(1, 2, 0).numpy()


def chosen(env: AECEnv, game: ConnectFour, is_shy: bool, rng: np.random.Generator) -> int:
    """A legal action; the shy avoid lines of their own where they can, so that boards fill up."""
    seen = env.observe(env.agent_selection)
    legal = rng.permutation(np.flatnonzero(seen["action_mask"]))
    moves = [int(move) for move in legal]
    if is_shy:
        for move in moves:
            if not lines_of(after(seen["observation"], 0, move, game.gravity)[..., 0], game.length):
                return move
    return moves[0]


def assert_seen_equal(step: TimeStep, copy: int, env: AECEnv, game: ConnectFour, is_over: bool) -> None:
    shown = step.final if is_over else step.seen
    assert shown is not None
    for index, agent in enumerate(env.possible_agents):
        theirs, mask = env.observe(agent), shown["action_mask"][copy, index].tolist()
        assert np.array_equal(planes(shown["obs"][copy, index], game), theirs["observation"])
        is_on_turn = agent == env.agent_selection and not is_over
        assert shown["obs"][copy, index, -1] == is_on_turn
        assert mask[-1] != is_on_turn
        assert mask[:-1] == (theirs["action_mask"] * is_on_turn).astype(bool).tolist()


@pytest.mark.parametrize(
    ("game", "make", "games"),
    [(ConnectFour(), connect_four.env, 300), (TICTACTOE, tictactoe.env, 300)],
    ids=["connect four", "tic-tac-toe"],
)
def test_games_equal_the_package(game: ConnectFour, make, games: int) -> None:
    rng, copies, counted = np.random.default_rng(0), 20, Counter()
    theirs, ours = [make() for _ in range(copies)], BatchedEnv(game, copies)
    for env in theirs:
        env.reset()
    step, wait = ours.reset(0), game.team.legal_actions.shape[1] - 1
    while counted["games"] < games:
        movers = [env.possible_agents.index(env.agent_selection) for env in theirs]
        moves = [chosen(env, game, copy % 2 == 0, rng) for copy, env in enumerate(theirs)]
        action = torch.full((copies, 2), wait)
        action[range(copies), movers] = torch.tensor(moves)
        step = ours.step(action)
        for copy, (env, move) in enumerate(zip(theirs, moves, strict=True)):
            env.step(move)
            is_over = all(env.terminations.values())
            rewards = [env.rewards[agent] for agent in env.possible_agents]
            assert step.reward[copy].tolist() == rewards
            assert bool(step.cut[copy]) == is_over
            assert step.discount[copy].tolist() == [1.0 - is_over] * 2
            assert_seen_equal(step, copy, env, game, is_over)
            if is_over:
                board = env.observe(env.possible_agents[movers[copy]])["observation"]
                found = lines_of(board[..., 0], game.length)
                assert bool(found) == (rewards[movers[copy]] == 1)
                counted.update(found or {"draw"})
                counted.update({"games": 1, f"won by {movers[copy]}": bool(found)})
                env.reset()
    for kind in (*DIRECTIONS, "draw", "won by 0", "won by 1"):
        assert counted[kind] >= 5, (kind, counted)


def test_an_illegal_move_loses_as_in_the_package() -> None:
    env, ours = connect_four.env(), BatchedEnv(ConnectFour(), 1)
    env.reset()
    ours.reset(0)
    for turn in range(7):
        env.step(2)
        step = ours.step(torch.full((1, 2), 2))  # who waits does nothing, whatever it chose
        assert step.reward[0].tolist() == [env.rewards[agent] for agent in env.possible_agents]
        assert step.reward[0].tolist() == ([0, 0] if turn < 6 else [-1, 0])
        assert bool(step.cut) == all(env.terminations.values()) == (turn == 6)
    assert step.final is not None and step.final["state"][0].sum() == 6


def played(game: ConnectFour, moves: list[int]) -> Outcome:
    state, outcome = game.initial(1, GENERATOR), None
    for move in moves:
        outcome = game.advance(state, torch.full((1, 2), move), GENERATOR)
        state = outcome.state
    assert outcome is not None
    return outcome


def test_waiting_out_of_turn_loses() -> None:
    outcome = played(ConnectFour(), [3, WAIT])
    assert outcome.reward.tolist() == [[0, -1]] and outcome.over is not None and outcome.over.all()


def test_a_game_by_hand() -> None:
    """The first player builds on column 0 and wins with the seventh stone; the board before is left as it was."""
    game = ConnectFour()
    before = played(game, [0, 1, 0, 1, 0, 1])
    assert before.over is not None and not before.over.any() and not before.reward.any()
    seen = game.observe(before.state)
    own = torch.zeros(6, 7)
    own[3:, 0] = 1
    other = own.roll(1, 1)
    assert seen["obs"][0, 0].tolist() == [*own.flatten(), *other.flatten(), 1]
    assert seen["obs"][0, 1].tolist() == [*other.flatten(), *own.flatten(), 0]
    assert torch.equal(seen["state"], seen["obs"][:, 0])
    assert seen["action_mask"][0].tolist() == [[True] * 7 + [False], [False] * 7 + [True]]
    copy = {name: tensor.clone() for name, tensor in before.state.items()}
    outcome = game.advance(before.state, torch.tensor([[0, WAIT]]), GENERATOR)
    assert outcome.reward.tolist() == [[1, -1]] and outcome.over is not None and outcome.over.all()
    assert all(torch.equal(before.state[name], tensor) for name, tensor in copy.items()), "the given state changed"
    assert outcome.state["turn"].tolist() == [NOBODY]
    assert game.observe(outcome.state)["action_mask"][0].tolist() == [[False] * 7 + [True]] * 2


def test_planes_of_an_image() -> None:
    """The same view, in bytes: own stones, the other's, and ones everywhere for who is on turn."""
    vector, image = ConnectFour(), ConnectFour(planes="image")
    assert image.team.observation["player"] == Image((3, 6, 7)) and image.team.state == Vector(85)
    state = played(vector, [0, 1, 0, 1, 5]).state
    one, other = vector.observe(state), image.observe(state)
    assert other["obs"].dtype == torch.uint8 and other["obs"].shape == (1, 2, 3, 6, 7)
    assert torch.equal(other["obs"][:, :, :2].flatten(2) / 255, one["obs"][..., :-1])
    assert other["obs"][0, :, 2].flatten(1).tolist() == [[0] * 42, [255] * 42]
    assert torch.equal(one["state"], other["state"]) and torch.equal(one["action_mask"], other["action_mask"])


def test_teams() -> None:
    team = ConnectFour().team
    assert team.agents == ("player_0", "player_1") and dict(team.groups) == {"player": (0, 1)}
    assert team.action["player"] == Discrete(8) and team.observation["player"] == Vector(85)
    assert TICTACTOE.team.action["player"] == Discrete(10)


SHAPES = [
    ConnectFour(),
    ConnectFour(planes="image"),
    TICTACTOE,
    ConnectFour(rows=1, columns=4, length=3),
    ConnectFour(rows=5, columns=1, length=2),
    ConnectFour(rows=4, columns=5, length=3, gravity=False, planes="image"),
]


@pytest.mark.parametrize("game", SHAPES, ids=str)
def test_keeps_the_laws(game: ConnectFour) -> None:
    check(Promise(lambda copies, limit: BatchedEnv(game, copies, limit=limit), tells_state=True))


@given(
    rows=st.integers(1, 6),
    columns=st.integers(2, 6),
    length=st.integers(2, 6),
    gravity=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_end_comes_with_the_first_line_or_the_last_cell(
    rows: int, columns: int, length: int, gravity: bool, seed: int
) -> None:
    """On boards of any size, against a search cell by cell."""
    game = ConnectFour(rows, columns, min(length, max(rows, columns)), gravity)
    drawn = np.random.default_rng(seed)
    state: State = game.initial(1, GENERATOR)
    board, over, turn = np.zeros((rows, columns, 2)), False, 0
    while not over:
        legal = game.observe(state)["action_mask"][0, turn].numpy()
        action = int(drawn.choice(np.flatnonzero(legal)))
        outcome = game.advance(state, torch.full((1, 2), action), GENERATOR)
        state, board = outcome.state, after(board, turn, action, gravity)
        won = bool(lines_of(board[..., turn], game.length))
        assert outcome.reward[0, turn] == won == -outcome.reward[0, 1 - turn]
        assert outcome.over is not None
        over, turn = won or bool(board.sum() == board[..., 0].size), 1 - turn
        assert bool(outcome.over) == over
        assert np.array_equal(planes(game.observe(state)["obs"][0, 0], game), board)


@given(seed=st.integers(0, 2**31), gravity=st.booleans())
def test_the_mirrored_game_ends_alike(seed: int, gravity: bool) -> None:
    game, drawn = ConnectFour(4, 5, 3, gravity), torch.Generator().manual_seed(seed)
    one = other = game.initial(16, GENERATOR)
    mirror = torch.arange(20).view(4, 5).flip(1).flatten() if not gravity else torch.arange(5).flip(0)
    for _ in range(5):
        action = torch.randint(len(mirror), (16, 2), generator=drawn)
        left, right = game.advance(one, action, drawn), game.advance(other, mirror[action], drawn)
        assert torch.equal(left.reward, right.reward)
        if left.over is None or right.over is None or left.over.any():
            break
        one, other = left.state, right.state
        assert torch.equal(one["board"].view(-1, 4, 5).flip(2), other["board"].view(-1, 4, 5))


def test_float64() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        outcome = played(ConnectFour(), [0, 1])
    finally:
        torch.set_default_dtype(torch.float32)
    assert outcome.reward.dtype == outcome.state["board"].dtype == torch.float64
    assert ConnectFour().observe(outcome.state)["obs"].dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rows": 0}, "ConnectFour.rows is 0: it must be 1 or more"),
        ({"columns": 0}, "ConnectFour.columns is 0"),
        ({"length": 1}, "ConnectFour.length is 1: it must be 2 or more"),
        ({"length": 8}, "ConnectFour.length is 8: no line is so long on 6 rows of 7 columns"),
    ],
)
def test_impossible_options_are_refused(options: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ConnectFour(**options)


ORANGE, YELLOW, PAPER = (213, 94, 0), (240, 228, 66), (251, 250, 247)


def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture.astype(int) - colour).max(-1) < 8).sum())


def test_frame_shows_stones_and_the_line_that_won() -> None:
    game = ConnectFour()
    empty, before, won = (
        game.frame(state)
        for state in (game.initial(1, GENERATOR), *(played(game, [3, 2] * 3 + end).state for end in ([], [3])))
    )
    assert before.shape == (400, 400, 3) and before.dtype == np.uint8
    header, board, unit = slice(0, 60), slice(65, 400), 400 / 7.7
    assert count(empty[board], ORANGE) == count(empty[board], YELLOW) == 0
    assert 1000 < count(before[board], ORANGE) == pytest.approx(count(before[board], YELLOW), rel=0.1)
    assert count(before[header], YELLOW) == 0 and count(before[header], ORANGE) > 100  # the first player moves
    for row in range(6):  # of the column in which the line stands, from the bottom
        x, y = int(3.85 * unit), int(400 - (row + 0.8) * unit)
        assert count(won[y - 2 : y + 2, x - 2 : x + 2], PAPER) == 16  # a mark, or no stone
        assert (count(before[y - 2 : y + 2, x - 2 : x + 2], PAPER) == 16) == (row > 2)


def test_frame_of_a_draw_names_no_winner() -> None:
    outcome = played(TICTACTOE, [0, 1, 2, 4, 3, 5, 7, 6, 8])
    assert outcome.over is not None and outcome.over.all() and not outcome.reward.any()
    picture = TICTACTOE.frame(outcome.state)
    assert count(picture, ORANGE) > count(picture, YELLOW) > 1000
    assert count(picture[:90], ORANGE) == count(picture[:90], YELLOW) == 0
