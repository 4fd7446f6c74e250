"""Data that is there before anybody acts: samples and sequences as workspaces, and a source that draws batches."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from martes.data.schema import Field, Schema
from martes.data.workspace import Workspace
from martes.errors import DataError

_HELD = {
    "agent_mask": Field((), torch.bool, extra_row=True, fill=1, doc="is the agent there?"),
    "start": Field((), torch.bool, "time env", extra_row=True, doc="opens this step a sequence? memory is cleared"),
    "cut": Field((), torch.bool, "time env", doc="ends the sequence with this step?"),
}


def samples(given: Mapping[str, Tensor], agents: int | None = None) -> Workspace:
    """A workspace of one step, a sample an environment: `given` holds tensors `sample ...`.

    With `agents`, tensors are `sample agent ...`; without, each sample is seen by one agent. Raises DataError where
    fields have unequal numbers of samples.
    """
    whole = {name: value.unsqueeze(0) for name, value in given.items()}
    return _assembled(whole, torch.ones(1, _count(given), dtype=torch.bool), agents)


def sequences(given: Sequence[Mapping[str, Tensor]], agents: int | None = None) -> Workspace:
    """A workspace of unequal sequences, one an environment, padded to the longest: each holds tensors `time ...`.

    Padding is 0 and false in `mask`, so that losses do not count it; the last real step of each is `cut`. `agents` is
    as in `samples`. Raises DataError where a sequence has other names, shapes or lengths than it should.
    """
    if not given:
        raise DataError("there is no sequence: give at least one")
    lengths = torch.tensor([_count(each) for each in given])
    whole: dict[str, Tensor] = {}
    for name, first in given[0].items():
        tensors = [each[name] for each in given if name in each]
        if len(tensors) < len(given) or any(each.shape[1:] != first.shape[1:] for each in tensors):
            raise DataError(f"{name!r} is missing, or of another shape, in one of the {len(given)} sequences")
        whole[name] = torch.nn.utils.rnn.pad_sequence(tensors)
    filled = torch.arange(int(lengths.max()))[:, None] < lengths
    return _assembled(whole, filled, agents)


def _count(given: Mapping[str, Tensor]) -> int:
    counts = {name: len(value) for name, value in given.items()}
    if len(set(counts.values())) != 1:
        raise DataError(f"these fields are of unequal length, or there is none: {counts}")
    return next(iter(counts.values()))


def _assembled(whole: Mapping[str, Tensor], filled: Tensor, agents: int | None) -> Workspace:
    """A workspace of tensors `time env (agent) ...`, with masks and bounds; beyond the end nobody is there."""
    time, envs = filled.shape
    if agents is None:
        whole = {name: value.unsqueeze(2) for name, value in whole.items()}
    count = agents or 1
    fields = {name: Field(tuple(value.shape[3:]), value.dtype, writer="the data") for name, value in whole.items()}
    schema = Schema({**fields, **{name: field for name, field in _HELD.items() if name not in fields}}, count)
    start = torch.zeros(time + 1, envs, dtype=torch.bool)
    start[0] = True
    cut = filled & ~torch.cat((filled[1:], torch.zeros_like(filled[:1])))
    there = torch.cat((filled, torch.zeros_like(filled[:1]))).unsqueeze(-1).repeat(1, 1, count)
    tensors = {"agent_mask": there, "start": start, "cut": cut, **whole}
    for name in schema:
        if tensors[name].shape != schema.shape(name, time, envs):
            raise DataError(
                f"{name!r} is {list(tensors[name].shape)}: it must be {list(schema.shape(name, time, envs))}"
            )
    return Workspace.of(schema, {name: tensors[name] for name in schema}, filled)


class Source:
    """Batches of `batch` environments of a workspace: samples, or sequences that begin at their first step.

    Whole passes, each in an order of its own: nothing comes twice before everything came; what is left at the end of a
    pass goes into the next. `drawn` gives a workspace of its own, `fill` writes a batch into one step of another. All
    randomness comes from `generator`; batches lie where the data lies. Raises DataError where a batch is larger than
    the data.
    """

    def __init__(self, data: Workspace, batch: int, generator: torch.Generator) -> None:
        if not 1 <= batch <= data.envs:
            raise DataError(f"a batch of {batch} from {data.envs} samples: take 1 to {data.envs}")
        self.data = data
        self.batch = batch
        self.generator = generator
        self._order = torch.empty(0, dtype=torch.int64)

    def _next(self) -> Int64[Tensor, "batch"]:
        while len(self._order) < self.batch:
            more = torch.randperm(self.data.envs, generator=self.generator, device=self.generator.device).cpu()
            late = torch.isin(more, self._order)  # within one batch nothing comes twice
            self._order = torch.cat((self._order, more[~late], more[late]))
        chosen, self._order = self._order[: self.batch], self._order[self.batch :]
        return chosen.to(self.data.device)

    def drawn(self) -> Workspace:
        """The next batch, for ever."""
        return self.data.rows(self._next())

    def once(self) -> Iterator[Workspace]:
        """Everything once, in batches; the last one may be smaller. To score a model, not to train it."""
        for first in range(0, self.data.envs, self.batch):
            yield self.data.rows(torch.arange(first, min(first + self.batch, self.data.envs), device=self.data.device))

    def crops(self, length: int) -> Workspace:
        """`length` successive steps of each drawn sequence, from a beginning at random; a shorter one is taken whole.

        Every beginning after which so many steps are there is equally likely. The memory before is not known.
        """
        if not 1 <= length <= self.data.time:
            raise DataError(f"crops of {length} steps from sequences of {self.data.time}: take 1 to {self.data.time}")
        index = self._next()
        whole = self.data.rows(index)
        last = (whole.mask.any(-1).sum(0) - length).clamp(min=0)
        share = torch.rand(len(index), generator=self.generator, device=self.generator.device).to(last.device)
        return whole.crops((share * (last + 1)).long().minimum(last), length)

    def fill(self, workspace: Workspace, t: int = 0) -> None:
        """Writes a batch of samples into step `t` of a workspace of `batch` environments: fields that both have.

        Raises DataError where the data holds sequences, or the workspace has another number of environments.
        """
        if self.data.time != 1 or workspace.envs != self.batch:
            raise DataError(
                f"{self.batch} sequences of {self.data.time} steps do not fit one step of {workspace.envs} "
                "environments: `fill` is for samples, `drawn` gives sequences"
            )
        seen = self.drawn().at(0)
        workspace.write(t, {name: value for name, value in seen.items() if name in workspace and name != "cut"})
