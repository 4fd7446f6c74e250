"""A ParallelEnv as one copy of a task: who is there, what ends, what is paid, forbidden and forced."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv

from martes.data import Vector
from martes.envs.adapters.parallel import ParallelTeam, parallel_team
from martes.errors import ConfigError, EnvError
from tests.envs.adapters.played import Played, check_single


class Turn(NamedTuple):
    """What a step of a script does; names are single letters."""

    dies: str = ""
    times_out: str = ""
    joins: str = ""
    told: Mapping[str, Mapping[str, object]] = {}
    unseen: str = ""


NOTHING = Turn()


class Script(ParallelEnv):
    """Plays what is written; an observation is (step, place of the agent), a reward the step, for all but `a`."""

    metadata: ClassVar[dict[str, object]] = {"name": "script"}

    def __init__(
        self, *turns: Turn, possible: str = "abc", opening: Turn = NOTHING, keeps_agents: bool = False
    ) -> None:
        self.possible_agents = list(possible)
        self.turns, self.opening, self.keeps_agents = turns, opening, keeps_agents
        self.flags = ["", ""]
        self.seeds: list[object] = []
        self.given: list[dict[str, object]] = []

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Box(0, 99, (2,))

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        self.seeds.append(seed)
        self.t, self.agents = 0, [each for each in self.possible_agents if each not in self.opening.unseen]
        return self._seen(self.agents), self._told(self.agents, self.opening)

    def step(self, actions):
        self.given.append(dict(actions))
        turn, before = self.turns[self.t], list(self.agents)
        self.t += 1
        seen = [each for each in before if each not in turn.unseen] + list(turn.joins)
        gone = "" if self.keeps_agents else turn.dies + turn.times_out
        self.agents = [each for each in before if each not in gone] + list(turn.joins)
        rewards = {each: float(self.t) for each in before if each != "a"}
        self.flags = [flags + new for flags, new in zip(self.flags, (turn.dies, turn.times_out), strict=True)]
        ends = ({each: each in flags for each in before} for flags in self.flags)
        return self._seen(seen), rewards, *ends, self._told(seen, turn)

    def _seen(self, agents: Sequence[str]) -> dict[str, object]:
        return {each: np.array([self.t, self.possible_agents.index(each)]) for each in agents}

    def _told(self, agents: Sequence[str], turn: Turn) -> dict[str, Mapping[str, object]]:
        return {each: turn.told.get(each, {}) for each in agents}


def played(env: ParallelEnv, **options: object) -> Played:
    one = Played(ParallelTeam(env, **options))
    one.reset(0)
    return one


@pytest.mark.parametrize(
    ("turns", "discounts", "theirs"),
    [
        ((Turn(dies="abc"),), [0, 0, 0], "abc"),
        ((Turn(times_out="abc"),), [1, 1, 1], "abc"),
        ((Turn(dies="a"), Turn(dies="bc")), [0, 0, 0], "bc"),
        ((Turn(dies="a"), Turn(times_out="bc")), [1, 1, 1], "bc"),
        ((Turn(dies="a"), Turn(dies="b", times_out="c")), [1, 0, 1], "bc"),
        ((Turn(dies="a"), Turn(dies="bc", times_out="bc")), [0, 0, 0], "bc"),
        ((Turn(times_out="a"), Turn(dies="bc")), [0, 0, 0], "bc"),
        ((Turn(dies="abc", unseen="abc"),), [0, 0, 0], ""),
    ],
)
@pytest.mark.parametrize("keeps_agents", [False, True])
def test_what_the_end_of_a_game_says(
    turns: tuple[Turn, ...], discounts: list[int], theirs: str, keeps_agents: bool
) -> None:
    one = played(Script(*turns, keeps_agents=keeps_agents))
    for _ in turns[:-1]:
        assert not one.step([0, 0, 0]).is_cut
    last = one.step([0, 0, 0])
    assert last.is_cut
    assert last["discount"].tolist() == discounts
    assert last["agent_mask"].tolist() == [each in theirs for each in "abc"]
    assert last["obs"].tolist() == [[len(turns), place] if "abc"[place] in theirs else [0, 0] for place in range(3)]


def test_who_dies_alone_has_discount_0_once_and_is_absent_from_then_on() -> None:
    one = played(Script(Turn(dies="b"), Turn(times_out="c"), Turn(), Turn(dies="a")))
    died, timed_out, after, end = (one.step([0, 0, 0]) for _ in range(4))
    assert [each["discount"].tolist() for each in (died, timed_out, after)] == [[1, 0, 1], [1, 1, 1], [1, 1, 1]]
    assert [each["agent_mask"].tolist() for each in (died, timed_out)] == [[True, False, True], [True, False, False]]
    assert died["obs"].tolist() == [[1, 0], [0, 0], [1, 2]]
    assert after["obs"].tolist() == [[3, 0], [0, 0], [0, 0]]
    assert [each["reward"].tolist() for each in (died, timed_out, after)] == [[0, 1, 1], [0, 0, 2], [0, 0, 0]]
    assert end["discount"].tolist() == [0, 0, 0]


def test_who_joins_is_there_from_then_on_and_acts() -> None:
    env = Script(Turn(joins="c"), Turn(), opening=Turn(unseen="c"))
    one = played(env)
    assert one.row["agent_mask"].tolist() == [True, True, False]
    assert one.step([1, 2, 0])["agent_mask"].all()
    one.step([0, 1, 2])
    assert env.given == [{"a": 1, "b": 2}, {"a": 0, "b": 1, "c": 2}]


def test_masks_of_infos_hold_for_who_is_there() -> None:
    masks = {"a": {"action_mask": np.array([1, 0, 1])}, "b": {"action_mask": None}}
    last = {each: {"action_mask": np.zeros(3)} for each in "bc"}
    env = Script(Turn(dies="a"), Turn(dies="bc", told=last), opening=Turn(told=masks))
    one = played(env)
    assert one.env.team.masks_actions
    assert one.row["action_mask"].tolist() == [[True, False, True], [True] * 3, [True] * 3]
    assert one.step([0, 0, 0])["action_mask"].all(), "the absent could do anything: their policies need a choice"
    assert one.step([0, 0, 0])["action_mask"].all(), "nothing is legal when all is over"


@pytest.mark.parametrize("name", ["env_defined_action", "env_defined_actions"])
@pytest.mark.parametrize("nothing", [None, np.nan])
def test_forced_actions_are_executed(name: str, nothing: object) -> None:
    env = Script(Turn(), Turn(told={"c": {name: 1}}), Turn(), opening=Turn(told={"a": {name: 2}, "b": {name: nothing}}))
    one = played(env)
    assert one.env.team.forces_actions
    assert one.row["forced"].tolist() == [True, False, False]
    assert one.row["forced_action"].tolist() == [2, 0, 0]
    assert not one.step([0, 1, 0])["forced"].any()
    assert one.step([0, 1, 0])["forced"].tolist() == [False, False, True]
    one.step([0, 1, 0])
    assert [list(each.values()) for each in env.given] == [[2, 1, 0], [0, 1, 0], [0, 1, 1]]


def test_forced_actions_may_be_announced() -> None:
    env = Script(Turn(told={"b": {"env_defined_action": 2}}))
    one = played(env, forces_actions=True)
    assert not one.row["forced"].any()
    assert one.step([0, 0, 0])["forced_action"].tolist() == [0, 2, 0]


@pytest.mark.parametrize("name", ["env_defined_action", "action_mask"])
def test_what_no_info_announced_is_refused(name: str) -> None:
    one = played(Script(Turn(told={"b": {name: 1}})))
    with pytest.raises(EnvError, match=f"an info carries .*{name}.*let the first infos carry it"):
        one.step([0, 0, 0])


def test_numbers_of_the_last_infos_are_statistics() -> None:
    told = {"a": {"battle_won": True, "kills": 3, "word": "x"}, "b": {"kills": np.float32(1.0), "places": np.ones(2)}}
    one = played(Script(Turn(told=told), Turn(dies="abc", told=told)))
    assert one.step([0, 0, 0]).result.stats == {}
    assert one.step([0, 0, 0]).result.stats == {"battle_won": 1.0, "kills": 2.0}


class Stateful(Script):
    def state(self) -> np.ndarray:
        return np.full((2, 2), self.t)


def test_the_state_is_a_vector_where_there_is_one_and_it_is_wanted() -> None:
    one = played(Stateful(Turn()))
    assert one.env.team.state == Vector(4)
    assert one.step([0, 0, 0])["state"].tolist() == [1] * 4
    assert played(Stateful(), state=False).env.team.state is None
    assert played(Stateful(), state=lambda: np.arange(3)).row["state"].tolist() == [0, 1, 2]
    assert played(Script()).env.team.state is None


def test_its_limit_is_its_max_cycles() -> None:
    env = Script()
    assert parallel_team(env).team.episode_limit is None
    env.max_cycles = 9
    assert parallel_team(env).team.episode_limit == 9
    assert parallel_team(env, episode_limit=5).team.episode_limit == 5


def test_later_episodes_have_seeds_drawn_from_the_first() -> None:
    one, other = Script(), Script()
    for env in (one, other):
        played(env).reset()
    played(other).reset(1)
    assert one.seeds[:2] == [0, 0]
    assert one.seeds == other.seeds[:3]
    assert one.seeds[2] not in (None, 0)


def test_a_picture_is_asked_for() -> None:
    with pytest.raises(EnvError, match="make it with render_mode='rgb_array'"):
        played(Script()).env.render()


def test_the_observation_of_who_is_there_must_not_be_missing() -> None:
    for turn in (Turn(unseen="b"), Turn(times_out="abc", unseen="b")):
        with pytest.raises(EnvError, match=r"no observation of \['b'\], who are there \(observed: \['a', 'c'\]\)"):
            played(Script(turn)).step([0, 0, 0])


def test_an_end_must_be_somebody_s() -> None:
    class Silent(Script):
        def step(self, actions):
            self.agents = []
            return {}, {}, {}, {}, {}

    with pytest.raises(EnvError, match=r"no agent is terminated or truncated: step\(\) must say who is"):
        played(Silent()).step([0, 0, 0])


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (({}, {}, {}, {}), r"step\(\) returned 4 values .*a ParallelEnv returns five dictionaries"),
        (({}, 1.0, {}, {}, {}), "float"),
        (None, "returned a NoneType"),
        (({"a": 0}, {"z": 1.0}, {}, {}, {}), r"rewards of \['z'\], who are not in the team"),
        (({}, {"a": [1, 2]}, {}, {}, {}), "are not one number an agent"),
        (({each: np.zeros(2) for each in "abcz"}, {}, {}, {}, {}), r"observations of \['z'\]"),
        (({each: np.zeros(3) for each in "abc"}, {}, {}, {}, {}), r"agent 'a' observed shape \[3\]"),
    ],
)
def test_answers_that_are_none(answer: object, told: str) -> None:
    class Wrong(Script):
        def step(self, actions):
            if "z" in told:
                self.agents = [*self.agents, "z"]
            return answer

    with pytest.raises(EnvError, match=told):
        played(Wrong()).step([0, 0, 0])


def test_an_episode_that_does_not_open() -> None:
    class Old(Script):
        def reset(self, seed=None, options=None):
            return super().reset()[0]

    with pytest.raises(EnvError, match=r"reset\(\) of script returned the keys \['a', 'b', 'c'\]: .* two dictionaries"):
        ParallelTeam(Old())
    with pytest.raises(EnvError, match="script opened an episode without agents"):
        ParallelTeam(Script(opening=Turn(unseen="abc")))


def test_agents_must_be_known_and_named() -> None:
    with pytest.raises(ConfigError, match="script does not say who may ever take part: give it `possible_agents`"):
        ParallelTeam(Script(possible=""))
    env = Script()
    env.possible_agents = [0, 1]
    with pytest.raises(ConfigError, match="script calls an agent 0: name agents by strings"):
        ParallelTeam(env)


class Herd(ParallelEnv):
    """Unequal animals that die, and one that is born; masks lie in observations, some act on instinct."""

    metadata: ClassVar[dict[str, object]] = {"name": "herd", "render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, nested: bool = True) -> None:
        self.possible_agents = ["cow_0", "cow_1", "calf_0"]
        self.max_cycles = 15
        place, size = {"place": spaces.Box(-9, 9, (2,))}, {"cow": 3, "calf": 2}
        mask = {each: spaces.Box(0, 1, (size[each[:-2]],), np.int8) for each in self.possible_agents}
        inner = {"observation": place["place"]} if nested else {**place, "age": spaces.Discrete(3)}
        self.sees = {each: spaces.Dict(action_mask=mask[each], **inner) for each in self.possible_agents}
        self.does = {each: spaces.Discrete(size[each[:-2]], start=1) for each in self.possible_agents}
        self.random = np.random.default_rng()

    def observation_space(self, agent: str) -> spaces.Space:
        return self.sees[agent]

    def action_space(self, agent: str) -> spaces.Space:
        return self.does[agent]

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.t, self.agents = 0, self.possible_agents[:2]
        self.place = dict.fromkeys(self.possible_agents, 0.0)
        self.instinct: dict[str, object] = {}
        return self._seen(self.agents), self._told(self.agents)

    def step(self, actions):
        for agent, action in actions.items():
            assert self.does[agent].contains(action)
            assert self.instinct.get(agent) in (None, action), "what is forced is done"
            self.place[agent] += action - 2 + self.random.normal()
        self.t += 1
        before = list(self.agents)
        dies = {each: bool(abs(self.place[each]) > 4) for each in before}
        over = dict.fromkeys(before, self.t == self.max_cycles)
        self.agents = [each for each in before if not dies[each] and not over[each]]
        if self.t == 2 and self.agents:
            self.agents.append("calf_0")
        seen = list(dict.fromkeys(before + self.agents))
        return self._seen(seen), dict.fromkeys(before, 1.0), dies, over, self._told(seen)

    def render(self):
        return np.full((4, 5, 4), self.t, np.uint8)

    def close(self):
        pass

    def _seen(self, agents):
        return {each: self._seen_by(self.sees[each], self.place[each]) for each in agents}

    def _seen_by(self, space: spaces.Dict, place: float) -> dict[str, object]:
        mask = np.ones(space["action_mask"].shape, np.int8)
        mask[self.t % len(mask)] = 0
        values = {"observation": np.full(2, place, np.float32), "age": self.t % 3, "action_mask": mask}
        return {name: values.get(name, values["observation"]) for name in space}

    def _told(self, agents):
        self.instinct = {each: 2 if self.random.random() < 0.2 else None for each in agents}
        return {each: {"env_defined_action": self.instinct[each]} for each in agents}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of a calf that is born
@pytest.mark.parametrize("nested", [True, False])
def test_a_herd_that_is_born_and_dies_keeps_the_contract(nested: bool) -> None:
    team = ParallelTeam(Herd(nested)).team
    assert dict(team.groups) == {"cow": (0, 1), "calf": (2,)}
    assert team.observation_sizes == ((2, 2, 2) if nested else (5, 5, 5))
    assert team.masks_actions
    assert team.forces_actions
    check_single(lambda: ParallelTeam(Herd(nested)), draws=True)


def test_an_observation_beside_a_mask_must_be_there() -> None:
    env = Herd()
    env._seen_by = lambda space, place: {"action_mask": np.ones(3)}
    with pytest.raises(EnvError, match=r"'cow_0' observed the keys \['action_mask'\] instead of its 'observation'"):
        played(env)
