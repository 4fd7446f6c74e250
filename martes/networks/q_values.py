"""Values of actions: what each agent of a team expects of each of its actions, and acting by that."""

from copy import copy
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from martes.data import Discrete, Memory, TeamSpec, Vector, Workspace
from martes.errors import ConfigError
from martes.maths.distributions import gumbel
from martes.maths.masks import masked_logits, masked_mean
from martes.maths.schedules import Exponential, Linear, Schedule
from martes.networks.blocks import Body, Network
from martes.networks.policies import executed
from martes.networks.sharing import Sharing, slots_of
from martes.networks.stacked import StackedLinear
from martes.networks.temporal import Inputs, Outputs, TemporalModule

LAST = "last_action"


@dataclass(frozen=True)
class Exploration:
    """How training departs from the best action. Raises ConfigError for rates that cannot be."""

    kind: Literal["epsilon", "softmax"] = "epsilon"
    """`epsilon`: any legal action, with that probability; `softmax`: in proportion to exp(Q / temperature)."""
    start: float = 1.0
    """Probability, or temperature, before the first environment step."""
    end: float = 0.05
    """Probability, or temperature, from `steps` on."""
    steps: int = 50_000
    """Environment steps, of all copies together, from start to end."""
    decay: Literal["linear", "exponential"] = "linear"
    """Do equal differences lead from start to end, or equal ratios?"""
    test: float = 0.0
    """Probability, or temperature, in evaluations that are not greedy."""

    def __post_init__(self) -> None:
        highest = 1.0 if self.kind == "epsilon" else torch.inf
        for name in ("start", "end", "test"):
            if not 0 <= getattr(self, name) <= highest:
                raise ConfigError(f"exploration.{name} is {getattr(self, name)}: it must be between 0 and {highest}")
        try:
            _ = self.rate
        except ValueError as error:
            raise ConfigError(f"exploration cannot fall so ({self.decay}): {error}") from error

    @property
    def rate(self) -> Schedule:
        """Environment steps -> probability, or temperature."""
        law = Linear if self.decay == "linear" else Exponential
        return law(self.start, self.end, self.steps)


@dataclass(frozen=True)
class AgentForm:
    """The form of the agents' networks."""

    network: Network = field(default_factory=Network)
    sharing: Sharing = "shared"
    sees_last_action: bool = False
    """Is an agent told what it did last?"""
    is_dueling: bool = False
    """Does a value of the situation and advantages of the actions make up Q?"""


