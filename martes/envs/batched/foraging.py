"""Level-based foraging on batched tensors, the same game as the package lbforaging plays.

Source: Albrecht and Ramamoorthy (2013), "A game-theoretic model and best-response learning method for ad hoc
coordination in multiagent systems"; https://github.com/semitable/lb-foraging.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import embedding, one_hot

from martes.data import Discrete, Fields, TeamSpec, Vector
from martes.envs.batched.drawing import INK, MIST, PALETTE, Canvas
from martes.envs.batched.engine import Outcome, State
from martes.errors import ConfigError, nearest

ACTIONS = ("none", "north", "south", "west", "east", "load")
"""What each of the six actions means; row 0 is the northernmost."""
LOAD = ACTIONS.index("load")
_STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # north, south, west, east
_CROWDED = tuple((row, column) for row, column in product(range(-2, 3), repeat=2) if row**2 + column**2 <= 4)
_GRAMMAR = re.compile(
    r"(?:lbforaging:)?Foraging(?:-(?P<sight>\d+)s)?-(?P<rows>\d+)x(?P<columns>\d+)-(?P<agents>\d+)p-(?P<food>\d+)f"
    r"(?P<coop>-coop)?(?P<ind>-ind)?(?P<pen>-pen)?(?:-v3)?"
)
_APPLE, _LEAF = PALETTE[1], PALETTE[2]
_COATS = tuple(colour for colour in PALETTE if colour not in (_APPLE, _LEAF))
_EXAMPLES = (
    "Foraging-8x8-2p-2f-coop-v3",
    "Foraging-8x8-2p-3f-v3",
    "Foraging-2s-8x8-2p-2f-coop-v3",
    "Foraging-2s-10x10-3p-3f-v3",
    "Foraging-10x10-3p-3f-v3",
    "Foraging-15x15-3p-5f-v3",
    "Foraging-15x15-4p-5f-v3",
    "Foraging-15x15-4p-5f-coop-v3",
)


def foraging(name: str) -> "Foraging":
    """The game that lbforaging registers, or would register, under `name`: `Foraging-2s-10x10-3p-3f-coop-v3`.

    In order: sight in cells (`2s`, left out: everything is seen), rows x columns, agents, food, `coop`, food of level 1
    only (`ind`), a penalty of 0.1 (`pen`). Raises ConfigError where the name does not follow this grammar.
    """
    match = _GRAMMAR.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"{name!r} names no foraging task; write Foraging[-<sight>s]-<rows>x<columns>-<agents>p-<food>f"
            f"[-coop][-ind][-pen]-v3{nearest(name, _EXAMPLES)}"
        )
    return Foraging(
        size=(int(match["rows"]), int(match["columns"])),
        agents=int(match["agents"]),
        food=int(match["food"]),
        coop=match["coop"] is not None,
        sight=None if match["sight"] is None else int(match["sight"]),
        max_food_level=None if match["ind"] is None else 1,
        penalty=0.0 if match["pen"] is None else 0.1,
    )


class _Board(NamedTuple):
    """Tables over the cells of a field that has a border one cell wide, numbered row by row."""

    place: Float[Tensor, "cell 2"]
    """Row and column on the field; (-1, -1) on the border."""
    neighbour: Int[Tensor, "cell 4"]
    """The cells to the north, south, west and east."""
    is_open: Bool[Tensor, "cell 4"]
    """Do those lie on the field?"""
    crowded: Int[Tensor, "cell 13"]
    """Around food in this cell, where no other food grows: 8 neighbours, 4 more at distance 2, itself."""
    field: Float[Tensor, "cell"]
    """1 on the field, 0 on the border."""
    soil: Float[Tensor, "cell"]
    """1 where food may grow: not along the edge of the field."""
    stride: Int[Tensor, "action"]
    """What each action adds to the cell of its agent."""

    @property
    def nowhere(self) -> int:
        """The cell of food that is gone: the last corner of the border. It touches nothing and sorts last."""
        return len(self.place) - 1

    def touching(
        self, agent: Int[Tensor, "env agent"], food: Int[Tensor, "env food"]
    ) -> Bool[Tensor, "env agent 4 food"]:
        """Does each food lie to the north, south, west or east of each agent?"""
        return embedding(agent, self.neighbour)[..., None] == food[:, None, None]

    def legal(
        self, agent: Int[Tensor, "env agent"], touching: Bool[Tensor, "env agent 4 food"]
    ) -> Bool[Tensor, "env agent action"]:
        """Staying always is; a step if it meets neither wall nor food; loading if food is beside the agent."""
        taken = touching.any(3)
        load = taken.any(2, keepdim=True)
        return torch.cat((torch.ones_like(load), embedding(agent, self.is_open) & ~taken, load), 2)


@lru_cache(maxsize=32)
def _board(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> _Board:
    width = columns + 2
    row = torch.arange(-1, rows + 1)[:, None].expand(-1, width).flatten()
    column = torch.arange(-1, columns + 1).repeat(rows + 2)
    depth = torch.stack((row, column, rows - 1 - row, columns - 1 - column)).amin(0)  # cells to the edge, border: -1
    cell = torch.arange(len(row))[:, None]
    steps, crowd = (torch.tensor([r * width + c for r, c in moves]) for moves in (_STEPS, _CROWDED))
    neighbour = (cell + steps).clamp(0, len(row) - 1)  # clamped on the border alone, where nobody stands
    tables = _Board(
        torch.stack((row, column), 1).masked_fill((depth < 0)[:, None], -1).to(dtype),
        neighbour,
        (depth >= 0)[neighbour],
        (cell + crowd).clamp(0, len(row) - 1),
        (depth >= 0).to(dtype),
        (depth >= 1).to(dtype),
        torch.cat((torch.zeros(1, dtype=torch.long), steps, torch.zeros(1, dtype=torch.long))),
    )
    return _Board(*(table.to(device) for table in tables))


@lru_cache(maxsize=32)
def _self_first(agents: int, device: torch.device) -> Int[Tensor, "{agents}*{agents}"]:
    index = torch.arange(agents)
    return (index - agents * one_hot(index, agents)).argsort(dim=1).flatten().to(device)


def _seen_first(things: Float[Tensor, "env agent thing 3"]) -> Float[Tensor, "env agent thing 3"]:
    """The same in their order, but what is gone or out of sight (level 0) last."""
    return things.gather(2, (things[..., 2:] == 0).sort(dim=2, stable=True).indices.expand_as(things))


def _through_window(
    things: Float[Tensor, "env #agent thing 3"],
    corner: Float[Tensor, "env agent 1 2"],
    reach: Float[Tensor, "env agent 1 2"] | int,
) -> Float[Tensor, "env agent thing 3"]:
    """(row, column, level) counted from the corner of each agent's window; (-1, -1, 0) outside of it."""
    place = things[..., :2] - corner
    outside = ((place < 0) | (place > reach)).any(3, keepdim=True)
    level = things[..., 2:].expand_as(outside)
    return _seen_first(torch.cat((place.masked_fill(outside, -1), level.masked_fill(outside, 0)), 3))


