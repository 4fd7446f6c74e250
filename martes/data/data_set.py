"""Episodes to learn from without acting: one workspace of one column, which holds them end to end.

After the last step of an episode comes one row of what was really seen last, at which no step was made (`filled`, and
so `mask`, is false there); that of the last episode is the workspace's extra row. A data set is saved, loaded and
looked at like any workspace.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from martes.data.schema import Field, Schema
from martes.data.team import Continuous, TeamSpec
from martes.data.timestep import Fields
from martes.data.workspace import Workspace
from martes.errors import DataError


def data_set(team: TeamSpec, episodes: Sequence[Fields]) -> Workspace:
    """The data set of these episodes of a team: what was seen [steps+1 ...], and what was done and paid [steps ...].

    Fields that are not given are as before the first write: everybody is there, nobody has terminated. Raises DataError
    where a field that the team's policies read is missing, a shape or a length is wrong, an episode has no step, or
    somebody did what there is not.
    """
    schema = Schema.from_team(team)
    if not episodes:
        raise DataError("a data set of no episodes: give at least one")
    for number, each in enumerate(episodes):
        if not len(each.get("action", ())):
            raise DataError(f"episode {number} of the data set has no 'action', or none of its steps: leave it out")
    rows = {name: torch.cat([_rows(schema, name, each) for each in episodes]) for name in schema}
    last = torch.cat([torch.arange(len(each["action"]) + 1) == len(each["action"]) for each in episodes])
    filled = ~last[:-1]
    tensors = {name: (part if schema[name].extra_row else part[:-1]).unsqueeze(1) for name, part in rows.items()}
    tensors["start"] = functional.pad(last[:-1], (1, 0), value=True).unsqueeze(1)
    tensors["cut"] = last[1:].unsqueeze(1)
    return possible(team, Workspace.of(schema, tensors, filled.unsqueeze(1)))


def as_data_set(team: TeamSpec, tensors: Fields) -> Workspace:
    """The data set whose fields are these tensors [row 1 ...]. Raises DataError as `data_set` does."""
    schema = Schema.from_team(team)
    time = len(tensors["cut"])
    for name in schema:
        shape = schema.shape(name, time, 1)
        if name not in tensors or tensors[name].shape != shape:
            told = f"is {list(tensors[name].shape)}" if name in tensors else "is missing"
            raise DataError(f"{name!r} of the data set {told}: this task has {list(shape)}")
    whole = {name: _stored(name, tensors[name], field) for name, field in schema.items()}
    filled = functional.pad(~whole["cut"][:-1], (0, 0, 1, 0), value=True)
    return possible(team, Workspace.of(schema, whole, filled))


def possible(team: TeamSpec, data: Workspace) -> Workspace:
    """The same data set. Raises DataError for a choice among actions that its agent does not have."""
    sizes = team.legal_actions.sum(-1)  # agent | agent sub
    if team.action_kind is Continuous or data["action"].shape[2:] != sizes.shape:
        return data
    action, there = data["action"], data.mask
    exists = there.view(*there.shape, *(1,) * (sizes.ndim - 1)) & (sizes > 0)
    wrong = (exists & ((action < 0) | (action >= sizes))).nonzero()
    if len(wrong):
        place = tuple(wrong[0])
        raise DataError(
            f"{team.agents[int(place[2])]} did {int(action[place])} in row {int(place[0])} of the data set: it has the "
            f"actions 0 to {int(sizes.expand_as(action)[place]) - 1}. Number them from 0, or take the task of the data"
        )
    return data


def _rows(schema: Schema, name: str, episode: Fields) -> Tensor:
    """A field's rows in one episode; what was done is followed by a row of nothing."""
    field, steps = schema[name], len(episode["action"])
    length = steps + field.extra_row
    shape = (length, *schema.shape(name, length, 1)[2:])
    optional = ("agent_mask", "discount", "start", "cut")
    if name not in episode and name not in optional:
        raise DataError(f"the episodes lack {name!r}, which {field.writer} writes: they hold {', '.join(episode)}")
    given = episode.get(name)
    part = torch.full(shape, field.fill, dtype=field.dtype) if given is None or name in ("start", "cut") else given
    if part.shape != shape:
        raise DataError(f"{name!r} of an episode of {steps} steps is {list(part.shape)}: it must be {list(shape)}")
    part = _stored(name, part, field)
    return part if field.extra_row else torch.cat((part, torch.full_like(part[:1], field.fill)))


def _stored(name: str, given: Tensor, field: Field) -> Tensor:
    """A field's content in the dtype to keep it in. Raises DataError where integers cannot be what was given."""
    given = given.detach().cpu()
    stored = given.to(field.dtype)
    if not field.dtype.is_floating_point and not torch.equal(stored.to(given.dtype), given):
        wrong = given[stored.to(given.dtype) != given][0].item()
        raise DataError(f"{name!r} of the data set holds {wrong}, which {field.dtype} cannot: give it as the task does")
    return stored


def steps_of(data: Workspace) -> tuple[Workspace, Fields]:
    """The same episodes as one window without rows in between, and the real last observations, one an episode.

    Raises DataError where the workspace is no data set.
    """
    at = _is_step(data).nonzero().squeeze(1)
    after = data["cut"].squeeze(1).nonzero().squeeze(1) + 1

    def kept(name: str) -> Tensor:
        content = data[name]
        if not data.schema[name].over_time:
            return content
        return content[torch.cat((at, after[-1:]))] if data.schema[name].extra_row else content[at]

    tensors = {name: kept(name) for name in data.names}
    tensors["start"][-1] = True  # whatever follows would open an episode
    final = {
        name: data[name][after].squeeze(1)
        for name, field in data.schema.items()
        if field.extra_row and field.over_time and name != "start"
    }
    window = Workspace.of(data.schema, tensors, torch.ones(len(at), 1, dtype=torch.bool, device=data.device))
    return window, final


def returns_of(data: Workspace) -> Float[Tensor, "episode agent"]:
    """What each agent was paid in each episode, undiscounted."""
    window, _ = steps_of(data)
    number = window["start"][:-1, 0].long().cumsum(0) - 1
    earned = torch.zeros(int(number[-1]) + 1, window["reward"].shape[-1], dtype=torch.float64)
    return earned.index_add(0, number.cpu(), window["reward"][:, 0].double().cpu()).float()


def _is_step(data: Workspace) -> Bool[Tensor, "time"]:
    """Every row but those after a cut."""
    cut = data["cut"]
    if data.envs != 1 or not bool(cut[-1, 0]):
        raise DataError(
            f"this workspace of {data.envs} environments is no data set: it must hold whole episodes end to end in one "
            "column. Make one with `martes evaluate RUN --record FILE`, or with martes.data.data_set"
        )
    return functional.pad(~cut[:-1, 0], (1, 0), value=True)
