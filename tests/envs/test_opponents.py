"""Rivals: the contract of what is left, the very actions that are executed, memory, names, errors."""

from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from martes.data import Continuous, Discrete, Fields, TeamSpec, TimeStep, Vector, VectorEnv
from martes.data.trees import cleared
from martes.envs.batched.engine import BatchedEnv, Outcome, State
from martes.envs.opponents import Opponents, Trained, Uniform, rest_of
from martes.envs.pace import drawn_actions
from martes.envs.wrappers import Wrap, wrapped
from martes.errors import ConfigError, EnvError
from martes.networks import Network
from martes.networks.policies import Policy
from martes.training import checkpoint
from tests.envs.contract import (
    Promise,
    assert_same,
    check,
    check_laws,
    check_shapes,
    check_state,
    played,
)
from tests.envs.test_wrappers import hiding
from tests.worlds import WORLDS

TEAMS = ["unequal", "dying", "multi-discrete-masked", "image", "forced-continuous"]


def second(team: TeamSpec) -> tuple[str, ...]:
    return team.agents[1:2]


def promise(name: str, is_seated: bool) -> Promise:
    def make(copies: int, limit: int | None) -> VectorEnv:
        env = BatchedEnv(hiding(name), copies, limit=limit)
        return Opponents(env, Uniform(env.team), second(env.team), is_seated=is_seated)

    return Promise(make, tells_state=True, steps=25)


@pytest.mark.usefixtures("unchecked", "global_randomness_unused")
@pytest.mark.parametrize("name", TEAMS)
def test_the_contract_is_kept(name: str):
    check(promise(name, is_seated=False))


@pytest.mark.usefixtures("unchecked", "global_randomness_unused")
@pytest.mark.parametrize("name", ["dying", "multi-discrete-masked", "forced-continuous"])
def test_a_seated_rival_keeps_the_contract(name: str):
    """All of it but one law: `final` tells nothing that would be forced, for nobody acts on it."""
    made = promise(name, is_seated=True)
    env = made.make(3, None)
    steps = played(env, 7, made.steps)
    check_shapes(env, steps)
    check_laws(steps)
    check_state(env, made)


class Recording(BatchedEnv):
    """A batched environment that keeps the joint actions it was given."""

    def reset(self, seed: int) -> TimeStep:
        self.done: list[Tensor] = []
        return super().reset(seed)

    def step(self, action: Tensor) -> TimeStep:
        self.done.append(action)
        return super().step(action)


@dataclass(frozen=True)
class Duel:
    """Each side sees the steps so far, in its own units, and whether the other lives; the left one earns 1, the right
    one 2. Action 1 of the right one ends it, and of the left one, too; the game is over after both have ended."""

    limit: int = 5

    @property
    def team(self) -> TeamSpec:
        sees, acts = {"left_0": Vector(2), "right_0": Vector(3)}, {"left_0": Discrete(2), "right_0": Discrete(4)}
        return TeamSpec.of_agents(sees, acts, state=Vector(1), episode_limit=self.limit)

    def initial(self, envs: int, generator: torch.Generator) -> State:
        return {"t": torch.zeros(envs), "alive": torch.ones(envs, 2, dtype=torch.bool)}

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> Outcome:
        alive = state["alive"] & (action != 1)
        discount = (alive | ~state["alive"]).float()
        reward = torch.tensor([1.0, 2.0]) * state["alive"]
        return Outcome({"t": state["t"] + 1, "alive": alive}, reward, discount, ~alive.any(1))

    def observe(self, state: State) -> Fields:
        t, alive = state["t"], state["alive"].float()
        left = torch.stack((t, alive[:, 1], torch.zeros_like(t)), 1)
        right = torch.stack((10 * t, alive[:, 0], torch.full_like(t, 7)), 1)
        obs = torch.stack((left, right), 1) * alive[..., None]
        return {"obs": obs, "agent_mask": state["alive"], "state": t[:, None]}


class Telling:
    """Plays what it is told, and keeps what it saw, where episodes opened and what its team did."""

    def __init__(self, team: TeamSpec, *actions: int) -> None:
        self.team = team
        self._actions = actions
        self.seen: list[TimeStep] = []
        self.did: list[Tensor] = []

    def first(self, step: TimeStep, seed: int) -> Tensor:
        self.seen, self.did = [], []
        return self._told(step)

    def next(self, step: TimeStep, action: Tensor) -> Tensor:
        self.did.append(action)
        return self._told(step)

    def _told(self, step: TimeStep) -> Tensor:
        self.seen.append(step)
        return torch.full((len(step.start), self.team.size), self._actions[len(self.seen) - 1])

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        del state


