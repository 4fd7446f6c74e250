"""The multi-agent particle environments on batched tensors: those games of the package mpe2 in which all pull together.

Source: Lowe, Wu, Tamar, Harb, Abbeel and Mordatch (2017), "Multi-Agent Actor-Critic for Mixed Cooperative-Competitive
Environments", section 5.1; https://github.com/Farama-Foundation/MPE2.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import embedding, pad

from martes.data import Fields, TeamSpec, Vector
from martes.envs.batched.drawing import INK, MIST, PALETTE, PAPER, faded
from martes.envs.batched.engine import Outcome, State
from martes.envs.batched.mpe_drawing import LETTERS, SHADES, draw_velocity, draw_words, field, points
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
from martes.envs.batched.rules import refuse_below, table, unit_vectors
from martes.errors import ConfigError

RADIUS = 0.15
"""Of an agent in spread."""
COLOURS = ((0.65, 0.15, 0.15), (0.15, 0.65, 0.15), (0.15, 0.15, 0.65))
"""Red, green and blue, by which the speaker knows the landmarks."""
PALE_COLOURS = ((0.75, 0.25, 0.25), (0.25, 0.75, 0.25), (0.25, 0.25, 0.75))
"""The same, as the two of reference know them."""


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
        refuse_below(self, agents=1, episode_limit=1)
        _check_ratio(self)

    @property
    def team(self) -> TeamSpec:
        """The facts of the task."""
        width = 4 + 2 * self.agents + 4 * (self.agents - 1)
        return TeamSpec(
            agents=tuple(f"agent_{index}" for index in range(self.agents)),
            groups={"agent": tuple(range(self.agents))},
            observation={"agent": Vector(width)},
            action={"agent": choice_or_strengths(5, self.continuous)},
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
        canvas = field(state)
        for x, y in points(state["position"][0, self.agents :]):
            for radius, colour in ((0.11, MIST), (0.08, PAPER), (0.045, INK)):
                canvas.circle(x, y, radius, colour)
        draw_velocity(canvas, agents, state["velocity"][0])
        collides = (torch.cdist(agents, agents) < 2 * RADIUS).sum(1) > 1  # each is near itself
        for index, (x, y) in enumerate(points(agents)):
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
        refuse_below(self, episode_limit=1)

    @property
    def team(self) -> TeamSpec:
        """The facts of the task."""
        return TeamSpec(
            agents=("speaker_0", "listener_0"),
            groups={"speaker": (0,), "listener": (1,)},
            observation={"speaker": Vector(3), "listener": Vector(11)},
            action={
                "speaker": choice_or_strengths(3, self.continuous),
                "listener": choice_or_strengths(5, self.continuous),
            },
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
            message = embedding(action[:, 0].long(), unit_vectors(3, velocity.device, velocity.dtype))

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
        colour = embedding(state["goal"], table(COLOURS, velocity.device, velocity.dtype))
        joint = torch.cat((colour, motion, state["message"]), 1)
        return {"obs": torch.stack((pad(colour, (0, 8)), joint[:, 3:]), 1), "state": joint}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """Landmarks as discs, the goal with a halo; the listener; in a corner the speaker and each word's strength."""
        position, goal = state["position"][0], int(state["goal"])
        canvas = field(state)
        for index, (x, y) in enumerate(points(position[1:])):
            if index == goal:
                canvas.circle(x, y, 0.16, faded(SHADES[index], 0.3))
            canvas.circle(x, y, 0.08, SHADES[index])
        draw_velocity(canvas, position[:1], state["velocity"][0])
        for x, y in points(position[:1]):
            canvas.circle(x, y, 0.1, INK, "L")
        canvas.square(-1.1, 1.1, 0.2, SHADES[goal], "S")
        draw_words(canvas, -0.87, 1.1, state["message"][0])
        return canvas.array()


