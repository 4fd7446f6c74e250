"""The loop of evolution by hand, of public functions: act, learn, score, choose, mutate."""

import sys
from contextlib import closing

from martes.envs.catalogue import make_env
from martes.evolution.generation import at_work, put_by
from martes.evolution.mutations import Hyperparameter, Mutations, Parameters, Unchanged
from martes.evolution.population import Breeding, first_generation, next_generation
from martes.evolution.selection import Tournament
from martes.evolution.space import space_of
from martes.presets import PRESETS
from martes.training.evaluate import evaluate

EVERY, GENERATIONS, SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000, 5, 0

algorithm = PRESETS["ippo/mpe-speaker-listener"].algorithm
space = space_of(algorithm, {"algorithm.lr": (1e-4, 1e-2), "algorithm.rollout": (8, 64)})
mutations = Mutations(((Unchanged(), 0.4), (Hyperparameter(space), 0.4), (Parameters(sd=0.1), 0.2)))
breeding = Breeding(Tournament(2), mutations, space)
with closing(make_env("mpe-speaker-listener", 8)) as env, closing(make_env("mpe-speaker-listener", 8)) as test_env:
    members = first_generation(algorithm, env.team, 4, SEED)
    for generation in range(GENERATIONS):
        if generation:
            members = next_generation(members, breeding, SEED, generation)
        for place, member in enumerate(members):
            learner, collector = at_work(member, env, SEED)
            steps = member.steps
            while steps < (generation + 1) * EVERY:
                window = collector.collect()
                steps += window.time * window.envs
                learner.experience.add(window, collector.final)
                for batch in learner.experience.due(steps):
                    learner.update(batch)
            scores = evaluate(learner.policy, test_env, 16, seed=generation)
            members[place] = put_by(member, learner, collector, steps, float(scores.returns.mean()))
            print(f"{generation}  {member.id:>3} from {member.parent}  {scores.returns.mean():8.2f}  {member.change}")
