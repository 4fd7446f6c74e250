"""What joins the values of a team's agents: a sum, a monotone network, or a value of its own for the joint action."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from martes.data import TeamSpec
from martes.errors import ConfigError
from martes.networks.critics import joint_source, joint_view
from martes.networks.q_values import ValuePolicy
from martes.networks.stacked import StackedLinear
from martes.networks.temporal import Outputs
from martes.networks.units import Place, Units

SMALL = 0.01
"""Gain of the last layers of what should begin near 0."""
Kind = Literal["none", "sum", "monotone", "joint"]


class Joint(NamedTuple):
    """A joint action and what is known where it is taken."""

    q: Float[Tensor, "*lead agent"]
    """The value of each agent's part; 0 of who is absent."""
    action: Int[Tensor, "*lead agent"]
    features: Float[Tensor, "*lead agent feature"]
    """What each agent's network made of what it sees and has seen."""
    alive: Bool[Tensor, "*lead agent"]
    state: Float[Tensor, "*lead size"]
    """What is known of the whole team; of size 0 for who asks for nothing."""

    @classmethod
    def at(cls, rows: slice, outputs: Outputs, action: Tensor, fields: Mapping[str, Tensor], state: Tensor) -> "Joint":
        """What `action` [time env agent] is at these of the rows that outputs, fields and state hold."""
        q, features, alive = outputs["q"][rows], outputs["features"][rows], fields["agent_mask"][rows]
        own = q.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)
        return cls(torch.where(alive, own, 0.0), action, features, alive, state[rows])


@dataclass(frozen=True)
class Mixing:
    """The form of a mixer. Raises ConfigError for widths and weights that cannot be."""

    width: int = 32
    """Hidden units of the monotone network; of a joint value: units of each hidden layer."""
    hypernet: tuple[int, ...] = (64,)
    """Hidden layers of the networks that give the monotone network its weights; `[]`: one linear map each."""
    positive: Literal["abs", "softplus"] = "abs"
    """What keeps those weights from falling below 0."""
    sees_state: bool = True
    """May the monotone network depend on the state of the team? Without, it is the same everywhere."""
    lambda_opt: float = 1.0
    """Weight of the loss that makes the greedy joint action the best one (joint value only)."""
    lambda_nopt: float = 0.1
    """Weight of the loss that lets no other joint action seem better (joint value only)."""

    def __post_init__(self) -> None:
        if self.width < 1 or any(width < 1 for width in self.hypernet):
            raise ConfigError(f"mixing is {self}: widths must be at least 1")
        if min(self.lambda_opt, self.lambda_nopt) < 0:
            raise ConfigError(f"mixing is {self}: weights of losses must be 0 or more")


@dataclass(frozen=True)
class TeamView:
    """Where a mixer sees the whole team, and how wide that is."""

    source: str = ""
    """Its state, its agents' joined observations, or nowhere."""
    size: int = 0

    @classmethod
    def of(cls, team: TeamSpec) -> "TeamView":
        """The state; without one, vector observations stand in. Raises ConfigError where there is neither."""
        return cls(*joint_source(team))

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields that it takes."""
        return (self.source, "agent_mask") if self.source else ("agent_mask",)

    def seen(self, fields: Mapping[str, Tensor]) -> Float[Tensor, "*lead size"]:
        """What is seen there, zeros in place of absent agents' observations; of size 0 where nothing is."""
        if self.source:
            return joint_view(fields, self.source).float()
        return fields["agent_mask"].new_zeros((*fields["agent_mask"].shape[:-1], 0), dtype=torch.float32)


class Separate(nn.Module):
    """Q_i: each agent learns for itself. Source: Tan 1993; Tampuu et al. 2017."""

    is_of_team = False
    """Is there one value for the whole team?"""
    view = TeamView()

    def forward(self, joint: Joint) -> Float[Tensor, "*lead agent"]:
        """The agents' own values."""
        return joint.q


class Sum(nn.Module):
    """Q_tot = sum_i Q_i over who is there. Source: Sunehag et al. 2018."""

    is_of_team = True
    view = TeamView()

    def forward(self, joint: Joint) -> Float[Tensor, "*lead 1"]:
        """The sum."""
        return joint.q.sum(-1, keepdim=True)


