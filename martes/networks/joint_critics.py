"""Critics of joint actions: what each agent may expect where the whole team sees x and does a."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from martes.data import Image, TeamSpec, Vector
from martes.networks.blocks import Body, Network, ObservationNorm
from martes.networks.critics import of_the_living
from martes.networks.deterministic import ActionCodes
from martes.networks.sharing import Sharing, Slots, slots_of
from martes.networks.stacked import StackedLinear, undrawn
from martes.networks.targets import copied_with, still
from martes.networks.temporal import Inputs
from martes.networks.units import Units

Codes = Float[Tensor, "*lead agent code"]


@dataclass(frozen=True)
class CriticForm:
    """The form of the critics of a team."""

    network: Network = field(default_factory=Network)
    sharing: Sharing = "shared"
    count: int = 1
    """How many critics each agent has."""
    sees: Literal["state", "observations"] = "state"
    """x: the team's state, where it has one, or what all agents observe."""


class JointCritics(nn.Module):
    """Q_ki(x, a) for `count` critics k of every agent i of a team, all in one pass.

    Critics and slots of agents are one axis of stacked parameters. The first layer sees x and a once for each slot; an
    agent that shares a slot is told apart by a learned vector added there. So a pass costs N rows and not N joint
    actions. Pictures of all agents are read as channels of one. Of absent agents zeros are seen.
    Source: Lowe et al. 2017, section 4.1; two critics: Fujimoto et al. 2018, Ackermann et al. 2019.
    """

    real: Tensor
    column: Tensor
    slot: Tensor
    agent: Tensor

    def __init__(self, team: TeamSpec, form: CriticForm, codes: ActionCodes, generator: torch.Generator) -> None:
        super().__init__()
        self.count, self.agents = form.count, team.size
        state = team.state if form.sees == "state" else None
        parts = team.parts if state is None else {}
        self.vectors = tuple(name for name, part in parts.items() if isinstance(part, Vector))
        pictures = {
            name: Image((part.shape[0] * team.size, *part.shape[1:]), part.dtype)
            for name, part in parts.items()
            if isinstance(part, Image)
        }
        self.reads = (*self.vectors, *pictures) if state is None else ("state",)
        """Fields that it takes from the environment, beside `agent_mask`."""
        padded = (_is_real(sizes) for name, sizes in team.vector_sizes.items() if name in parts)
        is_seen = torch.cat((torch.ones(0 if state is None else state.size, dtype=torch.bool), *padded))
        self._index(is_seen, codes.legal.flatten())

        slots = slots_of(team, form.sharing)
        of_critics = tuple(critic * slots.count + slot for critic in range(form.count) for slot in slots.slot_of_agent)
        self.slots = Slots(of_critics, slots.names * form.count)
        self.register_buffer("slot", torch.tensor(self.slots.slot_of_agent), persistent=False)
        self.register_buffer("agent", torch.arange(team.size).repeat(form.count), persistent=False)
        network = replace(form.network, memory="none", normalise=False, agent_id=slots.width > 1)
        fan_ins = (self.seen + self.done,) * self.slots.count
        self.body = Body({"joint": Vector(fan_ins[0]), **pictures}, fan_ins, self.slots, network, generator)
        self.norm = ObservationNorm(1, self.seen) if form.network.normalise and self.seen else None
        self.head = StackedLinear(self.body.sizes, 1, generator, gain=0.01)

    def units(self) -> dict[str, Units]:
        """The body's hidden units."""
        return self.body.units_read_at(self.head.inputs())

    def _index(self, is_seen: Bool[Tensor, "feature"], is_done: Bool[Tensor, "code"]) -> None:
        """Which of the padded numbers are real, and to which of the first layer's last columns each code belongs."""
        is_real = torch.cat((is_seen, is_done))
        self.seen, self.done = int(is_seen.sum()), int(is_done.sum())
        self.is_padded = not bool(is_real.all())
        column = torch.where(is_done, is_done.cumsum(0) - 1, self.done)  # of padding: one more, which holds zeros
        self.register_buffer("real", is_real.nonzero().squeeze(1), persistent=False)
        self.register_buffer("column", column, persistent=False)

    def joint(self, inputs: Inputs, codes: Codes) -> Inputs:
        """x and a, side by side, as the first layer reads them; and pictures."""
        alive = inputs["agent_mask"]
        pictures = {name: of_the_living(inputs[name], alive).flatten(-4, -3) for name in self.body.images}
        joint = torch.cat((*self._seen(inputs), (codes * alive.unsqueeze(-1)).flatten(-2)), -1)
        if self.is_padded:
            joint = joint.index_select(-1, self.real)
        if self.norm is not None:
            seen, done = joint.split((self.seen, self.done), -1)
            joint = torch.cat((self.norm(seen.flatten(0, -2).unsqueeze(0)).view(seen.shape), done), -1)
        return {**pictures, "joint": joint}

    def forward(self, joint: Inputs) -> Float[Tensor, "*lead critic agent"]:
        """Q of the joint action, in units of the return."""
        return self._values(self._first(joint), joint["joint"].shape[:-1])

    def replaced(self, joint: Inputs, change: Codes) -> Float[Tensor, "*lead agent"]:
        """Q_i(x, a_1 ... a_i + change_i ... a_N), where there is one critic: no agent's critic sees another's change.

        The first layer is linear: it moves by W_i change_i, and no joint action is made a second time.
        """
        assert self.count == 1, "the first critic judges a policy: take first_critic"
        reader = self.body.layers[0]
        assert isinstance(reader, StackedLinear)
        weight = reader.weight[..., -self.done :]  # slot hidden real
        if self.is_padded:
            weight = nn.functional.pad(weight, (0, 1)).index_select(2, self.column)
        own_weight = weight.unflatten(2, (self.agents, -1))[self.slot, :, self.agent]  # agent hidden code
        moved = change.flatten(0, -3).transpose(0, 1) @ own_weight.transpose(1, 2)  # agent row hidden
        first = self._first(joint) + self.slots.stacked(moved.transpose(0, 1))
        return self._values(first, joint["joint"].shape[:-1]).squeeze(-2)

    def observe(self, inputs: Inputs, is_counted: Bool[Tensor, "*lead"]) -> None:
        """Moves the statistics of observation normalisation by the steps that count."""
        if self.norm is not None:
            seen = torch.cat(self._seen(inputs), -1).flatten(0, -2)
            self.norm.observe(seen[:, self.real[: self.seen]].unsqueeze(0), is_counted.reshape(1, -1))

    def _seen(self, inputs: Inputs) -> list[Float[Tensor, "*lead feature"]]:
        if "state" in self.reads:
            return [inputs["state"]]
        return [of_the_living(inputs[name], inputs["agent_mask"]).flatten(-2).float() for name in self.vectors]

    def _first(self, joint: Inputs) -> Float[Tensor, "slot rows hidden"]:
        """What the first layer makes of it for every agent, told which of its slot's members it is."""
        rows = joint["joint"].flatten(0, -2)
        parts = [rows.expand(self.slots.count, *rows.shape)]
        if self.body.images:
            pictures = (joint[name].flatten(0, -4) for name in self.body.images)
            stacked = (each.expand(self.slots.count, *each.shape) for each in pictures)
            parts = [layer(each) for layer, each in zip(self.body.convolutions, stacked, strict=True)] + parts
        first = self.body.layers[0](parts[0] if len(parts) == 1 else torch.cat(parts, -1))
        return first if self.body.identity is None else self.body.identified(first.unsqueeze(2))

    def _values(
        self, first: Float[Tensor, "slot rows hidden"], lead: tuple[int, ...]
    ) -> Float[Tensor, "*lead critic agent"]:
        q = self.slots.unstacked(self.head(self.body.deepened(first)), lead)  # ... (critic agent) 1
        return q.squeeze(-1).unflatten(-1, (self.count, self.agents))


def first_critic(critics: JointCritics, team: TeamSpec, form: CriticForm, codes: ActionCodes) -> JointCritics:
    """The first critic of every agent, in the memory of `critics`: always what it is there, and not to be learned."""
    if form.count == 1:
        tensors = {id(each): still(each) for each in critics.parameters()} | {
            id(each): each for each in critics.buffers()
        }
        return copied_with(critics, tensors)
    with undrawn():
        alone = JointCritics(team, replace(form, count=1), codes, torch.Generator(critics.head.weight.device))
    alone = alone.to(critics.head.weight.device).requires_grad_(False)
    own = {name: each.detach()[: len(each) // form.count] for name, each in critics.named_parameters()}
    alone.load_state_dict(critics.state_dict() | own, assign=True)
    return alone


def _is_real(sizes: tuple[int, ...]) -> Bool[Tensor, "feature"]:
    """Which of the agents' numbers, padded to the widest and side by side, are real."""
    return (torch.arange(max(sizes)) < torch.tensor(sizes).unsqueeze(1)).flatten()
