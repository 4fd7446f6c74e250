"""A policy beside a critic: two networks that learn as one."""

from jaxtyping import Bool
from torch import Tensor, nn

from martes.data import Workspace
from martes.networks.critics import Critic, ValueHead
from martes.networks.policies import Policy
from martes.networks.temporal import Chain, Inputs


class ActorCritic(Chain):
    """Policy and critic side by side: two networks without common parameters."""

    def __init__(self, actor: Policy, critic: Critic) -> None:
        super().__init__(actor, critic)
        self._pair = (actor, critic)  # in a tuple: the chain holds them as modules already

    @property
    def actor(self) -> Policy:
        """What acts."""
        return self._pair[0]

    @property
    def critic(self) -> Critic:
        """What knows the value."""
        return self._pair[1]

    @property
    def given(self) -> tuple[str, ...]:
        """The recorded choice that is scored again."""
        return (self.actor.choice,)

    @property
    def head(self) -> ValueHead:
        """The last layer of the values."""
        return self.critic.head

    def valued(self, batch: Workspace) -> Bool[Tensor, "time env agent"]:
        """Where values are learned: an agent's own steps; under a central critic every step of a living team.

        The value of a dead member goes on while the team plays on.
        """
        return batch.mask.any(-1, keepdim=True).expand_as(batch.mask) if self.critic.is_central else batch.mask

    def observe(self, inputs: Inputs) -> None:
        """Moves the statistics of observation normalisation of both."""
        self.actor.body.observe(inputs, inputs["agent_mask"])
        self.critic.observe(inputs)

    def clipped_together(self) -> dict[str, tuple[nn.Module, int]]:
        """Each of the two, its agents apart who share nothing."""
        return {"policy": (self.actor, self.actor.slots.count), "critic": (self.critic, self.critic.body.slots.count)}
