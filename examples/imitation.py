"""From an expert to its pupils: record its episodes, clone what it did, and clone it given the return to come."""

import sys
from contextlib import closing

import martes
from martes import api

TASK = "gymnasium:CartPole-v1"
QUIET = {"logging.progress": "none", "logging.tensorboard": False, "training.threads": 1}


def expert(steps, episodes):
    """A data set of its drawn actions."""
    run = martes.train(f"ippo/{TASK}", steps=steps, run_dir="runs/expert", **QUIET)
    found = api.restored(run.folder.path, copies=min(episodes, 16))
    with closing(found.env):
        scores, data = api.recorded(found, episodes, greedy=False, seed=0)
    data.save("cartpole.safetensors")
    print(f"the expert earned {scores.returns.mean():.0f} an episode", flush=True)


def pupil(name, updates):
    """What it earns after so many gradient steps; nobody acts but to test it."""
    algorithm = martes.presets.PRESETS[f"{name}/{TASK}"].algorithm
    run = martes.train(
        f"{name}/{TASK}",
        steps=round(updates / algorithm.ratio),  # steps only count here
        run_dir=f"runs/{name}",
        **QUIET,
        **{"training.data": "cartpole.safetensors", "evaluation.episodes": 8, "evaluation.every": 10**9},
    )
    first, *_, last = (row["evaluation/return"] for row in run.metrics() if row["kind"] == "evaluation")
    print(f"{name} earned {first:.0f} at first, {last:.0f} after {updates} gradient steps", flush=True)


def main(steps=200_000, episodes=30, updates=200):
    """The expert, then both pupils, from the same data."""
    expert(steps, episodes)
    pupil("bc", updates)
    pupil("dt", updates)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
