"""QMIX learns the two-step game by a loop of one's own: collect, keep, draw whole episodes, learn.

The first agent chooses a matrix, then both choose in it: one pays 7 whatever they do, the other 8 to two who agree, and
less to others. The sum of two agents' values (VDN) cannot tell this, so it takes the 7. Source: Rashid et al. 2018,
section 5 and appendix B.
"""

import sys
from contextlib import closing

import torch

from martes.envs.catalogue import make_env
from martes.presets import PRESETS
from martes.training.collect import Collector
from martes.training.evaluate import evaluate

QUICK = {
    "algorithm.exploration.end": 1.0,  # every joint action is tried alike: what is learned is what can be represented
    "algorithm.td_lambda": 0.0,  # so nothing is expected of what was done next: it was drawn
    "algorithm.network.hidden": (32,),
    "algorithm.rollout": 8,
    "algorithm.ratio": 0.1,
    "algorithm.lr": 5e-3,
    "algorithm.target_every": 20,
}


def learned(name, steps):
    """What a greedy team earns after so many environment steps."""
    experiment = PRESETS[f"{name}/two-step"].changed(QUICK)
    generator = torch.Generator().manual_seed(0)
    with closing(make_env("two-step", 8)) as env, closing(make_env("two-step", 1)) as test_env:
        learner = experiment.algorithm.learner(env.team, generator)
        collector = Collector(env, learner, generator)
        collector.start(seed=0)
        made = 0
        while made < steps:
            window = collector.collect()  # a workspace: time env agent ...
            made += window.time * window.envs
            learner.experience.add(window, collector.final)
            for batch in learner.experience.due(made):  # whole episodes, once there are enough
                learner.update(batch)
        scores = evaluate(learner.policy, test_env, episodes=1, seed=0)
    return float(scores.agent_returns[0, 0])  # what is paid, each agent earns


def main(steps=5_000):
    """Both methods, on the same game."""
    torch.set_num_threads(1)
    for name in ("vdn", "qmix"):
        print(f"{name} earns {learned(name, steps):.0f}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
