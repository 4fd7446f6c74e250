"""Games that JAX compiles, kept to the contract."""

import pytest

from martes.data import VectorEnv
from martes.envs.adapters.jax_env import JaxEnv
from tests.envs.contract import Promise, check

MARKS = [pytest.mark.extras, pytest.mark.usefixtures("compiled_once"), pytest.mark.filterwarnings("ignore")]


def check_compiled(env: VectorEnv, draws: bool = True, steps: int = 110) -> None:
    """The contract, kept by copies of one game: JAX takes up what it traced of it."""
    assert isinstance(env, JaxEnv)
    game = env.game
    check(Promise(lambda copies, limit: JaxEnv(game, copies, limit=limit), tells_state=True, draws=draws, steps=steps))
