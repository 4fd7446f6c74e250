"""Agents with spaces of Gymnasium as one team: what each sees is written into rows, what it does is read from them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from martes.data import Action, Continuous, Observation, TeamSpec, Vector
from martes.envs.adapters.spaces import Part, acted, native, observed, ours, paddable
from martes.envs.single import Row
from martes.errors import EnvError

MANY = 16
"""So many agents of equal spaces are worth being written at once."""


class _Block(NamedTuple):
    """One part of what agents of equal spaces see."""

    part: Part
    seats: tuple[tuple[str, int], ...]
    """Each agent, and its place in a row."""

    def fill(self, row: Row, seen: Mapping[str, object]) -> None:
        """Writes what each of those who are there observed."""
        part, agent = self.part, ""
        place, read, shape = part.place(row), part.read, part.shape
        try:
            for agent, index in self.seats:
                if agent in seen:
                    value = seen[agent]
                    is_fit = isinstance(value, np.ndarray) and value.shape == shape
                    place[index] = value if is_fit else read(value)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise EnvError(
                f"agent {agent!r} observed {_described(seen[agent])}, which does not fit its observation space "
                f"{part.field} = {part.space}: {error}. Mend what reset() and step() return, or the space"
            ) from error

    def filled(self, row: Row, seen: Mapping[str, object]) -> bool:
        """Writes all of them at once, the absent as zeros, if they sit side by side and everything is as declared."""
        shape, first, last = self.part.shape, self.seats[0][1], self.seats[-1][1] + 1
        if shape is None or last - first != len(self.seats):
            return False
        blank = np.zeros(shape, np.float32)
        values = [seen.get(agent, blank) for agent, _ in self.seats]
        arrays = [value for value in values if isinstance(value, np.ndarray) and value.shape == shape]
        if len(arrays) < len(values):
            return False
        self.part.place(row)[first:last] = np.concatenate(arrays).reshape(-1, *shape)
        return True


class Seats:
    """Each agent's place in the rows of its team: how its observation is written there, and its action read."""

    def __init__(
        self, team: TeamSpec, observation: Mapping[str, spaces.Space], action: Mapping[str, spaces.Space]
    ) -> None:
        self.team = team
        self.index = {agent: index for index, agent in enumerate(team.agents)}
        self._spaces = action
        self._blocks = [
            _Block(part, tuple((agent, self.index[agent]) for agent in alike))
            for space, alike in _alike(paddable(observation))
            for part in observed(space, alike[0])
        ]
        self._native = {agent: native(space) for agent, space in action.items()}
        self._are_plain = all(isinstance(each, spaces.Discrete) and each.start == 0 for each in action.values())
        self._choices = [(legal, np.count_nonzero(legal)) for legal in team.legal_actions.numpy()]

    def show(self, row: Row, seen: Mapping[str, object]) -> None:
        """Writes the observations of those who are there; the others are absent, and see zeros.

        Raises EnvError where an observation does not fit its space, or is of an agent that the team does not have.
        """
        if not seen.keys() <= self.index.keys():
            strange = sorted(seen.keys() - self.index.keys())
            raise EnvError(f"observations of {strange}, who are not in the team {list(self.team.agents)}")
        self._take_seats(row, seen)
        for block in self._blocks:
            if len(block.seats) < MANY or not block.filled(row, seen):
                block.fill(row, seen)

    def _take_seats(self, row: Row, seen: Mapping[str, object]) -> None:
        there = row["agent_mask"]
        if len(seen) == len(self.index):
            there.fill(True)
            return
        before = there.copy()
        there.fill(False)
        for agent in seen:
            there[self.index[agent]] = True
        gone = np.flatnonzero(before & ~there)
        if gone.size:
            for name in self.team.parts:
                row[name][gone] = 0

    def allow(self, row: Row, agent: str, mask: object = None, is_over: bool = False) -> None:
        """Writes which actions are legal for an agent; None, or none at all when it `is_over` for it, allows all.

        Raises EnvError for a mask of another size, and where an agent that plays on has no legal action.
        """
        index = self.index[agent]
        place, (exists, count) = row["action_mask"][index], self._choices[index]
        if mask is None:
            place[...] = exists
            return
        parts = mask if isinstance(mask, tuple | list) else (mask,)  # one a choice, where there are several
        flat = np.concatenate([np.ravel(np.asarray(part, dtype=bool)) for part in parts])
        if flat.size != count:
            raise EnvError(
                f"the mask of legal actions of agent {agent!r} has {flat.size} entries, it has {count} "
                "actions: give one entry an action"
            )
        if not flat.any():
            if is_over:
                place[...] = exists
                return
            raise EnvError(f"agent {agent!r} has no legal action: an environment must leave it one, if only to wait")
        place[...] = False
        place[exists] = flat

    def force(self, row: Row, agent: str, action: object) -> None:
        """Writes what the environment will do in an agent's place; None leaves the choice to it.

        Raises EnvError where that is no action of the agent's.
        """
        index, place = self.index[agent], row["forced_action"]
        row["forced"][index], place[index] = action is not None, 0
        if action is None:
            return
        sizes = self.team.action_sizes[index]
        try:
            value = ours(self._spaces[agent], action)
        except (TypeError, ValueError, AssertionError):
            value = np.array(())
        counted = self.team.action_kind is not Continuous  # choices, not real numbers
        if value.size != len(sizes) or (counted and not np.logical_and(value >= 0, value < sizes).all()):
            raise EnvError(f"the action {action!r} forced upon agent {agent!r} is not in {self._spaces[agent]}")
        place[(index, slice(value.size)) if place.ndim > 1 else index] = value

    def actions(self, action: np.ndarray, agents: Sequence[str]) -> dict[str, object]:
        """What the environment takes: agent -> its action, in its own space."""
        if self._are_plain:
            chosen = dict(zip(self.team.agents, action.tolist(), strict=True))
            return chosen if len(agents) == len(chosen) else {agent: chosen[agent] for agent in agents}
        return {agent: self._native[agent](action[self.index[agent]]) for agent in agents}


