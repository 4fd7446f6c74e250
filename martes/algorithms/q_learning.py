"""Action values learned from replay: DQN and IQL, and what joins agents' values into the team's: VDN, QMIX, QTRAN."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from martes.algorithms.descent import Descent
from martes.algorithms.learner import Metrics
from martes.algorithms.off_policy import OPTIMISERS, Store
from martes.algorithms.qtran import consistency
from martes.algorithms.rewards import Reward, refuse_unequal, rewards_of
from martes.data import Field, TeamSpec, Workspace
from martes.data.experience import Episodes, Transitions
from martes.data.limits import COUNT, NATURAL, POSITIVE, SHARE, BatchSize, StepSize, UpdateRatio, refuse, refuse_beyond
from martes.maths.losses import huber
from martes.maths.masks import masked_mean
from martes.maths.returns import lambda_returns, n_step_returns
from martes.maths.statistics import empty_moments
from martes.networks import Network, Sharing
from martes.networks.growth import Parts
from martes.networks.mixers import Joint, JointValue, Kind, Mixing, TeamValues, mixer_of
from martes.networks.q_values import AgentForm, Exploration, ValuePolicy
from martes.networks.targets import follow, still_copy


@dataclass(frozen=True)
class QLearning:
    """Values of actions, learned from a replay of whole episodes or of short sequences.

    Source: Mnih et al. 2015 (DQN); for teams Sunehag et al. 2018 (VDN), Rashid et al. 2018 (QMIX), Son et al. 2019
    (QTRAN-base).
    """

    mixer: Kind = "monotone"
    """What joins the agents' values: none (IQL, DQN), sum (VDN), monotone (QMIX), joint (QTRAN-base)."""
    mixing: Mixing = field(default_factory=Mixing)
    """The mixer's form."""
    reward: Reward = "common"
    """Each agent's own; one for all, refused where they differ; or the team's mean (of the living) or sum."""
    scale_reward: bool = False
    """Divide rewards by the deviation of all that were earned so far? (Their mean stays: it says how long to play.)"""
    sharing: Sharing = "shared"
    """Which agents share parameters: all, those of a group, or none."""
    network: Network = field(default_factory=lambda: Network(agent_id=True))
    """The agents' network."""
    last_action: bool = False
    """Tell agents what they did last?"""
    dueling: bool = False
    """Make up Q of a value and of advantages (Wang et al. 2016)?"""
    double: bool = True
    """Let the online network choose the next action that the target network values (van Hasselt et al. 2016)?"""
    exploration: Exploration = field(default_factory=Exploration)
    """How training departs from the best action."""
    gamma: float = 0.99
    """Discount of the return per step."""
    n_step: int = 1
    """Rewards in a target before it bootstraps."""
    td_lambda: float = 0.0
    """Weight of long returns in the target: 0 is n-step, 1 is Monte Carlo."""
    rollout: int = 10
    """Steps of each environment between two looks at which updates are due."""
    ratio: UpdateRatio = 0.02
    """Gradient steps for each environment step, however many environments there are."""
    warmup: int = 0
    """Environment steps before learning starts; it also waits until a batch is there."""
    batch: BatchSize = 32
    """Episodes, or sequences, of one gradient step."""
    sequence: int | None = None
    """Steps to learn from in each sequence of a batch; none: whole episodes."""
    burn_in: int = 16
    """Steps before a sequence that only fill the memory of agents that have one."""
    store: Store = field(default_factory=Store)
    """What is kept of the past, and which of it is drawn."""
    target_every: int = 200
    """Gradient steps between two copies of the networks into the target networks."""
    target_rate: float | None = None
    """Share of the way that the target networks go at every gradient step instead; none: whole copies."""
    optimiser: Literal["adam", "rmsprop"] = "adam"
    """What takes the gradient steps."""
    lr: StepSize = 5e-4
    """Step size."""
    optimiser_eps: float = 1e-5
    """Term that keeps the optimiser's denominator from 0."""
    max_grad_norm: float | None = 10.0
    """Longest gradient of the agents' networks, per slot, and of the mixer; none: any."""
    huber: float | None = None
    """Error beyond which the loss grows linearly, as DQN's does beyond 1 (Mnih et al. 2015); none: never."""
    compile: bool = False
    """Compile acting, loss and gradient for this machine? Half a minute at the start; for batches of one length."""

    def __post_init__(self) -> None:
        refuse_beyond(self, COUNT, "n_step", "rollout", "batch", "target_every")
        refuse_beyond(self, COUNT, "sequence", or_none=True)
        refuse_beyond(self, NATURAL, "warmup", "burn_in")
        refuse_beyond(self, SHARE, "gamma", "td_lambda")
        refuse_beyond(self, SHARE, "target_rate", or_none=True)
        refuse_beyond(self, POSITIVE, "lr", "optimiser_eps", "ratio")
        refuse_beyond(self, POSITIVE, "max_grad_norm", "target_rate", "huber", or_none=True)
        cure = "false, or give sequence: each length of whole episodes would be compiled anew"
        refuse("algorithm.compile", True, self.compile and self.sequence is None, cure)
        is_both = self.n_step > 1 and self.td_lambda > 0
        refuse("algorithm.n_step", self.n_step, is_both, "1 where td_lambda is above 0")
        alone = self.mixer != "none" and self.reward == "own"
        cure = f"common, mean or sum where mixer={self.mixer} joins the agents' values"
        refuse("algorithm.reward", self.reward, alone, cure)
        is_blind = self.mixer == "joint" and not self.mixing.sees_state
        refuse("algorithm.mixing.sees_state", False, is_blind, "true where mixer=joint: its value is one of states")

    def learner(self, team: TeamSpec, generator: torch.Generator) -> "QLearner":
        """A fresh learner of this team; every random number it ever needs comes from `generator`."""
        return QLearner(self, team, generator)


