"""What a user's own function made, as one copy of a task: recognised by its members."""

from collections.abc import Mapping

import gymnasium as gym
from gymnasium import spaces

from martes.envs.adapters.gymnasium import TeamOfOne, TeamOfTuples
from martes.envs.adapters.laser import Laser, LaserTeam
from martes.envs.adapters.plain import Plain, PlainTeam
from martes.envs.adapters.pymarl import MultiAgentEnv, PymarlTeam
from martes.envs.single import SingleEnv
from martes.errors import EnvError

KINDS: Mapping[str, tuple[str, ...]] = {
    "a plain class": ("reset", "step"),
    "Gymnasium's Env": ("reset", "step", "observation_space", "action_space"),
    "PettingZoo's ParallelEnv": ("reset", "step", "possible_agents", "observation_space", "action_space"),
    "PyMARL's MultiAgentEnv": ("reset", "step", "get_env_info", "get_obs", "get_avail_actions"),
    "martes' SingleEnv": ("team", "reset", "step", "render", "close"),
}
"""What an environment may be, and the members that it then has."""


def adapted(made: object) -> SingleEnv:
    """One copy of whatever task `made` is: a SingleEnv, a plain class, or an environment of Gymnasium, PettingZoo
    (ParallelEnv, AECEnv), PyMARL or marlenv.

    Raises EnvError where it is nothing of the kind, with what it lacks to be each, the nearest first.
    """
    if isinstance(made, type):
        raise EnvError(f"this is the class {made.__name__}, not an environment of it: return {made.__name__}(...)")
    if isinstance(made, SingleEnv):
        return made
    if hasattr(made, "possible_agents"):
        return _of_pettingzoo(made)
    if isinstance(made, MultiAgentEnv):
        return PymarlTeam(made)
    if isinstance(made, gym.Env):
        return _of_gymnasium(made)
    if isinstance(made, Laser):
        return LaserTeam(made)
    if isinstance(made, Plain):
        return PlainTeam(_refuse_foreign(made))
    lacking = [([each for each in members if not hasattr(made, each)], kind) for kind, members in KINDS.items()]
    nearest_first = sorted(lacking, key=lambda each: len(each[0]))
    told = "; ".join(f"to be {kind} it lacks {', '.join(members)}" for members, kind in nearest_first)
    raise EnvError(f"{type(made).__name__} is no environment that martes knows: {told}")


def _of_gymnasium(made: gym.Env) -> SingleEnv:
    inner = made.unwrapped
    if isinstance(inner, MultiAgentEnv):
        return PymarlTeam(inner, None if made.spec is None else made.spec.max_episode_steps)
    return TeamOfTuples(made) if isinstance(made.action_space, spaces.Tuple) else TeamOfOne(made)


def _of_pettingzoo(made: object) -> SingleEnv:
    from pettingzoo.utils.env import AECEnv, ParallelEnv

    from martes.envs.adapters.parallel import ParallelTeam
    from martes.envs.adapters.turns import turn_team

    if isinstance(made, AECEnv):
        return turn_team(made)
    if isinstance(made, ParallelEnv):
        return ParallelTeam(made)
    kind = "AECEnv" if hasattr(made, "agent_iter") or hasattr(made, "agent_selection") else "ParallelEnv"
    raise EnvError(
        f"{type(made).__name__} has possible_agents, as PettingZoo's environments do, and is none: derive it from "
        f"pettingzoo.{kind}"
    )


def _refuse_foreign(made: Plain) -> Plain:
    """The same, unless it would be misread: several copies at once, or an environment of the old gym."""
    if isinstance(made, gym.vector.VectorEnv):
        raise EnvError(f"{type(made).__name__} is many copies in one: return a single one, martes makes the copies")
    if any(each.__module__.partition(".")[0] == "gym" for each in type(made).__mro__):
        raise EnvError(
            f"{type(made).__name__} is an environment of the old gym: derive it from gymnasium.Env, or wrap it in "
            "shimmy's GymV21CompatibilityV0 or GymV26CompatibilityV0"
        )
    return made
