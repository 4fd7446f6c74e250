"""Counterfactual multi-agent policy gradients: what would the team have earned, had this agent alone done otherwise?"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import Adam

from martes.algorithms.descent import Descent
from martes.algorithms.learner import Metrics
from martes.algorithms.rewards import Reward, refuse_unequal, rewards_of
from martes.data import Discrete, Field, Fields, TeamSpec, Workspace
from martes.data.allocation import tensor_at
from martes.data.experience import Rollouts
from martes.data.limits import COUNT, POSITIVE, SHARE, EntropyWeight, Passes, StepSize, refuse_beyond
from martes.errors import ConfigError, NonFiniteError
from martes.maths.distributions import Categorical
from martes.maths.masks import masked_mean
from martes.maths.returns import lambda_returns
from martes.maths.schedules import Linear
from martes.maths.statistics import Moments, empty_moments, merged_moments
from martes.networks import Network, Policy, Sharing
from martes.networks.counterfactual import Counterfactual, CounterfactualCritic, chosen_q, parts_of_memory
from martes.networks.growth import Parts
from martes.networks.targets import follow


@dataclass(frozen=True)
class COMA:
    """Decentralised policies whose gradient weighs an action against the agent's other actions, by a central critic.

    Source: Foerster et al. 2018, "Counterfactual Multi-Agent Policy Gradients".
    """

    sharing: Sharing = "shared"
    """Which agents share parameters: all, those of a group, or none."""
    network: Network = field(default_factory=Network)
    """The policy's network."""
    critic_network: Network | None = None
    """The critic's network, without memory; none: shaped as the policy's. It is always told which agent it values."""
    rollout: int = 32
    """Steps of each environment between two updates."""
    lr: StepSize = 5e-4
    """Step size of the policy's Adam: one step an update."""
    critic_lr: StepSize = 5e-4
    """Step size of the critic's Adam."""
    critic_epochs: Passes = 1
    """Passes of the critic over a rollout, towards targets that stay as they are."""
    critic_by: Literal["rollout", "step"] = "rollout"
    """One gradient step of the critic for a whole rollout, or for each time step from the last to the first."""
    target_every: int = 200
    """Updates, each of one rollout, between two copies of the critic into its target network."""
    gamma: float = 0.99
    """Discount of the return per step."""
    td_lambda: float = 0.8
    """Weight of long returns in the critic's targets: 0 is one-step, 1 is Monte Carlo."""
    entropy: EntropyWeight = 0.01
    """Weight of the entropy bonus."""
    epsilon_start: float = 0.0
    """Share of actions that the policy makes evenly among the legal ones, at first."""
    epsilon_end: float = 0.0
    """That share in the end."""
    epsilon_steps: int = 100_000
    """Environment steps over which that share moves from its start to its end, in equal differences."""
    max_grad_norm: float | None = 10.0
    """Longest gradient of the policy and of the critic, per slot; none: any."""
    reward: Reward = "common"
    """What is learned from: the reward that all have in common (refused where they differ), its mean or sum, or own."""
    scale_reward: bool = False
    """Divide rewards by the deviation of all that were earned so far? (Their mean stays: it says how long to play.)"""
    advantage: Literal["critic", "return"] = "critic"
    """What the baseline is taken from: the critic's value of the action, as in the paper, or the return that came."""
    scale_advantage: bool = False
    """Divide advantages by their root mean square in a rollout, in place of the deviation of the return?"""
    normalise_value: bool = True
    """Learn in deviations of the return, critic (PopArt) and policy alike, whatever the scale of the rewards?"""
    adam_eps: float = 1e-5
    """Term that keeps Adam's denominator from 0."""

    def __post_init__(self) -> None:
        refuse_beyond(self, COUNT, "rollout", "critic_epochs", "target_every")
        refuse_beyond(self, SHARE, "gamma", "td_lambda", "epsilon_start", "epsilon_end")
        refuse_beyond(self, POSITIVE, "lr", "critic_lr", "adam_eps", "epsilon_steps")
        refuse_beyond(self, POSITIVE, "max_grad_norm", or_none=True)
        if self.critic_network is not None and self.critic_network.memory != "none":
            raise ConfigError("algorithm.critic_network.memory: the critic sees the state and has no memory; give none")

    def learner(self, team: TeamSpec, generator: torch.Generator) -> "COMALearner":
        """A fresh learner of this team; every random number it ever needs comes from `generator`."""
        return COMALearner(self, team, generator)