class Errors(NamedTuple):
    """What a batch says of the values: [time env agent], or [time env 1] where a mixer makes one for all."""

    taken: Float[Tensor, "time env value"]
    """Of the actions that were taken."""
    target: Float[Tensor, "time env value"]
    mask: Bool[Tensor, "time env value"]
    """True where a loss counts."""
    consistency: dict[str, Float[Tensor, "time env value"]]
    """What else is to be small."""

    @property
    def td(self) -> Float[Tensor, "time env value"]:
        """How far the values are above their targets."""
        return self.taken - self.target


class QLearner:
    """Q-learning at work on one team."""

    def __init__(self, config: QLearning, team: TeamSpec, generator: torch.Generator) -> None:
        self.config, self.team = config, team
        form = AgentForm(config.network, config.sharing, config.last_action, config.dueling)
        agents = ValuePolicy(team, form, config.exploration, generator)
        mixer = mixer_of(config.mixer, team, config.mixing, agents.body.size, generator)
        self.online = TeamValues(agents, mixer).to(generator.device)
        self.target = still_copy(self.online)
        self.policy = self.online.agents
        if config.compile:
            self.policy.compile_acting(generator.device)
        self.optimiser = OPTIMISERS[config.optimiser](self.online.parameters(), config.lr, eps=config.optimiser_eps)
        parts = {"agents": (self.policy, self.policy.slots.count), "mixer": (self.online.mixer, 1)}
        device = generator.device if config.compile else None
        self.descent = Descent(self.judged, self.optimiser, parts, config.max_grad_norm, device)
        self.experience = config.store.replayed(team, self.online.reads, self._drawn(), config, generator)
        self.experience.earned = empty_moments() if config.scale_reward else None
        self.updates = 0
        self.env_steps = 0

    def _drawn(self) -> Episodes | Transitions:
        """What a batch is made of: an n-step target needs n - 1 steps beyond those to learn from."""
        config = self.config
        if config.sequence is None:
            return Episodes(config.batch)
        remembers = self.policy.initial_memory(1) != ()
        return Transitions(config.batch, config.sequence + config.n_step - 1, config.burn_in if remembers else 0)

    @property
    def fields(self) -> Mapping[str, Field]:
        """Acting adds nothing to the team's fields."""
        return {}

    def update(self, batch: Workspace) -> Metrics:
        """Learns from one batch; returns what to watch."""
        if self.config.reward == "common":
            refuse_unequal(batch["reward"], batch.mask & self._counted(batch), self.team.agents)
        stepped = self.descent(batch)
        norm = torch.cat([*stepped.norms.values()]).square().sum().sqrt()
        self.experience.prioritise(batch, stepped.told)
        self._move_on(batch)
        rate = "epsilon" if self.config.exploration.kind == "epsilon" else "temperature"
        return stepped.metrics | {"grad_norm": norm, rate: torch.tensor(self.policy.rate, dtype=torch.float64)}

    def _move_on(self, batch: Workspace) -> None:
        """Moves what follows the updates: target networks, statistics of observations, exploration."""
        self.updates += 1
        if self.config.target_rate is not None:
            follow(self.target, self.online, self.config.target_rate)
        elif self.updates % self.config.target_every == 0:
            follow(self.target, self.online)
        self.policy.observe(batch)
        self.env_steps = self.experience.env_steps
        self.policy.rate = self.config.exploration.rate(self.env_steps)

    def loss(self, batch: Workspace) -> tuple[Tensor, Metrics]:
        """L = mean w (Q(s_t, a_t) - y_t)^2 over the steps that count, and what to watch (Rashid et al. 2018, eq. 6)."""
        loss, metrics, *_ = self.judged(batch)
        return loss, metrics

    def judged(self, batch: Workspace) -> tuple[Tensor, Metrics] | tuple[Tensor, Metrics, Float[Tensor, "env"]]:
        """The loss and what to watch; and how far off each draw is, where draws go by that."""
        errors = self.errors(batch)
        loss, metrics = self._weighed(errors, batch["weight"])
        if self.experience.prioritised is None:
            return loss, metrics
        return loss, metrics, masked_mean(errors.td.detach().abs(), errors.mask, (0, 2))

    def errors(self, batch: Workspace) -> Errors:
        """Q(s_t, a_t), of the agents or joined, and its target y_t.

        y_t = r_t + gamma d_t Q'(s_{t+1}, a*), a* the legal action of the greatest online Q (double Q) or target Q'; the
        row after a step is what really followed, at a time limit too. n_step and td_lambda make longer returns of it.
        """
        reward, discount, alive = self._told(batch)
        mixer, inputs = self.online.mixer, {name: batch[name] for name in self.online.reads}
        state = mixer.view.seen(inputs)
        own = self.policy.unrolled(batch)
        greedy = self.policy.greedy(own["q"].detach(), inputs)  # time+1 env agent
        now, then = slice(0, batch.time), slice(1, batch.time + 1)
        chosen = Joint.at(now, own, batch["action"], inputs, state)
        taken = mixer(chosen)
        with torch.no_grad():
            others = self.target.agents.unrolled(batch)
            best = greedy if self.config.double else self.policy.greedy(others["q"], inputs)
            next_value = self.target.mixer(Joint.at(then, others, best[then], inputs, state))
            target = self._returns(reward, next_value, discount * alive[then], batch["cut"])
        more: dict[str, Tensor] = {}
        if isinstance(mixer, JointValue):
            more = consistency(mixer, chosen, Joint.at(now, own, greedy[now], inputs, state), taken)
        return Errors(taken, target, alive[now] & self._counted(batch), more)

    def _told(self, batch: Workspace) -> tuple[Tensor, Tensor, Tensor]:
        """Reward and discount [time env value], and who is there [time+1 env value]: agents, or the team as one.

        The team goes on while any member does. What an agent that is gone may still expect is 0.
        """
        discount, alive = batch["discount", "agent_mask"]
        reward = rewards_of(self.config.reward, batch["reward"], alive[:-1], self.experience.earned)
        if self.online.mixer.is_of_team:
            discount, alive = discount.amax(-1, keepdim=True), alive.any(-1, keepdim=True)
        return reward.expand_as(discount), self.config.gamma * discount, alive

    def _returns(self, reward: Tensor, next_value: Tensor, discount: Tensor, cut: Tensor) -> Tensor:
        if self.config.td_lambda > 0:
            return lambda_returns(reward, next_value, discount, cut, self.config.td_lambda)
        return n_step_returns(reward, next_value, discount, cut, self.config.n_step)

    def _counted(self, batch: Workspace) -> Bool[Tensor, "time env 1"]:
        """The steps to learn from: not padding, nor what fills the memory, nor what only completes n-step returns."""
        counted = batch["counted"]
        if self.config.sequence is not None:
            counted = counted & (counted.cumsum(0) <= self.config.sequence)
        return counted.unsqueeze(-1)

    def _weighed(self, errors: Errors, weight: Float[Tensor, "env"]) -> tuple[Tensor, Metrics]:
        error, mixing = errors.td, self.config.mixing
        small = {"td_loss": huber(error, self.config.huber), **errors.consistency}
        losses = {name: weight.unsqueeze(-1) * each for name, each in small.items()}
        watched = {"td_error_abs": error.abs(), "q_taken_mean": errors.taken, "target_mean": errors.target}
        both = losses | {name: each.detach() for name, each in watched.items()}
        # All means at once: a sum of so few numbers takes less time than to ask for it.
        found = masked_mean(torch.stack([*both.values()]), errors.mask.unsqueeze(0), (1, 2, 3))
        means = dict(zip(both, found.unbind(), strict=True))
        weights = {"td_loss": 1.0, "opt_loss": mixing.lambda_opt, "nopt_loss": mixing.lambda_nopt}
        loss = torch.stack([weights[name] * means[name] for name in losses]).sum()
        told = means if errors.consistency else {name: means[name] for name in watched}
        return loss, {name: metric.detach() for name, metric in {"loss": loss, **told}.items()}

    @property
    def parts(self) -> Parts:
        """What networks learned, by its names in the state, and the agents' and the mixer's networks as one."""
        apart = {"policy": self.policy, "mixer": self.online.mixer}
        return {"online": self.online, "target": self.target, **apart, "optimiser": self.optimiser}

    def state_dict(self) -> dict[str, object]:
        """Weights, target weights, optimiser and counters; random state is the experience's."""
        return {
            "policy": self.policy.state_dict(),
            "mixer": self.online.mixer.state_dict(),
            "target": self.target.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "counters": {"updates": self.updates, "env_steps": self.env_steps},
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores `state_dict`. Raises KeyError where it is the state of another kind of learner."""
        match state:
            case {
                "policy": dict() as policy,
                "mixer": dict() as mixer,
                "target": dict() as target,
                "optimiser": dict() as optimiser,
                "counters": {"updates": int() as updates, "env_steps": int() as env_steps},
            }:
                self.policy.load_state_dict(policy)
                self.online.mixer.load_state_dict(mixer)
                self.target.load_state_dict(target)
                self.optimiser.load_state_dict(deepcopy(optimiser))  # torch would share the moments with the giver
                self.updates, self.env_steps = updates, env_steps
                self.policy.rate = self.config.exploration.rate(env_steps)
            case _:
                raise KeyError(f"this is no state of a Q-learner: it holds {', '.join(state)}")
