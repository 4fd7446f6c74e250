"""Made-up histories for tests of replay: windows whose every row tells where it comes from, and slow lists of them."""

from dataclasses import dataclass, field

import torch

from martes.data import Discrete, Field, Schema, TeamSpec, Vector, Workspace

TEAM = TeamSpec(
    agents=("a_0", "a_1"),
    groups={"a": (0, 1)},
    observation={"a": Vector(2)},
    action={"a": Discrete(50)},
    state=Vector(1),
    masks_actions=True,
)
SCHEMA = Schema.from_team(TEAM).extended(
    picture=Field((1, 2), torch.uint8, extra_row=True), role=Field((), torch.int8, "env agent")
)
SEEN = ("obs", "state", "action_mask", "agent_mask", "picture")


@dataclass
class Row:
    """One row of a stream: what was seen (a number that no other row has), and whether a step was made there."""

    seen: int
    opens: bool
    is_step: bool
    cut: bool = False
    role: int = 0


@dataclass
class History:
    """A world of numbered moments: gives windows, and keeps every row of every column in lists."""

    columns: int
    rows: list[list[Row]] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    opens: list[bool] = field(default_factory=list)
    moment: int = 0
    is_anew: bool = False
    """Will the next window come from fresh environments, as after a resume that could not restore them?"""

    def __post_init__(self) -> None:
        self.rows = [[] for _ in range(self.columns)]
        self.seen = [self._new() for _ in range(self.columns)]
        self.opens = [True] * self.columns

    def _new(self) -> int:
        self.moment += 1
        return self.moment

    def _restart(self) -> None:
        """Episodes end where nobody cut them."""
        self.is_anew = False
        for column in range(self.columns):
            if self.rows[column] and not self.opens[column]:
                self.rows[column][-1].cut = True
                self.rows[column].append(Row(self.seen[column], False, False))
            self.seen[column], self.opens[column] = self._new(), True

    def window(self, cuts: list[list[bool]]) -> tuple[Workspace, dict[str, torch.Tensor]]:
        """The next window with these cuts [time][column], and the real last observations."""
        if self.is_anew:
            self._restart()
        made = Workspace(SCHEMA, time=len(cuts), envs=self.columns)
        finals: list[int] = []
        roles = [self.moment % 100 + column for column in range(self.columns)]
        made["role"] = torch.tensor(roles).to(torch.int8)[:, None].expand(-1, 2)
        for t, cut in enumerate(cuts):
            numbers = torch.tensor(self.seen)
            made.write(t, {**observed(numbers), "start": torch.tensor(self.opens)})
            made.write(t, {"action": (numbers % 50)[:, None].expand(-1, 2), "cut": torch.tensor(cut)})
            made.write(t, {"reward": numbers.float()[:, None] * torch.tensor([1.0, -1.0])})
            made.write(t, {"discount": (numbers[:, None].expand(-1, 2) % 3 > 0).float()})
            for column in range(self.columns):
                row = Row(self.seen[column], self.opens[column], True, cut[column], roles[column])
                self.rows[column].append(row)
                self.seen[column], self.opens[column] = self._new(), cut[column]
                if cut[column]:
                    self.rows[column].append(Row(self.seen[column], False, False))
                    finals.append(self.seen[column])
                    self.seen[column] = self._new()
        made.write(len(cuts), {**observed(torch.tensor(self.seen)), "start": torch.tensor(self.opens)})
        return made, observed(torch.tensor(finals, dtype=torch.int64))

    def kept(self, column: int, slots: int) -> list[Row]:
        """The rows that a ring holds, oldest first, the last of them what is seen now."""
        return [*self.rows[column], Row(self.seen[column], self.opens[column], False)][-slots:]

    def place(self, column: int, slots: int, index: int) -> int:
        """Where the row `kept[index]` lies."""
        first = max(0, len(self.rows[column]) + 1 - slots)
        return column * slots + (first + index) % slots


def observed(numbers: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is seen at these moments; every field tells which they are."""
    first = numbers.float()
    agents = torch.stack((first, -first), -1)
    return {
        "obs": torch.stack((agents, agents + 0.5), -1),
        "state": first[:, None],
        "action_mask": (numbers[:, None, None] + torch.arange(50) * torch.arange(1, 3)[:, None]) % 7 > 0,
        "agent_mask": torch.stack((numbers > 0, numbers % 5 > 0), -1),
        "picture": (numbers % 256).to(torch.uint8)[:, None, None, None].expand(-1, 2, 1, 2),
    }


def episode(rows: list[Row], index: int) -> list[Row]:
    """The steps of the episode that holds `rows[index]`, from there to its end or the end of the list, and one more."""
    end = index
    while not rows[end].cut and rows[end + 1].is_step:
        end += 1
    return rows[index : end + 2]
