"""Test episodes of a plain environment, in a loop like anybody's own: of it nothing is asked but `reset` and `step`."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from martes.envs.adapters.episodes import method, per_agent
from martes.envs.adapters.plain import ROWS, STEP, Plain
from martes.errors import EnvError
from martes.training.evaluate import LONGEST

Play = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""(what the agents observe, their legal actions if the environment tells) -> their actions, in one episode."""


def played(env: Plain, agents: int, episodes: int, player: Callable[[], Play]) -> dict[str, float]:
    """Mean undiscounted returns, of the team (the sum of its agents') and of an agent, and lengths of test episodes.

    A reward that is given for the whole team is each agent's. Each episode has a `player` of its own. Raises EnvError
    where the environment lacks a method or answers otherwise than it should, or an episode has no end.
    """
    _refuse_other(env)
    returns, lengths = zip(*(_episode(env, agents, player()) for _ in range(episodes)), strict=True)
    team = np.sum(returns, axis=1)
    numbers = {
        "return": team.mean(),
        "return_deviation": team.std(),
        "return_min": team.min(),
        "return_max": team.max(),
        "agent_return": np.mean(returns),
        "length": np.mean(lengths),
        "episodes": episodes,
    }
    return {name: float(number) for name, number in numbers.items()}


def _refuse_other(env: object) -> None:
    """Raises EnvError, saying which methods an environment has, for what lacks one."""
    if isinstance(env, type):
        raise EnvError(f"{env.__name__} is a class: hand over an environment that was made of it")
    missing = [f"{name}()" for name in ("reset", "step") if method(env, name) is None]
    if missing:
        raise EnvError(
            f"an environment has reset(), to {ROWS}; step(actions), to {STEP}; and get_legal_actions() if some actions "
            f"are illegal. This {type(env).__name__} has no {' and no '.join(missing)}"
        )


def _episode(env: Plain, agents: int, play: Play) -> tuple[Float[np.ndarray, "agent"], int]:
    """Each agent's return and the length of one episode, which is over when every agent is done."""
    step, legal = f"{type(env).__name__}.step()", method(env, "get_legal_actions")
    seen = _rows(_opened(env.reset()), f"{type(env).__name__}.reset()")
    returns = np.zeros(agents)
    for length in range(1, LONGEST + 1):
        answer = env.step(play(seen, None if legal is None else np.asarray(legal())))
        if not isinstance(answer, tuple | list) or len(answer) not in (4, 5):
            raise EnvError(f"{step} does not answer as expected: {STEP}")
        after, reward, *ends, _ = answer
        paid = per_agent(reward, agents, step, "rewards")
        if not np.isfinite(paid).all():
            raise EnvError(f"{step} returned the rewards {paid.tolist()}: they must be finite")
        returns += paid
        is_over = [per_agent(each, agents, step, "dones") != 0 for each in ends]
        if np.logical_or.reduce(np.broadcast_arrays(*is_over)).all():
            return returns, length
        seen = _rows(after, step)
    raise EnvError(f"an episode has no end after {LONGEST} calls of {step}: give it a time limit")


def _rows(observations: object, where: str) -> np.ndarray:
    """The observations as an array. Raises EnvError where they are no numbers, or of unequal sizes."""
    try:
        rows = np.asarray(observations)
    except ValueError:
        rows = np.empty(0, object)
    if rows.dtype.kind not in "biuf":
        raise EnvError(f"{where} returned a {type(observations).__name__} as observations: {ROWS}")
    return rows


def _opened(answer: object) -> object:
    """What is observed first: all that `reset` returned, or what stands before the info."""
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping):
        return answer[0]
    return answer
