"""Games in turns: who waits, what is paid to whom, and how it ends for both."""

from importlib import import_module
from typing import ClassVar

import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import AECEnv
from pettingzoo.test import parallel_api_test
from pettingzoo.utils import AgentSelector

from martes.data import Continuous, Discrete, Image, MultiDiscrete
from martes.envs.adapters.parallel import ParallelTeam
from martes.envs.adapters.pettingzoo import pettingzoo
from martes.envs.adapters.turns import InTurns, open_spiel, turn_team
from martes.errors import ConfigError
from tests.envs.adapters.played import Played, Shown, check_single, legal

WAIT = 9


def noughts(squares: str) -> list[Shown]:
    """What the moves of a game of noughts and crosses lead to; each waits while the other moves."""
    one = Played(pettingzoo("pettingzoo.classic.tictactoe_v3"))
    shown = [one.reset(0)]
    for turn, square in enumerate(squares):
        moves = [int(square), WAIT] if turn % 2 == 0 else [WAIT, int(square)]
        shown.append(one.step(moves))
    return shown


def test_who_waits_can_do_nothing_else_and_who_moves_cannot_wait() -> None:
    opening, after = noughts("0")
    assert opening["action_mask"].tolist() == [[True] * 9 + [False], [False] * 9 + [True]]
    assert after["action_mask"].tolist() == [[False] * 9 + [True], [False] + [True] * 8 + [False]]
    assert after["agent_mask"].all()


def test_each_sees_its_own_marks_first() -> None:
    last = noughts("04")[-1]
    assert last["obs"].shape == (2, 2, 3, 3)
    crosses, rings = np.zeros((2, 3, 3))
    crosses[0, 0], rings[1, 1] = 1, 1
    assert np.array_equal(last["obs"][0], [crosses, rings])
    assert np.array_equal(last["obs"][1], [rings, crosses])


@pytest.mark.parametrize(
    ("squares", "rewards"),
    [
        ("03142", [1, -1]),  # 0 1 2 is the first row (squares are counted down the columns)
        ("031486", None),  # not over yet
        ("831405", [-1, 1]),  # the second player: 3 4 5
        ("012435768", [0, 0]),  # a draw
    ],
)
def test_a_game_by_hand(squares: str, rewards: list[int] | None) -> None:
    shown = noughts(squares)
    before = shown if rewards is None else shown[:-1]
    assert not any(each.is_cut or each["reward"].any() or not each["discount"].all() for each in before)
    if rewards is not None:
        last = shown[-1]
        assert last.is_cut
        assert last["reward"].tolist() == rewards, "who waited is paid, too"
        assert last["discount"].tolist() == [0, 0], "it is over for both"
        assert last["agent_mask"].all()
        assert last["obs"].sum() == 2 * len(squares), "both see the last mark"


def test_games_follow_one_another_and_nobody_is_paid_twice() -> None:
    one, draw = Played(pettingzoo("pettingzoo.classic.connect_four_v3")), np.random.default_rng(0)
    ends = 0
    shown = one.reset(0)
    assert one.env.team.action["player"] == Discrete(8)
    assert one.env.team.observation["player"] == Image((2, 6, 7), one.env.team.observation["player"].dtype)
    for _ in range(200):
        assert shown["obs"].sum() < 84
        shown = one.step(legal(shown, draw))
        assert shown["reward"].sum() == 0
        if shown.is_cut:
            ends += 1
            assert sorted(shown["reward"].tolist()) == [-1, 1]
            shown = one.reset()
            assert not shown["obs"].any()
    assert ends > 3


class Bids(AECEnv):
    """Two bid in turns, thrice each; the higher bid of a round pays its bidder at once, whoever has the turn then."""

    metadata: ClassVar[dict[str, object]] = {"name": "bids"}
    render_mode = None

    def __init__(self, does: spaces.Space, is_parallelizable: bool = False) -> None:
        self.metadata = {**Bids.metadata, "is_parallelizable": is_parallelizable}
        self.does = does
        self.possible_agents = ["left", "right"]
        self.sees = spaces.Box(0, 9, (1,))

    def observation_space(self, agent):
        return self.sees

    def action_space(self, agent):
        return self.does

    def observe(self, agent):
        return np.array([self.t])

    def reset(self, seed=None, options=None):
        self.agents, self.t, self.bids = list(self.possible_agents), 0, []
        self.rewards, self._cumulative_rewards = (dict.fromkeys(self.agents, 0) for _ in range(2))
        self.terminations, self.truncations = (dict.fromkeys(self.agents, False) for _ in range(2))
        self.infos = {agent: {} for agent in self.agents}
        self.turns = AgentSelector(self.agents)
        self.agent_selection = self.turns.reset()

    def step(self, action):
        if self.terminations[self.agent_selection]:
            self._was_dead_step(action)
            return
        assert self.does.contains(action)
        self._cumulative_rewards[self.agent_selection] = 0
        self._clear_rewards()
        self.bids.append(float(np.sum(action)))
        if len(self.bids) == 2:
            self.t += 1
            self.rewards[self.agents[int(np.argmax(self.bids))]] = 1
            self.bids = []
        self.terminations = dict.fromkeys(self.agents, self.t == 3)
        self.agent_selection = self.turns.next()
        self._accumulate_rewards()

    def close(self):
        pass


