"""The border: every environment becomes one VectorEnv here."""

from martes.envs.catalogue import CATALOGUE, game_options, listed_envs, make_env

__all__ = ["CATALOGUE", "game_options", "listed_envs", "make_env"]
