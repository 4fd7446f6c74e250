"""The multi-agent particle environments on batched tensors: the games of the package mpe2, rule for rule.

Source: Lowe, Wu, Tamar, Harb, Abbeel and Mordatch (2017), "Multi-Agent Actor-Critic for Mixed Cooperative-Competitive
Environments", section 5.1; https://github.com/Farama-Foundation/MPE2.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import embedding, pad

from martes.data import Action, Continuous, Discrete, Fields, TeamSpec, Vector
from martes.envs.batched.drawing import INK, MIST, PALETTE, PAPER, Canvas, faded
from martes.envs.batched.engine import Outcome, State
from martes.envs.batched.mpe_world import (
    contact_force,
    copies_first,
    copies_last,
    length,
    moved,
    relative_position,
    scattered,
    seen_entities,
    table,
    thrust,
)
from martes.errors import ConfigError

RADIUS = 0.15
"""Of an agent in spread."""
COLOURS = ((0.65, 0.15, 0.15), (0.15, 0.65, 0.15), (0.15, 0.15, 0.65))
"""Red, green and blue, by which the speaker knows the landmarks."""
WORDS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
"""What the speaker may say."""


@dataclass(frozen=True)
class Spread:
    """As many landmarks as agents: have each covered, without collisions (`simple_spread_v3`).

    With d the distances after the step, agent i is rewarded
    -local_ratio · |{j ≠ i: d_ij < two radii}| - (1 - local_ratio) · Σ_landmark min_agent d.
    It observes its velocity and position, how the landmarks and then the other agents stand relative to it, and two
    channels of each other agent, that stay 0; the state is all observations, joined.

    Raises ConfigError for a field out of its range.
    """

    agents: int = 3
    """How many agents there are, and how many landmarks."""
    continuous: bool = False
    """Are actions five strengths in [0, 1] (none, left, right, down, up), and not one choice of these?"""
    local_ratio: float = 0.5
    """Weight of an agent's own collisions; what it lacks to 1 is the weight of the landmarks."""
    episode_limit: int = 25
    """Steps after which an episode is cut."""

    def __post_init__(self) -> None:
        if self.agents < 1:
            raise ConfigError(f"Spread.agents is {self.agents}: give it at least 1 agent")
        if not 0 <= self.local_ratio <= 1:
            raise ConfigError(f"Spread.local_ratio is {self.local_ratio}: give it a weight between 0 and 1")
        _check_limit(self)

    @property
    def team(self) -> TeamSpec:
        """The facts of the task."""
        width = 4 + 2 * self.agents + 4 * (self.agents - 1)
        return TeamSpec(
            agents=tuple(f"agent_{index}" for index in range(self.agents)),
            groups={"agent": tuple(range(self.agents))},
            observation={"agent": Vector(width)},
            action={"agent": _choice(5, self.continuous)},
            state=Vector(self.agents * width),
            episode_limit=self.episode_limit,
        )

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """Agents and landmarks anywhere, at rest."""
        position = scattered(envs, 2 * self.agents, generator)
        return {"position": position, "velocity": torch.zeros_like(position[:, : self.agents])}

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> Outcome:
        """The result of `action`: integers [env agent], or strengths [env agent 5]."""
        n = self.agents
        position, velocity = copies_last(state["position"]), copies_last(state["velocity"])
        seen = seen_entities(n, n, position.device)
        force = contact_force(relative_position(position, seen)[:, n:], 2 * RADIUS) + thrust(action, velocity)
        agents, velocity = moved(position[:n], velocity, force)
        position = torch.cat((agents, position[n:]))

        distance = length(relative_position(position, seen))  # agent seen env
        uncovered = distance[:, :n].amin(0).sum(0)  # env
        collisions = (distance[:, n:] < 2 * RADIUS).sum(1, dtype=distance.dtype)  # agent env
        reward = -self.local_ratio * collisions - (1 - self.local_ratio) * uncovered
        return Outcome(
            {"position": copies_first(position), "velocity": copies_first(velocity)}, reward.t().contiguous()
        )

    def observe(self, state: State) -> Fields:
        """What each agent observes, and the state."""
        n = self.agents
        position, velocity = copies_last(state["position"]), copies_last(state["velocity"])
        relative = relative_position(position, seen_entities(n, n, position.device)).flatten(1, 2)
        silence = velocity.new_zeros(n, 2 * (n - 1), velocity.shape[-1])
        features = torch.cat((velocity, position[:n], relative, silence), 1)  # agent feature env
        joint = features.flatten(0, 1).t().contiguous()
        return {"obs": joint.view(len(joint), n, -1), "state": joint}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """Agents as numbered discs with a line for their velocity, ringed where they collide; landmarks as targets."""
        agents = state["position"][0, : self.agents]
        canvas = _view(state)
        for x, y in _points(state["position"][0, self.agents :]):
            for radius, colour in ((0.11, MIST), (0.08, PAPER), (0.045, INK)):
                canvas.circle(x, y, radius, colour)
        _draw_velocity(canvas, agents, state["velocity"][0])
        collides = (torch.cdist(agents, agents) < 2 * RADIUS).sum(1) > 1  # each is near itself
        for index, (x, y) in enumerate(_points(agents)):
            if collides[index]:
                canvas.circle(x, y, RADIUS + 0.02, INK)
            canvas.circle(x, y, RADIUS, faded(PALETTE[index % len(PALETTE)], 0.85), str(index))
        return canvas.array()


