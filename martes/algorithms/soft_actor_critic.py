"""Soft actor-critic: the best return of those policies that stay as undecided as asked; alone, or in a team (MASAC)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Adam

from martes.algorithms.descent import Descent, restored, state_of
from martes.algorithms.learner import Metrics
from martes.algorithms.off_policy import Store
from martes.algorithms.rewards import Reward, refuse_unequal, rewards_of
from martes.data import Field, MultiDiscrete, TeamSpec, Workspace
from martes.data.experience import Transitions
from martes.data.limits import COUNT, NATURAL, POSITIVE, SHARE, BatchSize, StepSize, UpdateRatio, refuse_beyond
from martes.errors import ConfigError
from martes.maths.distributions import Categorical, SquashedGaussian
from martes.maths.masks import masked_mean
from martes.maths.returns import n_step_returns
from martes.networks import Network, Policy, Sharing
from martes.networks.deterministic import ActionCodes
from martes.networks.growth import Parts
from martes.networks.joint_critics import CriticForm
from martes.networks.sharing import slot_of_agents
from martes.networks.targets import follow, still_copy
from martes.networks.temporal import Inputs
from martes.networks.twin_critics import TwinCritics


@dataclass(frozen=True)
class SAC:
    """Policies that climb their soft values, by central critics of the joint action.

    Source: Haarnoja et al. 2018 (a, b); of choices Christodoulou 2019; the critics of teams Lowe et al. 2017.
    """

    sharing: Sharing = "shared"
    """Which agents share parameters, of policies, critics and temperatures: all, those of a group, or none."""
    network: Network = field(default_factory=Network)
    """The policies' network."""
    critic_network: Network | None = None
    """The critics' network, without memory; none: shaped as the policies'. They know which agent they value."""
    temperature: float = 1.0
    """Worth of a nat of entropy, at first."""
    tuned: bool = True
    """Move the temperature so that the entropy comes to what is asked?"""
    dimension_entropy: float = -1.0
    """Nats that are asked for each real number of an action, where its range is [-1, 1]."""
    choice_entropy: float = 0.3
    """Share of the highest entropy (that of a draw among all legal actions) that is asked of choices."""
    lr: StepSize = 1e-3
    """Step size of the policies' Adam."""
    critic_lr: StepSize = 1e-3
    """Step size of the critics' Adam."""
    temperature_lr: StepSize = 1e-3
    """Step size of the temperatures' Adam."""
    gamma: float = 0.99
    """Discount of the return per step."""
    tau: float = 0.005
    """Share of the way that the target critics go at every update."""
    n_step: int = 1
    """Rewards in a target before it bootstraps."""
    reward: Reward = "own"
    """What is learned from: each agent's own reward; one for all, refused where they differ; its mean or sum."""
    ratio: UpdateRatio = 0.25
    """Updates for each environment step, however many environments there are."""
    rollout: int = 1
    """Steps of each environment between two looks at which updates are due."""
    warmup: int = 1000
    """Environment steps before learning starts; it also waits until a batch is there."""
    burn_in: int = 16
    """Steps before those to learn from that only fill the memory of policies that have one."""
    batch: BatchSize = 256
    """Steps of one update."""
    store: Store = field(default_factory=Store)
    """What is kept of the past, and which of it is drawn."""
    max_grad_norm: float | None = None
    """Longest gradient of policies and of critics, per slot; none: any."""
    adam_eps: float = 1e-8
    """Term that keeps Adam's denominator from 0."""
    compile: bool = False
    """Compile the losses and their gradients for this machine? Half a minute at the start, then faster."""

    def __post_init__(self) -> None:
        refuse_beyond(self, SHARE, "gamma", "tau", "choice_entropy")
        refuse_beyond(self, NATURAL, "warmup", "burn_in")
        refuse_beyond(self, COUNT, "rollout", "batch", "n_step")
        refuse_beyond(self, POSITIVE, "ratio", "temperature", "lr", "critic_lr", "temperature_lr", "adam_eps")
        refuse_beyond(self, POSITIVE, "max_grad_norm", or_none=True)

    def learner(self, team: TeamSpec, generator: torch.Generator) -> "SACLearner":
        """A fresh learner of this team; every random number it ever needs comes from `generator`."""
        return SACLearner(self, team, generator)


