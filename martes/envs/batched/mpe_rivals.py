"""The multi-agent particle environments on batched tensors: those games of the package mpe2 that set two sides against
each other.

Rewards stay with each agent: there is no common one. Source: Lowe, Wu, Tamar, Harb, Abbeel and Mordatch (2017),
"Multi-Agent Actor-Critic for Mixed Cooperative-Competitive Environments", section 5.1;
https://github.com/Farama-Foundation/MPE2.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from martes.data import Fields, TeamSpec, Vector
from martes.envs.batched.drawing import INK, MIST, PALETTE, faded
from martes.envs.batched.engine import Outcome, State
from martes.envs.batched.mpe_drawing import draw_velocity, field, points
from martes.envs.batched.mpe_world import (
    choice_or_strengths,
    contact_force,
    copies_first,
    copies_last,
    length,
    moved,
    relative_position,
    scattered,
    seen_entities,
    thrust,
)
from martes.envs.batched.rules import refuse_below
from martes.errors import ConfigError

HUNTER_RADIUS, PREY_RADIUS, OBSTACLE_RADIUS = 0.075, 0.05, 0.2
HUNTER_SPEED, PREY_SPEED = 1.0, 1.3
"""The highest, in units of length a unit of time."""
HUNTER_ACCELERATION, PREY_ACCELERATION = 3.0, 4.0
CATCH = 10.0
"""What a catch is worth."""
RED, GREEN, BLUE, GREY = PALETTE[1], PALETTE[2], PALETTE[0], "#8A9199"


class _Bodies(NamedTuple):
    """What makes the agents of tag unequal."""

    acceleration: Float[Tensor, "agent 1 1"]
    top_speed: Float[Tensor, "agent 1 1"]
    reach: Float[Tensor, "agent seen 1"]
    """The distance at which an agent touches what it sees."""
    seen_movers: Int[Tensor, "agent good"]
    """The prey whose velocities it sees; one past the last agent where it would be its own."""


@dataclass(frozen=True)
class Tag:
    """Adversaries hunt prey (`agent_0`), which is faster and smaller, among obstacles (`simple_tag_v3`).

    Each pair of adversary and prey that overlap after a step is a catch: it pays 10 to every adversary and costs the
    prey 10. Prey also pays Σ_axis min(10 · (|x| - 0.9), exp(2 |x| - 2), 10) where it leaves the middle, |x| > 0.9. An
    agent observes its velocity and position, how the obstacles and then the other agents stand relative to it, and the
    velocities of the other prey; the state is all observations, joined.

    Raises ConfigError for a field out of its range.
    """

    adversaries: int = 3
    """How many hunt."""
    good: int = 1
    """How much prey there is."""
    obstacles: int = 2
    """How many discs stand in the way."""
    prey_speed: float = 1.0
    """Speed and acceleration of the prey, as a share of the full ones: the package's curriculum goes 0.5, 0.75, 1."""
    ends_when_caught: bool = False
    """Does the game end once every prey is touched by an adversary at the same time?"""
    continuous: bool = False
    """Are actions five strengths in [0, 1] (none, left, right, down, up), and not one choice of these?"""
    episode_limit: int = 25
    """Steps after which an episode is cut."""

    def __post_init__(self) -> None:
        refuse_below(self, adversaries=1, good=1, obstacles=0, episode_limit=1)
        if not 0 < self.prey_speed < float("inf"):
            raise ConfigError(f"Tag.prey_speed is {self.prey_speed}: give it a share above 0, such as 0.5")

    @property
    def team(self) -> TeamSpec:
        """The facts of the task."""
        width = 4 + 2 * self.obstacles + 2 * (self.adversaries + self.good - 1) + 2 * (self.good - 1)
        return _two_sides(self, width + 2, width)

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """Agents anywhere, at rest, obstacles not quite at the edge."""
        agents = self.adversaries + self.good
        position = scattered(envs, agents + self.obstacles, generator)
        position[:, agents:] *= 0.9
        return {"position": position, "velocity": torch.zeros_like(position[:, :agents])}

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> Outcome:
        """The result of `action`: integers [env agent], or strengths [env agent 5]."""
        position, velocity = copies_last(state["position"]), copies_last(state["velocity"])
        n, hunters = len(velocity), self.adversaries
        bodies = _bodies(self, position.device, position.dtype)
        relative = relative_position(position, seen_entities(n, self.obstacles, position.device))
        force = contact_force(relative, bodies.reach) + thrust(action, velocity, bodies.acceleration)
        agents, velocity = moved(position[:n], velocity, force, bodies.top_speed)

        prey = agents[hunters:]
        is_caught = length(agents[:hunters, None] - prey) < HUNTER_RADIUS + PREY_RADIUS  # adversary good env
        caught = is_caught.sum(0, dtype=prey.dtype) * CATCH
        x = prey.abs()
        outside = torch.minimum(10 * x - 9, (2 * x - 2).exp()).clamp(0.0, 10.0).sum(1)
        reward = torch.cat((caught.sum(0).expand(hunters, -1), -caught - outside))
        return Outcome(
            {"position": copies_first(torch.cat((agents, position[n:]))), "velocity": copies_first(velocity)},
            reward.t().contiguous(),
            over=(caught > 0).all(0) if self.ends_when_caught else None,
        )

    def observe(self, state: State) -> Fields:
        """What each agent observes, padded to the adversaries' width, and the state."""
        position, velocity = copies_last(state["position"]), copies_last(state["velocity"])
        n, hunters = len(velocity), self.adversaries
        relative = relative_position(position, seen_entities(n, self.obstacles, position.device))
        seen_movers = _bodies(self, position.device, position.dtype).seen_movers
        motion = torch.cat((velocity, torch.zeros_like(velocity[:1]))).index_select(0, seen_movers.flatten())
        features = (velocity, position[:n], relative.flatten(1, 2), motion.view(n, -1, motion.shape[-1]))
        seen = torch.cat(features, 1)  # agent feature env
        joint = torch.cat((seen[:hunters].flatten(0, 1), seen[hunters:, :-2].flatten(0, 1)))
        return {"obs": seen.permute(2, 0, 1).contiguous(), "state": joint.t().contiguous()}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """Adversaries red, prey green, obstacles grey; who is caught, and who catches, is ringed."""
        n, hunters = self.adversaries + self.good, self.adversaries
        agents = state["position"][0, :n]
        canvas = field(state)
        for x, y in points(state["position"][0, n:]):
            canvas.circle(x, y, OBSTACLE_RADIUS, GREY)
            canvas.circle(x, y, OBSTACLE_RADIUS - 0.02, MIST)
        draw_velocity(canvas, agents, state["velocity"][0])
        is_caught = torch.cdist(agents[:hunters], agents[hunters:]) < HUNTER_RADIUS + PREY_RADIUS
        is_ringed = [*is_caught.any(1), *is_caught.any(0)]
        for index, (x, y) in enumerate(points(agents)):
            radius, colour = (HUNTER_RADIUS, RED) if index < hunters else (PREY_RADIUS, GREEN)
            if is_ringed[index]:
                canvas.circle(x, y, radius + 0.03, INK)
            canvas.circle(x, y, radius, colour, str(index if index < hunters else index - hunters))
        return canvas.array()


