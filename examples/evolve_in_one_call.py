"""A population of four that tunes itself, in one call: the search space, the mutations and the selection are values."""

import sys

import martes
from martes.evolution.settings import Chances
from martes.evolving import Evolving
from martes.presets import PRESETS

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000

if __name__ == "__main__":  # worker processes import this file
    population = Evolving(PRESETS["vdn/mpe-speaker-listener"]).changed(
        {
            "env.copies": 8,
            "algorithm.batch": 32,
            "algorithm.target_every": 100,
            "algorithm.network.hidden": (32, 32),
            "training.steps": STEPS,  # of each member
            "evaluation.episodes": 16,
            "evolution.population": 4,
            "evolution.every": STEPS // 4,
            "evolution.tournament": 2,
            "evolution.mutation": Chances(none=0.4, hyperparameter=0.4, parameters=0.2),
            "evolution.space.algorithm.lr": (1e-4, 1e-2),
            "evolution.space.algorithm.batch": (8, 512),
            "evolution.space.algorithm.target_every": (20, 200, 1.5, 0.75),  # bounds, steps up and down
            "evolution.target": -10.0,
        }
    )
    result = martes.evolve(population)
    print(f"elite {result.elite.id}: {result.elite.fitness[-1]:.1f} with lr {result.elite.algorithm.lr:.2g}")
    print(martes.load(result.folder.path))  # the elite's policy, to act with
