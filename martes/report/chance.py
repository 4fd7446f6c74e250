"""Random play: what every learner is compared with."""

import torch
from torch import Tensor

from martes.data import Continuous, Memory, TeamSpec, VectorEnv
from martes.maths.distributions import gumbel
from martes.networks import TemporalModule
from martes.networks.temporal import Inputs, Outputs
from martes.report.intervals import Interval, interval
from martes.training.evaluate import evaluate


class UniformPolicy(TemporalModule):
    """Draws among each agent's legal actions, or inside its bounds, all equally likely.

    Without noise it takes the first legal action, or the middle between the bounds.
    """

    def __init__(self, team: TeamSpec) -> None:
        super().__init__()
        self.kind = team.action_kind
        self.legal = team.legal_actions
        self.bounds = team.bounds if self.kind is Continuous else None
        self.reads = ("action_mask", "agent_mask") if team.masks_actions else ("agent_mask",)
        self.writes = ("action",)

    def noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """Standard Gumbel numbers for choices among actions, uniform ones in [0, 1) for continuous actions."""
        shape = (envs, *self.legal.shape)
        if self.bounds is not None:
            return {"noise": torch.rand(shape, generator=generator, device=generator.device)}
        return {"noise": gumbel(shape, generator, generator.device)}

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """An action of each agent."""
        agent_mask = inputs["agent_mask"]
        noise = inputs.get("noise")
        if self.bounds is not None:
            low, high = (bound.to(agent_mask.device) for bound in self.bounds)
            share = torch.full((), 0.5) if noise is None else noise
            return {"action": (low + (high - low) * share).expand(*agent_mask.shape, -1)}, memory
        return {"action": self._chosen(inputs.get("action_mask"), noise, agent_mask)}, memory

    def _chosen(self, mask: Tensor | None, noise: Tensor | None, agent_mask: Tensor) -> Tensor:
        legal = self.legal.to(agent_mask.device)
        if mask is not None:
            legal = legal & mask.reshape(*agent_mask.shape, *legal.shape[1:])
        scores = torch.zeros(legal.shape, device=legal.device) if noise is None else noise
        return scores.masked_fill(~legal, -torch.inf).expand(*agent_mask.shape, *self.legal.shape[1:]).argmax(-1)


def random_play(env: VectorEnv, episodes: int = 1000, seed: int = 0) -> Interval:
    """The mean return of random play and its 95 % bootstrap interval over `episodes` episodes."""
    return interval(evaluate(UniformPolicy(env.team), env, episodes, seed, greedy=False).returns.tolist())
