"""Deterministic policies: what each agent does is a differentiable function of what it sees, and noise explores."""

from copy import copy
from dataclasses import dataclass
from math import exp
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from martes.data import Continuous, Memory, TeamSpec, Workspace
from martes.data.limits import NATURAL, POSITIVE, refuse_beyond
from martes.maths.distributions import gumbel, straight_through
from martes.maths.masks import masked_logits
from martes.maths.schedules import Constant, Linear, Schedule
from martes.networks.blocks import Body, Network
from martes.networks.policies import executed
from martes.networks.sharing import Sharing, slots_of
from martes.networks.stacked import StackedLinear
from martes.networks.temporal import Inputs, Outputs, TemporalModule
from martes.networks.units import Units


@dataclass(frozen=True)
class ActionNoise:
    """How training departs from what a deterministic policy would do. Raises ConfigError for values that cannot be.

    Of continuous actions `start` and `end` are deviations of the noise, in halves of the action's range. Choices are
    drawn from the softmax of their scores, but for a share, `start` to `end`, drawn evenly among those that are legal.
    """

    kind: Literal["gaussian", "ou"] = "gaussian"
    """Of continuous actions: drawn anew at each step, or drifting through an episode (Uhlenbeck and Ornstein 1930)."""
    start: float = 0.1
    """Size of the noise before the first environment step: a deviation, or a share of choices."""
    end: float = 0.1
    """Its size from `steps` on."""
    steps: int = 0
    """Environment steps, of all copies together, over which it moves from start to end; 0: it is `end` throughout."""
    theta: float = 0.15
    """How fast drifting noise forgets: what is left of it after k steps is exp(-theta k)."""

    def __post_init__(self) -> None:
        refuse_beyond(self, NATURAL, "start", "end", "steps", path="noise.")
        refuse_beyond(self, POSITIVE, "theta", path="noise.")

    @property
    def size(self) -> Schedule:
        """Environment steps -> size of the noise."""
        return Linear(self.start, self.end, self.steps) if self.steps else Constant(self.end)


Scores = Float[Tensor, "*lead_agent_choices"]
"""A number for each choice, or each real number, of every agent: axes `* agent action`, or `* agent sub action`."""


class ActionCodes(nn.Module):
    """Actions as numbers that a critic reads: a real one scaled to [-1, 1], a choice as one-hot, padding as zeros."""

    legal: Tensor
    share: Tensor
    """Of each of an agent's numbers, in a mean over them."""
    low: Tensor
    high: Tensor

    def __init__(self, team: TeamSpec) -> None:
        super().__init__()
        self.kind = team.action_kind
        self.is_continuous = self.kind is Continuous
        self.register_buffer("legal", team.legal_actions, persistent=False)
        self.is_padded = not bool(team.legal_actions.all())
        counts = team.legal_actions.flatten(1).sum(1).view(-1, *(1,) * (team.legal_actions.ndim - 1))
        self.register_buffer("share", team.legal_actions / counts, persistent=False)
        self.size = team.legal_actions[0].numel()
        if self.is_continuous:
            low, high = team.bounds
            self.register_buffer("low", low, persistent=False)
            self.register_buffer("high", high, persistent=False)
        masks = ("action_mask",) if team.masks_actions else ()
        forced = ("forced", "forced_action") if team.forces_actions else ()
        self.reads = (*masks, *forced)

    def noise(self, lead: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "*each"]:
        """Standard numbers to draw actions from: normal for continuous ones, Gumbel for choices."""
        shape = (*lead, *self.legal.shape)
        if not self.is_continuous:
            return gumbel(shape, generator, self.legal.device)
        return torch.randn(shape, generator=generator, device=self.legal.device)

    def scores(self, outputs: Float[Tensor, "*lead agent size"]) -> Scores:
        """A network's outputs, one for each choice (or real number) of each agent."""
        return outputs if self.legal.ndim == 2 else outputs.unflatten(-1, self.legal.shape[1:])

    def mask(self, inputs: Inputs) -> Bool[Tensor, "*lead_agent_choices"] | None:
        """Which choices exist and are legal; None: all."""
        mask = inputs.get("action_mask")
        if not self.is_padded:
            return mask
        return self.legal if mask is None else mask & self.legal

    def of_actions(self, action: Tensor) -> Float[Tensor, "*lead agent size"]:
        """The codes of what was done."""
        if self.is_continuous:
            return (2 * (action - self.low) / (self.high - self.low) - 1) * self.legal
        is_chosen = action.unsqueeze(-1) == torch.arange(self.legal.shape[-1], device=action.device)
        return (is_chosen & self.legal if self.is_padded else is_chosen).to(torch.float32).flatten(self._first_choice)

    def of_scores(
        self, scores: Scores, inputs: Inputs, noise: Tensor | None = None
    ) -> Float[Tensor, "*lead agent size"]:
        """The codes of what a policy would do, with gradient: tanh, with noise on top; or a straight-through choice.

        What the environment does in an agent's place has no gradient. `noise`: of choices, standard Gumbel.
        """
        if self.is_continuous:
            squashed = scores.tanh() if noise is None else (scores.tanh() + noise).clamp(-1.0, 1.0)
            codes = squashed * self.legal if self.is_padded else squashed
        else:
            chosen = straight_through(scores, noise, self.mask(inputs))
            codes = (chosen * self.legal if self.is_padded else chosen).flatten(self._first_choice)
        if "forced" not in inputs:
            return codes
        return torch.where(inputs["forced"].unsqueeze(-1), self.of_actions(inputs["forced_action"]), codes)

    @property
    def _first_choice(self) -> int:
        return -(self.legal.ndim - 1)


