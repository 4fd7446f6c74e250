"""Behaviour cloning: the policy that does what was done in a data set."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from martes.algorithms.descent import Descent, restored, state_of
from martes.algorithms.learner import Metrics
from martes.algorithms.off_policy import Store
from martes.data import Field, TeamSpec, Workspace
from martes.data.experience import Episodes, Replayed, Transitions
from martes.data.limits import COUNT, NATURAL, POSITIVE, BatchSize, StepSize, UpdateRatio, refuse_beyond
from martes.errors import DataError
from martes.maths.distributions import Categorical, MultiCategorical, SquashedGaussian
from martes.maths.masks import masked_mean
from martes.networks import Network, Policy, Sharing
from martes.networks.growth import Parts
from martes.networks.policies import Distribution

Measure = Literal["likelihood", "squared"]


@dataclass(frozen=True)
class BehaviourCloning:
    """Supervised learning of what somebody did. Source: Pomerleau 1989 (ALVINN)."""

    sharing: Sharing = "shared"
    """Which agents share parameters: all, those of a group, or none."""
    network: Network = field(default_factory=Network)
    """The policy's network."""
    error: Measure = "likelihood"
    """Of real-valued actions: by their log-density, or by their squared distance from the policy's best ones."""
    sequence: int | None = 1
    """Steps to learn from in each sequence of a batch: 1 is a transition; none: whole episodes."""
    burn_in: int = 16
    """Steps before a sequence that only fill the memory of agents that have one."""
    batch: BatchSize = 256
    """Sequences, or episodes, of one gradient step."""
    ratio: UpdateRatio = 0.02
    """Gradient steps for each environment step (learning from data alone, none of these is made: they only count)."""
    rollout: int = 32
    """Steps of each environment between two looks at which updates are due."""
    warmup: int = 0
    """Environment steps before learning starts; it also waits until a batch is there."""
    store: Store = field(default_factory=Store)
    """What is kept where somebody acts, and which of it is drawn."""
    lr: StepSize = 1e-3
    """Step size of Adam."""
    max_grad_norm: float | None = 10.0
    """Longest gradient of the policy, per slot; none: any."""
    adam_eps: float = 1e-8
    """Term that keeps Adam's denominator from 0."""

    def __post_init__(self) -> None:
        refuse_beyond(self, COUNT, "batch", "rollout")
        refuse_beyond(self, COUNT, "sequence", or_none=True)
        refuse_beyond(self, NATURAL, "burn_in", "warmup")
        refuse_beyond(self, POSITIVE, "lr", "ratio", "adam_eps")
        refuse_beyond(self, POSITIVE, "max_grad_norm", or_none=True)

    def learner(self, team: TeamSpec, generator: torch.Generator) -> "CloningLearner":
        """A fresh learner of this team; every random number it ever needs comes from `generator`."""
        return CloningLearner(self, team, generator)


def errors_of(
    pi: Distribution, done: Tensor, measure: Measure, mask: Bool[Tensor, "time env agent"]
) -> tuple[Float[Tensor, "time env agent"], Metrics]:
    """The error of each choice, -log pi(a) or its squared distance, and what to watch of those in `mask`.

    Squared: mean over the numbers of an action of ((a - a*) / half the width of its box)^2, a* the policy's best.
    Raises DataError for a choice in `mask` that is not legal.
    """
    if isinstance(pi, SquashedGaussian):
        off = (2 * (pi.action(pi.mode()) - done) / (pi.high - pi.low)).square()
        squared = off.mean(-1) if pi.dim_mask is None else masked_mean(off, pi.dim_mask, -1)
        error = squared if measure == "squared" else -pi.log_prob(pi.sample_of(done))
        metrics = {"squared_error": masked_mean(squared, mask)}
    else:
        _refuse_illegal(pi, done, mask)
        error = -pi.log_prob(done)
        agrees = (pi.mode() == done).float().reshape(*mask.shape, -1).amin(-1)
        metrics = {"agreement": masked_mean(agrees, mask)}
    metrics["entropy"] = masked_mean(pi.entropy(), mask)
    return error, {name: metric.detach() for name, metric in metrics.items()}