@pytest.mark.parametrize(
    ("does", "ours", "idle"),
    [
        (spaces.Box(1, 5, (2,)), Continuous((1, 1), (5, 5)), [1, 1]),
        (spaces.MultiDiscrete([3, 4], start=[1, 1]), MultiDiscrete((3, 4)), [0, 0]),
        (spaces.MultiBinary(2), MultiDiscrete((2, 2)), [0, 0]),
    ],
)
def test_where_actions_are_no_choices_the_environment_acts_for_who_waits(
    does: spaces.Space, ours: Continuous | MultiDiscrete, idle: list[int]
) -> None:
    one = Played(turn_team(Bids(does)))
    assert one.env.team.action["left"] == ours
    assert not one.env.team.masks_actions
    opening = one.reset(0)
    assert opening["forced"].tolist() == [False, True]
    assert opening["forced_action"].tolist() == [[0, 0], idle]
    rewards = []
    for step, bid in enumerate([1, 0, 0, 1, 1, 0]):
        left = step % 2 == 0
        move = [each + bid for each in idle]
        shown = one.step([move, [0, 0]] if left else [[0, 0], move])
        rewards.append(shown["reward"].tolist())
        if step < 5:
            assert shown["forced"].tolist() == [left, not left]
    assert rewards == [[0, 0], [1, 0], [0, 0], [0, 1], [0, 0], [1, 0]], "left is paid while it waits"
    assert shown.is_cut
    assert not shown["discount"].any()


def test_choices_may_start_anywhere_and_need_no_mask() -> None:
    one = Played(turn_team(Bids(spaces.Discrete(3, start=-1))))
    assert one.reset(0)["action_mask"].tolist() == [[True] * 3 + [False], [False] * 3 + [True]]
    assert one.step([2, 3])["action_mask"].tolist() == [[False] * 3 + [True], [True] * 3 + [False]]
    assert one.step([3, 0])["reward"].tolist() == [1, 0]


def test_who_says_that_all_can_act_at_once_does() -> None:
    one = Played(turn_team(Bids(spaces.Discrete(3), is_parallelizable=True)))
    one.reset(0)
    assert one.env.team.action["left"] == Discrete(3)
    assert [one.step([2, 1])["reward"].tolist() for _ in range(2)] == [[1, 0]] * 2
    last = one.step([0, 1])
    assert last["reward"].tolist() == [0, 1]
    assert last.is_cut
    assert not last["discount"].any()


@pytest.mark.parametrize("does", [spaces.Box(0, 5, (2,)), spaces.Discrete(3), spaces.MultiDiscrete([3, 4])])
@pytest.mark.parametrize("at_once", [False, True])
def test_turns_keep_the_contract(does: spaces.Space, at_once: bool) -> None:
    check_single(lambda: turn_team(Bids(does, at_once)), steps=40)


@pytest.mark.filterwarnings("ignore")  # PettingZoo's own
@pytest.mark.parametrize("task", ["tictactoe_v3", "connect_four_v3"])
def test_a_game_in_turns_keeps_pettingzoo_s_own_law(task: str) -> None:
    """Which draws actions by the masks of observations: to wait is among them."""
    parallel_api_test(InTurns(import_module(f"pettingzoo.classic.{task}").env()), 100)


@pytest.mark.parametrize("task", ["tictactoe_v3", "connect_four_v3", "rps_v2"])
def test_pettingzoo_s_classics_keep_the_contract(task: str) -> None:
    check_single(lambda: pettingzoo(f"pettingzoo.classic.{task}"), draws=True, steps=60)


def small_hanabi() -> ParallelTeam:
    return open_spiel("hanabi", players=2, colors=2, ranks=2, hand_size=2)


@pytest.mark.extras
def test_openspiel_s_hanabi_keeps_the_contract_and_pays_both() -> None:
    check_single(small_hanabi)
    one, draw = Played(small_hanabi()), np.random.default_rng(0)
    shown, paid = one.reset(0), 0
    for _ in range(300):
        shown = one.step(legal(shown, draw))
        assert shown["reward"][0] == shown["reward"][1]
        paid += shown["reward"][0]
        if shown.is_cut:
            assert not shown["discount"].any()
            shown = one.reset()
    assert paid > 0, "no card was ever played: nothing was tested"


@pytest.mark.extras
def test_deals_differ_from_game_to_game_and_agree_by_seed() -> None:
    def deals(seed: int) -> list[list[float]]:
        one = Played(small_hanabi())
        return [one.reset(seed if game == 0 else None)["obs"].ravel().tolist() for game in range(5)]

    assert deals(1) == deals(1)
    assert len(set(map(tuple, deals(1)))) > 2


@pytest.mark.extras
@pytest.mark.parametrize(
    ("task", "options", "told"),
    [
        ("hanaby", {}, "no game 'hanaby' of OpenSpiel; did you mean 'hanabi'"),
        ("hanabi", {"colour": 2}, "OpenSpiel's hanabi with .*Unknown parameter 'colour'.*colors"),
        ("hanabi", {"colors": None}, "OpenSpiel's hanabi with"),
        ("goofspiel", {}, "OpenSpiel's goofspiel is not played in turns"),
    ],
)
def test_games_of_openspiel_that_cannot_be(task: str, options: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        open_spiel(task, **options)
