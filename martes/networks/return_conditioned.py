"""A policy that is told which return to reach, beside what it saw and did."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from martes.data import Field, Memory, TeamSpec, Vector
from martes.networks.actions import Choices
from martes.networks.blocks import Body, Network
from martes.networks.deterministic import ActionCodes
from martes.networks.policies import Distribution
from martes.networks.sharing import Sharing, slots_of
from martes.networks.stacked import StackedLinear
from martes.networks.temporal import EARNED, Inputs, Outputs, TemporalModule
from martes.networks.units import Units

DONE, WANTED, KIND = "done", "wanted", "kind"


class ReturnConditioned(TemporalModule):
    """pi(action | last action, return to go, what is seen, and all three of the steps before), for all agents at once.

    As three tokens a step, in this order, or all in one; a body with memory reads the tokens as if each were a step.
    The return to go is `return_to_go` where that is given, else `asked` less what was `earned` so far in the episode,
    as `pool` has it. It draws with noise, is greedy without, and scores a choice that is given, as every policy.
    Source: Chen et al. 2021, section 3 (three tokens; the last action comes before, so that nothing is known too soon).
    """

    asked: Tensor
    """The return of a whole episode that it aims at, of each agent; only a learner, or who evaluates, moves it."""
    scale: Tensor
    """What returns are divided by; only a learner moves it."""
    pool: Tensor
    """[agent agent] The share of what one earned (row) in the return of another (column); only a learner sets it."""

    def __init__(
        self, team: TeamSpec, network: Network, sharing: Sharing, tokens: Literal[1, 3], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.slots = slots_of(team, sharing)
        self.codes, self.choices = ActionCodes(team), Choices(team, self.slots)
        told = {DONE: Vector(self.codes.size), WANTED: Vector(1), KIND: Vector(tokens)}
        more = self.codes.size + 1 + tokens
        sizes = self.slots.widest(tuple(size + more for size in team.observation_sizes))
        # What is padded stands last.
        self.body = Body(told | dict(team.parts), sizes, self.slots, network, generator, more)
        self.head = StackedLinear(self.body.sizes, self.choices.outputs, generator, gain=0.01)
        self.seen = tuple(team.parts)
        self.reads = (*self.seen, *self.choices.reads, EARNED)
        self.writes = self.choices.writes
        self.register_buffer("asked", torch.zeros(team.size))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("pool", torch.eye(team.size), persistent=False)

    def fields(self) -> dict[str, Field]:
        """What acting adds to a team's schema."""
        doc = "what the agent was paid in this episode before this step"
        return {**self.choices.fields(), EARNED: Field(extra_row=True, writer="who acts", doc=doc)}

    def units(self) -> dict[str, Units]:
        """The body's hidden units."""
        return self.body.units_read_at(self.head.inputs())

    def initial_memory(self, envs: int) -> Memory:
        """The body's memory, and no last action."""
        nothing = self.head.weight.new_zeros(envs, len(self.codes.legal), self.codes.size)
        return {"hidden": self.body.initial_memory(envs), DONE: nothing}

    def noise(self, envs: int, generator: torch.Generator) -> Outputs:
        """What draws the choice."""
        return self.choices.noise(envs, generator)

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """Choice and scores of one step."""
        hidden, done = _parted(memory)
        features = done
        for token in self._told(inputs, done):
            features, hidden = self.body.step(token, hidden)
        outputs = self._chosen(self._scores(features, inputs["agent_mask"].shape[:-1]), inputs)
        after = self.codes.of_actions(outputs["action"]) * inputs["agent_mask"].unsqueeze(-1)
        return outputs, {"hidden": hidden, DONE: after}

    def sequence(self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]) -> tuple[Outputs, Memory]:
        """Choices and scores of a window; where no choice is given, each depends on the one before."""
        if self.choices.choice not in inputs:
            return super().sequence(inputs, memory, start)
        scores, memory = self._line(inputs, memory, start)
        return self._chosen(scores, inputs), memory

    def distribution(self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]) -> Distribution:
        """The distributions over the actions of a window, given the `action` of each step."""
        return self.choices.distribution(self._line(inputs, memory, start)[0], inputs)

    def _line(
        self, inputs: Inputs, memory: Memory, start: Tensor
    ) -> tuple[Float[Tensor, "time env agent output"], Memory]:
        """Scores of a window, all tokens at once."""
        hidden, done = _parted(memory)
        if "action" not in inputs:
            inputs = {**inputs, "action": self.choices.action(inputs[self.choices.choice], inputs)}
        code = self.codes.of_actions(inputs["action"]) * inputs["agent_mask"].unsqueeze(-1)
        before = torch.cat((done.unsqueeze(0), code[:-1])) * ~start[..., None, None]
        told = self._told(inputs, before)
        line = {name: torch.stack([token[name] for token in told], dim=1).flatten(0, 1) for name in told[0]}
        opens = functional.pad(start.unsqueeze(1), (0, 0, 0, self.tokens - 1)).flatten(0, 1)
        features, hidden = self.body.sequence(line, hidden, opens, every=self.tokens)
        return self._scores(features, tuple(start.shape)), {"hidden": hidden, DONE: code[-1]}

    def _told(self, inputs: Inputs, done: Tensor) -> list[dict[str, Tensor]]:
        """The tokens of a step, as the body reads them: what a token does not tell is zeros there."""
        to_go = inputs["return_to_go"] if "return_to_go" in inputs else self.asked - inputs[EARNED] @ self.pool
        whole = {DONE: done, WANTED: (to_go / self.scale).unsqueeze(-1), **{name: inputs[name] for name in self.seen}}
        shares = (tuple(whole),) if self.tokens == 1 else ((DONE,), (WANTED,), self.seen)
        alive = inputs["agent_mask"]
        kinds = torch.eye(self.tokens, device=done.device)
        return [
            {
                **{name: part if name in share else torch.zeros_like(part) for name, part in whole.items()},
                KIND: kinds[n].expand(*alive.shape, -1),
                "agent_mask": alive,
            }
            for n, share in enumerate(shares)
        ]

    def _scores(self, features: Tensor, lead: tuple[int, ...]) -> Float[Tensor, "*lead agent output"]:
        return self.slots.unstacked(self.head(features), lead)

    def _chosen(self, scores: Float[Tensor, "*lead agent output"], inputs: Inputs) -> Outputs:
        sample = self.choices.sample(scores, inputs)
        action = self.choices.action(sample, inputs)
        if not self.choices.is_continuous:  # what is forced is what is scored
            sample = action
        return self.choices.scored(scores, sample, inputs) | {"action": action}

    def observe(self, inputs: Inputs, mask: Bool[Tensor, "time env agent"]) -> None:
        """Moves the statistics of observation normalisation by the steps that count."""
        if self.body.norm is not None:
            none = torch.zeros(*mask.shape, self.codes.size, device=mask.device)
            (*_, seen) = self._told(inputs, none)
            self.body.observe(seen, mask)


def _parted(memory: Memory) -> tuple[Memory, Float[Tensor, "env agent code"]]:
    assert isinstance(memory, dict), "begin with the policy's initial_memory"
    done = memory[DONE]
    assert isinstance(done, Tensor)
    return memory["hidden"], done
