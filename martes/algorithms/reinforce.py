"""REINFORCE: what led to a high return becomes likelier, by whole episodes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from martes.algorithms.descent import Descent, restored, state_of
from martes.algorithms.learner import Metrics
from martes.algorithms.off_policy import Store
from martes.algorithms.rewards import Reward, refuse_unequal, rewards_of
from martes.data import Field, Fields, TeamSpec, Workspace
from martes.data.experience import Finished
from martes.data.limits import COUNT, NATURAL, POSITIVE, SHARE, EntropyWeight, StepSize, refuse, refuse_beyond
from martes.maths.masks import masked_mean, standardise
from martes.maths.returns import reward_to_go
from martes.networks import Critic, Network, Policy, Sharing
from martes.networks.critics import critic_shape
from martes.networks.growth import Parts


@dataclass(frozen=True)
class Reinforce:
    """Policy gradient by the returns of whole episodes. Source: Williams 1992."""

    sharing: Sharing = "shared"
    """Which agents share parameters: all, those of a group, or none."""
    network: Network = field(default_factory=Network)
    """The policy's network."""
    baseline: Literal["none", "mean", "critic"] = "mean"
    """What returns are compared with: nothing, their mean over the batch, or what a critic expects."""
    critic: Literal["local", "central"] = "local"
    """What that critic sees: each agent's own view or the state of the team."""
    critic_network: Network | None = None
    """That critic's network; none: shaped as the policy's."""
    episodes: int = 16
    """Whole episodes of a gradient step, at least: all that have ended since the last one."""
    rollout: int = 32
    """Steps of each environment between two looks at how many episodes have ended."""
    store: Store = field(default_factory=lambda: Store(capacity=100_000))
    """Where episodes wait until they are learned from."""
    lr: StepSize = 1e-3
    """Step size of Adam."""
    gamma: float = 0.99
    """Discount of the return per step."""
    entropy: EntropyWeight = 0.01
    """Weight of the entropy bonus."""
    value_weight: float = 0.5
    """Weight of the critic's loss."""
    standardise: bool = True
    """Give what the policy is weighed by mean 0 and deviation 1 in each batch?"""
    reward: Reward = "own"
    """Each agent's own; one for all, refused where they differ; or the team's mean (of the living) or sum."""
    max_grad_norm: float | None = 0.5
    """Longest gradient of the policy and of the critic, per slot; none: any."""
    adam_eps: float = 1e-5
    """Term that keeps Adam's denominator from 0."""

    def __post_init__(self) -> None:
        refuse_beyond(self, COUNT, "episodes", "rollout")
        refuse_beyond(self, SHARE, "gamma")
        refuse_beyond(self, NATURAL, "entropy", "value_weight")
        refuse_beyond(self, POSITIVE, "lr", "adam_eps")
        refuse_beyond(self, POSITIVE, "max_grad_norm", or_none=True)
        usual = Store()
        for name in ("alpha", "folder", "device"):
            value, only = getattr(self.store, name), getattr(usual, name)
            cure = f"{'none' if only is None else only}: episodes wait beside the learner, each is learned from once"
            refuse(f"algorithm.store.{name}", value, value != only, cure)

    def learner(self, team: TeamSpec, generator: torch.Generator) -> "ReinforceLearner":
        """A fresh learner of this team; every random number it ever needs comes from `generator`."""
        return ReinforceLearner(self, team, generator)


