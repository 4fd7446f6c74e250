"""Teams that act in turn: Sable, with and without memory, and the multi-agent transformer, under PPO's clipped loss.

Every agent's ratio is that of its own conditional, π(a_i | o, a_1 … a_{i−1}), and every agent has an advantage of its
own: what a joint policy gains is the sum of what each gains given those before it (the advantage decomposition of
Kuba et al. 2022, on which Wen et al. 2022 and Mahjoub et al. 2025 stand). The loss is `PPOLearner.loss`.
"""

from dataclasses import dataclass, field

import torch

from martes.algorithms.ppo import Clipped, PPOLearner
from martes.data import TeamSpec
from martes.networks import AutoregressiveTeam
from martes.networks.mat import MATShape
from martes.networks.sable import SableShape


@dataclass(frozen=True)
class Sable(Clipped):
    """Retention over the agents of a team and, with memory, over time. Source: Mahjoub et al. 2025."""

    network: SableShape = field(default_factory=SableShape)
    """The network, policy and value in one."""

    def learner(self, team: TeamSpec, generator: torch.Generator) -> PPOLearner:
        """A fresh learner of this team; every random number it ever needs comes from `generator`."""
        return PPOLearner(self, AutoregressiveTeam(team, self.network, self.sharing, generator), generator)


@dataclass(frozen=True)
class MAT(Clipped):
    """Attention over the agents of a team. Source: Wen et al. 2022."""

    network: MATShape = field(default_factory=MATShape)
    """The network, policy and value in one."""

    def learner(self, team: TeamSpec, generator: torch.Generator) -> PPOLearner:
        """A fresh learner of this team; every random number it ever needs comes from `generator`."""
        return PPOLearner(self, AutoregressiveTeam(team, self.network, self.sharing, generator), generator)