class DeterministicPolicy(TemporalModule):
    """mu(what the agent sees and has seen), for every agent of a team at once.

    Continuous actions are low + (high - low) (tanh(score) + 1) / 2; of choices it takes the legal one of the highest
    score. With noise it explores, as `ActionNoise` says, at the rate that its learner sets. Drifting noise is a part of
    its memory: each agent of each environment has its own, and it begins anew with the episode. Given `action` it
    leaves that as it is. Either way it returns `action` and `scores`.
    """

    writes = ("action",)
    hot = ("_scored",)

    def __init__(
        self, team: TeamSpec, network: Network, sharing: Sharing, noise: ActionNoise, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.exploration, self.rate = noise, noise.size(0)
        self.is_random = False
        """Is every action drawn evenly, whatever the policy?"""
        self.codes = ActionCodes(team)
        self.drifts = noise.kind == "ou" and self.codes.is_continuous
        self.slots = slots_of(team, sharing)
        self.body = Body(team.parts, self.slots.widest(team.observation_sizes), self.slots, network, generator)
        # Small, so that tanh begins far from where its gradient dies.
        self.head = StackedLinear(self.body.sizes, self.codes.size, generator, gain=0.01)
        self.reads = (*self.body.reads, *self.codes.reads, "agent_mask")

    def units(self) -> dict[str, Units]:
        """The body's hidden units."""
        return self.body.units_read_at(self.head.inputs())

    def part_for(self, name: str) -> "DeterministicPolicy":
        """The same networks, not copies, without exploration: choices that are drawn are drawn from the softmax."""
        tested = copy(self)
        tested.rate, tested.is_random, tested.drifts = 0.0, False, False
        return tested

    def initial_memory(self, envs: int) -> Memory:
        """The body's memory; of drifting noise, beside it, what it is and how much of it the next step keeps: none."""
        hidden = self.body.initial_memory(envs)
        if not self.drifts:
            return hidden
        none = self.head.weight.new_zeros(envs, *self.codes.legal.shape)
        return {"hidden": hidden, "drift": none, "kept": none[..., :1].clone()}

    def noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """Of continuous actions standard normal numbers, of choices standard Gumbel ones; and who acts evenly."""
        shape, device = (envs, *self.codes.legal.shape), self.codes.legal.device

        def drawn(size: tuple[int, ...]) -> Tensor:
            return torch.rand(size, generator=generator, device=device)

        if not self.codes.is_continuous:
            share = 1.0 if self.is_random else self.rate
            explores = drawn((*shape[:2], *(1,) * (len(shape) - 2))) < share
            return {"noise": self.codes.noise((envs,), generator), "explores": explores}
        if self.is_random:
            return {"even": 2 * drawn(shape) - 1}
        return {"noise": self.codes.noise((envs,), generator)}

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """Choice and scores of one step."""
        if not self.drifts:
            scores, hidden = self._scored(self._seen(inputs), memory)
            return self._chosen(scores, inputs), hidden
        assert isinstance(memory, dict), "the memory of drifting noise: begin with initial_memory"
        scores, hidden = self._scored(self._seen(inputs), memory["hidden"])
        drift, kept = memory["drift"], memory["kept"]
        assert isinstance(drift, Tensor) and isinstance(kept, Tensor)
        if "noise" in inputs:  # z <- k z + sqrt(1 - k^2) e has deviation 1 at every step, the first (k = 0) included
            alive = inputs["agent_mask"].unsqueeze(-1)
            drift = (kept * drift + (1 - kept.square()).sqrt() * inputs["noise"]) * alive
            kept = exp(-self.exploration.theta) * alive.to(kept.dtype)
            inputs = {**inputs, "noise": drift}
        return self._chosen(scores, inputs), {"hidden": hidden, "drift": drift, "kept": kept}

    def sequence(self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]) -> tuple[Outputs, Memory]:
        """Choices and scores of a window."""
        if self.drifts:
            return super().sequence(inputs, memory, start)
        features, memory = self.body.sequence(inputs, memory, start)
        return self._chosen(self._scores(features, inputs["agent_mask"].shape[:-1]), inputs), memory

    def _seen(self, inputs: Inputs) -> Inputs:
        return {name: inputs[name] for name in (*self.body.reads, "agent_mask")}

    def _scored(self, inputs: Inputs, memory: Memory) -> tuple[Scores, Memory]:
        """Scores of one step; what explores, and how much, is none of its business."""
        features, hidden = self.body.step(inputs, memory)
        return self._scores(features, inputs["agent_mask"].shape[:-1]), hidden

    def _chosen(self, scores: Scores, inputs: Inputs) -> Outputs:
        action = inputs.get("action")
        if action is None:
            action = executed(self._action(scores, inputs), inputs)
        return {"action": action, "scores": scores}

    def _scores(self, features: Tensor, lead: tuple[int, ...]) -> Scores:
        return self.codes.scores(self.slots.unstacked(self.head(features), lead))

    def _action(self, scores: Scores, inputs: Inputs) -> Tensor:
        codes, noise = self.codes, inputs.get("noise")
        if codes.is_continuous:
            squashed = inputs.get("even", scores.tanh())
            if noise is not None:
                squashed = (squashed + self.rate * noise).clamp(-1.0, 1.0)
            return torch.lerp(codes.low.expand_as(squashed), codes.high.expand_as(squashed), (squashed + 1) / 2)
        if noise is not None:
            scores = scores.masked_fill(inputs["explores"], 0.0) + noise
        mask = codes.mask(inputs)
        return (scores if mask is None else masked_logits(scores, mask)).argmax(-1)

    def unrolled(self, batch: Workspace, rows: slice) -> Float[Tensor, "time env agent *choices"]:
        """Scores at some steps of a batch, with gradient; memory is fresh before the first step of the batch."""
        inputs = {name: batch[name] for name in self.body.reads}
        if not self.body.remembers:
            features = self.body.features({name: value[rows] for name, value in inputs.items()})
            return self._scores(features, tuple(batch["agent_mask"][rows].shape[:2]))
        inputs["agent_mask"] = batch["agent_mask"]
        features, _ = self.body.sequence(inputs, self.body.initial_memory(batch.envs), batch["start"])
        return self._scores(features, tuple(batch["start"].shape))[rows]

    def observe(self, batch: Workspace) -> None:
        """Moves the statistics of observation normalisation by the steps of a batch that count."""
        if self.body.norm is not None:
            inputs = {name: batch[name][: batch.time] for name in self.body.reads}
            self.body.observe(inputs, batch.mask & batch["counted"].unsqueeze(-1))
