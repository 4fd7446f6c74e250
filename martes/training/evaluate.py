"""Test episodes: what a policy earns, in environments and from random streams that training never sees."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from martes.data import Schema, TimeStep, VectorEnv, Workspace
from martes.errors import ConfigError, EnvError
from martes.networks import Chain, TemporalModule, act
from martes.training.collect import refuse_nonfinite
from martes.training.seeding import generator_of

LONGEST = 100_000
"""Steps after which an episode is taken to have no end."""


@dataclass(frozen=True)
class Scores:
    """What test episodes came to, one entry an episode, in the order in which they ended."""

    returns: Float[Tensor, "episode"]
    """Undiscounted, summed over the team's agents."""
    agent_returns: Float[Tensor, "episode agent"]
    lengths: Int64[Tensor, "episode"]
    stats: dict[str, float] = field(default_factory=dict[str, float])
    """Means of what the environment counts itself, over the episodes that tell it."""


OnStep = Callable[[TimeStep], None]
"""Told of every step after it was made: to draw it, to record it."""


def evaluate(
    policy: TemporalModule,
    env: VectorEnv,
    episodes: int,
    seed: int,
    greedy: bool = True,
    on_step: OnStep | None = None,
) -> Scores:
    """The scores of exactly `episodes` episodes.

    How many each copy plays is fixed beforehand (equal shares, one more for the first copies where they do not divide):
    taking whichever end first would favour short ones. Nothing but `env` is written to. Raises EnvError where a number
    is not finite, or an episode has no end; ConfigError for fewer than one episode.
    """
    if episodes < 1:
        raise ConfigError(f"episodes is {episodes}: it must be at least 1")
    actor = policy.part_for("action")
    scored = ScoredEnv(env, episodes, on_step)
    schema = Schema.from_team(env.team).extended(**actor.fields())
    device = next((parameter.device for parameter in actor.parameters()), torch.device("cpu"))
    span = min(env.team.episode_limit or 32, 128)
    workspace = Workspace(schema, time=span, envs=env.num_envs, device=device)
    generator = None if greedy else generator_of(seed, "evaluation noise", device=device)
    first = env.reset(seed)
    workspace.write(span, {**first.seen, "start": first.start})
    memory = actor.initial_memory(env.num_envs)
    chain = Chain(scored, actor)
    with evaluating(chain):
        while not scored.is_complete:
            workspace.carry()
            workspace.memory = memory
            memory = act(chain, workspace, 0, span, generator=generator)
            refuse_nonfinite(workspace)
            scored.refuse_endless()
    return scored.scores()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, the module evaluates (no dropout); afterwards those of its parts train that trained before."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


class ScoredEnv:
    """An environment as `act` sees it, that counts what the first episodes of each copy come to."""

    def __init__(self, env: VectorEnv, episodes: int, on_step: OnStep | None = None) -> None:
        self.env = env
        self.num_envs = env.num_envs
        share, more = divmod(episodes, env.num_envs)
        self._left = torch.full((env.num_envs,), share)
        self._left[:more] += 1
        self._earned = torch.zeros(env.num_envs, env.team.size, dtype=torch.float64)
        self._lived = torch.zeros(env.num_envs, dtype=torch.int64)
        self._returns: list[Tensor] = []
        self._lengths: list[Tensor] = []
        self._stats: dict[str, list[Tensor]] = {}
        self._on_step = on_step

    @property
    def is_complete(self) -> bool:
        """Has every copy played its share?"""
        return not bool(self._left.any())

    def step(self, action: Tensor) -> TimeStep:
        """The environment's own answer, counted on the way."""
        step = self.env.step(action)
        self._earned += step.reward.cpu()
        self._lived += 1
        cut = step.cut.cpu()
        if bool(cut.any()):
            self._close(step, cut & (self._left > 0))
            self._earned.masked_fill_(cut[:, None], 0)
            self._lived.masked_fill_(cut, 0)
        if self._on_step is not None:
            self._on_step(step)
        return step

    def _close(self, step: TimeStep, counted: Bool[Tensor, "env"]) -> None:
        self._returns.append(self._earned[counted])
        self._lengths.append(self._lived[counted])
        self._left -= counted.long()
        for name, values in step.stats.items():
            self._stats.setdefault(name, []).append(values.cpu().double()[counted])

    def refuse_endless(self) -> None:
        """Raises EnvError where an episode that counts has no end in sight."""
        if bool(((self._lived > LONGEST) & (self._left > 0)).any()):
            raise EnvError(f"a test episode has no end after {LONGEST} steps: give the environment a time limit")

    def scores(self) -> Scores:
        """What was counted."""
        earned = torch.cat(self._returns)
        told = {name: torch.cat(values) for name, values in self._stats.items()}
        stats = {name: float(values.nanmean()) for name, values in told.items() if not bool(values.isnan().all())}
        return Scores(earned.sum(1), earned, torch.cat(self._lengths), stats)
