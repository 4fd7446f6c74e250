"""What `martes bench agilerl` tells: lines of a table, a section of the page of benchmarks, JSON."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

from martes.bench.timing import ratios

HEADING = "## Beside AgileRL"
METHOD = """\
AgileRL runs in a process of its own, under an interpreter that has it (`pip install agilerl==2.58.0 peft mpe2`). The
two take turns, piece by piece, as above; torch has one thread on both sides. The task is simple_speaker_listener_v4
with continuous actions in 8 environments; here also as our batched game, which has the same rules. Both learn once for
every 96 env-steps (MADDPG, MATD3: batch 32, memory of 100,000 steps, drifting noise), or from rollouts of 2,048
env-steps in 4 passes of minibatches of 128 (IPPO). AgileRL trains by its own training functions, evaluated for one step
after 2,000 env-steps or more; neither side logs. An update from replay includes the draw of its batch. Selection
(tournaments of 2, elite kept) and mutation have a chance of 0.2 each for none, hyperparameter, parameters and
architecture; replay is shared; AgileRL's members are learners throughout, ours are data that learners are made from.
Policies have layers of 32, 32, 64, 32 with normalised features, critics of joint actions 32, 32; IPPO's critics are as
its policies. A population of 4 lives in generations of 2,400 env-steps each, all members' counted; ours play a test
episode in each environment at its end, AgileRL's one step; parameters are not mutated there, which fails in AgileRL
2.58.0 once layers have changed. The original environment is hosted here as was faster just before: in this process, or
in two. Compiled: with `algorithm.compile=true`, half a minute of compiling before all that is measured; a population
is not, since each new shape of a network would be compiled anew.
"""
_BUSY = 0.5
"""Processes at work beside a measurement from which on it is told to be rough."""
HEADS = ("measurement", "AgileRL", "martes", "ratio", "range", "goal", "reached", "")


@dataclass(frozen=True)
class Beside:
    """One line: what both sides did in a second, one number a repeat."""

    name: str
    theirs: tuple[float, ...]
    ours: tuple[float, ...]
    goal: float | None = None
    """How many times as fast we are to be."""
    most: float | None = None
    """Milliseconds that ours may take."""
    is_time: bool = False
    """Told as milliseconds of one, rather than as so many a second."""
    note: str = ""

    @property
    def ratio(self) -> float:
        """How many times as fast we are: the median of the repeats."""
        return median(ratios(self.ours, self.theirs))

    @property
    def is_reached(self) -> bool | None:
        """Is the goal reached? None where there is none."""
        if self.goal is None and self.most is None:
            return None
        is_quick = self.most is None or 1000 / median(self.ours) <= self.most
        return is_quick and (self.goal is None or self.ratio >= self.goal)

    @property
    def cells(self) -> tuple[str, ...]:
        """The line of the table, in the order of HEADS."""
        found = ratios(self.ours, self.theirs)
        goals = ("" if self.goal is None else f"{self.goal:g}x", "" if self.most is None else f"{self.most:g} ms")
        reached = {None: "", True: "yes", False: "no"}[self.is_reached]
        return (
            self.name,
            self._told(self.theirs),
            self._told(self.ours),
            f"{self.ratio:.1f}x",
            f"{min(found):.1f}x to {max(found):.1f}x",
            ", ".join(goal for goal in goals if goal),
            reached,
            self.note,
        )

    def _told(self, values: Sequence[float]) -> str:
        middle = median(values)
        return f"{1000 / middle:.2f} ms" if self.is_time else f"{middle:,.0f}/s"


@dataclass(frozen=True)
class Told:
    """All lines, and what they are to be read with."""

    lines: tuple[Beside, ...]
    peer: str
    """Which AgileRL."""
    machine: str
    load: float
    """Processes at work on the machine before it began."""

    @property
    def made(self) -> str:
        """Where, beside what, and how busy the machine was."""
        found = f"on {self.machine}, beside {self.peer}; {self.load:.1f} processes were at work there before it began"
        return f"{found}: **a busy machine**, so that figures are low and ratios rough" if self.load > _BUSY else found

    def section(self) -> str:
        """A section of the page of benchmarks: how it was measured, and the table."""
        rows = [HEADS, ("---", *["---:"] * 5, "---", "---"), *(each.cells for each in self.lines)]
        table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
        command = "```bash no-run\nmartes bench agilerl --python AGILERL/bin/python --output docs/benchmarks.md\n```"
        return f"{HEADING}\n\nMade by\n\n{command}\n\n{self.made}.\n\n{METHOD}\n{table}"

    def as_json(self) -> str:
        """All numbers, every repeat of them, as JSON."""
        lines = [asdict(each) | {"ratio": each.ratio, "is_reached": each.is_reached} for each in self.lines]
        return json.dumps({**asdict(self), "lines": lines}, indent=2) + "\n"


def with_section(page: str, new: str) -> str:
    """The page with this section in place of that of the same heading, or at its end."""
    heading = new.splitlines()[0]
    start, sections = parts(page)
    kept = [each for each in sections if each.splitlines()[0] != heading]
    place = next((place for place, each in enumerate(sections) if each.splitlines()[0] == heading), len(kept))
    return joined(start, *kept[:place], new, *kept[place:])


def parts(page: str) -> tuple[str, list[str]]:
    """What stands before the first section of a page, and its sections."""
    start, *sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    return start, sections


def joined(*pieces: str) -> str:
    """The pieces of a page, an empty line between them."""
    return "\n\n".join(piece.strip() for piece in pieces if piece.strip()) + "\n"
