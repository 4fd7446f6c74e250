"""What a user's own function made is recognised by its members."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo.utils.env import AECEnv, ParallelEnv

from martes.envs.adapters.adapted import adapted
from martes.envs.adapters.gymnasium import TeamOfOne, TeamOfTuples
from martes.envs.adapters.parallel import ParallelTeam
from martes.envs.adapters.plain import PlainTeam
from martes.envs.adapters.pymarl import PymarlTeam
from martes.envs.single import SingleEnv
from martes.errors import EnvError
from tests.envs.adapters.played import check_single
from tests.envs.adapters.test_gymnasium import Pair
from tests.envs.adapters.test_plain import Walk
from tests.envs.adapters.test_pymarl import Battle, Lite
from tests.envs.singles import Ramble


class Meeting(ParallelEnv):
    """Two agents that say numbers to each other."""

    def __init__(self) -> None:
        self.metadata, self.possible_agents = {"name": "meeting"}, ["left", "right"]

    def observation_space(self, agent):
        return spaces.Box(-9, 9, (1,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        self.agents, self.t = list(self.possible_agents), 0
        return self.seen([0, 0]), {agent: {} for agent in self.agents}

    def step(self, actions):
        self.t += 1
        seen, agents = self.seen(list(actions.values())), self.agents
        over = dict.fromkeys(agents, self.t == 5)
        if self.t == 5:
            self.agents = []
        return seen, dict.fromkeys(agents, 1.0), over, dict.fromkeys(agents, False), {agent: {} for agent in agents}

    def seen(self, said):
        return {agent: np.array([said[1 - index]], np.float32) for index, agent in enumerate(self.possible_agents)}


class InTurn(AECEnv):
    """One after the other says a number."""

    def __init__(self) -> None:
        self.metadata, self.possible_agents = {"name": "in_turn", "is_parallelizable": False}, ["left", "right"]
        self.render_mode = None

    def observation_space(self, agent):
        return spaces.Box(-9, 9, (1,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(3)

    def observe(self, agent):
        return np.array([self.said], np.float32)

    def reset(self, seed=None, options=None):
        self.agents, self.said, self.t = list(self.possible_agents), 0, 0
        self.rewards, self._cumulative_rewards = dict.fromkeys(self.agents, 0.0), dict.fromkeys(self.agents, 0.0)
        self.terminations, self.truncations = dict.fromkeys(self.agents, False), dict.fromkeys(self.agents, False)
        self.infos = {agent: {} for agent in self.agents}
        self.agent_selection = "left"

    def step(self, action):
        if self.terminations[self.agent_selection]:
            self._was_dead_step(action)
            return
        self.said, self.t = action, self.t + 1
        self.terminations = dict.fromkeys(self.agents, self.t == 6)
        self.agent_selection = self.agents[self.t % 2]


def test_every_kind_is_recognised():
    ramble = Ramble()
    assert adapted(ramble) is ramble
    kinds: list[tuple[object, type[SingleEnv]]] = [
        (Walk(), PlainTeam),
        (Battle(), PymarlTeam),
        (Lite(), PymarlTeam),
        (gym.make("CartPole-v1"), TeamOfOne),
        (Pair(), TeamOfTuples),
        (Meeting(), ParallelTeam),
        (InTurn(), ParallelTeam),
    ]
    for made, kind in kinds:
        assert isinstance(adapted(made), kind), made


@pytest.mark.parametrize("make", [Walk, Battle, Meeting, InTurn])
def test_what_is_recognised_keeps_the_contract(make: type):
    check_single(lambda: adapted(make()), steps=60)


def test_what_is_nothing_of_the_kind_is_told_what_it_lacks_nearest_first():
    class Lost:
        def reset(self): ...

    with pytest.raises(
        EnvError, match=r"Lost is no environment.*: to be a plain class it lacks step; to be Gymnasium's"
    ):
        adapted(Lost())

    class Almost:
        def get_env_info(self): ...
        def get_obs(self): ...
        def get_avail_actions(self): ...
        def reset(self): ...

    with pytest.raises(
        EnvError, match=r"to be a plain class it lacks step; to be PyMARL's MultiAgentEnv it lacks step;"
    ):
        adapted(Almost())


def test_what_would_be_misread_is_told():
    class Duck:
        possible_agents = ("a",)

        def reset(self): ...
        def step(self): ...

    with pytest.raises(EnvError, match=r"Duck has possible_agents.*derive it from pettingzoo.ParallelEnv"):
        adapted(Duck())
    Duck.agent_selection = "a"
    with pytest.raises(EnvError, match=r"derive it from pettingzoo.AECEnv"):
        adapted(Duck())
    with pytest.raises(EnvError, match=r"this is the class Walk, not an environment of it: return Walk\(...\)"):
        adapted(Walk)
    with pytest.raises(EnvError, match="is many copies in one: return a single one"):
        adapted(gym.make_vec("CartPole-v1", num_envs=2))
    old = type("Old", (Walk,), {"__module__": "gym.envs.old"})
    with pytest.raises(EnvError, match="Old is an environment of the old gym: derive it from"):
        adapted(old())
