"""The plain classes that newcomers write, and what they get wrong."""

import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from gymnasium import spaces

from martes.data import Continuous, Discrete, Image, Vector
from martes.envs.adapters.plain import PlainTeam
from martes.envs.process import Hosting, hosted_env
from martes.envs.single import serial_env
from martes.errors import EnvError
from tests.envs.adapters.played import Played, check_single, played_through


class Walk:
    """As short as it gets: two agents on a line, NumPy's global stream."""

    n_actions = 3

    def reset(self):
        self.x = np.random.randn(2, 1)
        return self.x

    def step(self, actions):
        self.x = self.x + 0.1 * (np.asarray(actions)[:, None] - 1) + 0.01 * np.random.randn(2, 1)
        return self.x, -np.abs(self.x[:, 0]), bool(abs(self.x.sum()) > 3), {}


class Full:
    """Everything that the protocol knows, from a stream of its own."""

    n_agents, n_actions, max_steps = 3, [4, 4, 2], 9

    def __init__(self) -> None:
        self.is_closed = False

    def reset(self, seed=None):
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.t, self.alive, self.x = 0, np.ones(3, bool), self.random.normal(size=(3, 2))
        return self.x * self.alive[:, None], {"hello": 1}

    def step(self, actions):
        assert [type(each) for each in actions] == [int] * 3
        self.t += 1
        self.x[:, 0] += self.random.normal(size=3) + np.asarray(actions) - 1
        self.alive &= np.abs(self.x[:, 0]) < 4
        over = np.full(3, self.t == 9) | ~self.alive
        return self.x * self.alive[:, None], np.ones(3), ~self.alive, over & self.alive, {"distance": self.x.max()}

    def get_legal_actions(self):
        return [[True, self.t % 2, 1, 0], [1, 0, 1, 1], [1, 0]]

    def get_state(self):
        return np.append(self.x.ravel(), self.t)

    def render(self):
        return np.full((4, 5, 3), self.t, np.uint8)

    def close(self):
        self.is_closed = True


class Pushes(Walk):
    """Real numbers, a reward for all, `seed(n)`, Python's global stream."""

    action_low, action_high, action_dim = -1.0, [1.0, 2.0], 2
    n_actions = None

    def seed(self, n):
        self.stream = np.random.default_rng(n)

    def reset(self):
        self.x = self.stream.normal(size=(2, 3))
        return list(self.x)

    def step(self, actions):
        assert actions.shape == (2, 2)
        assert actions.dtype == np.float32
        self.x[:, :2] += actions
        return list(self.x), float(actions.sum()), random.random() < 0.1, None


class Both(Walk):
    """Chance from both global streams."""

    def step(self, actions):
        return self.x, np.random.random() + random.random(), False, {}


class Pictures(Walk):
    """Pictures of bytes and a number, as dicts."""

    def reset(self):
        super().reset()
        return self.seen()

    def step(self, actions):
        return self.seen(), *super().step(actions)[1:]

    def seen(self):
        return [{"view": np.full((6, 7, 3), 9, np.uint8), "x": x} for x in self.x]


@pytest.mark.parametrize(("make", "draws"), [(Walk, False), (Full, True), (Pushes, False), (Pictures, False)])
def test_the_contract_is_kept(make: Callable[[], object], draws: bool):
    if make is Pushes:
        Pushes.stream = np.random.default_rng(0)
    if make is Full:
        Full.random = np.random.default_rng(0)
    check_single(lambda: PlainTeam(make()), draws)


def test_what_it_is_is_read_from_the_first_reset_and_its_members():
    team = PlainTeam(Walk()).team
    assert team.agents == ("agent_0", "agent_1")
    assert (team.observation["agent"], team.action["agent"]) == (Vector(1), Discrete(3))
    assert (team.state, team.episode_limit, team.masks_actions) == (None, None, False)
    full = PlainTeam(Full()).team
    assert [full.action[group] for group in full.group_of] == [Discrete(4), Discrete(4), Discrete(2)]
    assert (full.state, full.episode_limit, full.masks_actions) == (Vector(7), 9, True)
    assert PlainTeam(Pushes()).team.action["agent"] == Continuous((-1.0, -1.0), (1.0, 2.0))
    assert PlainTeam(Pictures()).team.observation["agent"] == {"view": Image((3, 6, 7)), "x": Vector(1)}


