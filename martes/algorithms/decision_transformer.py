"""Decision transformer: what was done where so much was still to come; asked for much, it does what earned much."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from martes.algorithms.descent import Descent, restored, state_of
from martes.algorithms.imitation import Measure, errors_of
from martes.algorithms.learner import Metrics
from martes.algorithms.off_policy import Store
from martes.data import Field, TeamSpec, Workspace
from martes.data.experience import Episodes
from martes.data.limits import COUNT, NATURAL, POSITIVE, BatchSize, StepSize, UpdateRatio, refuse, refuse_beyond
from martes.maths.masks import masked_mean
from martes.maths.returns import reward_to_go
from martes.networks import Network, Sharing
from martes.networks.growth import Parts
from martes.networks.return_conditioned import ReturnConditioned
from martes.networks.temporal import EARNED


@dataclass(frozen=True)
class DecisionTransformer:
    """Imitation, given the return that followed. Source: Chen et al. 2021."""

    tokens: Literal[1, 3] = 3
    """A token each for last action, return to go and observation, or one for all of a step."""
    context: int = 20
    """Steps that it sees, the present one included."""
    target_return: float | None = None
    """Return of an episode that each agent aims at when acting; none: the highest that it had in the data."""
    network: Network = field(default_factory=lambda: Network(hidden=(64,), memory_layers=2))
    """What reads the tokens; its memory is always attention over the context."""
    sharing: Sharing = "shared"
    """Which agents share parameters: all, those of a group, or none."""
    error: Measure = "likelihood"
    """Of real-valued actions: by their log-density, or by their squared distance from the policy's best ones."""
    reward: Literal["own", "mean", "sum"] = "own"
    """Whose return is told: each agent's own, or the mean or sum over the whole team, whoever of it is there."""
    batch: BatchSize = 16
    """Episodes of one gradient step."""
    sequence: int | None = None
    """Successive steps of each of them to learn from, wherever they begin; none: all, which long episodes forbid."""
    ratio: UpdateRatio = 0.002
    """Gradient steps for each environment step (learning from data alone, none of these is made: they only count)."""
    rollout: int = 32
    """Steps of each environment between two looks at which updates are due."""
    warmup: int = 0
    """Environment steps before learning starts; it also waits until a batch is there."""
    store: Store = field(default_factory=Store)
    """What is kept where somebody acts."""
    lr: StepSize = 1e-3
    """Step size of Adam."""
    max_grad_norm: float | None = 0.25
    """Longest gradient, per slot; none: any."""
    adam_eps: float = 1e-8
    """Term that keeps Adam's denominator from 0."""

    def __post_init__(self) -> None:
        refuse("algorithm.tokens", self.tokens, self.tokens not in (1, 3), "1 or 3")
        refuse("algorithm.store.alpha", self.store.alpha, self.store.alpha > 0, "0: every episode is equally likely")
        refuse_beyond(self, NATURAL, "warmup")
        refuse_beyond(self, COUNT, "context", "batch", "rollout")
        refuse_beyond(self, COUNT, "sequence", or_none=True)
        refuse_beyond(self, POSITIVE, "ratio", "lr", "adam_eps")
        refuse_beyond(self, POSITIVE, "max_grad_norm", or_none=True)

    def learner(self, team: TeamSpec, generator: torch.Generator) -> "DecisionLearner":
        """A fresh learner of this team; every random number it ever needs comes from `generator`."""
        return DecisionLearner(self, team, generator)


