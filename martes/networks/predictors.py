"""Predictors: sequences of data in, predictions out, by the same bodies as those of policies."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from martes.data import Field, Image, Memory, Vector
from martes.networks.blocks import Body, Network
from martes.networks.sharing import Slots
from martes.networks.stacked import StackedLinear
from martes.networks.temporal import Inputs, Outputs, TemporalModule
from martes.networks.units import Units


class Predictor(TemporalModule):
    """A prediction [... agent output] at each step, from what was seen so far; what agents see stands in `parts`.

    A data set is a team of one: sequences are environments, and `agent_mask` is true where a sequence has data. Agents,
    where there are more, share the parameters. `network.memory` says what is known of earlier steps.
    """

    def __init__(
        self,
        parts: Mapping[str, Vector | Image],
        outputs: int,
        network: Network,
        generator: torch.Generator,
        agents: int = 1,
        name: str = "prediction",
    ) -> None:
        super().__init__()
        width = sum(part.size for part in parts.values() if isinstance(part, Vector))
        self.outputs, self.name = outputs, name
        self.body = Body(parts, (width,), Slots((0,) * agents), network, generator)
        self.head = StackedLinear((self.body.size,), outputs, generator, gain=0.01)
        self.reads, self.writes = (*self.body.reads, "agent_mask"), (name,)

    def fields(self) -> dict[str, Field]:
        """What it adds to a schema."""
        return {self.name: Field((self.outputs,), writer="the predictor", doc="what is predicted at this step")}

    def units(self) -> dict[str, Units]:
        """The body's hidden units."""
        return self.body.units_read_at(self.head.inputs())

    def initial_memory(self, envs: int) -> Memory:
        """The body's memory."""
        return self.body.initial_memory(envs)

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """The prediction of one step."""
        features, memory = self.body.step(inputs, memory)
        return self._told(features, inputs), memory

    def sequence(self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]) -> tuple[Outputs, Memory]:
        """The predictions of a window."""
        features, memory = self.body.sequence(inputs, memory, start)
        return self._told(features, inputs), memory

    def predicted(
        self, data: Float[Tensor, "time env feature"], there: Bool[Tensor, "time env"] | None = None
    ) -> Float[Tensor, "time env output"]:
        """Predictions over whole sequences of the one thing that is seen; `there` is false where one is padded."""
        there = torch.ones(data.shape[:2], dtype=torch.bool, device=data.device) if there is None else there
        inputs = {self.body.reads[0]: data.unsqueeze(2), "agent_mask": there.unsqueeze(2)}
        start = functional.pad(torch.zeros_like(there[1:]), (0, 0, 1, 0), value=True)
        return self.sequence(inputs, self.initial_memory(data.shape[1]), start)[0][self.name].squeeze(2)

    def _told(self, features: Float[Tensor, "slot row size"], inputs: Inputs) -> Outputs:
        lead = inputs["agent_mask"].shape[:-1]
        return {self.name: self.body.slots.unstacked(self.head(features), lead)}
