"""Policies: what a body's features say about the next action. Discrete, multi-discrete and continuous."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from martes.data import Continuous, Discrete, Field, Memory, TeamSpec
from martes.maths.distributions import Categorical, MultiCategorical, SquashedGaussian, gumbel
from martes.networks.blocks import Body, Network
from martes.networks.sharing import Sharing, slots_of
from martes.networks.stacked import StackedLinear
from martes.networks.temporal import Inputs, Outputs, TemporalModule
from martes.networks.units import Units

Distribution = Categorical | MultiCategorical | SquashedGaussian
SPREAD = (-5.0, 2.0)
"""Log-deviations that a policy may give by what it sees: beyond them densities are numbers without meaning."""


class Policy(TemporalModule):
    """pi(action | what the agent sees and has seen), for every agent of a team at once.

    The deviation of continuous actions is a parameter, or, where a policy `sees_spread`, a function of what it sees.
    Given no choice it draws one (the noise is an input; without noise it takes the mode); given `action` (or `sample`,
    the pre-squash choice of a continuous policy) it scores that. Either way it returns `action`, `log_prob`, `entropy`
    and, when continuous, `sample`. Logits of actions that do not exist or are illegal are the smallest finite number.
    """

    legal: Tensor
    low: Tensor
    high: Tensor
    floor: Tensor | None
    """The share of choices among actions that is made evenly; only a learner moves it, when it learns."""

    def __init__(
        self,
        team: TeamSpec,
        network: Network,
        sharing: Sharing,
        generator: torch.Generator,
        floor: float | None = None,
        sees_spread: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("floor", None if floor is None else torch.tensor(floor, device=generator.device))
        self.kind = team.action_kind
        self.agents = team.size
        self.slots = slots_of(team, sharing)
        self.body = Body(team.parts, self.slots.widest(team.observation_sizes), self.slots, network, generator)
        self.register_buffer("legal", team.legal_actions, persistent=False)
        self.is_padded = not bool(team.legal_actions.all())
        # A small last layer starts the policy near uniform (Andrychowicz et al. 2021, on the initial policy).
        self.is_continuous = self.kind is Continuous
        self.sees_spread = sees_spread and self.is_continuous
        outputs = self.legal[0].numel()
        self.head = StackedLinear(self.body.sizes, outputs * (1 + self.sees_spread), generator, gain=0.01)
        if self.is_continuous:
            low, high = team.bounds
            self.register_buffer("low", low, persistent=False)
            self.register_buffer("high", high, persistent=False)
            if not self.sees_spread:
                self.log_std = nn.Parameter(torch.full((self.slots.count, outputs), -0.5))
        self.choice = "sample" if self.is_continuous else "action"
        masks = ("action_mask",) if team.masks_actions else ()
        forced = ("forced", "forced_action") if team.forces_actions else ()
        self.reads = (*self.body.reads, *masks, *forced, "agent_mask")
        self.writes = ("action", "sample", "log_prob") if self.is_continuous else ("action", "log_prob")

    def units(self) -> dict[str, Units]:
        """The body's hidden units."""
        return self.body.units_read_at(self.head.inputs())

    def fields(self) -> dict[str, Field]:
        """What it adds to a team's schema."""
        doc = "log-density of the recorded action under the acting policy"
        added = {"log_prob": Field(writer="the policy", doc=doc)}
        if self.is_continuous:
            added["sample"] = Field(tuple(self.legal.shape[1:]), writer="the policy", doc="the action before squashing")
        return added

    def initial_memory(self, envs: int) -> Memory:
        """The body's memory."""
        return self.body.initial_memory(envs)

    def noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """Standard Gumbel numbers for choices among actions, standard normal ones for continuous actions."""
        shape = (envs, *self.legal.shape)
        if self.is_continuous:
            return {"noise": torch.randn(shape, generator=generator, device=self.legal.device)}
        return {"noise": gumbel(shape, generator, self.legal.device)}

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """Choice and scores of one step."""
        features, memory = self.body.step(inputs, memory)
        return self._scored(features, inputs), memory

    def sequence(self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]) -> tuple[Outputs, Memory]:
        """Choices and scores of a window."""
        features, memory = self.body.sequence(inputs, memory, start)
        return self._scored(features, inputs), memory

    def _scored(self, features: Float[Tensor, "slot row size"], inputs: Inputs) -> Outputs:
        distribution = self.distribution(features, inputs)
        sample = given_choice(distribution, inputs, self.choice)
        if sample is None:
            noise = inputs.get("noise")
            sample = distribution.mode() if noise is None else distribution.sample(noise)
            sample = sample if self.is_continuous else executed(sample, inputs)
        outputs = {"log_prob": distribution.log_prob(sample), "entropy": distribution.entropy(), self.choice: sample}
        if isinstance(distribution, SquashedGaussian):
            outputs["action"] = inputs.get("action", executed(distribution.action(sample), inputs))
        return outputs

    def distribution(self, features: Float[Tensor, "slot row size"], inputs: Inputs) -> Distribution:
        """The distribution over each agent's action, leading axes as those of `agent_mask`."""
        lead = inputs["agent_mask"].shape[:-1]
        scores = self.slots.unstacked(self.head(features), lead)  # ... agent output
        if self.sees_spread:
            mean, log_std = scores.chunk(2, dim=-1)
            return SquashedGaussian(mean, log_std.clamp(*SPREAD), self.low, self.high, self.legal)
        if self.is_continuous:
            # The log-deviation is a parameter of the slot, free of the observation.
            log_std = self.log_std[torch.tensor(self.slots.slot_of_agent, device=scores.device)]
            return SquashedGaussian(scores, log_std.expand_as(scores), self.low, self.high, self.legal)
        mask = inputs.get("action_mask")
        if self.is_padded:
            mask = self.legal if mask is None else mask & self.legal
        if self.kind is Discrete:
            chosen = Categorical(scores, mask)
            return chosen if self.floor is None else chosen.floored(self.floor)
        return MultiCategorical(scores.unflatten(-1, tuple(self.legal.shape[1:])), mask)


def given_choice(distribution: Distribution, inputs: Inputs, choice: str) -> Tensor | None:
    """The recorded `choice`; where just a continuous action was recorded, the sample that gives it; None: neither."""
    if choice in inputs or "action" not in inputs or not isinstance(distribution, SquashedGaussian):
        return inputs.get(choice)
    return distribution.sample_of(inputs["action"])


def executed(action: Tensor, inputs: Inputs) -> Tensor:
    """What is done: the agent's own `action` [... agent ...], or what the environment does in its place (`forced`)."""
    if "forced" not in inputs:
        return action
    forced = inputs["forced"]
    over_choices = forced.reshape(*forced.shape, *(1,) * (action.ndim - forced.ndim))
    return torch.where(over_choices, inputs["forced_action"], action)