class DecisionLearner:
    """A decision transformer at work on one team."""

    imitates = True

    def __init__(self, config: DecisionTransformer, team: TeamSpec, generator: torch.Generator) -> None:
        self.config, self.updates = config, 0
        network = replace(config.network, memory="attention", memory_window=config.context * config.tokens)
        self.policy = ReturnConditioned(team, network, config.sharing, config.tokens, generator).to(generator.device)
        if config.reward != "own":
            self.policy.pool.fill_(1.0 if config.reward == "sum" else 1 / team.size)
        if config.target_return is not None:
            self.policy.asked.fill_(config.target_return)
        reads = tuple(name for name in self.policy.reads if name != EARNED)  # the rewards tell it
        self.experience = config.store.replayed(team, reads, Episodes(config.batch), config, generator)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), config.lr, eps=config.adam_eps, fused=True)
        self.parts: Parts = {"policy": self.policy, "optimiser": self.optimiser}
        clipped = {"policy": (self.policy, self.policy.slots.count)}
        self.descent = Descent(self._loss, self.optimiser, clipped, config.max_grad_norm)

    @property
    def fields(self) -> Mapping[str, Field]:
        """What acting adds to the team's fields."""
        return self.policy.fields()

    def update(self, batch: Workspace) -> Metrics:
        """Learns from episodes, whole or a stretch of each, one gradient step; returns what to watch."""
        inputs = self._inputs(batch)
        self._ask(inputs["return_to_go"][0])
        batch, inputs = self.stretch(batch, inputs)
        metrics = self.descent(batch, inputs).watched
        self.policy.observe(inputs, batch.mask)
        self.updates += 1
        return metrics | {"asked_return": self.policy.asked.mean()}

    def stretch(self, batch: Workspace, inputs: dict[str, Tensor]) -> tuple[Workspace, dict[str, Tensor]]:
        """`sequence` steps of each episode, all of its stretches equally likely; a shorter episode whole.

        The returns that are told stay those to the end of the episode.
        """
        length = min(self.config.sequence or batch.time, batch.time)
        if length == batch.time:
            return batch, inputs
        generator = self.experience.generator
        beginnings = (batch["counted"].sum(0) - length).clamp(min=0) + 1
        share = torch.rand(batch.envs, generator=generator, device=generator.device, dtype=torch.float64)
        first = (share.to(batch.device) * beginnings).long()
        row = (first + torch.arange(length, device=batch.device).unsqueeze(1)).clamp(max=batch.time - 1)
        every = torch.arange(batch.envs, device=batch.device)
        return batch.crops(first, length), {name: each[row, every] for name, each in inputs.items()}

    def loss(self, batch: Workspace) -> tuple[Tensor, Metrics]:
        """L = -mean log pi(a_t | a_{t-1}, R_t, o_t, and those before) over the choices that agents made.

        R_t = r_t + r_{t+1} + ... to the end of the episode. Padding counts nowhere.
        """
        return self._loss(batch, self._inputs(batch))

    def _loss(self, batch: Workspace, inputs: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        inputs, mask = inputs | {"action": batch["action"]}, self._counted(batch)
        memory, start = self.policy.initial_memory(batch.envs), batch["start"][: batch.time]
        pi = self.policy.distribution(inputs, memory, start)
        error, metrics = errors_of(pi, batch["action"], self.config.error, mask)
        loss = masked_mean(error, mask)
        return loss, {"loss": loss.detach()} | metrics

    def returns(self, batch: Workspace) -> Float[Tensor, "time env agent"]:
        """What was still to come at each step, undiscounted."""
        reward = batch["reward"] @ self.policy.pool
        return reward_to_go(reward, torch.ones_like(reward), batch["cut"])

    def _inputs(self, batch: Workspace) -> dict[str, Tensor]:
        seen = {name: batch[name][: batch.time] for name in self.policy.reads if name != EARNED}
        return seen | {"return_to_go": self.returns(batch)}

    def _counted(self, batch: Workspace) -> Bool[Tensor, "time env agent"]:
        return batch.decided & batch["counted"].unsqueeze(-1)

    def _ask(self, whole: Float[Tensor, "env agent"]) -> None:
        """Moves what is asked, and what `whole` returns are divided by, to the highest so far."""
        policy = self.policy
        highest, largest = whole.amax(0), whole.abs().amax()
        if self.updates:
            highest, largest = policy.asked.maximum(highest), policy.scale.maximum(largest)
        policy.scale.copy_(torch.where(largest > 0, largest, 1.0))
        if self.config.target_return is None:
            policy.asked.copy_(highest)

    def state_dict(self) -> dict[str, object]:
        """Weights and statistics, optimiser and counter; random state is the experience's."""
        return state_of(self.parts, {"updates": self.updates})

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restores `state_dict`."""
        self.updates = restored(state, self.parts)["updates"]
