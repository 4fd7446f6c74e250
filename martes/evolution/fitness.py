"""What an evaluation is worth: the team's return, that of one role or agent, or whatever the user's function says."""

import re
from importlib import import_module

from martes.data import TeamSpec
from martes.errors import ConfigError, nearest
from martes.evolution.generation import Fitness
from martes.training.evaluate import Scores

TEAM = "team"


def team_return(scores: Scores, team: TeamSpec) -> float:
    """Mean return of the episodes, summed over the team's agents."""
    return float(scores.returns.mean())


def fitness_named(name: str, team: TeamSpec) -> Fitness:
    """The fitness of this name: `team`, a group, an agent, a count of the environment, or `module:function`.

    A group's is the mean over episodes of the sum of its members' returns; that of a count (`won`) is its mean. Raises
    ConfigError where there is none of this name.
    """
    if name == TEAM:
        return team_return
    members = {agent: (place,) for place, agent in enumerate(team.agents)} | dict(team.groups)
    if name in members:
        return RoleReturn(members[name])
    if ":" in name:
        return _imported(name)
    if not re.fullmatch(r"stats\.\w+", name):
        known = (TEAM, *members, "stats.<name>", "module:function")
        raise ConfigError(f"evolution.fitness: nobody is called {name!r}{nearest(name, known)}")
    return Count(name.removeprefix("stats."))


class RoleReturn:
    """Mean return of the episodes, summed over these agents."""

    def __init__(self, agents: tuple[int, ...]) -> None:
        self.agents = agents

    def __call__(self, scores: Scores, team: TeamSpec) -> float:
        """The fitness."""
        return float(scores.agent_returns[:, list(self.agents)].sum(1).mean())


class Count:
    """Mean over the episodes of what the environment counts under this name. Raises ConfigError where it does not."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, scores: Scores, team: TeamSpec) -> float:
        """The fitness."""
        if self.name not in scores.stats:
            raise ConfigError(
                f"evolution.fitness: this environment counts no {self.name!r}{nearest(self.name, scores.stats)}"
            )
        return scores.stats[self.name]


def _imported(place: str) -> Fitness:
    module, _, name = place.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"evolution.fitness: {place!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"evolution.fitness: {place} is no function of (scores, team)")

    def fitness(scores: Scores, team: TeamSpec) -> float:
        value = found(scores, team)
        if not isinstance(value, int | float):
            raise ConfigError(f"evolution.fitness: {place} returned {value!r} in place of a number")
        return float(value)

    return fitness