def counterfactual_advantage(
    q: Float[Tensor, "*lead action"], pi: Float[Tensor, "*lead action"], action: Int[Tensor, "*lead"]
) -> Float[Tensor, "*lead"]:
    """How much better the action was than what the policy would have earned on average, all others acting as they did.

    A(s, u) = Q(s, u) - sum_u' pi(u' | tau) Q(s, (u^-a, u')). Source: Foerster et al. 2018, equation 4.
    """
    return chosen_q(q, action) - (pi * q).sum(-1)


class COMALearner:
    """COMA at work on one team."""

    def __init__(self, config: COMA, team: TeamSpec, generator: torch.Generator) -> None:
        if team.action_kind is not Discrete:
            raise ConfigError(
                f"coma values each action of an agent: it needs Discrete actions, and this team's are "
                f"{team.action_kind.__name__}. Make them Discrete in the environment, or take mappo"
            )
        self.config = config
        self.agents = team.agents
        self.generator = generator
        self.epsilon = Linear(config.epsilon_start, config.epsilon_end, config.epsilon_steps)
        floor = config.epsilon_start if max(config.epsilon_start, config.epsilon_end) > 0 else None
        self.actor = Policy(team, config.network, config.sharing, generator, floor)
        told = replace(config.critic_network or config.network, memory="none", agent_id=True)
        self.critic = CounterfactualCritic(team, told, config.sharing, generator)
        self.policy = Counterfactual(self.actor, self.critic).to(generator.device)
        self.experience = Rollouts(config.rollout)
        self.optimiser = Adam(self.actor.parameters(), config.lr, eps=config.adam_eps, fused=True)
        self.critic_optimiser = Adam(self.critic.parameters(), config.critic_lr, eps=config.adam_eps, fused=True)
        limit = config.max_grad_norm
        self.descent = Descent(self.loss, self.optimiser, {"agent": (self.actor, self.actor.slots.count)}, limit)
        self.critic_descent = Descent(
            self.critic_loss, self.critic_optimiser, {"critic": (self.critic, self.critic.body.slots.count)}, limit
        )
        self.earned = empty_moments(device=generator.device) if config.scale_reward else None
        self.env_steps = self.updates = 0

    @property
    def fields(self) -> Mapping[str, Field]:
        """What acting and learning add to the team's fields."""
        next_value = "Q' of the joint action that followed, or of one drawn for the real last step where cut"
        return {
            **self.policy.fields(),
            "next_value": Field(writer="the collector", doc=next_value),
            "target": Field(writer="the learner", doc="what Q of the taken action should have been"),
        }

    def update(self, batch: Workspace) -> Metrics:
        """Learns from one rollout: the critic first, then one step of the policy by the critic as it is then."""
        config = self.config
        if self.earned is not None:
            self.earned = merged_moments(self.earned, batch["reward"], batch.mask)
        self._score(batch)
        history = [
            self.critic_descent(part).watched for _ in range(config.critic_epochs) for part in self._parts(batch)
        ]
        metrics = {name: torch.stack([each[name] for each in history]).mean() for name in history[0]}
        metrics |= self.descent(batch).watched
        inputs = self._inputs(batch)
        self.actor.body.observe(inputs, inputs["agent_mask"])
        self.critic.observe(inputs)
        self.updates += 1
        if self.updates % config.target_every == 0:
            follow(self.policy.target, self.critic)
        self.env_steps += batch.time * batch.envs
        if self.actor.floor is not None:
            metrics["epsilon"] = self.actor.floor.clone()
            self.actor.floor.fill_(self.epsilon(self.env_steps))
        return metrics

    def _parts(self, batch: Workspace) -> Iterator[Workspace]:
        """What the critic takes its steps on: the whole rollout, or its time steps, the last first."""
        if self.config.critic_by == "rollout":
            yield batch
            return
        for t in reversed(range(batch.time)):
            yield batch.window(t, t + 1)

    def _inputs(self, batch: Workspace) -> Fields:
        return {name: batch[name][: batch.time] for name in (*self.policy.reads, "action", "last_action")}

    @torch.no_grad()
    def _score(self, batch: Workspace) -> None:
        """Writes the targets y = TD(lambda) of Q'(s, u), the target network's values of what was done."""
        reward, discount, cut, next_value = batch["reward", "discount", "cut", "next_value"]
        value = chosen_q(self.policy.target(self._inputs(batch)), batch["action"])
        next_value[:-1] = torch.where(cut[:-1].unsqueeze(-1), next_value[:-1], value[1:])
        if self.config.reward == "common":
            refuse_unequal(reward, batch.mask, self.agents)
        if self.config.reward != "own":
            discount = discount.amax(-1, keepdim=True).expand_as(discount)
        alive = batch["agent_mask"][: batch.time]
        reward = rewards_of(self.config.reward, reward, alive, self.earned).expand_as(discount)
        discount = discount * self.config.gamma
        batch["target"] = lambda_returns(reward, next_value, discount, cut, self.config.td_lambda)
        target, valued = batch["target"], self._valued(batch)
        if not bool(target.masked_fill(~valued, 0).isfinite().all()):
            raise NonFiniteError("the target of the critic is not finite", batch)
        if self.config.normalise_value:
            self.critic.head.rescale(target, valued)

    def _valued(self, batch: Workspace) -> Tensor:
        """Where values are learned: at every step of a living team, since a dead member's go on with it."""
        return batch.mask.any(-1, keepdim=True).expand_as(batch.mask)

    def loss(self, batch: Workspace) -> tuple[Tensor, Metrics]:
        """L = -mean A log pi(u | tau) - c_H mean H over agents who chose; A is held fixed, and scaled."""
        config, mask = self.config, batch.decided
        pi = self._distribution(batch)
        with torch.no_grad():
            q = self.critic(self._inputs(batch))
            advantage = counterfactual_advantage(q, pi.log_probs.exp(), batch["action"])
            if config.advantage == "return":
                advantage += batch["target"] - chosen_q(q, batch["action"])
            scale = self.critic.head.deviation
            if config.scale_advantage:
                scale = masked_mean(advantage.square(), mask).sqrt().clamp(min=1e-8)
        weight = (advantage / scale).masked_fill(~mask, 0)  # the return of who is absent is anything
        entropy = masked_mean(pi.entropy(), mask)
        loss = -masked_mean(weight * pi.log_prob(batch["action"]), mask) - config.entropy * entropy
        metrics = {
            "coma_loss": loss,
            "advantage_mean": masked_mean(advantage, mask),
            "pi_max": masked_mean(pi.log_probs.exp().amax(-1), mask),
            "entropy": entropy,
        }
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def critic_loss(self, batch: Workspace) -> tuple[Tensor, Metrics]:
        """L = mean (y - Q(s, u))^2 over the steps of living teams, in deviations of the return (section 4.1)."""
        mask, target = self._valued(batch), batch["target"]
        q = chosen_q(self.critic(self._inputs(batch)), batch["action"])
        error = target - q
        loss = masked_mean((error / self.critic.head.deviation).square(), mask)
        metrics = {
            "critic_loss": loss,
            "td_error_abs": masked_mean(error.abs(), mask),
            "q_taken_mean": masked_mean(q, mask),
            "target_mean": masked_mean(target, mask),
        }
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def _distribution(self, batch: Workspace) -> Categorical:
        """pi of the policy that acted, floor included, at every step of the record, with gradient."""
        inputs = {name: batch[name][: batch.time] for name in self.actor.reads}
        memory, _ = parts_of_memory(batch.memory)
        features, _ = self.actor.body.sequence(inputs, memory, batch["start"][: batch.time])
        pi = self.actor.distribution(features, inputs)
        assert isinstance(pi, Categorical)
        return pi

    @property
    def parts(self) -> Parts:
        """What networks learned, by its names in the state."""
        return {"policy": self.policy, "optimiser": self.optimiser, "critic_optimiser": self.critic_optimiser}

    def state_dict(self) -> dict[str, object]:
        """Weights and statistics of policy, critic and target, optimisers, counters and random state."""
        counters = torch.tensor([self.env_steps, self.updates])
        saved = {name: part.state_dict() for name, part in self.parts.items()}
        earned = {} if self.earned is None else {"earned": torch.stack(self.earned)}
        return {**saved, **earned, "counters": counters, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restores `state_dict`."""
        for name, part in self.parts.items():
            saved = state[name]
            assert isinstance(saved, dict)
            part.load_state_dict(deepcopy(saved))  # torch would share the moments with the giver
        env_steps, updates = tensor_at(state, "counters").tolist()
        self.env_steps, self.updates = int(env_steps), int(updates)
        if self.earned is not None:
            self.earned = Moments(*tensor_at(state, "earned").unbind())
        self.generator.set_state(tensor_at(state, "generator"))
