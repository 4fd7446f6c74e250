"""A policy, and a critic that tells what each action of an agent is worth while the others do what they do."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from martes.data import Field, Memory, TeamSpec, Vector
from martes.networks.blocks import Body, Network
from martes.networks.critics import ValueHead, joint_source, joint_view, of_the_living
from martes.networks.policies import Policy
from martes.networks.sharing import Sharing, slots_of
from martes.networks.stacked import StackedLinear
from martes.networks.targets import still_copy
from martes.networks.temporal import Inputs, Outputs, TemporalModule
from martes.networks.units import Units


class CounterfactualCritic(nn.Module):
    """Q of every action of each agent, given what the others do: one output an action, one pass for all agents.

    It sees the state (where the task has none, the observations of all agents, joined), the actions of the others, the
    last joint action, what the agent itself sees, and which agent it is. An agent's own action is not among that.
    Its team chooses one discrete action each. Raises ConfigError without a state, where nothing can stand in.
    Source: Foerster et al. 2018, section 4.2.
    """

    is_other: Tensor

    def __init__(self, team: TeamSpec, network: Network, sharing: Sharing, generator: torch.Generator) -> None:
        super().__init__()
        self.source, size = joint_source(team)
        self.own = tuple(team.parts)
        self.actions = team.legal_actions.shape[1]
        slots = slots_of(team, sharing)
        size += 2 * team.size * self.actions
        sizes = tuple(size + own for own in team.observation_sizes)  # what is padded stands last
        self.body = Body({"joint": Vector(size), **team.parts}, slots.widest(sizes), slots, network, generator)
        self.head = ValueHead(StackedLinear(self.body.sizes, self.actions, generator, gain=0.01))
        self.register_buffer("is_other", ~torch.eye(team.size, dtype=torch.bool).unsqueeze(-1), persistent=False)
        self.reads = tuple(dict.fromkeys((self.source, *self.own, "agent_mask")))
        """Fields that it takes from the environment, beside `action` and `last_action` (-1: none)."""

    def units(self) -> dict[str, Units]:
        """The body's hidden units."""
        return self.body.units_read_at(self.head.linear.inputs())

    def forward(self, inputs: Inputs) -> Float[Tensor, "*lead agent action"]:
        """Q of every action, in units of the return."""
        features = self.body.features(self.view(inputs))
        return self.body.slots.unstacked(self.head(features), inputs["agent_mask"].shape[:-1])

    def view(self, inputs: Inputs) -> Inputs:
        """What the body sees; of absent agents zeros."""
        alive = inputs["agent_mask"]
        chosen = self._one_hot(inputs["action"]) & alive.unsqueeze(-1)  # ... other action
        of_others = (chosen.unsqueeze(-3) & self.is_other).flatten(-2)  # ... agent (other action)
        of_team = (joint_view(inputs, self.source), self._one_hot(inputs["last_action"]).flatten(-2))
        shared = torch.cat([each.float() for each in of_team], -1).unsqueeze(-2).expand(*alive.shape, -1)
        own = {name: of_the_living(inputs[name], alive) for name in self.own}
        return {"joint": torch.cat((shared, of_others.float()), -1), **own}

    def _one_hot(self, action: Tensor) -> Bool[Tensor, "*lead agent action"]:
        return action.unsqueeze(-1) == torch.arange(self.actions, device=action.device)

    def observe(self, inputs: Inputs) -> None:
        """Moves the statistics of observation normalisation."""
        self.body.observe(self.view(inputs), inputs["agent_mask"])


def chosen_q(q: Float[Tensor, "*lead action"], action: Int[Tensor, "*lead"]) -> Float[Tensor, "*lead"]:
    """The values of the actions that were taken."""
    return q.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)


def parts_of_memory(memory: Memory) -> tuple[Memory, Tensor]:
    """The policy's memory, and the last joint action [env agent]."""
    assert isinstance(memory, tuple), "begin with the module's initial_memory"
    own, last = memory
    assert isinstance(last, Tensor)
    return own, last


class Counterfactual(TemporalModule):
    """The policy, which acts; beside its memory the last joint action; and the critics, whose target values the future.

    `value` is Q' of a joint action that is drawn (without noise, of the most probable one).
    """

    def __init__(self, actor: Policy, critic: CounterfactualCritic) -> None:
        super().__init__()
        self.actor = actor
        self.critic = critic
        self.target = still_copy(critic)
        self.reads = tuple(dict.fromkeys((*actor.reads, *critic.reads)))
        self.writes = (*actor.writes, "last_action")

    def fields(self) -> dict[str, Field]:
        """The policy's, and the last action."""
        doc = "what the agent did one step before; -1: nothing, it has just come"
        return {**self.actor.fields(), "last_action": Field((), torch.int64, fill=-1, writer="the policy", doc=doc)}

    def initial_memory(self, envs: int) -> tuple[Memory, Tensor]:
        """The policy's memory, and no last action."""
        nothing = torch.full((envs, self.actor.agents), -1, device=self.actor.legal.device)
        return self.actor.initial_memory(envs), nothing

    def noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """What draws the joint action."""
        return self.actor.noise(envs, generator)

    def value_noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """What draws the joint action that is valued."""
        return self.actor.noise(envs, generator)

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """The policy's choice and scores, and the last joint action."""
        own, last = parts_of_memory(memory)
        outputs, own = self.actor.step(inputs, own)
        done = outputs["action"].long().masked_fill(~inputs["agent_mask"], -1)
        return {**outputs, "last_action": last}, (own, done)

    def value(self, inputs: Inputs, memory: Memory) -> Float[Tensor, "env agent"]:
        """Q'(s, u) of one time step, u being chosen now."""
        outputs, _ = self.step(inputs, memory)
        return chosen_q(self.target({**inputs, **outputs}), outputs["action"])

    def part_for(self, name: str) -> TemporalModule:
        """Acting alone needs the policy alone."""
        return self.actor if name in self.actor.writes else self