class ValuePolicy(TemporalModule):
    """Q_i(a | what the agent sees and has seen) for every agent of a team at once, and the best action by it.

    With noise it departs from the best action at `rate`. Given `action` it leaves that as it is. Either way it returns
    `action`, `q` [... agent action] and `features` [... agent feature]. Where an agent is told its last action, that
    action is a part of its memory: nothing is stored twice. Raises ConfigError where actions are not discrete.
    """

    writes = ("action",)
    legal: Tensor
    codes: Tensor

    def __init__(self, team: TeamSpec, form: AgentForm, exploration: Exploration, generator: torch.Generator) -> None:
        super().__init__()
        _refuse_other_kinds(team)
        self.form, self.exploration, self.rate = form, exploration, exploration.rate(0)
        self.slots = slots_of(team, form.sharing)
        self.register_buffer("legal", team.legal_actions, persistent=False)
        self.is_padded = not bool(team.legal_actions.all())
        actions = team.legal_actions.shape[1]
        told, more = ({LAST: Vector(actions)}, actions) if form.sees_last_action else ({}, 0)
        sizes = self.slots.widest(tuple(size + more for size in team.observation_sizes))
        # The last action comes first: what is padded stands last.
        self.body = Body(told | dict(team.parts), sizes, self.slots, form.network, generator, more)
        self.register_buffer("codes", torch.eye(actions + 1)[:, 1:], persistent=False)  # the first code is no action
        # Near 0 at first: what is expected too much is long bootstrapped from.
        outputs = actions + form.is_dueling
        self.head = StackedLinear(self.body.sizes, outputs, generator, gain=0.01)
        masks = ("action_mask",) if team.masks_actions else ()
        forced = ("forced", "forced_action") if team.forces_actions else ()
        self.reads = (*(name for name in self.body.reads if name != LAST), *masks, *forced, "agent_mask")

    def part_for(self, name: str) -> "ValuePolicy":
        """The same networks, not copies, departing from the best action at the rate of evaluations."""
        tested = copy(self)
        tested.rate = self.exploration.test
        return tested

    def initial_memory(self, envs: int) -> Memory:
        """The body's memory; where the last action is told, beside it: none, which is -1."""
        hidden = self.body.initial_memory(envs)
        if not self.form.sees_last_action:
            return hidden
        return {"hidden": hidden, LAST: self.legal.new_full((envs, len(self.legal)), -1, dtype=torch.int64)}

    def noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """Of epsilon-greedy: who explores, and numbers the greatest of which it takes; of softmax: scaled Gumbel noise.

        Q / temperature + Gumbel noise is greatest where Q + temperature x noise is.
        """
        shape, device = (envs, *self.legal.shape), self.legal.device
        if self.exploration.kind == "softmax":
            return {"noise": self.rate * gumbel(shape, generator, device)}
        drawn = torch.rand(*shape[:-1], shape[-1] + 1, generator=generator, device=device)
        return {"explores": drawn[..., -1:] < self.rate, "noise": drawn[..., :-1]}

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """Choice and values of one step."""
        hidden, last = _parted(memory) if self.form.sees_last_action else (memory, None)
        features, hidden = self.body.step(self._told(inputs, last), hidden)
        outputs = self._chosen(features, inputs)
        return outputs, self._kept(hidden, outputs["action"], inputs["agent_mask"])

    def sequence(self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]) -> tuple[Outputs, Memory]:
        """Choices and values of a window."""
        if not self.form.sees_last_action:
            features, memory = self.body.sequence(inputs, memory, start)
            return self._chosen(features, inputs), memory
        if "action" not in inputs:  # each choice depends on the one before
            return super().sequence(inputs, memory, start)
        hidden, last = _parted(memory)
        action, alive = inputs["action"].long(), inputs["agent_mask"]
        before = torch.cat((last.unsqueeze(0), action[:-1].masked_fill(~alive[:-1], -1)))
        told = self._told(inputs, before.masked_fill(start.unsqueeze(-1), -1))
        features, hidden = self.body.sequence(told, hidden, start)
        return self._chosen(features, inputs), self._kept(hidden, action[-1], alive[-1])

    def unrolled(self, batch: Workspace) -> Outputs:
        """`q` [time+1 env agent action] and `features` over a batch's steps and what followed the last, with gradient.

        Memory is fresh before the first step.
        """
        done = batch["action"]
        inputs = {name: batch[name] for name in self.reads}
        inputs["action"] = torch.cat((done, torch.zeros_like(done[:1])))  # after the last step nothing was done yet
        return self.sequence(inputs, self.initial_memory(batch.envs), batch["start"])[0]

    def greedy(self, q: Float[Tensor, "*lead agent action"], inputs: Inputs) -> Int[Tensor, "*lead agent"]:
        """The legal action of the greatest value; what the environment does where it acts in an agent's place."""
        legal = inputs.get("action_mask")
        if self.is_padded:
            legal = self.legal if legal is None else legal & self.legal
        best = q if legal is None else masked_logits(q, legal)
        return executed(best.argmax(-1), inputs)

    def observe(self, batch: Workspace) -> None:
        """Moves the statistics of observation normalisation by the steps of a batch that count."""
        if self.body.norm is not None:
            inputs = {name: batch[name][: batch.time] for name in self.reads}
            none = torch.full_like(batch["action"], -1, dtype=torch.int64)
            self.body.observe(self._told(inputs, none), batch.mask & batch["counted"].unsqueeze(-1))

    def _told(self, inputs: Inputs, last: Tensor | None) -> Inputs:
        return inputs if last is None or not self.form.sees_last_action else {**inputs, LAST: self.codes[last + 1]}

    def _kept(self, hidden: Memory, action: Tensor, alive: Tensor) -> Memory:
        return {"hidden": hidden, LAST: action.masked_fill(~alive, -1)} if self.form.sees_last_action else hidden

    def _chosen(self, features: Float[Tensor, "slot row size"], inputs: Inputs) -> Outputs:
        lead = inputs["agent_mask"].shape[:-1]
        q = self.slots.unstacked(self.head(features), lead)
        if self.form.is_dueling:
            q = dueling(q[..., :1], q[..., 1:], self.legal)
        action = inputs.get("action")
        if action is None:
            action = self.greedy(self._disturbed(q, inputs), inputs)
        return {"action": action, "q": q, "features": self.slots.unstacked(features, lead)}

    def _disturbed(self, q: Tensor, inputs: Inputs) -> Tensor:
        noise = inputs.get("noise")
        if noise is None:
            return q
        return q + noise if self.exploration.kind == "softmax" else torch.where(inputs["explores"], noise, q)


def dueling(
    value: Float[Tensor, "*lead 1"], advantage: Float[Tensor, "*lead action"], exists: Bool[Tensor, "*#lead action"]
) -> Float[Tensor, "*lead action"]:
    """Q = V + A - mean A over the actions that exist. Source: Wang et al. 2016, equation 9."""
    return value + advantage - masked_mean(advantage, exists, dim=-1, keepdim=True)


def _parted(memory: Memory) -> tuple[Memory, Int[Tensor, "env agent"]]:
    assert isinstance(memory, dict), "the memory of a policy that is told its last action: begin with initial_memory"
    last = memory[LAST]
    assert isinstance(last, Tensor)
    return memory["hidden"], last


def _refuse_other_kinds(team: TeamSpec) -> None:
    if team.action_kind is not Discrete:
        told = "; ".join(f"{name}: {space}" for name, space in team.action.items())
        raise ConfigError(
            f"one value an action needs a list of actions, but this team's are not discrete ({told}): take a "
            "policy-gradient method, or make the actions discrete"
        )
