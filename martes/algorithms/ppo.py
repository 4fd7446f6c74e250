"""Proximal policy optimisation for teams: IPPO (local critics), MAPPO (a central critic); A2C is one epoch, no clip."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from martes.algorithms.descent import Descent, Loss
from martes.algorithms.learner import Metrics
from martes.data import Field, TeamSpec, Workspace
from martes.data.experience import Rollouts
from martes.data.limits import COUNT, POSITIVE, SHARE, EntropyWeight, Passes, StepSize, refuse_beyond
from martes.errors import NonFiniteError
from martes.maths.losses import clipped_surrogate, clipped_value_loss, kl_estimate
from martes.maths.masks import masked_mean, share_of_mean, standardise
from martes.maths.returns import gae
from martes.networks import (
    ActorCritic,
    AutoregressiveTeam,
    Critic,
    Network,
    Policy,
    Sharing,
    replay,
)
from martes.networks.critics import critic_shape
from martes.networks.growth import Parts


@dataclass(frozen=True)
class Clipped:
    """Clipped policy gradients from fresh rollouts, whatever the network. Source: Schulman et al. 2017."""

    sharing: Sharing = "shared"
    """Which agents share parameters: all, those of a group, or none."""
    rollout: int = 32
    """Steps of each environment between two updates."""
    epochs: Passes = 4
    """Passes over a rollout."""
    minibatches: int = 4
    """Parts into which each pass is cut; one gradient step for each."""
    lr: StepSize = 5e-4
    """Step size of Adam."""
    anneal: bool = False
    """Does the step size fall linearly to 0 over the run?"""
    gamma: float = 0.99
    """Discount of the return per step."""
    gae_lambda: float = 0.95
    """Weight of long returns in the advantage: 0 is one-step, 1 is Monte Carlo."""
    clip: float | None = 0.2
    """Half-width of the trust region on the probability ratio; none: the plain policy gradient."""
    value_clip: float | None = 0.2
    """How far a value may move from its recorded one, in deviations of the return; none: freely."""
    entropy: EntropyWeight = 0.01
    """Weight of the entropy bonus."""
    value_weight: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float | None = 0.5
    """Longest gradient of the policy and of the critic, per slot; none: any."""
    target_kl: float | None = None
    """Stop the passes once the policy has moved this far, in nats; none: never."""
    standardise_advantage: bool = True
    """Give the advantages of a minibatch mean 0 and deviation 1?"""
    normalise_value: bool = True
    """Keep the critic's outputs standardised (PopArt) whatever the scale of the rewards?"""
    team_reward: bool = False
    """Learn from the mean reward of the team in place of each agent's own?"""
    adam_eps: float = 1e-5
    """Term that keeps Adam's denominator from 0."""
    bootstraps_limits: bool = True
    """Does a time limit leave the value of what would have followed? (False: what is cut off counts for nothing.)"""
    accumulate: int = 1
    """Parts of a minibatch whose gradients are summed one after the other: the same step in less memory."""
    autocast: bool = False
    """Compute the networks in bfloat16 where the device supports it?"""
    compile: bool = False
    """Compile acting and the loss for this machine? A minute at the start, then faster where tensors are small."""

    def __post_init__(self) -> None:
        refuse_beyond(self, COUNT, "rollout", "epochs", "minibatches", "accumulate")
        refuse_beyond(self, SHARE, "gamma", "gae_lambda")
        refuse_beyond(self, POSITIVE, "lr", "adam_eps")
        refuse_beyond(self, POSITIVE, "clip", "value_clip", "max_grad_norm", "target_kl", or_none=True)


@dataclass(frozen=True)
class PPO(Clipped):
    """Policy and critic apart. Source: for teams de Witt et al. 2020 (IPPO) and Yu et al. 2022 (MAPPO)."""

    critic: Literal["local", "central"] = "central"
    """What the critic sees: each agent's own view (IPPO) or the state of the team (MAPPO)."""
    network: Network = field(default_factory=Network)
    """The policy's network."""
    critic_network: Network | None = None
    """The critic's network; none: shaped as the policy's."""

    def learner(self, team: TeamSpec, generator: torch.Generator) -> "PPOLearner":
        """A fresh learner of this team; every random number it ever needs comes from `generator`."""
        actor = Policy(team, self.network, self.sharing, generator)
        shape = critic_shape(self.critic_network, self.network, self.critic)
        critic = Critic(team, shape, self.critic, self.sharing, generator)
        return PPOLearner(self, ActorCritic(actor, critic), generator)


