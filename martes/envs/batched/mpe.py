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
from martes.envs.batched.drawing import INK, MIST, PALETTE, Canvas, faded
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
        collisions = (distance[:, n:] < 2 * RADIUS).sum(1)  # agent env
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
        return {"obs": joint.unflatten(1, (n, -1)), "state": joint}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """Agents as discs with their way of the next steps, darkly ringed where they collide; landmarks as targets."""
        position, velocity = state["position"][0], state["velocity"][0].tolist()
        canvas = _view(position)
        agents, landmarks = position.tolist()[: self.agents], position.tolist()[self.agents :]
        for x, y in landmarks:
            for radius, colour in ((0.1, MIST), (0.075, "#FFFFFF"), (0.045, INK)):
                canvas.circle(x, y, radius, colour)
        apart = torch.cdist(position[: self.agents], position[: self.agents])
        collides = ((apart < 2 * RADIUS).sum(1) > 1).tolist()
        for index, (x, y) in enumerate(agents):
            colour = PALETTE[index % len(PALETTE)]
            if collides[index]:
                canvas.circle(x, y, RADIUS + 0.015, INK)
            canvas.circle(x, y, RADIUS, faded(colour, 0.85), str(index))
            _draw_way(canvas, (x, y), velocity[index], colour)
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
        """Landmarks as discs, the goal ringed; the listener with its way; above, how loudly each word is said."""
        position, goal = state["position"][0], int(state["goal"])
        colours = (PALETTE[1], PALETTE[2], PALETTE[0])
        canvas = _view(position)
        for index, (x, y) in enumerate(position[1:].tolist()):
            if index == goal:
                canvas.circle(x, y, 0.13, faded(colours[index], 0.3))
            canvas.circle(x, y, 0.07, colours[index])
        x, y = position[0].tolist()
        canvas.circle(x, y, 0.1, INK, "L")
        _draw_way(canvas, (x, y), state["velocity"][0, 0].tolist(), INK)
        return canvas.array()


Position = tuple[float, float]


def _check_limit(game: Spread | SpeakerListener) -> None:
    if game.episode_limit < 1:
        name = type(game).__name__
        raise ConfigError(f"{name}.episode_limit is {game.episode_limit}: give it at least 1 step")


def _choice(n: int, continuous: bool) -> Action:
    return Continuous((0.0,) * n, (1.0,) * n) if continuous else Discrete(n)


def _view(position: Tensor) -> Canvas:
    """A canvas of the usual square, or of a larger one where someone has left that."""
    edge = max(1.25, float(position.abs().max()) + 0.2)
    return Canvas((-edge, -edge, edge, edge))


def _draw_way(canvas: Canvas, start: Position, velocity: Position, colour: str) -> None:
    """Draws where the velocity carries within the next half unit of time."""
    (x, y), (across, up) = start, velocity
    canvas.line(x, y, x + 0.5 * across, y + 0.5 * up, colour, 3)
