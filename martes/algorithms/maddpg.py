"""Deterministic policy gradients with central critics: MADDPG, MATD3; of a team of one, DDPG and TD3."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim import Adam

from martes.algorithms.descent import Descent, restored, state_of
from martes.algorithms.learner import Metrics
from martes.algorithms.off_policy import Store
from martes.algorithms.rewards import Reward, refuse_unequal, rewards_of
from martes.data import Field, TeamSpec, Workspace
from martes.data.experience import Transitions
from martes.data.limits import COUNT, NATURAL, POSITIVE, SHARE, BatchSize, StepSize, UpdateRatio, refuse_beyond
from martes.maths.masks import masked_mean
from martes.maths.returns import n_step_returns
from martes.maths.statistics import empty_moments
from martes.networks import Network, Sharing
from martes.networks.deterministic import ActionNoise, DeterministicPolicy
from martes.networks.growth import Parts
from martes.networks.joint_critics import CriticForm, JointCritics, first_critic
from martes.networks.targets import Following, still_copy
from martes.networks.temporal import Inputs


@dataclass(frozen=True)
class MADDPG:
    """Each agent's policy climbs its critic, which sees what all see and do.

    Source: Lowe et al. 2017 (MADDPG), Ackermann et al. 2019 (MATD3); for one agent Lillicrap et al. 2016 (DDPG) and
    Fujimoto et al. 2018 (TD3).
    """

    twin_critics: bool = False
    """Learn two critics and believe the lower one (TD3)?"""
    policy_delay: int = 1
    """Updates of the critics for each of the policies and of the target networks (TD3: 2)."""
    target_noise: float = 0.0
    """Deviation of the noise on continuous actions of the target policies, in halves of their range (TD3: 0.2)."""
    target_clip: float = 0.5
    """The most that this noise may move an action."""
    sharing: Sharing = "group"
    """Which agents share parameters, of policies and of critics: all, those of a group, or none."""
    network: Network = field(default_factory=Network)
    """The policies' network."""
    critic_network: Network | None = None
    """The critics' network, without memory; none: shaped as the policies'. They know which agent they value."""
    critic_sees: Literal["state", "observations"] = "state"
    """What critics see beside the joint action: the team's state, where it has one, or what all agents observe."""
    noise: ActionNoise = field(default_factory=ActionNoise)
    """How training departs from what the policies would do."""
    random_start: bool = True
    """Act evenly at random until learning starts?"""
    reward: Reward = "own"
    """What is learned from: each agent's own reward; one for all, refused where they differ; its mean or sum."""
    normalise_reward: bool = False
    """Divide rewards by the deviation of all that were earned so far, by each agent while it was there?"""
    regularisation: float = 1e-3
    """Weight of the policies' mean squared score in their loss: keeps tanh and softmax from saturating."""
    gamma: float = 0.95
    """Discount of the return per step."""
    n_step: int = 1
    """Rewards in a target before it bootstraps."""
    rollout: int = 1
    """Steps of each environment between two looks at which updates are due."""
    ratio: UpdateRatio = 0.01
    """Updates for each environment step, however many environments there are."""
    warmup: int = 1000
    """Environment steps before learning starts; it also waits until a batch is there."""
    batch: BatchSize = 256
    """Steps, or sequences, of one update."""
    sequence: int = 1
    """Successive steps to learn from in each entry of a batch."""
    burn_in: int = 16
    """Steps before those that only fill the memory of policies that have one."""
    store: Store = field(default_factory=Store)
    """What is kept of the past, and which of it is drawn."""
    tau: float = 0.01
    """Share of the way that the target networks go at a time."""
    lr: StepSize = 1e-3
    """Step size of the policies' Adam."""
    critic_lr: StepSize = 1e-3
    """Step size of the critics' Adam."""
    adam_eps: float = 1e-8
    """Term that keeps Adam's denominator from 0."""
    max_grad_norm: float | None = 0.5
    """Longest gradient of policies and of critics, per slot; none: any."""
    compile: bool = False
    """Compile acting, losses and gradients for this machine? Half a minute at the start, then faster."""

    def __post_init__(self) -> None:
        refuse_beyond(self, COUNT, "policy_delay", "n_step", "rollout", "batch", "sequence")
        refuse_beyond(self, NATURAL, "warmup", "burn_in", "target_noise", "target_clip", "regularisation")
        refuse_beyond(self, SHARE, "gamma", "tau")
        refuse_beyond(self, POSITIVE, "ratio", "tau", "lr", "critic_lr", "adam_eps")
        refuse_beyond(self, POSITIVE, "max_grad_norm", or_none=True)

    def learner(self, team: TeamSpec, generator: torch.Generator) -> "MADDPGLearner":
        """A fresh learner of this team; every random number it ever needs comes from `generator`."""
        return MADDPGLearner(self, team, generator)