def test_it_is_the_class_itself_number_for_number():
    actions = np.random.default_rng(3).integers(3, size=(60, 2))
    shown = played_through(PlainTeam(Walk()), list(actions), seed=5)
    raw = Walk()
    state = np.random.RandomState(np.random.MT19937(5))
    np.random.set_state(state.get_state())
    assert np.array_equal(shown[0]["obs"], np.float32(raw.reset()))
    ends = 0
    for one, action in zip(shown[1:], actions, strict=True):
        obs, reward, done, _ = raw.step(action)
        assert np.array_equal(one["obs"], np.float32(obs))
        assert np.array_equal(one["reward"], np.float32(reward))
        assert one["discount"].tolist() == [float(not done)] * 2
        assert one.is_cut == done
        ends += done
        if done:
            raw.reset()
    assert ends > 0


def test_who_is_done_alone_is_absent_from_then_on():
    class Alone(Walk):
        def step(self, actions):
            obs, *_ = super().step(actions)
            self.t = getattr(self, "t", 0) + 1
            return obs + 1, [5, 6], [self.t == 2, self.t == 4], {}

    played = Played(PlainTeam(Alone()))
    played.reset(0)
    first, second, third, last = (played.step([0, 0]) for _ in range(4))
    assert first["agent_mask"].tolist() == [True, True]
    assert (second["discount"].tolist(), second["reward"].tolist()) == ([0, 1], [5, 6])
    assert second["agent_mask"].tolist() == [False, True]
    assert (second["obs"][0] == 0).all()
    assert (third["discount"].tolist(), third["reward"].tolist(), third.is_cut) == ([1, 1], [0, 6], False)
    assert (last["discount"].tolist(), last.is_cut) == ([0, 0], True)
    assert last["agent_mask"].tolist() == [False, True]
    assert played.reset()["agent_mask"].all()


def test_who_has_left_needs_no_legal_action():
    class Leaving(Walk):
        legal = np.ones((2, 3))

        def get_legal_actions(self):
            return self.legal

        def step(self, actions):
            obs, *_ = super().step(actions)
            self.legal = np.array([[0, 0, 0], [0, 1, 0]])
            return obs, 0, [True, False], {}

    raw = Leaving()
    played = Played(PlainTeam(raw))
    played.reset(0)
    for row in (played.step([0, 0]), played.step([0, 1])):
        assert row["agent_mask"].tolist() == [False, True]
        assert row["action_mask"].tolist() == [[True, True, True], [False, True, False]]


ENDS = [
    ("a done is terminal", None, (True, {}), 0.0),
    ("a done that the info calls truncated is not", None, (True, {"truncated": True}), 1.0),
    ("nor one by Gymnasium's old word", None, (True, {"TimeLimit.truncated": True}), 1.0),
    ("nor one an agent", None, ([True, True], [{"truncated": True}, {}]), 1.0),
    ("nor a done at its own last step", 1, (True, {}), 1.0),
    ("unless it denies it", 1, (True, {"truncated": False}), 0.0),
    ("before its last step it is terminal", 2, (True, {}), 0.0),
    ("its last step cuts without a done", 1, (False, {}), 1.0),
    ("truncated alone", None, (False, True, {}), 1.0),
    ("terminated and truncated at once", None, (True, True, {}), 0.0),
    ("all truncated", None, ([False, False], [True, True], {}), 1.0),
    ("terminated at its last step, as it says", 1, (True, False, {}), 0.0),
]


@pytest.mark.parametrize(("limit", "end", "discount"), [case[1:] for case in ENDS], ids=[case[0] for case in ENDS])
def test_ends_of_their_own_and_by_time(limit: int | None, end: tuple[object, ...], discount: float):
    class Ends(Walk):
        episode_limit = limit

        def step(self, actions):
            return self.x, 1.0, *end

    played = Played(PlainTeam(Ends()))
    played.reset(0)
    one = played.step([0, 0])
    assert one.is_cut
    assert one["discount"].tolist() == [discount] * 2
    assert one["agent_mask"].all()