def _refuse_illegal(pi: Categorical | MultiCategorical, done: Tensor, mask: Bool[Tensor, "time env agent"]) -> None:
    """Raises DataError where a choice in `mask` was not legal: no policy makes it, so none can learn it."""
    choices = pi if isinstance(pi, Categorical) else pi.sub_actions
    if choices.mask is None:
        return
    legal = choices.mask.expand_as(choices.log_probs)
    is_legal = legal.gather(-1, done.long().unsqueeze(-1)).squeeze(-1) | ~legal.any(-1)
    is_wrong = mask & ~is_legal.reshape(*mask.shape, -1).all(-1)
    if bool(is_wrong.any()):
        place = tuple(is_wrong.nonzero()[0].tolist())
        raise DataError(
            f"the data hold an action that was not legal: agent {place[-1]} (counted from 0) did "
            f"{done[place].tolist()}, its mask then was {legal[place].tolist()}. Mend the data set"
        )


class CloningLearner:
    """Behaviour cloning at work on one team."""

    imitates = True

    def __init__(self, config: BehaviourCloning, team: TeamSpec, generator: torch.Generator) -> None:
        self.config = config
        self.policy = Policy(team, config.network, config.sharing, generator).to(generator.device)
        burn_in = config.burn_in if self.policy.initial_memory(1) != () else 0
        drawn = Transitions(config.batch, config.sequence, burn_in) if config.sequence else Episodes(config.batch)
        self.experience: Replayed = config.store.replayed(team, self.policy.reads, drawn, config, generator)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), config.lr, eps=config.adam_eps, fused=True)
        self.parts: Parts = {"policy": self.policy, "optimiser": self.optimiser}
        clipped = {"policy": (self.policy, self.policy.slots.count)}
        self.descent = Descent(self.judged, self.optimiser, clipped, config.max_grad_norm)
        self.updates = 0

    @property
    def fields(self) -> Mapping[str, Field]:
        """What acting adds to the team's fields."""
        return self.policy.fields()

    def update(self, batch: Workspace) -> Metrics:
        """Learns from one batch; returns what to watch."""
        stepped = self.descent(batch)
        self.experience.prioritise(batch, stepped.told)
        self.policy.body.observe({name: batch[name][: batch.time] for name in self.policy.reads}, self._counted(batch))
        self.updates += 1
        return stepped.watched

    def loss(self, batch: Workspace) -> tuple[Tensor, Metrics]:
        """L = -mean log pi(a_t | what was seen) over the choices that agents made, and what to watch.

        Or as `errors_of` measures them.
        """
        return self.judged(batch)[:2]

    def judged(self, batch: Workspace) -> tuple[Tensor, Metrics, Float[Tensor, "env"]]:
        """The loss, what to watch, and the mean distance of each draw's choices."""
        error, mask, metrics = self.errors(batch)
        loss = masked_mean(batch["weight"].unsqueeze(-1) * error, mask)
        return loss, {"loss": loss.detach()} | metrics, masked_mean(error.abs(), mask, (0, 2))

    def errors(
        self, batch: Workspace
    ) -> tuple[Float[Tensor, "time env agent"], Bool[Tensor, "time env agent"], Metrics]:
        """The error of each choice, where it counts, and what to watch. Padding and what fills memory do not count."""
        inputs = {name: batch[name][: batch.time] for name in self.policy.reads}
        memory, start = self.policy.initial_memory(batch.envs), batch["start"][: batch.time]
        features, _ = self.policy.body.sequence(inputs, memory, start)
        pi = self.policy.distribution(features, inputs)
        mask = self._counted(batch)
        error, metrics = errors_of(pi, batch["action"], self.config.error, mask)
        return error, mask, metrics

    def _counted(self, batch: Workspace) -> Bool[Tensor, "time env agent"]:
        return batch.decided & batch["counted"].unsqueeze(-1)

    def state_dict(self) -> dict[str, object]:
        """Weights and statistics, optimiser and counter; random state is the experience's."""
        return state_of(self.parts, {"updates": self.updates})

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restores `state_dict`."""
        self.updates = restored(state, self.parts)["updates"]
