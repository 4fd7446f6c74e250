"""AgileRL's side of `martes bench agilerl`, run by an interpreter that has it; nothing of martes is imported.

It says once what it is, then answers each order (a line of JSON: what, how often) with how many units that were. What
AgileRL prints goes where errors go. It trains with AgileRL's own training functions as they ship, one member, evaluated
for one step at the end of each order; an order is long enough for neither that nor its set-up to matter.

With arguments (MADDPG or MATD3, a seed, env-steps; under `python -I`) it learns so long instead, and says what it then
scores: mean and standard deviation of the team's return in 100 greedy episodes. It learns as often as our preset.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import Protocol, TextIO, TypedDict, runtime_checkable

import numpy as np
import torch
from torch import nn

ENVS = 8
PIECE = 2400
"""Env-steps of one piece of training from replay."""
ROLLOUT = 2048
# Its latent layer is left as it comes: 64 wide in policies, 32 in critics that see everybody.
NETWORKS = {
    "encoder_config": {"hidden_size": [32, 32], "activation": "ReLU"},
    "head_config": {"hidden_size": [32], "activation": "ReLU"},
}
REPLAYED = {"batch_size": 32, "lr_actor": 1e-3, "lr_critic": 1e-3, "learn_step": 100, "gamma": 0.95, "tau": 0.01}
SETTINGS: dict[str, dict[str, object]] = {
    "MADDPG": {**REPLAYED, "vect_noise_dim": ENVS},
    "MATD3": {**REPLAYED, "vect_noise_dim": ENVS, "policy_freq": 2},
    "IPPO": {"batch_size": 128, "lr": 1e-4, "learn_step": ROLLOUT, "update_epochs": 4},
}
LEARNING = {"batch_size": 256, "learn_step": 25}
"""What differs where it learns for a score: batches and pace of `presets.py`, and a wider latent layer."""
EPISODES = 100
Work = Callable[[int], int]


@runtime_checkable
class Counters(Protocol):
    """What an agent counts."""

    steps: int


@runtime_checkable
class Agent(Protocol):
    """What is asked of an agent of AgileRL."""

    learn: Callable[[object], object]
    get_action: Callable[[dict[str, np.ndarray]], tuple[dict[str, np.ndarray], object]]
    metrics: Counters
    fitness: list[float]
    batch_size: int


@runtime_checkable
class Space(Protocol):
    """A space of actions."""

    def sample(self) -> object:
        """Any action."""
        ...


@runtime_checkable
class Vector(Protocol):
    """What is asked of its environments."""

    agents: list[str]

    def single_observation_space(self, name: str) -> object:
        """What an agent sees."""
        ...

    def single_action_space(self, name: str) -> Space:
        """What an agent does."""
        ...


class Team(TypedDict):
    """Names and spaces of its agents."""

    observation_spaces: list[object]
    action_spaces: list[Space]
    agent_ids: list[str]


@runtime_checkable
class Game(Protocol):
    """What is asked of one environment, as PettingZoo defines it."""

    agents: list[str]

    def reset(self, seed: int) -> tuple[dict[str, np.ndarray], object]:
        """What the agents see first."""
        ...

    def step(self, actions: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, float], object]:
        """What they see next, their rewards, and more."""
        ...


def speaker_listener() -> Game:
    """One copy of the task."""
    return import_module("mpe2.simple_speaker_listener_v4").parallel_env(continuous_actions=True)


def team_of(env: Vector) -> Team:
    """What an agent of AgileRL is told of its team."""
    ids = list(env.agents)
    return {
        "observation_spaces": [env.single_observation_space(name) for name in ids],
        "action_spaces": [env.single_action_space(name) for name in ids],
        "agent_ids": ids,
    }


class Peer:
    """AgileRL with eight environments in processes of their own, and an agent of each algorithm."""

    def __init__(self) -> None:
        algorithms, vector = import_module("agilerl.algorithms"), import_module("agilerl.vector.pz_async_vec_env")
        self.env = vector.AsyncPettingZooVecEnv([speaker_listener] * ENVS)
        self.env.reset()
        self.close, self.env.close = self.env.close, lambda: None  # its training functions close what they are given
        self.team = team_of(self.env)
        self.spaces = dict(zip(self.team["agent_ids"], self.team["action_spaces"], strict=True))
        self.agents = {name: self.agent(algorithms, name) for name in SETTINGS}
        buffer = import_module("agilerl.components.replay_buffer").ReplayBuffer
        self.memories = {name: buffer(100_000) for name in ("MADDPG", "MATD3")}
        self.rollout: object = None
        self.generation, self.bred = self.population(algorithms)

    def agent(self, algorithms: ModuleType, name: str, **more: object) -> Agent:
        """A fresh agent with the settings of this algorithm."""
        return getattr(algorithms, name)(**self.team, **SETTINGS[name], net_config=NETWORKS, **more)

    def population(self, algorithms: ModuleType) -> tuple[Work, Work]:
        """Four members of MADDPG: selection and mutation alone, and whole generations. The elite stays, as here."""
        registry = import_module("agilerl.algorithms.core.registry")
        hpo, parameter = import_module("agilerl.hpo.mutation"), registry.RLParameter
        searched = registry.HyperparameterConfig(
            lr_actor=parameter(min=1e-4, max=1e-2),
            lr_critic=parameter(min=1e-4, max=1e-2),
            batch_size=parameter(min=8, max=512, dtype=int),
            learn_step=parameter(min=20, max=200, dtype=int, grow_factor=1.5, shrink_factor=0.75),
        )
        members, living = (
            [self.agent(algorithms, "MADDPG", index=index, hp_config=searched) for index in range(4)] for _ in range(2)
        )
        selection = import_module("agilerl.hpo.tournament").TournamentSelection(2, True, 4)
        mutations = hpo.Mutations(0.2, 0.2, 0.2, 0.2, 0.0, 0.2, mutate_elite=False, rand_seed=1)
        others = hpo.Mutations(0.2, 0.2, 0.2, 0.0, 0.0, 0.2, mutate_elite=False, rand_seed=1)

        def generations(count: int) -> int:
            nonlocal members  # selection uses up whom it selects from
            for _ in range(count):
                for fitness, member in enumerate(members):
                    member.fitness = [float(fitness)]
                members = mutations.mutation(selection.select(members)[1])
            return count

        train = import_module("agilerl.training.train_multi_agent_off_policy").train_multi_agent_off_policy
        memory = import_module("agilerl.components.replay_buffer").ReplayBuffer(100_000)

        def lives(count: int) -> int:
            nonlocal living
            before = living[0].metrics.steps
            plan = {"max_steps": before + count * PIECE, "evo_steps": PIECE, "eval_steps": 1, "verbose": False}
            # Without mutations of parameters, which fail in 2.58.0 on a member whose layers have changed.
            hpo = {"selection_strategy": selection, "mutation": others, "learning_delay": 1000}
            living, _ = train(self.env, "", "MADDPG", living, memory=memory, **plan, **hpo)
            return (living[0].metrics.steps - before) * len(living)  # children go on counting for their parents

        return generations, lives

    @property
    def works(self) -> dict[str, Work]:
        """What can be ordered."""
        training = {f"train {name}": partial(self.trained, name) for name in SETTINGS}
        updates = {f"update {name}": partial(self.updated, name) for name in SETTINGS}
        bred = {"generation": self.generation, "population": self.bred}
        return {"environment": self.stepped, **bred, **training, **updates}

    @property
    def parameters(self) -> dict[str, list[int]]:
        """Of policies, and of critics, of both agents together; targets are not counted."""
        return {
            name: [
                sum(each.numel() for networks in networks_of(agent, kind) for each in networks.parameters())
                for kind in ("actor", "critic")
            ]
            for name, agent in self.agents.items()
        }

    def stepped(self, count: int) -> int:
        """Steps under one joint action."""
        action = {name: [space.sample()] * ENVS for name, space in self.spaces.items()}
        for _ in range(count):
            self.env.step(action)
        return count * ENVS

    def trained(self, name: str, count: int) -> int:
        """Env-steps of training."""
        agent, is_replayed = self.agents[name], name in self.memories
        steps = count * (PIECE if is_replayed else ROLLOUT)
        plan = {"max_steps": agent.metrics.steps + steps, "evo_steps": steps, "eval_steps": 1, "verbose": False}
        if is_replayed:
            train = import_module("agilerl.training.train_multi_agent_off_policy").train_multi_agent_off_policy
            train(self.env, "", name, [agent], memory=self.memories[name], learning_delay=1000, **plan)
            return steps
        learn = agent.learn

        def kept(experiences: object) -> object:
            self.rollout = experiences
            return learn(experiences)

        agent.learn = kept
        train = import_module("agilerl.training.train_multi_agent_on_policy").train_multi_agent_on_policy
        train(self.env, "", name, [agent], **plan)
        agent.learn = learn
        return steps

    def updated(self, name: str, count: int) -> int:
        """Updates: on batches that are drawn, or on the last rollout again and again."""
        agent, memory = self.agents[name], self.memories.get(name)
        for _ in range(count):
            agent.learn(self.rollout if memory is None else memory.sample(agent.batch_size))
        return count


def networks_of(agent: Agent, kind: str) -> list[nn.Module]:
    """An agent's online policies or critics, both of a pair of critics."""
    found: list[Mapping[str, nn.Module]] = [getattr(agent, f"{kind}{end}", {}) for end in ("s", "s_1", "s_2")]
    return [networks for each in found for networks in each.values()]