def test_numbers_of_the_last_info_are_counted():
    class Counts(Walk):
        def step(self, actions):
            return *super().step(actions)[:2], True, {"won": True, "truncated": False, "food": 3, "map": "a", "x": [1]}

    played = Played(PlainTeam(Counts()))
    played.reset(0)
    assert played.step([0, 0]).result.stats == {"won": 1.0, "food": 3.0}


def test_copies_that_draw_from_global_streams_have_streams_of_their_own():
    def rewards(copies: int) -> list[float]:
        env = serial_env(lambda: PlainTeam(Both()), copies)
        first = env.reset(3).seen["obs"][0, 0].item()
        steps = [env.step(env.reset(3).reward.long()) for _ in range(2)]
        return [first, *(step.reward[0, 0].item() for step in steps)]

    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    assert rewards(1) == rewards(4)
    assert rewards(1)[1] == rewards(1)[2]
    assert (np.random.get_state()[1] == before).all(), "the program's own stream was touched"


def test_it_does_not_matter_which_process_steps_a_class_that_draws_from_global_streams():
    def rewards(workers: int) -> torch.Tensor:
        hosting = Hosting(workers, start_method="forkserver")
        with closing(hosted_env(lambda: PlainTeam(Both()), 4, hosting=hosting)) as env:
            env.reset(1)
            return torch.stack([env.step(torch.zeros(4, 2, dtype=torch.long)).reward for _ in range(10)])

    assert torch.equal(rewards(0), rewards(2))


def test_actions_come_as_the_class_says():
    class Said(Walk):
        action_space = spaces.Discrete(3, start=5)
        observation_space = spaces.Box(-9, 9, (1,), np.float32)

        def step(self, actions):
            self.told = actions
            return super().step(np.asarray(actions) - 5)

    class Several(Said):
        action_space = spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([4, 2])

        def step(self, actions):
            self.told = actions
            return super(Said, self).step([0, 0])

    for kind, action, told in ((Said, [0, 2], [5, 7]), (Several, [[1, 2], [3, 0]], [[1, 2], [3, 0]])):
        raw = kind()
        played = Played(PlainTeam(raw))
        played.reset(0)
        played.step(action)
        assert np.asarray(raw.told).tolist() == told
    assert PlainTeam(Several()).team.action_sizes == ((2, 3), (4, 2))


@dataclass
class Wrong(Walk):
    """A walk with one member replaced."""

    name: str
    value: object

    def __post_init__(self) -> None:
        setattr(self, self.name, self.value)


def answering(*told: object) -> Callable[..., object]:
    return lambda *_: told


MADE_WRONG = [
    ("reset", lambda: None, r"Wrong.reset\(\) returned NoneType as observations: return \[n_agents, obs_dim\]"),
    ("reset", lambda: np.zeros(4), r"shape \[4\] of float64 as observations.*one agent \(obs\[None\]\)"),
    ("reset", lambda: [1.0, 2.0], r"shape \[2\] as observations.*\(obs\[:, None\]\)"),
    ("reset", lambda: {"a": np.zeros(2)}, r"dict with the keys \['a'\].*PettingZoo ParallelEnv.*possible_agents"),
    ("reset", lambda: [], r"rows of the shapes \[\] as observations"),
    ("reset", lambda: [["left", "right"]] * 2, r"agent_0 \['left', 'right'\]: an observation holds numbers"),
    ("n_agents", 3, r"shape \[2, 1\] of float64 as observations of 2 agents, this team has 3"),
    ("n_actions", "three", r"number of actions is 'three': give one whole number, or a list of 2"),
    ("n_actions", [3, 3, 3], r"is \[3, 3, 3\]: give one whole number, or a list of 2, one an agent"),
    ("n_actions", 0, r"number of actions is 0"),
    ("get_legal_actions", lambda: [1, 0, 1], r"get_legal_actions\(\) returned shape \[3\]: return \[2, n_actions\]"),
    ("get_legal_actions", lambda: [[0, 2], [1, 2]], r"returned \[0, 2\] for agent_0.*not the numbers of actions"),
    ("get_state", lambda: "up", r"get_state\(\) returned .* return numbers"),
    ("action_space", spaces.Box(-np.inf, np.inf, (2,)), r"agent 'agent_0' acts in Box.*no bounds"),
]