@dataclass(frozen=True)
class Adversary:
    """Good agents cover one landmark, the goal, without showing the adversary which it is (`simple_adversary_v3`).

    With d the distances from the goal, the adversary is rewarded -d_adversary, each good agent
    d_adversary - min_good d. All see how the landmarks and the other agents stand relative to them, but no velocity;
    the good see before these where the goal is. The state is all observations, joined. Nobody is in another's way.

    Raises ConfigError for a field out of its range.
    """

    good: int = 2
    """How many good agents there are, and how many landmarks."""
    continuous: bool = False
    """Are actions five strengths in [0, 1] (none, left, right, down, up), and not one choice of these?"""
    episode_limit: int = 25
    """Steps after which an episode is cut."""

    adversaries = 1

    def __post_init__(self) -> None:
        refuse_below(self, good=1, episode_limit=1)

    @property
    def team(self) -> TeamSpec:
        """The facts of the task."""
        return _two_sides(self, 4 * self.good, 4 * self.good + 2)

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """Agents and landmarks anywhere, at rest, any landmark as goal."""
        position = scattered(envs, 2 * self.good + 1, generator)
        return {
            "position": position,
            "velocity": torch.zeros_like(position[:, : self.good + 1]),
            "goal": torch.randint(self.good, (envs,), generator=generator, device=generator.device),
        }

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> Outcome:
        """The result of `action`: integers [env agent], or strengths [env agent 5]."""
        position, velocity = copies_last(state["position"]), copies_last(state["velocity"])
        n = self.good + 1
        agents, velocity = moved(position[:n], velocity, thrust(action, velocity))
        goal = position[n:].gather(0, state["goal"].expand(1, 2, -1))
        away = length(agents - goal)  # agent env
        lead = away[:1] - away[1:].amin(0)
        reward = torch.cat((-away[:1], lead.expand(self.good, -1)))
        state = {
            "position": copies_first(torch.cat((agents, position[n:]))),
            "velocity": copies_first(velocity),
            "goal": state["goal"],
        }
        return Outcome(state, reward.t().contiguous())

    def observe(self, state: State) -> Fields:
        """What each agent observes, padded to the width of the good, and the state."""
        position = copies_last(state["position"])
        n = self.good + 1
        relative = relative_position(position, seen_entities(n, self.good, position.device))  # agent seen 2 env
        goal = relative[1:].gather(1, state["goal"].expand(self.good, 1, 2, -1))
        spied = relative[0].flatten(0, 1)
        known = torch.cat((goal, relative[1:]), 1).flatten(0, 2)
        joint = torch.cat((spied, known)).t().contiguous()
        padded = torch.cat((spied, torch.zeros_like(spied[:2]), known)).t().contiguous()
        return {"obs": padded.view(len(padded), n, -1), "state": joint}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """The adversary red, good agents blue; landmarks grey, the goal green."""
        agents = state["position"][0, : self.good + 1]
        canvas = field(state)
        for index, (x, y) in enumerate(points(state["position"][0, self.good + 1 :])):
            is_goal = index == int(state["goal"])
            canvas.circle(x, y, 0.15, faded(GREEN if is_goal else GREY, 0.3))
            canvas.circle(x, y, 0.08, GREEN if is_goal else GREY)
        draw_velocity(canvas, agents, state["velocity"][0])
        for index, (x, y) in enumerate(points(agents)):
            canvas.circle(x, y, 0.1, faded(BLUE if index else RED, 0.85), str(max(0, index - 1)))
        return canvas.array()