class ReinforceLearner:
    """REINFORCE at work on one team."""

    def __init__(self, config: Reinforce, team: TeamSpec, generator: torch.Generator) -> None:
        self.config, self.agents = config, team.agents
        self.policy = Policy(team, config.network, config.sharing, generator).to(generator.device)
        self.critic: Critic | None = None
        if config.baseline == "critic":
            shape = critic_shape(config.critic_network, config.network, config.critic)
            self.critic = Critic(team, shape, config.critic, config.sharing, generator).to(generator.device)
        reads = (*self.policy.reads, *(self.critic.reads if self.critic is not None else ()))
        chosen = {name: added for name, added in self.policy.fields().items() if name == self.policy.choice}
        schema = config.store.schema(team, tuple(dict.fromkeys(reads))).extended(**chosen)
        self.experience = Finished(schema, config.episodes, config.rollout, config.store.capacity, generator.device)
        clipped: dict[str, tuple[nn.Module, int]] = {"policy": (self.policy, self.policy.slots.count)}
        if self.critic is not None:
            clipped["critic"] = (self.critic, self.critic.body.slots.count)
        learned = [parameter for module, _ in clipped.values() for parameter in module.parameters()]
        self.optimiser = torch.optim.Adam(learned, config.lr, eps=config.adam_eps, fused=True)
        modules = {name: module for name, (module, _) in clipped.items()}
        self.parts: Parts = {**modules, "optimiser": self.optimiser}
        self.descent = Descent(self.loss, self.optimiser, clipped, config.max_grad_norm)
        self.updates = 0

    @property
    def fields(self) -> Mapping[str, Field]:
        """What acting adds to the team's fields."""
        return self.policy.fields()

    def update(self, batch: Workspace) -> Metrics:
        """Learns from whole episodes, one gradient step; returns what to watch."""
        if self.config.reward == "common":
            refuse_unequal(batch["reward"], batch.mask, self.agents)
        target = self.returns(batch)
        if self.critic is not None:
            self.critic.head.rescale(target, batch.mask)
        metrics = self.descent(batch).watched
        self.policy.body.observe(self._seen(batch), batch.mask)
        if self.critic is not None:
            self.critic.observe(self._seen(batch))
        self.updates += 1
        return metrics

    def returns(self, batch: Workspace) -> Float[Tensor, "time env agent"]:
        """G_t = r_t + gamma d_t G_{t+1} up to the end of the episode; nothing is added where a time limit cuts it."""
        discount = batch["discount"]
        if self.config.reward != "own":
            discount = discount.amax(-1, keepdim=True).expand_as(discount)
        reward = rewards_of(self.config.reward, batch["reward"], batch["agent_mask"][: batch.time])
        return reward_to_go(reward.expand_as(discount), self.config.gamma * discount, batch["cut"])

    def loss(self, batch: Workspace) -> tuple[Tensor, Metrics]:
        """L = -mean (G_t - b) log pi(a_t) - c_H H + c_V mean (V_t - G_t)^2 / 2, over agents who chose (section 5).

        Rows are whole episodes: memory is fresh before them, and what fills them up to the longest counts nowhere.
        """
        config, mask, target = self.config, batch.decided, self.returns(batch)
        inputs = {**self._seen(batch), self.policy.choice: batch[self.policy.choice]}
        memory = self.policy.initial_memory(batch.envs)
        new, _ = self.policy.sequence(inputs, memory, batch["start"][: batch.time])
        expected, value_loss = self._expected(batch, target)
        weight = target - expected
        if config.standardise:
            weight = standardise(weight, mask)
        metrics = {
            "policy_loss": -masked_mean(weight * new["log_prob"], mask),
            "entropy": masked_mean(new["entropy"], mask),
            "return_to_go": masked_mean(target, batch.mask),
        }
        if self.critic is not None:
            metrics["value_loss"] = value_loss
        loss = metrics["policy_loss"] - config.entropy * metrics["entropy"] + config.value_weight * value_loss
        return loss, {"loss": loss.detach()} | {name: metric.detach() for name, metric in metrics.items()}

    def _expected(self, batch: Workspace, target: Tensor) -> tuple[Float[Tensor, "#time #env #agent"], Tensor]:
        """The baseline b, without gradient, and the critic's loss in deviations of the return."""
        if self.critic is None:
            is_mean = self.config.baseline == "mean"
            mean = masked_mean(target, batch.decided) if is_mean else target.new_zeros(())
            return mean.reshape(1, 1, 1), target.new_zeros(())
        start, memory = batch["start"][: batch.time], self.critic.initial_memory(batch.envs)
        value = self.critic.sequence(self._seen(batch), memory, start)[0]["value"]
        error = (value - target) / self.critic.head.deviation
        return value.detach(), 0.5 * masked_mean(error.square(), batch.mask)

    def _seen(self, batch: Workspace) -> Fields:
        """What networks read at each step, without the real last observation: nothing was chosen there."""
        reads = (*self.policy.reads, *(self.critic.reads if self.critic is not None else ()))
        return {name: batch[name][: batch.time] for name in reads}

    def state_dict(self) -> dict[str, object]:
        """Weights and statistics, optimiser and counter; random state and waiting episodes are the experience's."""
        return state_of(self.parts, {"updates": self.updates})

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restores `state_dict`."""
        self.updates = restored(state, self.parts)["updates"]