def team_of(
    observation: Mapping[str, spaces.Space],
    action: Mapping[str, spaces.Space],
    *,
    state: Vector | None = None,
    episode_limit: int | None = None,
    masks_actions: bool = False,
    forces_actions: bool = False,
) -> TeamSpec:
    """The team of agents with these spaces.

    Agents whose names agree up to the last underscore form a group (`speaker_0` -> `speaker`) if their spaces agree,
    too; where they do not, each kind is a group named after its first agent. Pictures of unequal shapes are taken as
    vectors.
    """
    sees = {agent: _observation(observed(space, agent)) for agent, space in paddable(observation).items()}
    does = {agent: acted(action[agent], agent) for agent in observation}
    team = TeamSpec.of_agents(
        sees, does, _groups(sees, does), state=state, episode_limit=episode_limit, masks_actions=masks_actions
    )
    return replace(team, forces_actions=forces_actions)


def _groups(sees: Mapping[str, Observation], does: Mapping[str, Action]) -> dict[str, tuple[int, ...]]:
    kinds: dict[str, list[str]] = {}  # name up to the underscore -> the first agent of each kind
    members: dict[str, tuple[int, ...]] = {}  # first agent -> its group
    for index, agent in enumerate(sees):
        firsts = kinds.setdefault(agent.rpartition("_")[0] or agent, [])
        alike = [each for each in firsts if sees[each] == sees[agent] and does[each] == does[agent]]
        if not alike:
            firsts.append(agent)
        first = alike[0] if alike else agent
        members[first] = (*members.get(first, ()), index)
    return {name if len(firsts) == 1 else first: members[first] for name, firsts in kinds.items() for first in firsts}


def _observation(parts: tuple[Part, ...]) -> Observation:
    if parts[0].field == "obs":
        return parts[0].space
    return {part.field.removeprefix("obs/"): part.space for part in parts}


def _alike(given: Mapping[str, spaces.Space]) -> list[tuple[spaces.Space, list[str]]]:
    """Each space, and the agents that have it or its equal."""
    kinds: list[tuple[spaces.Space, list[str]]] = []
    for agent, space in given.items():
        found = next((agents for known, agents in kinds if known is space or known == space), None)
        if found is None:
            kinds.append((space, [agent]))
        else:
            found.append(agent)
    return kinds


def _described(value: object) -> str:
    if isinstance(value, Mapping):
        return f"the keys {sorted(map(str, value))}"
    array = np.asarray(value)
    return f"shape {list(array.shape)} of {array.dtype}"