@pytest.mark.parametrize(("name", "value", "message"), MADE_WRONG)
def test_a_class_that_cannot_be_read_is_told_what_to_mend(name: str, value: object, message: str):
    with pytest.raises(Exception, match=message):
        PlainTeam(Wrong(name, value))


def test_a_class_that_does_not_say_what_agents_can_do():
    class Mute:
        def reset(self):
            return np.zeros((2, 1))

        def step(self, actions):
            return self.reset(), 0, False, {}

    with pytest.raises(EnvError, match=r"Mute does not say .* n_actions = 5.*action_low.*action_space"):
        PlainTeam(Mute())


X = np.zeros((2, 1))
STEPPED_WRONG = [
    ((X, 0.0, False), r"Wrong.step\(\) returned 3 things: return \(observations, rewards, dones, info\), or"),
    ((X[:1], 0.0, False, {}), r"shape \[1, 1\] of float64 as observations of 1 agents, this team has 2.*who is gone"),
    ((np.zeros((2, 3)), 0.0, False, {}), r"agent 'agent_0' observed shape \[3\] of float64"),
    (
        (X, [[1.0], [1.0]], False, {}),
        r"as rewards: shape \[2, 1\].*one number for the whole team, or one an agent.*\[2\]",
    ),
    ((X, {"a": 1}, False, {}), r"as rewards: a dict"),
    ((X, None, False, {}), r"as rewards: shape \[\] of object"),
    ((X, 0.0, [True] * 3, {}), r"as dones: shape \[3\] of bool"),
    ((X, 0.0, {"__all__": False}, {}), r"as dones: a dict"),
    ((X, 0.0, False, None, {}), r"as truncated: shape \[\] of object"),
    ((X, 0.0, False, "fine"), r"returned str as info: return a dict"),
]


@pytest.mark.parametrize(("answer", "message"), STEPPED_WRONG)
def test_a_step_that_cannot_be_read_is_told_what_to_mend(answer: tuple[object, ...], message: str):
    played = Played(PlainTeam(Wrong("step", answering(*answer))))
    played.reset(0)
    with pytest.raises(EnvError, match=message):
        played.step([0, 0])


def test_masks_and_states_that_change_their_size_are_told():
    class Shrinks(Full):
        def get_legal_actions(self):
            return np.ones((3, 4 if self.t else 2), bool) if self.t else super().get_legal_actions()

    class Grows(Full):
        def get_state(self):
            return np.zeros(7 + self.t)

    class Stuck(Full):
        def get_legal_actions(self):
            return [[1] * 4, [self.t == 0] * 4, [1, 1]]

    Full.random = np.random.default_rng(0)
    for kind, message in (
        (Shrinks, r"mask of legal actions of agent 'agent_2' has 4 entries, it has 2"),
        (Grows, r"Grows.get_state\(\) returned shape \[8\].*return 7 numbers"),
        (Stuck, r"agent 'agent_1' has no legal action"),
    ):
        played = Played(PlainTeam(kind()))
        played.reset(0)
        with pytest.raises(EnvError, match=message):
            played.step([0, 0, 0])


def test_pictures_and_close_are_the_class_s_own():
    Full.random = np.random.default_rng(0)
    raw = Full()
    played = Played(PlainTeam(raw))
    played.reset(0)
    assert played.env.render().shape == (4, 5, 3)
    played.env.close()
    assert raw.is_closed
    PlainTeam(Walk()).close()
    with pytest.raises(EnvError, match=r"Walk has no picture of itself: give it render\(\)"):
        PlainTeam(Walk()).render()
    with pytest.raises(EnvError, match=r"render\(\) returned shape \[2\] of float64 where a picture"):
        PlainTeam(Wrong("render", lambda: np.zeros(2))).render()