def test_the_rest_sees_and_earns_its_own_and_the_rival_is_known_by_name():
    team = Duel().team
    own_side = rest_of(team, ("left_0",))
    assert own_side.agents == ("right_0",)
    assert own_side.groups == {"right": (0,)}
    rival = Telling(own_side, 3, 2, 1, 0, 0, 0)
    inner = Recording(Duel(), 2)
    env = Opponents(inner, rival)
    assert env.team == rest_of(team, ("right_0",))
    assert env.team.observation == {"left": Vector(2)}
    step = env.reset(0)
    assert step.seen["obs"].tolist() == [[[0, 1]]] * 2  # narrow again: its own two numbers
    step = env.step(torch.tensor([[0], [1]]))
    assert inner.done[-1].tolist() == [[0, 3], [1, 3]]
    assert step.reward.tolist() == [[1], [1]]
    assert step.discount.tolist() == [[1], [0]]
    assert step.seen["state"].tolist() == [[1], [1]]
    assert step.seen["agent_mask"].tolist() == [[True], [False]]
    assert not step.cut.any()  # nobody is left in the second copy, and the rival plays on
    assert rival.seen[-1].seen["obs"].tolist() == [[[10, 1, 7]], [[10, 0, 7]]]
    assert rival.seen[-1].reward.tolist() == [[2], [2]]
    step = env.step(torch.tensor([[0], [0]]))
    assert step.reward.tolist() == [[1], [0]]
    step = env.step(torch.tensor([[0], [0]]))  # the rival ends itself; the second copy is over
    assert step.cut.tolist() == [False, True]
    assert step.discount[1].tolist() == [0]
    assert step.final is not None
    assert step.final["obs"].tolist() == [[[3, 0]], [[0, 0]]]
    assert step.seen["obs"].tolist() == [[[3, 0]], [[0, 1]]]
    assert rival.seen[-1].start.tolist() == [False, True]
    assert [did.tolist() for did in rival.did] == [[[3], [3]], [[2], [2]], [[1], [1]]]


def test_a_rival_of_the_whole_team_acts_in_its_seats_alone():
    team = Duel().team
    inner, rival = Recording(Duel(), 1), Telling(team, 3, 2, 0)
    env = Opponents(inner, rival, ("right_0",))
    env.reset(0)
    env.step(torch.tensor([[0]]))
    env.step(torch.tensor([[1]]))
    assert [done.tolist() for done in inner.done] == [[[0, 3]], [[1, 2]]]
    assert [did.tolist() for did in rival.did] == [[[0, 3]], [[1, 2]]]  # what was executed, not what it wished
    assert rival.seen[0].seen["obs"].shape == (1, 2, 3)


def test_a_seated_rival_decides_whatever_the_policy_says():
    inner = Recording(Duel(), 1)
    env = Opponents(inner, Telling(Duel().team, 3, 2, 0), ("right_0",), is_seated=True)
    assert env.team == replace(Duel().team, forces_actions=True)
    step = env.reset(0)
    assert step.seen["forced"].tolist() == [[False, True]]
    assert step.seen["forced_action"][:, 1].tolist() == [3]
    step = env.step(torch.tensor([[0, 0]]))
    assert inner.done[-1].tolist() == [[0, 3]]
    assert step.reward.tolist() == [[1, 2]]  # returns agent by agent
    assert step.seen["forced_action"][:, 1].tolist() == [2]


def test_the_task_has_the_last_word_on_what_is_forced():
    env = Opponents(BatchedEnv(WORLDS["forced"], 50), Uniform(WORLDS["forced"].team), ("big_1",), is_seated=True)
    bare = BatchedEnv(WORLDS["forced"], 50).reset(2).seen["forced"]
    seen = env.reset(2).seen
    assert torch.equal(seen["forced"], bare | torch.tensor([False, True, False]))
    assert not seen["forced_action"][bare].any()  # this world forces into action 0
    assert seen["forced_action"][:, 1].any()


Kind = Literal["none", "gru"]


