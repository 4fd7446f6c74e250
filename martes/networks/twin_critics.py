"""Two critics of every agent, of which the lower is believed."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from martes.data import TeamSpec
from martes.networks.deterministic import ActionCodes
from martes.networks.joint_critics import CriticForm, JointCritics
from martes.networks.temporal import Inputs


class TwinCritics(nn.Module):
    """min_k Q_ki of joint actions, with gradient to the actions. Source: Fujimoto et al. 2018, equation 10."""

    def __init__(self, team: TeamSpec, form: CriticForm, codes: ActionCodes, generator: torch.Generator) -> None:
        super().__init__()
        self.one = JointCritics(team, form, codes, generator)
        self.other = JointCritics(team, form, codes, generator)
        self.reads = self.one.reads
        self.slot_count = self.one.slots.count

    def forward(self, inputs: Inputs, codes: Float[Tensor, "*lead agent code"]) -> Float[Tensor, "critic *lead agent"]:
        """Q_ki of the joint action."""
        return torch.stack([each(each.joint(inputs, codes)).squeeze(-2) for each in (self.one, self.other)])

    def lower(
        self, inputs: Inputs, others: Float[Tensor, "*lead agent code"], own: Float[Tensor, "*lead agent code"]
    ) -> Float[Tensor, "*lead agent"]:
        """min_k Q_ki of the joint action `others`, in which agent i does as in `own` and no other."""
        change = (own - others) * inputs["agent_mask"].unsqueeze(-1)
        one, other = (each.replaced(each.joint(inputs, others), change) for each in (self.one, self.other))
        return torch.minimum(one, other)

    def of_choices(
        self, inputs: Inputs, others: Float[Tensor, "*lead agent code"]
    ) -> Float[Tensor, "*lead agent action"]:
        """min_k Q_ki of every choice of each agent, all others as in `others`: one wide pass."""
        size = others.shape[-1]
        choice = torch.eye(size, device=others.device).view(size, *(1,) * (others.ndim - 1), size)
        wide = {name: value.expand(size, *value.shape) for name, value in inputs.items()}
        others = others.expand(size, *others.shape)
        return self.lower(wide, others, choice.expand_as(others)).movedim(0, -1)

    def observe(self, inputs: Inputs, is_counted: Bool[Tensor, "*lead"]) -> None:
        """Moves the statistics of observation normalisation by the steps that count."""
        for each in (self.one, self.other):
            each.observe(inputs, is_counted)
