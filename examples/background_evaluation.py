"""Acting, learning and evaluating side by side: two processes act, one evaluates, and this one learns."""

import sys
from functools import partial

import torch

from martes.algorithms.ppo import PPO
from martes.envs.catalogue import make_env
from martes.envs.process import Hosting
from martes.networks import Network
from martes.training.background import Evaluator
from martes.training.workers import Role, Workers


def main(updates=100, copies=32):
    """Learns for so many updates, each from one window of two lanes."""
    torch.set_num_threads(1)
    make = partial(make_env, "mpe-spread", copies)
    config = PPO(rollout=25, network=Network(hidden=(64, 64)))
    learner = config.learner(make().team, torch.Generator().manual_seed(0))
    acting = Workers(make, Role.of(learner), lanes=2, hosting=Hosting(workers=2))
    testing = Evaluator(make, learner.policy, episodes=32, on_failure="warn")
    with acting as workers, testing as evaluator:
        workers.begin()
        for update in range(1, updates + 1):
            window = workers.collected()
            workers.push()
            workers.begin()  # the next window is on its way while this one is learned from
            learner.update(window)
            if (found := evaluator.poll()) is not None:
                print(f"version {found.version}: {float(found.scores.returns.mean()):.1f}", flush=True)
            if evaluator.begin(seed=0) is not None:
                print(f"update {update} is tested as version {evaluator.version}", flush=True)
        workers.collected()
        if (found := evaluator.result()) is not None:
            print(f"version {found.version}: {float(found.scores.returns.mean()):.1f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