@dataclass(frozen=True)
class Reference:
    """Each of two agents knows the landmark that the other must go to, and both speak and move
    (`simple_reference_v3`).

    With d_i the distance of agent i's partner from the landmark that i knows of, agent i is rewarded
    -local_ratio · d_i - (1 - local_ratio) · (d_0 + d_1) / 2. It observes its velocity, how the landmarks stand relative
    to it, the colour of the landmark that its partner must go to, and what its partner said in the step before. The
    state is both observations, joined.

    An action joins one of five moves (none, left, right, down, up) and one of ten words: move + 5 · word.

    Raises ConfigError for a field out of its range.
    """

    continuous: bool = False
    """Are actions strengths in [0, 1] (none, left, right, down, up; ten words), and not one choice of 50?"""
    local_ratio: float = 0.5
    """Weight of an agent's own distance; what it lacks to 1 is the weight of the mean distance."""
    episode_limit: int = 25
    """Steps after which an episode is cut."""

    def __post_init__(self) -> None:
        refuse_below(self, episode_limit=1)
        _check_ratio(self)

    @property
    def team(self) -> TeamSpec:
        """The facts of the task."""
        return TeamSpec(
            agents=("agent_0", "agent_1"),
            groups={"agent": (0, 1)},
            observation={"agent": Vector(21)},
            action={"agent": choice_or_strengths(15 if self.continuous else 50, self.continuous)},
            state=Vector(42),
            episode_limit=self.episode_limit,
        )

    def initial(self, envs: int, generator: torch.Generator) -> State:
        """Agents and landmarks anywhere, at rest, any landmark as the goal that an agent knows of, nothing said."""
        position = scattered(envs, 5, generator)
        return {
            "position": position,
            "velocity": torch.zeros_like(position[:, :2]),
            "goal": torch.randint(3, (envs, 2), generator=generator, device=generator.device),
            "message": position.new_zeros(envs, 2, 10),
        }

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> Outcome:
        """The result of `action`: integers [env agent], or strengths [env agent 15]."""
        position, velocity = copies_last(state["position"]), copies_last(state["velocity"])
        if self.continuous:
            move, message = action[..., :5], action[..., 5:].to(velocity.dtype).clamp(0.0, 1.0)
        else:
            word = action.long() // 5
            move, message = action - 5 * word, embedding(word, unit_vectors(10, velocity.device, velocity.dtype))
        agents, velocity = moved(position[:2], velocity, thrust(move, velocity))
        position = torch.cat((agents, position[2:]))

        distance = length(_to_landmarks(position))  # agent landmark env
        away = distance.flip(0).gather(1, state["goal"].t()[:, None]).squeeze(1)  # of each agent's partner
        reward = -self.local_ratio * away - (1 - self.local_ratio) * away.mean(0)
        state = {
            "position": copies_first(position),
            "velocity": copies_first(velocity),
            "goal": state["goal"],
            "message": message,
        }
        return Outcome(state, reward.t().contiguous())

    def observe(self, state: State) -> Fields:
        """What both observe, and the state."""
        position, velocity = copies_last(state["position"]), copies_last(state["velocity"])
        motion = torch.cat((velocity, _to_landmarks(position).flatten(1, 2)), 1)  # agent 8 env
        colour = embedding(state["goal"], table(PALE_COLOURS, velocity.device, velocity.dtype))
        seen = torch.cat((motion.permute(2, 0, 1), colour, state["message"].flip(1)), 2)
        return {"obs": seen, "state": seen.flatten(1)}

    def frame(self, state: State) -> UInt8[np.ndarray, "height width 3"]:
        """Landmarks as discs, agents in the colour of the one that they must go to; what agent 0 says above, what
        agent 1 says below, the loudest word also beside who says it."""
        position, message = state["position"][0], state["message"][0]
        canvas = field(state, 1.35)
        for shade, (x, y) in zip(SHADES, points(position[2:]), strict=True):
            canvas.circle(x, y, 0.13, faded(shade, 0.25))
            canvas.circle(x, y, 0.08, shade)
        draw_velocity(canvas, position[:2], state["velocity"][0])
        shades = [SHADES[int(goal)] for goal in state["goal"][0].flip(0)]
        for index, (x, y) in enumerate(points(position[:2])):
            canvas.circle(x, y, 0.12, INK)
            canvas.circle(x, y, 0.1, shades[index], str(index))
            if message[index].max() > 0:
                canvas.circle(x + 0.17, y + 0.15, 0.085, INK, LETTERS[int(message[index].argmax())])
            edge = 1.18 - 2.36 * index
            canvas.square(-1.12, edge, 0.18, shades[index], str(index))
            draw_words(canvas, -0.87, edge, message[index])
        return canvas.array()


def _check_ratio(game: Spread | Reference) -> None:
    if not 0 <= game.local_ratio <= 1:
        name = type(game).__name__
        raise ConfigError(f"{name}.local_ratio is {game.local_ratio}: give it a weight between 0 and 1")


def _to_landmarks(position: Float[Tensor, "entity 2 env"]) -> Float[Tensor, "2 3 2 env"]:
    return relative_position(position, seen_entities(2, 3, position.device)[:, :3])
