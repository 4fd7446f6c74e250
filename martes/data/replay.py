"""Experience kept for many updates: one store of rows, a stream for each environment column; episodes never mix."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from martes.data.allocation import Room, in_files, in_memory, refuse_other_form, tensor_at
from martes.data.schema import Field, Schema
from martes.data.streams import Destination, Streams
from martes.data.timestep import Fields
from martes.data.workspace import Workspace
from martes.errors import DataError

ADDED = {
    "counted": Field((), torch.bool, "time env", writer="the replay", doc="may a loss count this step?"),
    "place": Field((), torch.int64, "env", writer="the replay", doc="where it was drawn, for its new priority"),
    "weight": Field(axes="env", fill=1, writer="the replay", doc="what corrects for unequal draws"),
}
"""What a drawn batch holds beside the stored fields. `counted` is false in padding and in what only burns in."""


@dataclass(frozen=True)
class Folder:
    """Keeps the rows in memory-mapped files: more than the memory holds, and there when the process has ended."""

    path: Path
    copied: bool = True
    """Do saved states hold the rows, too? Without it they are small, but what was written over since is gone."""


class Changes(NamedTuple):
    """What an `add` changed. A *place* is the number of a row in the store; each holds other rows in time."""

    written: Int64[Tensor, "place"]
    """All places that were written to."""
    steps: Int64[Tensor, "place"]
    """Those that hold a step: something done and what came of it."""
    episodes: Int64[Tensor, "place"]
    """The first step of each episode that is now complete."""


class Replay:
    """The last `capacity` rows of `columns` environments, each in a ring of its own that forgets its oldest row first.

    A step is a row. An episode of T steps takes T + 1: its real last observation is a row of observation-like fields
    alone (those with an extra row), as is what follows the last step of an unfinished one. So the successor of a step
    is the next row, and nothing is stored twice. Dtypes are those of `schema`, which names the fields to keep; a
    narrower dtype than the window's is checked to lose nothing. Constants of an environment are kept with every row.
    Raises DataError where a ring would hold less than three rows, or a field that every learner needs is missing.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        columns: int,
        capacity: int,
        folder: Folder | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if capacity // columns < 3:
            raise DataError(f"a replay of {capacity} rows for {columns} environments: each needs three, for two steps")
        for name in ("agent_mask", "start", "cut"):
            if name not in schema:
                raise DataError(f"a replay needs the field {name!r}: keep it in the schema that you give")
        self.schema = schema
        self.columns, self.slots = columns, capacity // columns
        self.device = torch.device(device)
        self._batch_schema = schema.extended(**ADDED)
        self._folder, self._identity = folder, ""
        places = columns * self.slots
        rooms = {f"rows/{name}": Room((places, *cell(schema, name)), schema[name].dtype) for name in schema}
        rooms["ends"] = Room((2, columns), torch.int64)
        if folder is None:
            tensors = in_memory(rooms, self.device)
        elif self.device.type == "cpu":
            tensors, self._identity = in_files(rooms, folder.path, self.form)
        else:
            raise DataError(f"a replay in {folder.path} cannot lie on {device}: leave out one of the two")
        self._rows = {name: tensors[f"rows/{name}"] for name in schema}
        self.streams = Streams(self.slots, tensors["ends"])
        self.streams.scan(self._rows["start"])

    # ---------------------------------------------------------------------------------------------------- what it has
    @property
    def rows(self) -> int:
        """How many rows of episodes it holds, last observations included."""
        return int(self.streams.held.sum())

    @property
    def episode_count(self) -> int:
        """How many episodes it holds from their first step to their last."""
        return int(self.streams.whole.sum())

    @property
    def is_full(self) -> bool:
        """Must every ring forget a row to take one more?"""
        return bool((self.streams.held == self.slots - 1).all())

    @property
    def form(self) -> dict[str, object]:
        """What two replays have in common where one can take up the state of the other."""
        fields = {
            f"field {name}": f"{field.dtype} {list(cell(self.schema, name))} {field.axes}, extra row: {field.extra_row}"
            for name, field in self.schema.items()
        }
        return {"environments": self.columns, "rows of each": self.slots, **fields}

    # --------------------------------------------------------------------------------------------------------- adding
    def add(self, window: Workspace, final: Fields | None = None) -> Changes:
        """Takes in a window that follows the last one; what changed.

        `final` holds the real last observations: each field with an extra row but `start`, stacked in the order of
        `window["cut"].nonzero()` (by step, then environment). A window that opens an episode where the last one was
        not cut (a run was resumed with fresh environments) ends that one as a time limit would. Raises DataError
        naming the field, environment or step that does not fit.
        """
        self._refuse_misfit(window, final)
        cut, opens = window["cut"].to(self.device), window["start"][0].to(self.device)
        plan = self.streams.planned(cut, opens)
        interrupted = self.streams.places(self.streams.each_column, plan.base - 2)[plan.interrupted]
        self._rows["cut"].index_fill_(0, interrupted, True)
        for name, field in self.schema.items():
            content = window[name] if field.over_time else window[name].expand(window.time, *window[name].shape)
            self._put(name, plan.steps, content[: window.time].flatten(0, 1))
            if field.extra_row:
                self._put(name, plan.others, _after(name, window, final))
            else:
                self._rows[name].index_fill_(0, plan.others.place, field.fill)
        episodes = self.streams.grow(plan, cut, opens)
        return Changes(torch.cat((plan.steps.place, plan.others.place)), plan.steps.place, episodes)

    def _put(self, name: str, destination: Destination, content: Tensor) -> None:
        rows = self._rows[name]
        content = content.to(self.device)
        if destination.chosen is not None:
            content = content.index_select(0, destination.chosen)
        stored = content.to(rows.dtype)
        if content.dtype != rows.dtype and not torch.equal(stored.to(content.dtype), content):
            wrong = content[stored.to(content.dtype) != content][0].item()
            raise DataError(f"{name!r} holds {wrong}, which {rows.dtype} cannot: keep it as {content.dtype}")
        rows.index_copy_(0, destination.place, stored)

    def _refuse_misfit(self, window: Workspace, final: Fields | None) -> None:
        if window.envs != self.columns:
            raise DataError(f"a window of {window.envs} environments for a replay of {self.columns}: one column each")
        for name, kept in self.schema.items():
            shape, given = window[name].shape, window.schema[name]
            wanted = self.schema.shape(name, window.time, window.envs)
            if shape != wanted or (given.axes, given.extra_row) != (kept.axes, kept.extra_row):
                raise DataError(f"{name!r} of the window is {given}, the replay keeps {kept}: only dtypes may differ")
        continues = ~window["start"][0] & (self.streams.end > 0).to(window.device)
        joined = torch.cat(
            ((continues & ~self.streams.is_open.to(window.device))[None], window["start"][1:] != window["cut"])
        )
        if bool(joined.any()):
            step, env = joined.nonzero()[0].unbind()
            raise DataError(
                f"environment {int(env)}: step {int(step)} of the window must open an episode exactly where the one "
                "before was cut. Mend the environment (or hand on every window, in order)"
            )
        cuts = int(window["cut"].sum())
        for name in (name for name, field in self.schema.items() if field.extra_row and name != "start"):
            given = 0 if final is None or name not in final else len(final[name])
            if given != cuts:
                raise DataError(
                    f"{cuts} episodes of this window were cut, and of {given} the real last {name!r} is given: "
                    "hand on that of each in `final`"
                )

    # ------------------------------------------------------------------------------------------------------- sampling
    def episodes(self, place: Int64[Tensor, "batch"]) -> Workspace:
        """The whole episodes that begin at these places, as a batch of as many steps as the longest has.

        Each begins with `start`, so any memory of the right form will do: `policy.initial_memory(batch.envs)`.
        """
        steps = self.streams.lengths[place].long()
        return self._gathered(place, (place, steps, torch.zeros_like(steps)), int(steps.amax()))

    def sequences(self, place: Int64[Tensor, "batch"], length: int = 1, burn_in: int = 0) -> Workspace:
        """`length` steps from each place on, and before them up to `burn_in` more of the same episode.

        A sequence ends with its episode, or with what is known of it, and is then shorter; its last step is then cut.
        `counted` is true at the steps from the place on: those before are for the memory alone. The memory of a
        sequence that is opened by `start` is fresh; of others it is unknown. Source: Kapturowski et al. 2019 (R2D2).
        """
        column, within = place // self.slots, place % self.slots
        steps = torch.ones_like(place)
        if length > 1:
            cut = self._flags("cut", column, within, range(length - 1))
            ahead = (self.streams.end[column] - 1 - within) % self.slots
            steps = (1 + (~cut).cumprod(0).sum(0)).minimum(ahead)
        back = torch.zeros_like(place)
        if burn_in:
            start = self._flags("start", column, within, range(0, -burn_in, -1))
            back = (~start).cumprod(0).sum(0).minimum((within - self.streams.oldest[column]) % self.slots)
        first = self.streams.places(column, within - back)
        return self._gathered(place, (first, back + steps, back), burn_in + length)

    def _flags(self, name: str, column: Tensor, within: Tensor, offsets: range) -> Bool[Tensor, "step batch"]:
        offset = torch.tensor(list(offsets), device=self.device)[:, None]
        return self._rows[name][self.streams.places(column, within + offset)]

    def _gathered(self, place: Tensor, span: tuple[Tensor, Tensor, Tensor], time: int) -> Workspace:
        """The rows of `steps` steps from each place `first` on, and what followed; the first `skipped` do not count."""
        first, steps, skipped = span
        column, within = first // self.slots, first % self.slots
        nth = torch.arange(time + 1, device=self.device)[:, None]
        row = self.streams.places(column, within + nth.minimum(steps))  # step batch
        every, tensors = row.flatten(), dict[str, Tensor]()
        for name, rows in self._rows.items():
            length = self.schema.length(name, time) if self.schema[name].over_time else 1
            found = rows.index_select(0, every[: length * len(place)])
            tensors[name] = found.unflatten(0, (length, -1)) if self.schema[name].over_time else found
        filled = nth[:-1] < steps
        tensors["counted"] = filled & (nth[:-1] >= skipped)
        tensors["weight"] = torch.ones(len(place), device=self.device)
        batch = Workspace.of(self._batch_schema, {**tensors, "place": place}, filled)
        if bool((steps < time).any()):
            self._pad(batch, nth, steps)
        return batch

    def _pad(self, batch: Workspace, nth: Tensor, steps: Tensor) -> None:
        """Fills what lies behind a sequence's end; nobody is there, and its last step is cut."""
        behind, after = ((nth[1 - extra :] > steps).flatten().nonzero().squeeze(1) for extra in (0, 1))
        for name, field in self.schema.items():
            if field.over_time:
                fill = 0 if name == "agent_mask" else field.fill
                batch[name].flatten(0, 1).index_fill_(0, after if field.extra_row else behind, fill)
        batch["cut"].logical_or_((nth[:-1] == steps - 1) & (steps < batch.time))

    # --------------------------------------------------------------------------------------------------------- saving
    def state_dict(self) -> dict[str, object]:
        """All that it holds: lent, to be saved or copied before the next `add`.

        Rows that lie in a folder are left there where the folder is not to be `copied`.
        """
        state: dict[str, object] = {"form": json.dumps(self.form), "end": self.streams.end, "folder": self._identity}
        if self._folder is not None and not self._folder.copied:
            return state
        used = min(int(self.streams.end.amax()), self.slots)
        return {**state, **{f"rows/{name}": self._by_column(rows)[:, :used] for name, rows in self._rows.items()}}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restores `state_dict`. Where its rows lie in a folder, those are gone that were written over since.

        Raises DataError where it is the state of another replay, or the folder is another one or older than it.
        """
        refuse_other_form("the saved replay", json.loads(str(state["form"])), self.form)
        end = tensor_at(state, "end").to(self.device)
        if "rows/start" in state:
            has_past = bool(self.streams.end.any())
            for name, rows in self._rows.items():
                saved, own = tensor_at(state, f"rows/{name}"), self._by_column(rows)
                own[:, : saved.shape[1]].copy_(saved)
                if has_past:  # else nothing was ever written there, and to touch it would take memory
                    own[:, saved.shape[1] :].zero_()
            self.streams.promised.copy_(end)
        elif self._folder is None or state["folder"] != self._identity or bool((self.streams.end < end).any()):
            where = "no folder" if self._folder is None else f"{self._folder.path}, which is another or an older one"
            raise DataError(f"the rows of the saved replay lie in the folder it was made with; this one has {where}")
        self.streams.end.copy_(end)
        self.streams.scan(self._rows["start"])

    def _by_column(self, rows: Tensor) -> Tensor:
        return rows.view(self.columns, self.slots, *rows.shape[1:])


def cell(schema: Schema, name: str) -> tuple[int, ...]:
    """The shape of a field at one step of one environment."""
    return (*([schema.agents] if schema[name].axes.endswith("agent") else []), *schema[name].shape)


def _after(name: str, window: Workspace, final: Fields | None) -> Tensor:
    """What was seen last of the episodes that were cut, and what is seen after the window."""
    follows = window[name][window.time]
    if final is None:
        return follows
    if name == "start":
        count = len(final["agent_mask"])
        return torch.cat((follows.new_zeros(count), follows))
    return torch.cat((final[name].to(follows), follows))