def policy_of(team: TeamSpec, memory: Kind) -> Policy:
    network = Network(hidden=(8,), memory=memory, memory_size=8)
    policy = Policy(team, network, "group", torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in policy.parameters():  # far from uniform: what it sees decides
            parameter.mul_(3)
    return policy


WRAP = Wrap(agent_id=True, last_action=True, frame_stack=2)


@pytest.mark.parametrize("is_seated", [False, True])
@pytest.mark.parametrize("name", ["dying", "multi-discrete-masked", "continuous", "image", "forced"])
def test_a_trained_rival_acts_as_its_policy_does_in_training(name: str, is_seated: bool):
    """Self-play by hand, one policy for all, gives the same joint actions as the same policy on both sides."""
    alone, inner = Recording(hiding(name), 4), Recording(hiding(name), 4)
    env = wrapped(alone, WRAP)
    policy = policy_of(env.team, "gru")
    rival = Trained(policy, inner.team, WRAP, greedy=True)
    rivals = Opponents(inner, rival, second(inner.team), is_seated=is_seated)
    rows = [inner.team.agents.index(agent) for agent in rivals.team.agents]
    step, memory, fresh, starts = env.reset(5), policy.initial_memory(4), policy.initial_memory(4), 0
    rivals.reset(5)
    for _ in range(20):
        with torch.no_grad():
            outputs, memory = policy.step({each: step.seen[each] for each in policy.reads}, memory)
        own = outputs["action"][:, rows]
        if is_seated:
            own[:, 1] = 0  # not what the rival does there
        step = env.step(outputs["action"])
        twin = rivals.step(own if own.ndim == 2 else own[:, :, : rivals.team.legal_actions.shape[1]])
        real = alone.team.legal_actions if alone.team.action_kind is Continuous else 1
        assert torch.equal(alone.done[-1] * real, inner.done[-1] * real)
        assert torch.equal(twin.reward, step.reward[:, rows])
        memory = cleared(memory, fresh, step.start)
        starts += int(step.start.sum())
    assert starts > 3, "no episode opened: memory was never cleared"


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_a_trained_rivals_state_goes_through_a_checkpoint(memory: Kind, tmp_path):
    def made() -> Opponents:
        env = BatchedEnv(WORLDS["dying"], 3)
        return Opponents(env, Trained(policy_of(env_team, memory), env.team, WRAP), second(env.team))

    env_team = wrapped(BatchedEnv(WORLDS["dying"], 1), WRAP).team
    env, generator = made(), torch.Generator().manual_seed(0)
    step = env.reset(1)
    for _ in range(6):
        step = env.step(drawn_actions(env.team, step, generator))
    saved = checkpoint.load(checkpoint.save(tmp_path, env.state_dict(), 1, keep=1))
    twin = made()
    shown = twin.load_state_dict(saved)
    assert torch.equal(shown.seen["obs"], step.seen["obs"])
    for _ in range(10):
        action = drawn_actions(env.team, step, generator)
        step = env.step(action)
        assert_same(step, twin.step(action), "after a checkpoint")


def test_drawn_rivals_repeat_from_a_seed_and_differ_between_seeds():
    def drawn(seed: int) -> Tensor:
        inner = Recording(replace(WORLDS["continuous"], ends=0.0), 3)
        env = Opponents(inner, Uniform(inner.team), second(inner.team))
        step, generator = env.reset(seed), torch.Generator().manual_seed(0)
        for _ in range(5):
            step = env.step(drawn_actions(env.team, step, generator))
        return torch.stack(inner.done)[:, :, 1]

    low, high = WORLDS["continuous"].team.bounds
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert ((drawn(1) >= low[1]) & (drawn(1) <= high[1])).all()


def test_a_uniform_rival_plays_every_legal_action_and_no_other():
    world = hiding("unequal")
    inner = Recording(world, 500)
    env = Opponents(inner, Uniform(inner.team), ("small_0", "big_1"))
    bare = BatchedEnv(world, 500).reset(3)
    step = env.reset(3)
    env.step(drawn_actions(env.team, step, torch.Generator().manual_seed(0)))
    done = inner.done[0][:, :2]
    assert bare.seen["action_mask"][:, :2].gather(-1, done[..., None]).all()
    assert set(done[:, 0].tolist()) == {0, 1, 2}
    assert set(done[:, 1].tolist()) == {0, 1, 2, 3, 4}


def test_misfits_are_refused_by_name():
    env = BatchedEnv(Duel(), 1)
    team = env.team
    with pytest.raises(ConfigError, match=r"no agent 'rigt_0'; did you mean 'right_0'"):
        Opponents(env, Uniform(team), ("rigt_0",))
    with pytest.raises(ConfigError, match="leaves none"):
        Opponents(env, Uniform(team))
    with pytest.raises(ConfigError, match="does not play 'left_0'"):
        Opponents(env, Uniform(rest_of(team, ("left_0",))), ("left_0",))
    other = replace(team, observation={"left": Vector(2), "right": Vector(9)})
    with pytest.raises(ConfigError, match=r"'right_0'.*size=9.*size=3"):
        Opponents(env, Uniform(other), ("right_0",))
    foreign = TeamSpec(("a",), {"a": (0,)}, {"a": Vector(1)}, {"a": Continuous((0.0,), (1.0,))})
    with pytest.raises(ConfigError, match="no agent 'a'"):
        Opponents(env, Uniform(foreign), ())
    with pytest.raises(ConfigError, match="which actions are legal"):
        Opponents(env, Uniform(replace(team, masks_actions=True)), ("right_0",))


def test_wrong_actions_and_states_are_refused():
    env = Opponents(BatchedEnv(Duel(), 1), Uniform(Duel().team), ("right_0",))
    env.reset(0)
    with pytest.raises(EnvError, match=r"\[1, 2\], this team takes \[1, 1\]"):
        env.step(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(EnvError, match="other opponents"):
        env.load_state_dict({**env.state_dict(), "choice": torch.zeros(1, 3)})
    with pytest.raises(EnvError, match="no random state"):
        env.load_state_dict({**env.state_dict(), "rival": {}})
