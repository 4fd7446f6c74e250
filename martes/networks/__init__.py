"""Temporal modules: one face to act, one to learn; and the networks they are made of."""

from martes.networks.actor_critic import ActorCritic
from martes.networks.autoregressive import AutoregressiveTeam
from martes.networks.blocks import Network
from martes.networks.critics import Critic
from martes.networks.policies import Policy
from martes.networks.sharing import Sharing, clipped_by_slot
from martes.networks.temporal import Chain, TemporalModule, act, replay

__all__ = [
    "ActorCritic",
    "AutoregressiveTeam",
    "Chain",
    "Critic",
    "Network",
    "Policy",
    "Sharing",
    "TemporalModule",
    "act",
    "clipped_by_slot",
    "replay",
]