@dataclass(frozen=True)
class Foraging:
    """Level-based foraging: an agent waits, steps, or lifts the food beside it together with all who lift the same.

    An illegal action is a wait. Agents that head for one cell all stay, also where one of them is there already; who
    then fails to leave does not keep others from entering, so that two may come to share a cell. Food of level l is
    loaded when the levels of those who lift it sum to s >= l. An agent of level k then earns k · l / (s · L), where L
    sums the levels of all food at the start (k · l if rewards are not normalised); who lifts in vain pays `penalty`.
    The game is over when no food is left.

    An agent sees (row, column, level) of the food, row by row, of itself and of the other agents, counted from the
    corner of what is in sight; what is gone or out of sight leaves (-1, -1, 0) at the end of its list. Agents start
    anywhere. Food grows neither on the edge nor beside other food (one cell, also diagonally, or two straight cells
    away); where no more of it fits, there is less. Every choice is even among what is allowed.

    Raises ConfigError where an option cannot be. Source: Papoudakis, Christianos, Schäfer and Albrecht (2021),
    "Benchmarking multi-agent deep reinforcement learning algorithms in cooperative tasks", as in lbforaging 2.0.0.
    """

    size: tuple[int, int] = (8, 8)
    """Rows and columns of the field."""
    agents: int = 2
    """How many agents forage."""
    food: int = 2
    """How much food there is at the start."""
    coop: bool = False
    """Is all food of the highest level, so that it takes the three weakest agents (both of two) to lift it?"""
    sight: int | None = None
    """How many cells away an agent sees; None: it sees everything."""
    min_agent_level: int = 1
    """Lowest level of an agent."""
    max_agent_level: int = 2
    """Highest level of an agent; levels are drawn evenly between the two."""
    min_food_level: int = 1
    """Lowest level of food."""
    max_food_level: int | None = None
    """Highest level of food; None: the levels of the three weakest agents together."""
    penalty: float = 0.0
    """What each agent pays that lifts in vain."""
    normalise_reward: bool = True
    """Are rewards scaled so that a whole team's return is at most 1?"""
    episode_limit: int = 50
    """Steps after which an episode is cut."""

    def __post_init__(self) -> None:
        rows, columns = self.size
        weakest = self.min_agent_level * min(self.agents, 3)
        highest_sure = weakest if self.max_food_level is None else self.max_food_level
        refused = {
            "size": (min(rows, columns) < 3, "food grows off the edge, so rows and columns must be 3 or more"),
            "agents": (not 1 <= self.agents < rows * columns, f"it must be 1 to {rows * columns - 1} on this field"),
            "food": (self.food < 1, "it must be 1 or more"),
            "sight": (self.sight is not None and self.sight < 1, "it must be 1 or more, or None to see everything"),
            "min_agent_level": (self.min_agent_level < 1, "levels begin at 1"),
            "max_agent_level": (self.max_agent_level < self.min_agent_level, "it must not lie below min_agent_level"),
            "max_food_level": (highest_sure < 1, "levels begin at 1"),
            "min_food_level": (
                self.min_food_level < 1 or (self.min_food_level > highest_sure and not self.coop),
                f"it must be 1 to {highest_sure}, the highest level of food at its lowest",
            ),
            "penalty": (not 0 <= self.penalty < float("inf"), "it must be finite and not negative"),
            "episode_limit": (self.episode_limit < 1, "it must be 1 or more"),
        }
        for name, (is_refused, why) in refused.items():
            if is_refused:
                raise ConfigError(f"Foraging.{name} is {getattr(self, name)}: {why}")

    @property
    def team(self) -> TeamSpec:
        """One group of equals; the observations, joined, stand in for a state."""
        return TeamSpec(
            agents=tuple(f"agent_{index}" for index in range(self.agents)),
            groups={"agent": tuple(range(self.agents))},
            observation={"agent": Vector(3 * (self.food + self.agents))},
            action={"agent": Discrete(len(ACTIONS))},
            episode_limit=self.episode_limit,
            masks_actions=True,
        )

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """Agents on distinct cells, then food where it may grow.

        State: cells `agent` and `food` (in order), `agent_level`, `food_level` (0: gone), `spawned`: its first sum.
        """
        board = _board(*self.size, generator.device, torch.get_default_dtype())
        cells = len(board.field)
        draw = torch.rand(envs, cells + self.agents + self.food, generator=generator, device=generator.device)
        agent_draw, food_draw = draw[:, cells : -self.food], draw[:, -self.food :]
        # Cells in the order of their scores are in random order, so the best allowed one is an even choice each time.
        score = draw[:, :cells] * board.field
        agent = score.topk(self.agents).indices
        score = (score * board.soil).scatter_(1, agent, 0)
        grown: list[Tensor] = []
        for _ in range(self.food):  # where food may grow depends on the food before it
            best, cell = score.max(1)
            grown.append(cell.masked_fill(best == 0, board.nowhere))
            score.scatter_(1, embedding(cell, board.crowded), 0)
        food = torch.stack(grown, 1).sort(1).values
        agent_level = self.min_agent_level + (agent_draw * (self.max_agent_level + 1 - self.min_agent_level)).floor()
        highest = agent_level.topk(min(self.agents, 3), largest=False).values.sum(1, keepdim=True)
        if self.max_food_level is not None:
            highest = torch.full_like(highest, self.max_food_level)
        lowest = highest if self.coop else self.min_food_level
        food_level = (lowest + (food_draw * (highest + 1 - lowest)).floor()) * (food != board.nowhere)
        return {
            "agent": agent,
            "agent_level": agent_level,
            "food": food,
            "food_level": food_level,
            "spawned": food_level.sum(1),
        }

    def advance(self, state: State, action: Int[Tensor, "env agent"], generator: torch.Generator) -> Outcome:
        """All agents move at once, then those who lift share what they load; nothing is left to chance."""
        agent, level, food, food_level = (state[name] for name in ("agent", "agent_level", "food", "food_level"))
        board = _board(*self.size, level.device, level.dtype)
        touching = board.touching(agent, food)
        action = action.long()
        action = action * board.legal(agent, touching).gather(2, action[..., None]).squeeze(2)
        aim = agent + board.stride.take(action)
        is_alone = (aim[:, :, None] == aim[:, None]).sum(2) == 1

        lifts = touching.any(2) & (action == LOAD)[..., None]  # env agent food; no cell touches two foods
        strength = (lifts * level[..., None]).sum(1)
        is_loaded = strength >= food_level.clamp_min(1)  # what is gone has level 0 and nobody to lift it
        worth = is_loaded * food_level
        if self.normalise_reward:
            worth = worth / (strength * state["spawned"][:, None]).clamp_min(1)
        reward = level * (lifts * worth[:, None]).sum(2)
        if self.penalty:
            reward = reward.masked_fill((lifts & ~is_loaded[:, None]).any(2), -self.penalty)
        moved = {
            "agent": torch.where(is_alone, aim, agent),
            "food": food.masked_fill(is_loaded, board.nowhere),
            "food_level": food_level.masked_fill(is_loaded, 0),
        }
        return Outcome({**state, **moved}, reward, over=(moved["food_level"] == 0).all(1))

    def observe(self, state: State) -> Fields:
        """`obs` and `action_mask` [env agent action]."""
        agent, food = state["agent"], state["food"]
        board = _board(*self.size, state["agent_level"].device, state["agent_level"].dtype)
        place = embedding(agent, board.place)
        agents = torch.cat((place, state["agent_level"][..., None]), 2)
        agents = agents.index_select(1, _self_first(self.agents, agents.device)).view(-1, self.agents, self.agents, 3)
        foods = torch.cat((embedding(food, board.place), state["food_level"][..., None]), 2)[:, None]
        if self.sight is None:
            foods = _seen_first(foods).expand(-1, self.agents, -1, -1)
        else:
            # Along the northern and western edge the window is cut off, but not its size as far as agents are
            # concerned: lbforaging shows them up to 2 * sight from the corner, further away than food.
            corner = (place - self.sight).clamp_min(0)[:, :, None]
            foods = _through_window(foods, corner, place[:, :, None] - corner + self.sight)
            agents = _through_window(agents, corner, 2 * self.sight)
        return {
            "obs": torch.cat((foods, agents), 2).flatten(2),
            "action_mask": board.legal(agent, board.touching(agent, food)),
        }

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """Apples and agents (squares) with their levels."""
        rows, columns = self.size
        canvas = Canvas((-0.1, -0.1, columns + 0.1, rows + 0.1))
        for row in range(rows + 1):
            canvas.line(0.0, float(row), float(columns), float(row), MIST)
        for column in range(columns + 1):
            canvas.line(float(column), 0.0, float(column), float(rows), MIST)
        for _, level, x, y in self._placed(state, "food"):
            if level:
                canvas.line(x, y + 0.2, x + 0.08, y + 0.42, INK, 2.5)
                canvas.circle(x + 0.17, y + 0.37, 0.08, _LEAF)
                canvas.circle(x, y - 0.04, 0.34, _APPLE, f"{level}")
        stood: list[tuple[float, float]] = []
        for index, level, x, y in self._placed(state, "agent"):
            aside = 0.2 * stood.count((x, y))  # who shares a cell stands a little aside
            canvas.square(x + aside, y - aside, 0.64, _COATS[index % len(_COATS)], f"{level}")
            stood.append((x, y))
        return canvas.array()

    def _placed(self, state: State, kind: str) -> list[tuple[int, int, float, float]]:
        """Index, level and middle (x, y), y up, of each agent or food."""
        rows, columns = self.size
        levels, cells = (state[name][0] for name in (f"{kind}_level", kind))
        places = [(int(cell) // (columns + 2), int(cell) % (columns + 2)) for cell in cells]
        return [
            (index, int(level), column - 0.5, rows - row + 0.5)
            for index, (level, (row, column)) in enumerate(zip(levels, places, strict=True))
        ]
