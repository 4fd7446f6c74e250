"""Where the rows of several endless streams lie in rings of fixed size, and which episodes are held whole."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from martes.errors import DataError


class Destination(NamedTuple):
    """Where given rows go: their places, and which of the given rows they are (None: all of them)."""

    place: Int64[Tensor, "place"]
    chosen: Int64[Tensor, "place"] | None


class Plan(NamedTuple):
    """Where the rows of a window go."""

    steps: Destination
    """Its steps, by time, then column."""
    others: Destination
    """The last observations of its episodes, by time, then column; then what follows the window in each column."""
    interrupted: Bool[Tensor, "column"]
    """Did the last episode end without a cut (at the row before the window's first)?"""
    base: Int64[Tensor, "column"]
    last: Int64[Tensor, "time column"]
    end: Int64[Tensor, "column"]


class Streams:
    """Positions in `columns` streams of rows, of each of which the last `slots` are kept.

    A *position* counts the rows of a stream from its beginning; a *place* is the number of the slot of the store where
    a row lies: column * slots + position % slots. A stream is episode after episode, each a row a step and one row for
    its last observation, and ends with a row for what is seen now, which its next step takes over. `ends`
    [2 column] is how many rows there are, and how many are promised: where a process is killed while it writes, what
    lies between the two is half done, and what it was to replace is lost.
    """

    def __init__(self, slots: int, ends: Int64[Tensor, "2 column"]) -> None:
        self.slots, self.columns = slots, ends.shape[1]
        self.end, self.promised = ends
        self.device = ends.device
        self.each_column = torch.arange(self.columns, device=self.device)
        self.lengths: Int32[Tensor, "place"] = torch.empty(self.columns * slots, dtype=torch.int32, device=self.device)
        """The steps of the whole episode that begins at each place; 0 at other steps, -1 where there is no step."""

    @property
    def oldest(self) -> Int64[Tensor, "column"]:
        """The first position that is kept."""
        return (torch.maximum(self.end, self.promised) - self.slots).clamp(min=0)

    @property
    def held(self) -> Int64[Tensor, "column"]:
        """How many rows are kept, but for that of what is seen now."""
        return (self.end - 1 - self.oldest).clamp(min=0)

    @property
    def whole(self) -> Int64[Tensor, "column"]:
        """How many episodes are kept from their first step to their last."""
        return self._whole_end - self._whole_begin

    @property
    def is_open(self) -> Bool[Tensor, "column"]:
        """Is the last episode unfinished?"""
        return (self.end > 0) & (self._open_at != self.end - 1)

    def places(self, column: Tensor, position: Tensor) -> Int64[Tensor, "..."]:
        """Where the rows at these positions lie."""
        return column * self.slots + position % self.slots

    # --------------------------------------------------------------------------------------------------------- growing
    def planned(self, cut: Bool[Tensor, "time column"], opens: Bool[Tensor, "column"]) -> Plan:
        """Where a window with these cuts goes, whose first row `opens` an episode or not; the rows it replaces go."""
        time = len(cut)
        interrupted = self.is_open & opens
        base = (self.end - 1).clamp(min=0) + interrupted
        ended = cut.cumsum(0)  # a last observation takes one row more
        position = base + torch.arange(time, device=self.device)[:, None] + ended - cut.long()
        end = base + time + ended[-1] + 1
        self.promised.copy_(torch.maximum(self.promised, end))
        t, column = cut.nonzero(as_tuple=True)
        others = torch.cat((position[t, column] + 1, end - 1))
        steps = self._destination(self.each_column.repeat(time), position.flatten())
        return Plan(
            steps,
            self._destination(torch.cat((column, self.each_column)), others),
            interrupted,
            base,
            position,
            end,
        )

    def _destination(self, column: Tensor, position: Tensor) -> Destination:
        is_kept = position >= self.oldest[column]  # of a window longer than a ring only the last rows are
        place = self.places(column, position)
        if bool(is_kept.all()):
            return Destination(place, None)
        return Destination(place[is_kept], is_kept.nonzero().squeeze(1))

    def grow(
        self, plan: Plan, cut: Bool[Tensor, "time column"], opens: Bool[Tensor, "column"]
    ) -> Int64[Tensor, "place"]:
        """Counts in the rows of a plan, now that they are written; where the episodes begin that are now whole."""
        self.lengths.index_fill_(0, plan.steps.place, 0).index_fill_(0, plan.others.place, -1)
        self._forget(int((plan.end - self.end).amax()))
        closed = plan.interrupted.nonzero().squeeze(1)
        late = self._enrol(closed, plan.base[closed] - 2)
        self._open_at = torch.where(opens, plan.base, self._open_at)
        column, t = cut.T.nonzero(as_tuple=True)
        whole = self._enrol(column, plan.last[t, column])
        self.end.copy_(plan.end)
        return torch.cat((late, whole))

    def _enrol(self, column: Tensor, last: Tensor) -> Int64[Tensor, "place"]:
        """Where the episodes begin whose last steps these are (by column, then time), as far as they are kept whole."""
        if len(column) == 0:
            return column
        first = self._open_at[column]
        first[1:] = torch.where(column[1:] == column[:-1], last[:-1] + 2, first[1:])
        self._open_at = self._open_at.scatter_reduce(0, column, last + 2, "amax")
        is_whole = first >= self.oldest[column]
        column, first, last = column[is_whole], first[is_whole], last[is_whole]
        place = self.places(column, first)
        self.lengths[place] = (last - first + 1).int()
        rank = torch.arange(len(column), device=self.device) - torch.searchsorted(column, column)
        self._whole[column, (self._whole_end[column] + rank) % self._whole.shape[1]] = first
        self._whole_end += torch.bincount(column, minlength=self.columns)
        return place

    def _forget(self, added: int) -> None:
        """Drops the episodes that lost their first row to the last `added` ones."""
        ring = self._whole.shape[1]
        nth = self._whole_begin[:, None] + torch.arange(min(added // 2 + 2, ring), device=self.device)
        is_gone = (self._whole.gather(1, nth % ring) < self.oldest[:, None]) & (nth < self._whole_end[:, None])
        self._whole_begin += is_gone.sum(1)

    def scan(self, start: Bool[Tensor, "place"]) -> None:
        """Finds the episodes in stored rows. A row that the first step of an episode follows is a last observation."""
        # Of an episode's first position: room for all that can be whole, as each takes two rows at least.
        self._whole = torch.zeros(self.columns, self.slots // 2, dtype=torch.int64, device=self.device)
        self._whole_begin, self._whole_end = torch.zeros(2, self.columns, dtype=torch.int64, device=self.device)
        oldest = self.oldest
        position = oldest[:, None] + torch.arange(self.slots, device=self.device)  # column slot
        place = self.places(self.each_column[:, None], position)
        opens = start[place] & (position < self.end[:, None])
        is_step = position < self.end[:, None] - 1
        is_step[:, :-1] &= ~opens[:, 1:]
        self.lengths[place] = is_step.int() - 1
        self._open_at = torch.where(opens[:, 0], oldest, -1)
        column, offset = opens[:, 1:].nonzero(as_tuple=True)
        self._enrol(column, oldest[column] + offset - 1)

    # --------------------------------------------------------------------------------------------------------- drawing
    def drawn_steps(self, count: int, generator: torch.Generator) -> Int64[Tensor, "draw"]:
        """Places of `count` steps, each equally likely, with replacement."""
        oldest, held = self.oldest, self.held
        ends = held.cumsum(0)
        total = int(ends[-1])
        if total == 0:
            raise DataError("this replay holds no steps yet: add a window before drawing from it")
        place = torch.empty(count, dtype=torch.int64, device=self.device)
        missing = torch.arange(count, device=self.device)
        while len(missing):  # last observations are drawn, too, and thrown back
            nth = _uniform(total, len(missing), generator, self.device)
            column = torch.searchsorted(ends, nth, right=True)
            place[missing] = self.places(column, oldest[column] + nth - (ends - held)[column])
            missing = missing[self.lengths[place[missing]] < 0]
        return place

    def drawn_episodes(self, count: int, generator: torch.Generator) -> Int64[Tensor, "draw"]:
        """Places where `count` different whole episodes begin, each equally likely."""
        ends = self.whole.cumsum(0)
        total = int(ends[-1])
        if count > total:
            raise DataError(f"{count} episodes of a replay that holds {total}: ask for fewer, or add more")
        nth = distinct(total, count, generator, self.device)
        column = torch.searchsorted(ends, nth, right=True)
        nth += (self._whole_end - ends)[column]
        return self.places(column, self._whole[column, nth % self._whole.shape[1]])


def distinct(below: int, count: int, generator: torch.Generator, device: torch.device) -> Int64[Tensor, "draw"]:
    """`count` different numbers 0 <= i < below in random order, every choice equally likely."""
    chosen = torch.arange(below, device=device)
    while below > 8 * count:  # of twice as many as needed few are alike: cheaper than an order of all
        chosen = runs(_uniform(below, 2 * count, generator, device).sort().values)
        if len(chosen) >= count:
            break
    order = torch.randperm(len(chosen), generator=generator, device=generator.device).to(device)
    return chosen[order[:count]]


def runs(x: Int64[Tensor, "all"]) -> Int64[Tensor, "some"]:
    """The first number of each run of equal ones."""
    is_first = torch.ones_like(x, dtype=torch.bool)
    is_first[1:] = x[1:] != x[:-1]
    return x[is_first]


def _uniform(below: int, count: int, generator: torch.Generator, device: torch.device) -> Int64[Tensor, "draw"]:
    return torch.randint(below, (count,), generator=generator, device=generator.device).to(device)
