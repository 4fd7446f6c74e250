"""Critics: the value of a state, from what each agent sees (local) or from the state of the whole team (central)."""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from martes.data import Field, Memory, TeamSpec, Vector
from martes.errors import ConfigError
from martes.networks.blocks import Body, Network
from martes.networks.sharing import Sharing, Slots, slots_of
from martes.networks.stacked import StackedLinear
from martes.networks.temporal import Inputs, Outputs, TemporalModule
from martes.networks.units import Units


class ValueHead(nn.Module):
    """Values in the units of the return, from a linear map whose outputs are standardised.

    `rescale` moves mean and deviation and changes the map so that no value moves (PopArt).
    Source: van Hasselt et al. 2016, equations 6 to 8.
    """

    mean: Tensor
    deviation: Tensor
    count: Tensor

    def __init__(self, linear: StackedLinear) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Float[Tensor, "slot row size"]) -> Float[Tensor, "slot row output"]:
        """sigma (x W + b) + mu."""
        return self.linear(x) * self.deviation + self.mean

    @torch.no_grad()
    def rescale(self, target: Float[Tensor, "..."], mask: Bool[Tensor, "..."], rate: float = 0.05) -> None:
        """Moves mean and deviation towards those of the targets where `mask` is true; every value stays what it was."""
        seen = target[mask]
        if seen.numel() < 2:
            return
        self.count += 1
        step = torch.clamp(1 / self.count, min=rate)  # a plain mean at first, then an exponential one
        second = torch.lerp(self.deviation**2 + self.mean**2, seen.square().mean(), step)
        mean = torch.lerp(self.mean, seen.mean(), step)
        deviation = (second - mean**2).clamp(min=1e-4).sqrt()
        self.linear.weight.mul_(self.deviation / deviation)
        self.linear.bias.copy_((self.linear.bias * self.deviation + self.mean - mean) / deviation)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)


class Critic(TemporalModule):
    """V for every agent. `local`: from the agent's own view. `central`: from the team's state, one output an agent.

    The central critic reads the state once for the whole team; where the task has no state, the observations of all
    agents, joined, stand in (absent agents as zeros).
    """

    writes = ("value",)

    def __init__(
        self,
        team: TeamSpec,
        network: Network,
        view: Literal["local", "central"],
        sharing: Sharing,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.is_central = view == "central"
        if self.is_central:
            self.source, size = joint_source(team)
            self.body = Body({"joint": Vector(size)}, (size,), Slots((0,)), network, generator)
            self.reads = (self.source, "agent_mask")
        else:
            slots = slots_of(team, sharing)
            self.body = Body(team.parts, slots.widest(team.observation_sizes), slots, network, generator)
            self.reads = (*self.body.reads, "agent_mask")
        outputs = team.size if self.is_central else 1
        self.head = ValueHead(StackedLinear(self.body.sizes, outputs, generator, gain=1.0))

    def units(self) -> dict[str, Units]:
        """The body's hidden units."""
        return self.body.units_read_at(self.head.linear.inputs())

    def fields(self) -> dict[str, Field]:
        """What it adds to a team's schema."""
        return {"value": Field(writer="the critic", doc="V of this step when it was recorded, in units of the return")}

    def initial_memory(self, envs: int) -> Memory:
        """The body's memory."""
        return self.body.initial_memory(envs)

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """Values of one step."""
        features, memory = self.body.step(self.view(inputs), memory)
        return {"value": self._values(features, inputs)}, memory

    def sequence(self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]) -> tuple[Outputs, Memory]:
        """Values of a window."""
        features, memory = self.body.sequence(self.view(inputs), memory, start)
        return {"value": self._values(features, inputs)}, memory

    def value(self, inputs: Inputs, memory: Memory) -> Float[Tensor, "env agent"]:
        """V of one time step."""
        return self.step(inputs, memory)[0]["value"]

    def view(self, inputs: Inputs) -> Inputs:
        """What the body sees: the inputs themselves, or the team as one agent that is there while any member is."""
        if not self.is_central:
            return inputs
        joint = joint_view(inputs, self.source)
        return {"joint": joint.unsqueeze(-2), "agent_mask": inputs["agent_mask"].any(-1, keepdim=True)}

    def observe(self, inputs: Inputs) -> None:
        """Moves the statistics of observation normalisation."""
        seen = self.view(inputs)
        self.body.observe(seen, seen["agent_mask"])

    def _values(self, features: Float[Tensor, "slot row size"], inputs: Inputs) -> Tensor:
        lead = inputs["agent_mask"].shape[:-1]
        values = self.body.slots.unstacked(self.head(features), lead)  # ... agent 1 | ... 1 agent
        if self.is_central:
            return values.squeeze(-2)
        return values.squeeze(-1) * inputs["agent_mask"]  # what an absent agent may still expect is 0


def critic_shape(own: Network | None, policy: Network, view: Literal["local", "central"]) -> Network:
    """The critic's own network, else the policy's: a central critic is one for the team, and has no sizes by group."""
    return own or (replace(policy, hidden_by_group={}) if view == "central" else policy)


def joint_source(team: TeamSpec) -> tuple[str, int]:
    """The field from which a central critic sees the team, its state or else its observations, and how wide that is."""
    if team.state is not None:
        return "state", team.state.size
    seen = team.parts.get("obs")
    if not isinstance(seen, Vector):
        raise ConfigError(
            "a central critic needs a state vector, or vector observations to join; this team sees "
            f"{dict(team.parts)}. Give the TeamSpec a state, or take critic=local or mixer=sum where there is one"
        )
    return "obs", seen.size * team.size


def joint_view(inputs: Inputs, source: str) -> Float[Tensor, "*lead size"]:
    """The state, or the observations of all agents side by side, those of absent ones as zeros."""
    if source == "state":
        return inputs["state"]
    return of_the_living(inputs["obs"], inputs["agent_mask"]).flatten(-2)


def of_the_living(seen: Tensor, alive: Bool[Tensor, "*lead agent"]) -> Tensor:
    """What agents see, zeros where they are absent; its dtype stays."""
    return seen * alive.view(*alive.shape, *(1,) * (seen.ndim - alive.ndim))