def _two_sides(game: Tag | Adversary, adversary: int, good: int) -> TeamSpec:
    """The team of adversaries and good agents that observe so many numbers each."""
    hunters = tuple(range(game.adversaries))
    others = tuple(range(game.adversaries, game.adversaries + game.good))
    action = choice_or_strengths(5, game.continuous)
    return TeamSpec(
        agents=(*(f"adversary_{index}" for index in hunters), *(f"agent_{index}" for index in range(game.good))),
        groups={"adversary": hunters, "agent": others},
        observation={"adversary": Vector(adversary), "agent": Vector(good)},
        action={"adversary": action, "agent": action},
        state=Vector(adversary * len(hunters) + good * len(others)),
        episode_limit=game.episode_limit,
    )


@lru_cache(maxsize=32)
def _bodies(game: Tag, device: torch.device, dtype: torch.dtype) -> _Bodies:
    hunters, n = game.adversaries, game.adversaries + game.good

    def each(hunter: float, good: float) -> Tensor:
        values = [hunter] * hunters + [good * game.prey_speed] * game.good
        return torch.tensor(values, device=device, dtype=dtype).view(n, 1, 1)

    radius = [HUNTER_RADIUS] * hunters + [PREY_RADIUS] * game.good + [OBSTACLE_RADIUS] * game.obstacles
    size = torch.tensor(radius, device=device, dtype=dtype)
    movers = [[other for other in range(hunters, n) if other != agent] for agent in range(n)]
    return _Bodies(
        each(HUNTER_ACCELERATION, PREY_ACCELERATION),
        each(HUNTER_SPEED, PREY_SPEED),
        (size[:n, None] + size[seen_entities(n, game.obstacles, device)])[..., None],
        torch.tensor([[*row, n][: game.good] for row in movers], device=device),
    )