def score(name: str, seed: int, steps: int) -> list[float]:
    """Mean and deviation of the returns that an agent comes to after so many env-steps."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    torch.set_num_threads(1)
    vector, replay = import_module("agilerl.vector.pz_async_vec_env"), import_module("agilerl.components.replay_buffer")
    env = vector.AsyncPettingZooVecEnv([speaker_listener] * ENVS)
    env.reset(seed=seed)
    settings = {**SETTINGS[name], **LEARNING, "net_config": {**NETWORKS, "latent_dim": 64}}
    agent = getattr(import_module("agilerl.algorithms"), name)(**team_of(env), **settings)
    train = import_module("agilerl.training.train_multi_agent_off_policy").train_multi_agent_off_policy
    plan = {"max_steps": steps, "evo_steps": 50_000, "eval_steps": None, "learning_delay": 1000, "verbose": False}
    train(env, "", name, [agent], memory=replay.ReplayBuffer(100_000), **plan)
    agent.set_training_mode(False)
    returns = np.array([greedy_return(agent, seed) for seed in range(EPISODES)])
    return [float(returns.mean()), float(returns.std())]


def greedy_return(agent: Agent, seed: int) -> float:
    """The return, summed over the team, of one episode of its own."""
    env = speaker_listener()
    seen, _ = env.reset(seed=seed)
    total = 0.0
    while env.agents:
        action, *_ = agent.get_action({name: each[None] for name, each in seen.items()})
        seen, reward, *_ = env.step({name: each[0] for name, each in action.items()})
        total += sum(reward.values())
    return total


def answer(orders: TextIO, answers: TextIO) -> None:
    """Says what it is and does what it is told, until no order can come any more."""
    told = {"agilerl": version("agilerl"), "torch": torch.__version__}  # the first to fail where it is not installed
    torch.set_num_threads(1)
    peer = Peer()
    hello = told | {"parameters": peer.parameters}
    print(json.dumps(hello), file=answers, flush=True)
    for line in orders:
        what, count = json.loads(line)
        print(json.dumps(peer.works[what](count)), file=answers, flush=True)
    peer.close()


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if sys.argv[1:]:
        kind, nth, much = sys.argv[1:]
        print(score(kind, int(nth), int(much)), file=own)
    else:
        answer(sys.stdin, own)