class Taken(NamedTuple):
    """What a team saw and did in a batch."""

    inputs: Inputs
    """What critics and the codes of actions read."""
    codes: Float[Tensor, "time env agent code"]
    joint: Inputs
    """What critics make of both."""
    counted: Bool[Tensor, "time env 1"]
    """The steps to learn from: not padding, nor what fills a memory, nor what only completes n-step returns."""
    valued: Bool[Tensor, "time env 1"]
    """Those of them at which somebody was there."""


class Errors(NamedTuple):
    """What a batch says of the values."""

    q: Float[Tensor, "time env critic agent"]
    """Of the joint action that was taken."""
    target: Float[Tensor, "time env agent"]
    mask: Bool[Tensor, "time env 1"]
    """True where a loss counts."""

    @property
    def td(self) -> Float[Tensor, "time env critic agent"]:
        """How far the values are above their targets."""
        return self.q - self.target.unsqueeze(-2)


class MADDPGLearner:
    """MADDPG at work on one team."""

    def __init__(self, config: MADDPG, team: TeamSpec, generator: torch.Generator) -> None:
        self.config, self.team, self.generator = config, team, generator
        self.policy = DeterministicPolicy(team, config.network, config.sharing, config.noise, generator)
        self.policy.is_random = config.random_start
        self.codes = self.policy.codes
        form = CriticForm(
            config.critic_network or config.network, config.sharing, 1 + config.twin_critics, config.critic_sees
        )
        self.critics = JointCritics(team, form, self.codes, generator)
        for module in (self.policy, self.critics):
            module.to(generator.device)
        self.judge = first_critic(self.critics, team, form, self.codes)
        self.target_policy, self.target_critics = still_copy(self.policy), still_copy(self.critics)
        self._follow = Following((self.target_policy, self.policy), (self.target_critics, self.critics))
        if config.compile:
            self.policy.compile_acting(generator.device)
        self.optimiser = Adam(self.policy.parameters(), config.lr, eps=config.adam_eps, fused=True)
        self.critic_optimiser = Adam(self.critics.parameters(), config.critic_lr, eps=config.adam_eps, fused=True)
        limit, device = config.max_grad_norm, generator.device if config.compile else None
        of = {"critic": (self.critics, self.critics.slots.count)}
        self.critic_descent = Descent(self.critic_loss, self.critic_optimiser, of, limit, device)
        of = {"policy": (self.policy, self.policy.slots.count)}
        self.descent = Descent(self.policy_loss, self.optimiser, of, limit, device)
        remembers = self.policy.body.remembers
        length = config.sequence + config.n_step - 1
        self.experience = config.store.replayed(
            team,
            tuple(dict.fromkeys((*self.policy.reads, *self.critics.reads))),
            Transitions(config.batch, length, config.burn_in if remembers else 0),
            config,
            generator,
        )
        self.experience.earned = empty_moments((team.size,)) if config.normalise_reward else None
        self.updates = self.env_steps = 0

    @property
    def fields(self) -> Mapping[str, Field]:
        """Acting adds nothing to the team's fields."""
        return {}

    def update(self, batch: Workspace) -> Metrics:
        """Learns from one batch: the critics, then, when it is their turn, the policies and the target networks."""
        config, taken = self.config, None if self.config.compile else self._taken(batch)
        if config.reward == "common":
            refuse_unequal(batch["reward"], batch.mask & self._counted(batch), self.team.agents)
        valued = self.critic_descent(batch, taken, self._noise(batch, config.target_noise))
        metrics = valued.watched
        self.experience.prioritise(batch, valued.told)
        self.updates += 1
        if self.updates % config.policy_delay == 0:
            metrics |= self.descent(batch, taken, self._noise(batch)).watched
            self._follow(config.tau)
        self.policy.observe(batch)
        if self.critics.norm is not None:
            self.critics.observe(self._at(batch, slice(0, batch.time)), self._valued(batch).squeeze(-1))
        self._explore(self.experience.env_steps)
        return metrics | {"noise": torch.tensor(self.policy.rate, dtype=torch.float64)}

    def _taken(self, batch: Workspace) -> Taken:
        inputs = self._at(batch, slice(0, batch.time))
        codes = self.codes.of_actions(batch["action"])
        return Taken(inputs, codes, self.critics.joint(inputs, codes), self._counted(batch), self._valued(batch))

    def _counted(self, batch: Workspace) -> Bool[Tensor, "time env 1"]:
        """The steps to learn from: not padding, nor what fills a memory, nor what only completes n-step returns."""
        counted = batch["counted"]
        if self.config.n_step > 1:  # the last steps only complete the returns of those before
            counted = counted & (counted.cumsum(0) <= self.config.sequence)
        return counted.unsqueeze(-1)

    def _valued(self, batch: Workspace) -> Bool[Tensor, "time env 1"]:
        """Those of them at which somebody was there."""
        return self._counted(batch) & batch.mask.any(-1, keepdim=True)

    def _explore(self, env_steps: int) -> None:
        self.env_steps = env_steps
        self.policy.rate, self.policy.is_random = self.config.noise.size(env_steps), False

    def targets(self, batch: Workspace, noise: Tensor | None = None) -> Float[Tensor, "time env agent"]:
        """y_i = r_i + gamma d_i min_k Q'_ki(x', a'), where a' = clip(mu'(o') + clip(N(0, sigma^2), -c, c), -1, 1).

        x' is what really followed, at a time limit too. Of choices a' is a draw of mu'. n_step makes longer returns.
        What is drawn for a' can be given. Source: Lowe et al. 2017, equation 6; Fujimoto et al. 2018, equations 10, 14.
        """
        then = slice(1, batch.time + 1)
        inputs = self._at(batch, then)
        noise = self._noise(batch, self.config.target_noise) if noise is None else noise
        with torch.no_grad():
            codes = self.codes.of_scores(self.target_policy.unrolled(batch, then), inputs, noise)
            next_value = self.target_critics(self.target_critics.joint(inputs, codes)).amin(-2)
        reward, discount = self._told(batch)
        return n_step_returns(reward, next_value, discount, batch["cut"], self.config.n_step)

    def _noise(self, batch: Workspace, sigma: float = 0.0) -> Float[Tensor, "time env agent *choices"] | None:
        """What draws choices, or moves continuous actions; None: nothing does."""
        if self.codes.is_continuous and sigma == 0:
            return None
        noise, most = self.codes.noise((batch.time, batch.envs), self.generator), self.config.target_clip
        return noise.mul_(sigma).clamp_(-most, most) if self.codes.is_continuous else noise

    def _told(self, batch: Workspace) -> tuple[Tensor, Tensor]:
        """Rewards and discounts [time env agent] as they are learned from: a team's last as long as any member does."""
        reward, discount, kind = batch["reward"], batch["discount"], self.config.reward
        if kind != "own":
            discount = discount.amax(-1, keepdim=True).expand_as(reward)
        reward = rewards_of(kind, reward, batch["agent_mask"][: batch.time], self.experience.earned)
        return reward.expand_as(discount), self.config.gamma * discount

    def errors(self, batch: Workspace, taken: Taken | None = None, noise: Tensor | None = None) -> Errors:
        """Q_ki(x, a) and its target, for every critic of every agent: a dead member's goes on while its team does."""
        taken = taken or self._taken(batch)
        return Errors(self.critics(taken.joint), self.targets(batch, noise), taken.valued)

    def critic_loss(
        self, batch: Workspace, taken: Taken | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Metrics, Float[Tensor, "env"]]:
        """L = mean_i sum_k w (Q_ki(x, a) - y_i)^2 over living teams, what to watch, and how far off each draw is."""
        q, target, mask = errors = self.errors(batch, taken, noise)
        distance = errors.td.detach().abs().mean(-2)
        loss = batch["weight"].unsqueeze(-1) * errors.td.square().sum(-2)
        means = masked_mean(torch.stack((loss, distance, q.detach().mean(-2), target)), mask, (1, 2, 3)).unbind()
        names = ("critic_loss", "td_error_abs", "q_taken_mean", "target_mean")
        metrics = {name: mean.detach() for name, mean in zip(names, means, strict=True)}
        return means[0], metrics, masked_mean(distance, mask, (0, 2))

    def policy_loss(
        self, batch: Workspace, taken: Taken | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        """L = mean_i -Q_1i(x, a_1 ... mu_i(o_i) ... a_N) + c mean score^2 over agents who chose, and what to watch.

        The others' actions stay those of the batch; what draws choices can be given. Source: Lowe et al. 2017, eq. 5.
        """
        taken = taken or self._taken(batch)
        scores = self.policy.unrolled(batch, slice(0, batch.time))
        own = self.codes.of_scores(scores, taken.inputs, self._noise(batch) if noise is None else noise)
        q = self.judge.replaced(taken.joint, (own - taken.codes) * taken.inputs["agent_mask"].unsqueeze(-1))
        size = (scores.square() * self.codes.share).flatten(3).sum(-1)
        loss = masked_mean(self.config.regularisation * size - q, batch.decided & taken.counted)
        return loss, {"policy_loss": loss.detach()}

    def _at(self, batch: Workspace, rows: slice) -> Inputs:
        """What critics and the codes of actions read, at some steps."""
        return {name: batch[name][rows] for name in (*self.critics.reads, *self.codes.reads, "agent_mask")}

    @property
    def parts(self) -> Parts:
        """What is learned and what follows it, by its names in the state."""
        learned = {"policy": self.policy, "critics": self.critics}
        targets = {"target_policy": self.target_policy, "target_critics": self.target_critics}
        optimisers = {"optimiser": self.optimiser, "critic_optimiser": self.critic_optimiser}
        return learned | targets | optimisers

    def state_dict(self) -> dict[str, object]:
        """Weights, target weights, optimisers and counters; random state and rewards are the experience's."""
        return state_of(self.parts, {"updates": self.updates, "env_steps": self.env_steps})

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores `state_dict`. Raises KeyError where it is the state of another kind of learner."""
        counters = restored(state, self.parts)
        self.updates = counters["updates"]
        if self.updates:
            self._explore(counters["env_steps"])
