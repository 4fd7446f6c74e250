"""Games played in turns (PettingZoo's AECEnv, OpenSpiel's through Shimmy) as teams that all act at every step."""

from collections.abc import Mapping

import numpy as np
from gymnasium import spaces
from pettingzoo.utils.conversions import aec_to_parallel, turn_based_aec_to_parallel
from pettingzoo.utils.env import AECEnv, ParallelEnv

from martes.envs.adapters.parallel import FORCED, MASK, ParallelTeam
from martes.envs.adapters.spaces import native
from martes.errors import ConfigError, nearest, require


class InTurns(ParallelEnv):
    """A game in turns as one in which who waits has one thing to do: to wait.

    Where actions are choices, the last one is to wait: it alone is legal while another acts, and never else. The masks
    of infos say so, and of observations, if they hold some. Where actions are no choices, the environment acts in place
    of who waits.
    """

    def __init__(self, game: AECEnv) -> None:
        self._game = game
        self._play = turn_based_aec_to_parallel(game)
        self.possible_agents = list(game.possible_agents)
        self.metadata = game.metadata
        self.render_mode = getattr(game, "render_mode", None)
        self._own = {agent: game.action_space(agent) for agent in self.possible_agents}
        self._spaces = {agent: _with_wait(space) for agent, space in self._own.items()}
        self._sights = {agent: _sight(game.observation_space(agent), self._spaces[agent]) for agent in self._own}

    def observation_space(self, agent: str) -> spaces.Space:
        """The game's own, its mask one longer."""
        return self._sights[agent]

    def action_space(self, agent: str) -> spaces.Space:
        """The game's own, and to wait."""
        return self._spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[dict[str, object], dict[str, dict[str, object]]]:
        """Opens a game."""
        seen, told = self._play.reset(seed=seed, options=options)
        self.agents = list(self._play.agents)
        infos = self._told(seen, told)
        return _shown(seen, infos), infos

    def step(
        self, actions: dict[str, object]
    ) -> tuple[dict[str, object], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, object]]]:
        """What comes of the action of who has the turn; rewards come to those who wait, too."""
        seen, reward, terminated, truncated, told = self._play.step(actions)
        self.agents = list(self._play.agents)
        infos = self._told(seen, told)
        return _shown(seen, infos), reward, terminated, truncated, infos

    def render(self) -> np.ndarray | str | list[object] | None:
        """The game's own picture."""
        return self._game.render()

    def state(self) -> np.ndarray:
        """The game's own."""
        return self._game.state()

    def close(self) -> None:
        """Closes the game."""
        self._game.close()

    def _told(
        self, seen: Mapping[str, object], told: Mapping[str, Mapping[str, object]]
    ) -> dict[str, dict[str, object]]:
        turn = self._game.agent_selection if self.agents else None
        return {agent: self._info(agent, seen.get(agent), told.get(agent, {}), agent == turn) for agent in seen}

    def _info(self, agent: str, seen: object, info: Mapping[str, object], acts: bool) -> dict[str, object]:
        mask = info.get(MASK, seen.get(MASK) if isinstance(seen, Mapping) else None)
        space = self._own[agent]
        if not isinstance(space, spaces.Discrete):
            masked = {} if mask is None else {MASK: mask if acts else None}
            return {**info, **masked, FORCED[0]: None if acts else _idle(space)}
        legal = np.zeros(int(space.n) + 1, dtype=bool)
        legal[-1] = not acts
        if acts:
            legal[:-1] = True if mask is None else np.asarray(mask)
        return {**info, MASK: legal}


def _shown(seen: Mapping[str, object], told: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """What each agent sees; a mask in it is that of its info."""
    return {agent: _with_mask(each, told[agent].get(MASK)) for agent, each in seen.items()}


def _with_mask(seen: object, mask: object) -> object:
    if not isinstance(seen, Mapping) or MASK not in seen or not isinstance(mask, np.ndarray):
        return seen
    return {**seen, MASK: np.asarray(mask, dtype=np.int8)}


def _sight(seen: spaces.Space, action: spaces.Space) -> spaces.Space:
    """The space of what is seen, where a mask in it is one of these actions."""
    if not isinstance(seen, spaces.Dict) or MASK not in seen.spaces or not isinstance(action, spaces.Discrete):
        return seen
    return spaces.Dict({**seen.spaces, MASK: spaces.Box(0, 1, (int(action.n),), np.int8)})


def turn_team(game: AECEnv, state: bool = True) -> ParallelTeam:
    """An AECEnv as one copy of a task: all at once if it says that it can be, else in turns.

    `state`: is the game's `state()`, where it has one, shown to central critics?
    """
    if game.metadata.get("is_parallelizable", False):
        return ParallelTeam(aec_to_parallel(game), state)
    return ParallelTeam(InTurns(game), state)


def open_spiel(task: str, **options: object) -> ParallelTeam:
    """One copy of a game of OpenSpiel that is played in turns.

    Args:
        task: OpenSpiel's name of the game, `hanabi`; further options are the game's parameters

    Raises ConfigError for an unknown game or parameter, and for a game in which all act at once.
    """
    pyspiel, shimmy = require("pyspiel", "hanabi"), require("shimmy", "hanabi")
    if task not in pyspiel.registered_names():
        raise ConfigError(f"no game {task!r} of OpenSpiel{nearest(task, pyspiel.registered_names())}")
    try:
        kind = pyspiel.load_game(task, options).get_type()
    except (pyspiel.SpielError, TypeError) as error:
        raise ConfigError(f"OpenSpiel's {task} with {options}: {error}") from error
    if kind.dynamics != pyspiel.GameType.Dynamics.SEQUENTIAL:
        raise ConfigError(f"OpenSpiel's {task} is not played in turns: all act at once")
    return turn_team(shimmy.OpenSpielCompatibilityV0(game_name=task, config=dict(options)))


def _with_wait(space: spaces.Space) -> spaces.Space:
    return spaces.Discrete(int(space.n) + 1, start=int(space.start)) if isinstance(space, spaces.Discrete) else space


def _idle(space: spaces.Space) -> object:
    """What the agent is said to do while it waits; nobody executes it."""
    idle = np.zeros(spaces.flatdim(space))
    if isinstance(space, spaces.Box):
        idle = idle.clip(space.low.ravel(), space.high.ravel())
    return native(space)(idle)