@dataclass(frozen=True)
class SpeakerListener:
    """The speaker sees which landmark is the goal and cannot move; the listener moves and cannot see it
    (`simple_speaker_listener_v4`).

    Both are rewarded minus the squared distance of listener and goal. The speaker observes the goal's colour; the
    listener its velocity, how the landmarks stand relative to it, and what the speaker said in the step before. The
    state is both observations, joined.

    Raises ConfigError for a field out of its range.
    """

    continuous: bool = False
    """Are actions strengths in [0, 1] (three words; none, left, right, down, up), and not one choice of these?"""
    episode_limit: int = 25
    """Steps after which an episode is cut."""

    def __post_init__(self) -> None:
        _check_limit(self)

    @property
    def team(self) -> TeamSpec:
        """The facts of the task."""
        return TeamSpec(
            agents=("speaker_0", "listener_0"),
            groups={"speaker": (0,), "listener": (1,)},
            observation={"speaker": Vector(3), "listener": Vector(11)},
            action={"speaker": _choice(3, self.continuous), "listener": _choice(5, self.continuous)},
            state=Vector(14),
            episode_limit=self.episode_limit,
        )

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """Listener and landmarks anywhere, at rest, any landmark as goal, nothing said. The speaker has no place."""
        position = scattered(envs, 4, generator)
        return {
            "position": position,
            "velocity": torch.zeros_like(position[:, :1]),
            "goal": torch.randint(3, (envs,), generator=generator, device=generator.device),
            "message": position.new_zeros(envs, 3),
        }

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> Outcome:
        """The result of `action`: integers [env agent], or strengths [env agent 5] (the speaker's first three)."""
        position, velocity = copies_last(state["position"]), copies_last(state["velocity"])
        listener, velocity = moved(position[:1], velocity, thrust(action[:, 1:], velocity))
        position = torch.cat((listener, position[1:]))
        if self.continuous:
            message = action[:, 0, :3].to(velocity.dtype).clamp(0.0, 1.0)
        else:
            message = embedding(action[:, 0].long(), table(WORDS, velocity.dtype, velocity.device))

        to_landmark = relative_position(position, seen_entities(1, 3, position.device))[0]  # landmark 2 env
        away = to_landmark.square().sum(1).gather(0, state["goal"][None])  # 1 env
        state = {
            "position": copies_first(position),
            "velocity": copies_first(velocity),
            "goal": state["goal"],
            "message": message,
        }
        return Outcome(state, away.neg().t().repeat(1, 2))

    def observe(self, state: State) -> Fields:
        """What speaker and listener observe, padded to the listener's width, and the state."""
        position, velocity = copies_last(state["position"]), copies_last(state["velocity"])
        relative = relative_position(position, seen_entities(1, 3, position.device))
        motion = torch.cat((velocity.flatten(0, 1), relative.flatten(0, 2))).t()  # env 8
        colour = embedding(state["goal"], table(COLOURS, velocity.dtype, velocity.device))
        joint = torch.cat((colour, motion, state["message"]), 1)
        return {"obs": torch.stack((pad(colour, (0, 8)), joint[:, 3:]), 1), "state": joint}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """Landmarks as discs, the goal with a halo; the listener; in a corner the speaker and each word's strength."""
        position, goal = state["position"][0], int(state["goal"])
        canvas = _view(state)
        for index, (x, y) in enumerate(_points(position[1:])):
            if index == goal:
                canvas.circle(x, y, 0.16, faded(_SHADES[index], 0.3))
            canvas.circle(x, y, 0.08, _SHADES[index])
        _draw_velocity(canvas, position[:1], state["velocity"][0])
        for x, y in _points(position[:1]):
            canvas.circle(x, y, 0.1, INK, "L")
        canvas.square(-1.1, 1.1, 0.2, _SHADES[goal], "S")
        for index, loudness in enumerate(state["message"][0]):
            canvas.circle(-0.87 + 0.2 * index, 1.1, 0.085, MIST)
            canvas.circle(-0.87 + 0.2 * index, 1.1, 0.085, faded(INK, float(loudness)), "ABC"[index])
        return canvas.array()


_SHADES = (PALETTE[1], PALETTE[2], PALETTE[0])


def _check_limit(game: Spread | SpeakerListener) -> None:
    if game.episode_limit < 1:
        name = type(game).__name__
        raise ConfigError(f"{name}.episode_limit is {game.episode_limit}: give it at least 1 step")


def _choice(n: int, continuous: bool) -> Action:
    return Continuous((0.0,) * n, (1.0,) * n) if continuous else Discrete(n)


def _points(positions: Tensor) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in positions]


def _view(state: State) -> Canvas:
    """A canvas around the square in which all start; larger once somebody is far out."""
    edge = max(1.25, float(state["position"].abs().max()) + 0.2)
    canvas = Canvas((-edge, -edge, edge, edge))
    for side in (-1, 1):
        canvas.line(side, -1, side, 1, MIST)
        canvas.line(-1, side, 1, side, MIST)
    return canvas


def _draw_velocity(canvas: Canvas, agents: Tensor, velocity: Tensor) -> None:
    for (x0, y0), (x1, y1) in zip(_points(agents), _points(agents + velocity / 2), strict=True):
        canvas.line(x0, y0, x1, y1, INK, 3)
