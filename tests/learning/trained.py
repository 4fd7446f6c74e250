"""Learners after some updates, for games whose answer is known."""

from typing import Any

from martes.envs.catalogue import make_env
from martes.training.collect import Collector
from martes.training.seeding import generator_of, seed_of


def trained(name: str, updates: int, config: Any, seed: int, **options: object) -> Collector:
    """A collector whose learner made `updates` updates of rollouts of 32 copies."""
    env = make_env(name, 32, options=options)
    learner = config.learner(env.team, generator_of(seed, "learning"))
    collector = Collector(env, learner, generator_of(seed, "acting"))
    collector.start(seed_of(seed, "environment"))
    for _ in range(updates):
        learner.update(collector.collect())
    return collector


def trained_from_replay(
    name: str, updates: int, config: Any, seed: int, copies: int = 8, **options: object
) -> Collector:
    """A collector whose learner made `updates` updates from what so many copies went through."""
    env = make_env(name, copies, options=options)
    learner = config.learner(env.team, generator_of(seed, "learning"))
    collector = Collector(env, learner, generator_of(seed, "acting"))
    collector.start(seed_of(seed, "environment"))
    steps = 0
    while learner.updates < updates:
        window = collector.collect()
        steps += window.time * window.envs
        learner.experience.add(window, collector.final)
        for batch in learner.experience.due(steps):
            learner.update(batch)
    return collector
