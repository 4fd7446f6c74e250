"""The actions of a team that acts in turn: how they are chosen, and what the next in turn learns of them.

The only place that knows kinds of action: for one more, give it a distribution in `Choices` and rows in `ActionTokens`.
"""

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from martes.data import Continuous, Discrete, Field, TeamSpec
from martes.maths.distributions import Categorical, MultiCategorical, SquashedGaussian, gumbel
from martes.networks.policies import Distribution, executed, given_choice
from martes.networks.sharing import Slots
from martes.networks.temporal import Inputs, Outputs

Agents = slice | Int64[Tensor, "*each turn"]
"""Some agents of a team: the same in every environment, or others in each."""

EVERYONE = slice(None)


class Choices(nn.Module):
    """From scores to distributions, samples and actions, for all agents of a team or for some of them.

    `choice` names what is recorded and scored again: `action`, or `sample`, the continuous action before squashing.
    """

    legal: Tensor
    low: Tensor
    high: Tensor
    slot: Tensor

    def __init__(self, team: TeamSpec, slots: Slots) -> None:
        super().__init__()
        self.kind = team.action_kind
        self.is_continuous = self.kind is Continuous
        self.choice = "sample" if self.is_continuous else "action"
        legal = team.legal_actions
        self.shape = tuple(legal.shape[1:])
        self.outputs = legal[0].numel()
        self.is_padded = not bool(legal.all())
        self.register_buffer("legal", legal, persistent=False)
        self.register_buffer("slot", torch.tensor(slots.slot_of_agent), persistent=False)
        if self.is_continuous:
            low, high = team.bounds
            self.register_buffer("low", low, persistent=False)
            self.register_buffer("high", high, persistent=False)
            self.log_std = nn.Parameter(torch.full((slots.count, self.outputs), -0.5))
        masks = ("action_mask",) if team.masks_actions else ()
        forced = ("forced", "forced_action") if team.forces_actions else ()
        self.reads = (*masks, *forced, "agent_mask")
        self.writes = ("action", "sample", "log_prob") if self.is_continuous else ("action", "log_prob")

    def fields(self) -> dict[str, Field]:
        """What acting adds to a team's schema."""
        doc = "log-density of the recorded action, given those of the agents before, under the acting policy"
        added = {"log_prob": Field(writer="the policy", doc=doc)}
        before = Field(self.shape, writer="the policy", doc="the action before squashing")
        return added | ({"sample": before} if self.is_continuous else {})

    def noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """What one drawn step consumes: standard normal numbers for continuous actions, else standard Gumbel ones."""
        shape, device = (envs, *self.legal.shape), self.legal.device
        if self.is_continuous:
            return {"noise": torch.randn(shape, generator=generator, device=device)}
        return {"noise": gumbel(shape, generator, device)}

    def distribution(
        self, scores: Float[Tensor, "*lead agent output"], inputs: Inputs, agents: Agents = EVERYONE
    ) -> Distribution:
        """The distribution over the actions of `agents`, a part of the team, to whom scores and inputs belong."""
        legal = self.legal[agents]
        if self.is_continuous:
            log_std = self.log_std[self.slot[agents]]
            return SquashedGaussian(scores, log_std.expand_as(scores), self.low[agents], self.high[agents], legal)
        mask = inputs.get("action_mask")
        if self.is_padded:
            mask = legal if mask is None else mask & legal
        if self.kind is Discrete:
            return Categorical(scores, mask)
        return MultiCategorical(scores.unflatten(-1, self.shape), mask)

    def sample(self, scores: Tensor, inputs: Inputs, agents: Agents = EVERYONE) -> Tensor:
        """The choice that was given, else one drawn with the noise that was given, else the mode."""
        if self.choice in inputs:
            return inputs[self.choice]
        distribution, noise = self.distribution(scores, inputs, agents), inputs.get("noise")
        given = given_choice(distribution, inputs, self.choice)
        if given is not None:
            return given
        return distribution.mode() if noise is None else distribution.sample(noise)

    def action(self, sample: Tensor, inputs: Inputs, agents: Agents = EVERYONE) -> Tensor:
        """What is done: the recorded action, or the sample's, or what the environment does in the agent's place."""
        if "action" in inputs:
            return inputs["action"]
        if self.is_continuous:
            low, high = (bound[agents].expand_as(sample) for bound in (self.low, self.high))
            sample = torch.lerp(low, high, (sample.tanh() + 1) / 2)
        return executed(sample, inputs) if "forced" in inputs else sample

    def scored(self, scores: Float[Tensor, "*lead agent output"], sample: Tensor, inputs: Inputs) -> Outputs:
        """The choice, its log-probability given the choices before it, and the entropy there."""
        distribution = self.distribution(scores, inputs)
        return {
            self.choice: sample,
            "log_prob": distribution.log_prob(sample),
            "entropy": distribution.entropy(),
        }