class Drawn(NamedTuple):
    """What the policies would do now, with gradient: one joint action, and how likely it is."""

    codes: Float[Tensor, "time env agent code"]
    """As critics read it."""
    log_prob: Float[Tensor, "time env agent"]
    """Of choices: their mean, -H. 0 where the environment acts in an agent's place."""
    probs: Float[Tensor, "time env agent action"] | None
    """Of every choice; all of it on what is forced."""

    def rows(self, rows: slice) -> "Drawn":
        """Some steps of it."""
        return Drawn(self.codes[rows], self.log_prob[rows], None if self.probs is None else self.probs[rows])


class SACLearner:
    """Soft actor-critic at work on one team."""

    def __init__(self, config: SAC, team: TeamSpec, generator: torch.Generator) -> None:
        if team.action_kind is MultiDiscrete:
            raise ConfigError("sac takes real-valued actions or one choice an agent, not several at once: take mappo")
        self.config, self.team, self.generator = config, team, generator
        device = generator.device
        self.policy = Policy(team, config.network, config.sharing, generator, sees_spread=True).to(device)
        self.codes = ActionCodes(team).to(device)
        form = CriticForm(config.critic_network or config.network, config.sharing)
        self.critics = TwinCritics(team, form, self.codes, generator).to(device)
        self.target_critics = still_copy(self.critics)
        self.slots = slot_of_agents(team, config.sharing)
        start = torch.full((self.policy.slots.count,), config.temperature, device=device)
        self.log_temperature = nn.ParameterList([nn.Parameter(start.log())])
        self.optimiser = Adam(self.policy.parameters(), config.lr, eps=config.adam_eps, fused=True)
        self.critic_optimiser = Adam(self.critics.parameters(), config.critic_lr, eps=config.adam_eps, fused=True)
        self.temperature_optimiser = Adam(self.log_temperature.parameters(), config.temperature_lr)
        of = {"policy": (self.policy, self.policy.slots.count)}, {"critic": (self.critics, self.critics.slot_count)}
        how = config.max_grad_norm, device if config.compile else None
        self.descent = Descent(self.policy_loss, self.optimiser, of[0], *how)
        self.critic_descent = Descent(self.critic_loss, self.critic_optimiser, of[1], *how)
        self.temperature_descent = Descent(self.temperature_loss, self.temperature_optimiser, {}, None)
        burn_in = config.burn_in if self.policy.initial_memory(1) != () else 0
        reads = tuple(dict.fromkeys((*self.policy.reads, *self.critics.reads)))
        drawn = Transitions(config.batch, config.n_step, burn_in)
        self.experience = config.store.replayed(team, reads, drawn, config, generator)
        self.updates = 0

    @property
    def fields(self) -> Mapping[str, Field]:
        """What acting adds to the team's fields."""
        return self.policy.fields()

    @property
    def temperature(self) -> Float[Tensor, "agent"]:
        """alpha of each agent, without gradient."""
        return self.log_temperature[0].detach().exp()[list(self.slots)]

    def update(self, batch: Workspace) -> Metrics:
        """Learns from one batch: critics, policies, temperatures, target critics."""
        config = self.config
        if config.reward == "common":
            refuse_unequal(batch["reward"], batch.mask & self._counted(batch), self.team.agents)
        noise = self.codes.noise((batch.time + 1, batch.envs), self.generator)
        drawn = noise if config.compile else self.drawn(batch, noise)  # compiled, each loss makes of it what it needs
        valued = self.critic_descent(batch, drawn)
        self.experience.prioritise(batch, valued.told)
        climbed = self.descent(batch, drawn)
        if config.tuned:
            self.temperature_descent(batch, climbed.told)
        follow(self.target_critics, self.critics, config.tau)
        self._observe(batch)
        self.updates += 1
        return valued.watched | climbed.watched | {"temperature": self.temperature.mean()}

    def drawn(self, batch: Workspace, noise: Drawn | Tensor | None = None) -> Drawn:
        """What the policies would do at each step of a batch and at what followed; memory is fresh before it."""
        if isinstance(noise, Drawn):
            return noise
        noise = self.codes.noise((batch.time + 1, batch.envs), self.generator) if noise is None else noise
        inputs: Inputs = {name: batch[name] for name in self.policy.reads}
        features, _ = self.policy.body.sequence(inputs, self.policy.initial_memory(batch.envs), batch["start"])
        pi = self.policy.distribution(features, inputs)
        if isinstance(pi, SquashedGaussian):
            sample = pi.sample(noise)
            codes, log_prob, probs = sample.tanh() * self.codes.legal, pi.log_prob(sample), None
        else:
            assert isinstance(pi, Categorical)
            probs = pi.log_probs.exp()
            codes = self.codes.of_actions(pi.sample(noise))
            # 0 log 0 = 0, in the gradient too: log 0 is so low that a temperature above 1 would make it infinite.
            log_prob = (probs * pi.log_probs.masked_fill(probs == 0, 0.0)).sum(-1)
        if "forced" in inputs:
            forced, done = inputs["forced"], self.codes.of_actions(inputs["forced_action"])
            codes, log_prob = torch.where(forced.unsqueeze(-1), done, codes), log_prob.masked_fill(forced, 0.0)
            probs = None if probs is None else torch.where(forced.unsqueeze(-1), done, probs)
        return Drawn(codes, log_prob, probs)

    def soft_values(
        self, critics: TwinCritics, inputs: Inputs, own: Drawn, others: Float[Tensor, "time env agent code"]
    ) -> Float[Tensor, "time env agent"]:
        """V_i = E[min_k Q_ki(x, a_1 ... a_i ... a_N) - alpha_i log pi_i(a_i)], a_i of `own`, all else of `others`.

        E is one draw, or the sum over all choices; an agent that is absent, or is acted for, has no entropy.
        Source: Haarnoja et al. 2018b, equation 3, with two critics; Christodoulou 2019, equation 10.
        """
        paid = self.temperature * inputs["agent_mask"] * -own.log_prob
        if own.probs is None:
            return critics.lower(inputs, others, own.codes) + paid
        return (own.probs * critics.of_choices(inputs, others)).sum(-1) + paid

    def targets(self, batch: Workspace, drawn: Drawn) -> Float[Tensor, "time env agent"]:
        """y_i = r_i + gamma d_i V'_i(x'), x' what really followed, at a time limit too; n_step makes it longer."""
        reward, discount, kind = batch["reward"], batch["discount"], self.config.reward
        then = slice(1, batch.time + 1)
        with torch.no_grad():
            done = drawn.rows(then)
            next_value = self.soft_values(self.target_critics, self._at(batch, then), done, done.codes)
        if kind != "own":
            discount = discount.amax(-1, keepdim=True).expand_as(discount)
        paid = rewards_of(kind, reward, batch["agent_mask"][: batch.time]).expand_as(discount)
        return n_step_returns(paid, next_value, self.config.gamma * discount, batch["cut"], self.config.n_step)

    def critic_loss(self, batch: Workspace, drawn: Drawn | Tensor) -> tuple[Tensor, Metrics, Float[Tensor, "env"]]:
        """L = mean_i sum_k w (Q_ki(x, a) - y_i)^2 over living teams, what to watch, and each draw's error."""
        target = self.targets(batch, self.drawn(batch, drawn))
        mask = batch.mask.any(-1, keepdim=True) & self._counted(batch)
        q = self.critics(self._at(batch, slice(0, batch.time)), self.codes.of_actions(batch["action"]))
        error = q - target
        loss = masked_mean(batch["weight"].unsqueeze(-1) * error.square().sum(0), mask)
        distance = error.detach().abs().mean(0)
        metrics = {
            "critic_loss": loss,
            "td_error_abs": masked_mean(distance, mask),
            "q_taken_mean": masked_mean(q.detach().mean(0), mask),
        }
        return loss, metrics, masked_mean(distance, mask, (0, 2))

    def policy_loss(self, batch: Workspace, drawn: Drawn | Tensor) -> tuple[Tensor, Metrics, Tensor]:
        """L = mean_i E[alpha_i log pi_i(a_i) - min_k Q_ki(x, a_1 ... a_i ... a_N)] over agents who chose.

        The others' actions are those of the batch. Source: Haarnoja et al. 2018b, equation 9; of choices, over all of
        them: Christodoulou 2019, equation 12.
        """
        now = slice(0, batch.time)
        own, taken = self.drawn(batch, drawn).rows(now), self.codes.of_actions(batch["action"])
        mask = batch.decided & self._counted(batch)
        loss = -masked_mean(self.soft_values(self.critics, self._at(batch, now), own, taken), mask)
        watched = {"policy_loss": loss, "entropy": -masked_mean(own.log_prob.detach(), mask)}
        return loss, watched, own.log_prob

    def temperature_loss(self, batch: Workspace, log_prob: Tensor) -> tuple[Tensor, Metrics]:
        """L = -mean_i log alpha_i (log pi_i + H) over agents who chose, H what is asked.

        log alpha stands for alpha: its gradient does not fade where alpha is small.
        Source: Haarnoja et al. 2018b, equation 18.
        """
        log_temperature = self.log_temperature[0][list(self.slots)]
        lack = self.asked_entropy(batch) + log_prob
        return -masked_mean(log_temperature * lack, batch.decided & self._counted(batch)), {}

    def asked_entropy(self, batch: Workspace) -> Float[Tensor, "time env agent"]:
        """H of each agent at each step, in nats: more where its box is wider, or more actions are legal."""
        legal = self.codes.legal.expand(*batch.mask.shape, -1)
        if self.codes.is_continuous:
            half_width = ((self.codes.high - self.codes.low) / 2).log()
            return ((self.config.dimension_entropy + half_width) * legal).sum(-1)
        if self.team.masks_actions:
            legal = legal & batch["action_mask"][: batch.time]
        return self.config.choice_entropy * legal.sum(-1).clamp(min=1).log()

    def _observe(self, batch: Workspace) -> None:
        """Moves the statistics of observations by the steps that count."""
        counted = batch["counted"]
        inputs = {name: batch[name][: batch.time] for name in self.policy.reads}
        self.policy.body.observe(inputs, batch.mask & counted.unsqueeze(-1))
        self.critics.observe(self._at(batch, slice(0, batch.time)), batch.mask.any(-1) & counted)

    def _at(self, batch: Workspace, rows: slice) -> Inputs:
        return {name: batch[name][rows] for name in (*self.critics.reads, "agent_mask")}

    def _counted(self, batch: Workspace) -> Bool[Tensor, "time env 1"]:
        """The first step that is no burn-in: those behind it only complete n-step returns."""
        counted = batch["counted"]
        return (counted & (counted.cumsum(0) <= 1)).unsqueeze(-1)

    @property
    def parts(self) -> Parts:
        """What is learned and what follows it, by its names in the state."""
        networks = {"policy": self.policy, "critics": self.critics, "target_critics": self.target_critics}
        optimisers = {"optimiser": self.optimiser, "critic_optimiser": self.critic_optimiser}
        tuned = {"log_temperature": self.log_temperature, "temperature_optimiser": self.temperature_optimiser}
        return {**networks, **optimisers, **tuned}

    def state_dict(self) -> dict[str, object]:
        """Weights, target weights, temperatures, optimisers and counter; random state is the experience's."""
        return state_of(self.parts, {"updates": self.updates})

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restores `state_dict`; a temperature that is not tuned stays that of the config. Raises KeyError where it is
        the state of another kind of learner.
        """
        kept = {} if self.config.tuned else {"log_temperature"}
        parts = {name: part for name, part in self.parts.items() if name not in kept}
        self.updates = restored(state, parts)["updates"]
