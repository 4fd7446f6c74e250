"""Acting, training, and learning on windows."""

import torch

from martes.algorithms.learner import Learner
from martes.algorithms.ppo import PPO, PPOLearner
from martes.bench.timing import Measurement, Side, rates, ratios
from martes.data import Schema, VectorEnv, Workspace
from martes.data.experience import Replayed
from martes.envs.catalogue import make_env
from martes.networks import Chain, Network, act, replay
from martes.training.collect import Collector

LENGTHS = (25, 50, 100)
"""Steps of the windows that are learned from."""


class Run:
    """A run that has made its first update."""

    def __init__(self, learner: Learner, env: VectorEnv) -> None:
        self.learner = learner
        self.collector = Collector(env, learner, torch.Generator().manual_seed(1))
        self.collector.start(0)
        self.steps = self.updates = 0
        while not self.updates:
            self.go_on(1)

    def go_on(self, windows: int) -> int:
        """Acts and learns; how many env-steps."""
        before = self.steps
        for _ in range(windows):
            self._learn(self.collector.collect())
        return self.steps - before

    def update(self, count: int) -> int:
        """Learns at least so often, from the last window again and again or from batches that are drawn; how often."""
        before, window = self.updates, self.collector.window
        while self.updates < before + count:
            self._learn(window, is_new=not isinstance(self.learner.experience, Replayed))
        return self.updates - before

    def _learn(self, window: Workspace, is_new: bool = True) -> None:
        self.steps += window.time * window.envs
        if is_new:
            self.learner.experience.add(window, self.collector.final)
        for batch in self.learner.experience.due(self.steps):
            self.learner.update(batch)
            self.updates += 1


def _mappo(network: Network, envs: int, steps: int = 25) -> tuple[PPOLearner, VectorEnv]:
    env = make_env("mpe-spread", envs)
    learner = PPO(critic="central", network=network, rollout=steps, epochs=4).learner(
        env.team, torch.Generator().manual_seed(0)
    )
    return learner, env


def acting(repeats: int) -> list[Measurement]:
    """Env-steps a second of acting alone."""
    learner, env = _mappo(Network(hidden=(64, 64)), envs=1024)
    values = rates({"act": acted(learner, env, 25)}, repeats)["act"]
    return [Measurement("acting, 64-64 MLP, 1024 copies of spread", tuple(values), 300_000, is_ratio=False)]


def acted(learner: PPOLearner, env: VectorEnv, steps: int) -> Side:
    """Windows of acting with what is enough to act: env-steps, recorded one window over the other."""
    actor, device = learner.policy.part_for("action"), learner.generator.device
    schema = Schema.from_team(env.team).extended(**actor.fields())
    workspace = Workspace(schema, time=steps, envs=env.num_envs, device=device)
    first = env.reset(0)
    workspace.write(steps, {**first.seen, "start": first.start})
    workspace.memory = actor.initial_memory(env.num_envs)
    chain, generator = Chain(env, actor), torch.Generator(device).manual_seed(1)

    def windows(count: int) -> int:
        for _ in range(count):
            workspace.carry()
            workspace.memory = act(chain, workspace, 0, steps, generator=generator)
        return count * steps * env.num_envs

    return windows


def training(repeats: int) -> list[Measurement]:
    """Env-steps a second of collecting and learning together."""
    learner, env = _mappo(Network(hidden=(64, 64)), envs=1024)
    collector = Collector(env, learner, torch.Generator().manual_seed(1))
    collector.start(0)

    def updates(count: int) -> int:
        for _ in range(count):
            learner.update(collector.collect())
        return count * 25 * env.num_envs

    values = rates({"train": updates}, repeats)["train"]
    name = "MAPPO, 64-64, 4 epochs, 1024 copies of spread x 25 steps"
    return [Measurement(name, tuple(values), 60_000, is_ratio=False)]


def windows(repeats: int) -> list[Measurement]:
    """Forward and backward passes over a window: all steps at once, against the loop over `step`."""
    found: list[Measurement] = []
    for kind, network, target in (("MLP", Network(), 3.0), ("GRU", Network(memory="gru"), 1.0)):
        for steps in LENGTHS:
            learner, env = _mappo(network, envs=64, steps=steps)
            collector = Collector(env, learner, torch.Generator().manual_seed(1))
            collector.start(0)
            window = collector.collect()
            sides = {name: _passes(learner, window, name == "loop") for name in ("sequence", "loop")}
            speed = rates(sides, repeats)
            values = ratios(speed["sequence"], speed["loop"])
            found.append(Measurement(f"{kind}, window of {steps} steps vs step by step", values, target))
    return found


def _passes(learner: PPOLearner, window: Workspace, is_stepwise: bool) -> Side:
    def passes(count: int) -> int:
        for _ in range(count):
            outputs = replay(learner.policy, window, given=("action",), stepwise=is_stepwise)
            (outputs["log_prob"].mean() + outputs["value"].mean()).backward()
        return count

    return passes
