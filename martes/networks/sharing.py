"""Who shares parameters with whom: agents are laid out in slots, each slot with parameters of its own."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from martes.data import TeamSpec

Sharing = Literal["shared", "group", "agent"]


def slot_of_agents(team: TeamSpec, sharing: Sharing) -> tuple[int, ...]:
    """The slot of each agent: one for all (`shared`), one a group, or one each (`agent`)."""
    match sharing:
        case "shared":
            return (0,) * team.size
        case "group":
            names = list(team.groups)
            return tuple(names.index(name) for name in team.group_of)
        case "agent":
            return tuple(range(team.size))


def slots_of(team: TeamSpec, sharing: Sharing) -> "Slots":
    """The slots of a team's agents, who are called by their own names and their groups'."""
    return Slots(slot_of_agents(team, sharing), tuple(zip(team.agents, team.group_of, strict=True)))


class Slots(nn.Module):
    """The way from the agents' layout `* agent feature` to that of stacked parameters, `slot row feature`, and back.

    All agents of a slot lie in one row axis, so a layer is one batched matrix product over slots, whatever the number
    of agents. Slots with fewer members are filled up with copies of their first, whose results go nowhere.
    """

    place: Int64[Tensor, "agent"]
    member: Int64[Tensor, "place"]
    is_genuine: Bool[Tensor, "place"]

    def __init__(self, slot_of_agent: tuple[int, ...], names: tuple[tuple[str, ...], ...] = ()) -> None:
        super().__init__()
        self.names = names
        """What each agent is called, its own name before its group's; empty: they are a team's as a whole."""
        self.count = max(slot_of_agent) + 1
        members = [[agent for agent, slot in enumerate(slot_of_agent) if slot == each] for each in range(self.count)]
        self.width = max(len(each) for each in members)
        filled = [each + each[:1] * (self.width - len(each)) for each in members]
        place = [slot * self.width + members[slot].index(agent) for agent, slot in enumerate(slot_of_agent)]
        self.slot_of_agent = slot_of_agent
        self.is_in_order = [agent for each in filled for agent in each] == list(range(len(slot_of_agent)))
        self.register_buffer("member", torch.tensor(filled).flatten(), persistent=False)
        self.register_buffer("place", torch.tensor(place), persistent=False)
        genuine = torch.zeros(self.count * self.width, dtype=torch.bool).index_fill(0, torch.tensor(place), True)
        self.register_buffer("is_genuine", genuine, persistent=False)

    def widest(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """The largest of the agents' `sizes` in each slot: the true fan-in of its first layer."""
        pairs = list(zip(self.slot_of_agent, sizes, strict=True))
        return tuple(max(size for slot, size in pairs if slot == each) for each in range(self.count))

    def stacked(self, x: Shaped[Tensor, "*lead agent feature"]) -> Shaped[Tensor, "slot row feature"]:
        """The same features by slot; rows are the leading axes times the members of a slot."""
        if self.count == 1:
            return x.reshape(1, -1, x.shape[-1])
        if not self.is_in_order:
            x = x.index_select(-2, self.member)
        x = x.reshape(-1, self.count, self.width, x.shape[-1])  # row slot member feature
        return x.transpose(0, 1).flatten(1, 2)

    def stacked_mask(self, mask: Bool[Tensor, "*lead agent"]) -> Bool[Tensor, "slot row"]:
        """The mask by slot, false for the copies that fill a slot up."""
        stacked = self.stacked(mask.unsqueeze(-1)).squeeze(-1).unflatten(1, (-1, self.width))
        return (stacked & self.is_genuine.view(self.count, 1, self.width)).flatten(1)

    def unstacked(
        self, x: Shaped[Tensor, "slot row feature"], lead: tuple[int, ...]
    ) -> Shaped[Tensor, "*lead agent feature"]:
        """Back to the agents' layout, `lead` being the leading axes that `stacked` folded."""
        if self.count == 1:
            return x.reshape(*lead, -1, x.shape[-1])
        x = x.reshape(self.count, -1, self.width, x.shape[-1]).transpose(0, 1).flatten(1, 2)  # row place feature
        if not self.is_in_order:
            x = x.index_select(1, self.place)
        return x.reshape(*lead, -1, x.shape[-1])


def clipped_by_slot(
    gradients: Sequence[Tensor], slots: int, max_norm: float | None
) -> tuple[list[Tensor], Float[Tensor, "slot"]]:
    """Gradients, those of each slot cut to a length of `max_norm`, and how long they were; the slot axis comes first.

    Agents that share nothing do not dampen each other's steps.
    """
    by_slot = [each.reshape(slots, -1) for each in gradients]
    norms = torch.linalg.vector_norm(torch.cat(by_slot, 1), dim=1)
    if max_norm is None:
        return list(gradients), norms
    scale = (max_norm / (norms + 1e-6)).clamp(max=1.0).unsqueeze(1)
    return [(each * scale).view(whole.shape) for each, whole in zip(by_slot, gradients, strict=True)], norms