class PPOLearner:
    """PPO at work on one team, with any network that acts and writes values; `objective` may stand in for its loss:
    told a part of a minibatch and the whole, it tells what is descended and what to watch."""

    def __init__(
        self,
        config: Clipped,
        policy: ActorCritic | AutoregressiveTeam,
        generator: torch.Generator,
        objective: Loss | None = None,
    ) -> None:
        self.config = config
        self.generator = generator
        self.policy = policy.to(generator.device)
        self.experience = Rollouts(config.rollout)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), config.lr, eps=config.adam_eps, fused=True)
        self.env_steps = 0
        self.progress = 0.0
        self.by: Literal["row", "step"] = "row" if self.policy.initial_memory(1) != () else "step"
        if config.compile:
            self.policy.compile_acting(generator.device)
        self.descent = Descent(
            objective or self.loss,
            self.optimiser,
            self.policy.clipped_together(),
            config.max_grad_norm,
            generator.device if config.compile else None,
        )

    @property
    def fields(self) -> Mapping[str, Field]:
        """What acting and learning add to the team's fields."""
        next_value = "V of the step that follows, or of the real last one where cut"
        learned = {
            "next_value": Field(writer="the collector", doc=next_value),
            "advantage": Field(writer="the learner", doc="how much better the action was than the policy's average"),
            "target": Field(writer="the learner", doc="what the value should have been"),
        }
        return {**self.policy.fields(), **learned}

    def update(self, batch: Workspace) -> Metrics:
        """Learns from one rollout; returns the mean of each metric over its gradient steps."""
        config, lr = self.config, self._annealed()
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self._score(batch)
        taught = batch.subset((*self.policy.reads, *self.policy.writes, "start", "advantage", "target"))
        history: list[Metrics] = []
        for _ in range(config.epochs):
            for part in taught.minibatches(config.minibatches, self.by, self.generator):
                history.append(self._descend(part))
            if config.target_kl is not None and _mean(history[-config.minibatches :], "kl") > config.target_kl:
                break
        self.env_steps += batch.time * batch.envs
        # Observation statistics move last: until then the ratio is exactly that of the policy that acted.
        inputs = {name: batch[name][: batch.time] for name in self.policy.reads}
        self.policy.observe(inputs)
        steps = torch.tensor(float(len(history)))
        return {name: _mean(history, name) for name in history[0]} | {
            "gradient_steps": steps,
            "lr": torch.tensor(lr, dtype=torch.float64),
        }

    def _score(self, batch: Workspace) -> None:
        """Writes advantage and target, A_t = GAE (Schulman et al. 2016) and R_t = A_t + V_t, into the batch."""
        reward, value, next_value, cut = batch["reward", "value", "next_value", "cut"]
        discount = batch["discount"] * self.config.gamma
        if self.config.team_reward:
            alive = batch["agent_mask"][: batch.time]
            reward = masked_mean(reward, alive, dim=-1, keepdim=True).expand_as(reward)
            discount = discount.amax(-1, keepdim=True).expand_as(discount)
        if not self.config.bootstraps_limits:
            discount = discount * ~cut.unsqueeze(-1)
        batch["advantage"] = gae(reward, value, next_value, discount, cut, self.config.gae_lambda)
        batch["target"] = batch["advantage"] + value
        valued = self.policy.valued(batch)
        if not bool(batch["target"].masked_fill(~valued, 0).isfinite().all()):
            raise NonFiniteError("the target of the value is not finite", batch)
        if self.config.normalise_value:
            self.policy.head.rescale(batch["target"], valued)

    def loss(self, batch: Workspace, whole: Workspace | None = None) -> tuple[Tensor, Metrics]:
        """L = L_clip + c_v L_V - c_H H and what to watch, means over agents who chose (Schulman et al. 2017, eq. 9).

        Where `batch` is a part of a minibatch, `whole`: its share of these means, so that parts add up.
        """
        config, whole = self.config, whole or batch
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=config.autocast):
            new = replay(self.policy, batch, given=self.policy.given)
        mask, decided = batch.decided, whole.decided
        advantage = batch["advantage"]
        if config.standardise_advantage:
            advantage = standardise(advantage, mask, (whole["advantage"], decided))
        log_ratio = (new["log_prob"] - batch["log_prob"]).masked_fill(~mask, 0)  # means nothing for who did not choose
        ratio = log_ratio.exp()
        scale = self.policy.head.deviation  # value errors in deviations of the return, whatever the rewards' scale
        value, behaviour_value, target = (each / scale for each in (new["value"], batch["value"], batch["target"]))
        value_error = clipped_value_loss(value, behaviour_value, target, config.value_clip)
        is_clipped = ((ratio - 1).abs() > (config.clip or torch.inf)).float()
        metrics = {
            "policy_loss": share_of_mean(clipped_surrogate(ratio, advantage, config.clip), mask, decided),
            "value_loss": share_of_mean(value_error, self.policy.valued(batch), self.policy.valued(whole)),
            "entropy": share_of_mean(new["entropy"], mask, decided),
            "kl": share_of_mean(kl_estimate(log_ratio), mask, decided),
            "clip_fraction": share_of_mean(is_clipped, mask, decided),
        }
        bonus = config.entropy * metrics["entropy"]
        loss = metrics["policy_loss"] + config.value_weight * metrics["value_loss"] - bonus
        return loss, {"loss": loss.detach()} | {name: metric.detach() for name, metric in metrics.items()}

    def _descend(self, batch: Workspace) -> Metrics:
        if self.config.accumulate == 1:
            return self.descent(batch, batch).watched
        parts = batch.minibatches(self.config.accumulate, self.by, self.generator)
        return self.descent.summed([(part, batch) for part in parts], batch).watched

    def _annealed(self) -> float:
        """The step size now: lr, or lr (1 - progress) and never below 0."""
        left = 1 - self.progress if self.config.anneal else 1.0
        return self.config.lr * max(left, 0.0)

    @property
    def parts(self) -> Parts:
        """What networks learned, by its names in the state."""
        return {"policy": self.policy, "optimiser": self.optimiser}

    def state_dict(self) -> dict[str, object]:
        """Weights and statistics, optimiser, step count and random state."""
        return {
            "policy": self.policy.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "env_steps": self.env_steps,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.optimiser.load_state_dict(deepcopy(state["optimiser"]))  # torch would share the moments with the giver
        self.env_steps = state["env_steps"]
        self.generator.set_state(state["generator"])


def _mean(history: list[Metrics], name: str) -> Tensor:
    return torch.stack([metrics[name] for metrics in history]).mean()