class ActionTokens(nn.Module):
    """What an agent learns of the action of the agent before it: a learned row for every choice of every slot.

    The first in turn learns a row of its own, which stands for no action. A multi-discrete action is the sum of the
    rows of its sub-actions, a continuous one the sum of rows weighted by the action scaled to [-1, 1], and a bias.
    Absent agents are passed over: the token then tells of the last who was there.
    Source: Wen et al. 2022 (MAT), section 3.2; here agents of unequal slots have rows of their own.
    """

    legal: Tensor
    base: Tensor
    low: Tensor
    high: Tensor
    is_slot: Tensor

    def __init__(self, team: TeamSpec, slots: Slots, size: int, generator: torch.Generator) -> None:
        super().__init__()
        legal = team.legal_actions
        slot = torch.tensor(slots.slot_of_agent)
        self.is_continuous = team.action_kind is Continuous
        if self.is_continuous:
            low, high = team.bounds
            self.register_buffer("legal", legal, persistent=False)
            self.register_buffer("low", low, persistent=False)
            self.register_buffer("high", high, persistent=False)
            self.register_buffer("is_slot", functional.one_hot(slot, slots.count).unsqueeze(2), persistent=False)
            rows = 1 + slots.count * (legal.shape[1] + 1)
        else:
            subs = 1 if legal.dim() == 2 else legal.shape[1]
            self.is_single = legal.dim() == 2
            first = (slot.unsqueeze(1) * subs + torch.arange(subs)) * legal.shape[-1] + 1
            self.register_buffer("base", first.squeeze(1) if self.is_single else first, persistent=False)
            rows = 1 + slots.count * subs * legal.shape[-1]
        weight = torch.empty(rows, size, device=generator.device)
        self.weight = nn.Parameter(nn.init.orthogonal_(weight, 2**0.5, generator=generator))

    def content(self, action: Tensor, agents: Agents = EVERYONE) -> Tensor:
        """What a token tells of `action` [... agent ...]: the numbers of its rows, or (continuous) their weights."""
        if not self.is_continuous:
            rows = self.base[agents] + action
            return rows.unsqueeze(-1) if self.is_single else rows
        low, high = self.low[agents], self.high[agents]
        scaled = (2 * (action - low) / (high - low) - 1) * self.legal[agents]
        placed = functional.pad(scaled, (0, 1), value=1.0).unsqueeze(-2) * self.is_slot[agents]
        return functional.pad(placed.flatten(-2), (1, 0))

    def first(self, lead: tuple[int, ...]) -> Tensor:
        """What the token of the first in turn tells: that nobody acted."""
        if not self.is_continuous:
            return self.base.new_zeros(*lead, 1 if self.is_single else self.base.shape[1])
        return functional.pad(self.weight.new_zeros(*lead, len(self.weight) - 1), (1, 0), value=1.0)

    def previous(
        self, content: Shaped[Tensor, "*lead agent row"], mask: Bool[Tensor, "*lead agent"]
    ) -> Shaped[Tensor, "*lead agent row"]:
        """What each agent's token tells: the content of the last agent before it who was there."""
        order = torch.arange(mask.shape[-1], device=mask.device)
        latest = torch.where(mask, order + 1, 0).cummax(-1).values[..., :-1]  # 0: nobody
        latest = functional.pad(latest, (1, 0)).unsqueeze(-1)
        told = torch.cat((self.first((*mask.shape[:-1], 1)), content), dim=-2)
        return told.gather(-2, latest.expand(*latest.shape[:-1], told.shape[-1]))

    def forward(self, content: Tensor) -> Float[Tensor, "*lead size"]:
        """Tokens of what they tell."""
        if self.is_continuous:
            return functional.gelu(content @ self.weight)
        if self.is_single:  # of each row once, not of each token
            return functional.embedding(content.squeeze(-1), functional.gelu(self.weight))
        return functional.gelu(functional.embedding(content, self.weight).sum(-2))