class Monotone(nn.Module):
    """Q_tot = elu(q |W_1(s)| + b_1(s)) |w_2(s)| + V(s): it never falls where some Q_i rises.

    Hypernetworks of the state give W_1 [agent width], b_1, w_2 and V; whoever is absent brings 0.
    Source: Rashid et al. 2018, section 4.
    """

    is_of_team = True

    def __init__(self, team: TeamSpec, form: Mixing, generator: torch.Generator) -> None:
        super().__init__()
        self.form = form
        self.view = TeamView.of(team) if form.sees_state else TeamView()
        size = max(self.view.size, 1)
        # It begins near the sum, whatever the scale of the state: what is too large at first is long bootstrapped from.
        self.inward = Layers((size, *form.hypernet, team.size * form.width), generator, offset=1.0)
        self.bias = Layers((size, form.width), generator)
        self.outward = Layers((size, *form.hypernet, form.width), generator, offset=1 / form.width)
        self.value = Layers((size, form.width, 1), generator)

    def forward(self, joint: Joint) -> Float[Tensor, "*lead 1"]:
        """The monotone function of the agents' values."""
        state = joint.state if self.view.size else torch.ones_like(joint.q[..., :1])
        first = self._positive(self.inward(state)).unflatten(-1, (-1, self.form.width))  # ... agent width
        hidden = functional.elu((joint.q.unsqueeze(-1) * first).sum(-2) + self.bias(state))
        return (hidden * self._positive(self.outward(state))).sum(-1, keepdim=True) + self.value(state)

    def _positive(self, weight: Tensor) -> Tensor:
        return weight.abs() if self.form.positive == "abs" else functional.softplus(weight)


class JointValue(nn.Module):
    """Q_jt(s, sum_i e(h_i, a_i)), free of any bound to the agents' values, and V(s), which lies between the two.

    Source: Son et al. 2019, section 4.1 (QTRAN-base), where the sum over encoded agents is the value's input.
    """

    is_of_team = True

    def __init__(self, team: TeamSpec, form: Mixing, features: int, generator: torch.Generator) -> None:
        super().__init__()
        self.view = TeamView.of(team)
        self.actions = team.legal_actions.shape[1]
        code = features + self.actions
        self.code = Layers((code, code, code), generator, gain=1.0)
        self.q = Layers((self.view.size + code, form.width, form.width, 1), generator)
        self.v = Layers((self.view.size, form.width, form.width, 1), generator)

    def forward(self, joint: Joint) -> Float[Tensor, "*lead 1"]:
        """Q_jt."""
        chosen = functional.one_hot(joint.action.long(), self.actions).to(joint.features.dtype)
        codes = self.code(torch.cat((joint.features, chosen), -1)) * joint.alive.unsqueeze(-1)
        return self.q(torch.cat((joint.state, codes.sum(-2)), -1))

    @property
    def readers(self) -> tuple[Place, ...]:
        """Where the agents' features are read."""
        return (self.code.layers[0].inputs(),)

    def units(self) -> dict[str, Units]:
        """What encodes an agent: as many as its features and actions."""
        last, first = self.code.layers[-1], self.q.layers[0]
        return {"code": Units(len(last.bias[0]), last.outputs(), (first.inputs(self.view.size),))}


class Layers(nn.Module):
    """Linear maps with ReLU between them; the last begins with this gain, about `offset`."""

    def __init__(
        self, widths: tuple[int, ...], generator: torch.Generator, gain: float = SMALL, offset: float = 0.0
    ) -> None:
        super().__init__()
        *inner, (before, after) = pairwise(widths)
        last = StackedLinear((before,), after, generator, gain)
        nn.init.constant_(last.bias, offset)
        self.maps = nn.ModuleList((*(StackedLinear((a,), b, generator) for a, b in inner), last))

    @property
    def layers(self) -> list[StackedLinear]:
        """The maps."""
        return [each for each in self.maps if isinstance(each, StackedLinear)]

    def units(self) -> dict[str, Units]:
        """What stands between each map and the next."""
        pairs = enumerate(pairwise(self.layers))
        return {f"{depth}": Units(len(a.bias[0]), a.outputs(), (b.inputs(),)) for depth, (a, b) in pairs}

    def forward(self, x: Float[Tensor, "*lead size"]) -> Float[Tensor, "*lead out"]:
        """The image of every row."""
        y = x.reshape(1, -1, x.shape[-1])
        for depth, each in enumerate(self.maps):
            y = each(y if depth == 0 else torch.relu_(y))
        return y.reshape(*x.shape[:-1], y.shape[-1])


Mixer = Separate | Sum | Monotone | JointValue


def mixer_of(kind: Kind, team: TeamSpec, form: Mixing, features: int, generator: torch.Generator) -> Mixer:
    """A fresh mixer of this kind; `features` is the width of what the agents' networks make of what they see."""
    match kind:
        case "none":
            return Separate()
        case "sum":
            return Sum()
        case "monotone":
            return Monotone(team, form, generator)
        case "joint":
            return JointValue(team, form, features, generator)


class TeamValues(nn.Module):
    """The agents' values and what joins them."""

    def __init__(self, agents: ValuePolicy, mixer: Mixer) -> None:
        super().__init__()
        self.agents, self.mixer = agents, mixer

    def units(self) -> dict[str, Units]:
        """The agents' hidden units, whose features a joint value reads beside the agents' own values."""
        readers = self.mixer.readers if isinstance(self.mixer, JointValue) else ()
        return self.agents.body.units_read_at(self.agents.head.inputs(), *readers)

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields that both take."""
        return tuple(dict.fromkeys((*self.agents.reads, *self.mixer.view.reads)))
