"""Games on batched tensors, and the engine that runs them as vector environments."""

from martes.envs.batched.engine import BatchedEnv, Game, Outcome, State

__all__ = ["BatchedEnv", "Game", "Outcome", "State"]
