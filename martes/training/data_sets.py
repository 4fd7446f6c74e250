"""Data sets in files: our own, and those of others (Minari's, and the flat HDF5 of D4RL)."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from martes.data import Fields, Schema, TeamSpec, Workspace
from martes.data.data_set import as_data_set, data_set, possible
from martes.envs.adapters.seats import Seats
from martes.envs.adapters.spaces import ours
from martes.errors import DataError, require

HDF5 = (".h5", ".hdf5")
MINARI = "minari:"
FLAT = ("observations", "actions", "rewards", "terminals")


def data_from(place: str, team: TeamSpec) -> Workspace:
    """The data set of a team that stands in a file (.safetensors, .h5, .hdf5), or as `minari:<id>` in Minari's folder.

    Raises DataError, naming the place, where it is missing, damaged or of another task; MissingExtra.
    """
    if place.startswith(MINARI):
        return data_set(team, list(_of_minari(place.removeprefix(MINARI), team)))
    path = Path(place)
    if not path.exists():
        raise DataError(f"there is no data set {place}: record one with `martes evaluate RUN --record {place}`")
    return _of_hdf5(path, team) if path.suffix in HDF5 else possible(team, Workspace.load(path))


def refuse_unwritable(path: Path) -> None:
    """Raises DataError where no file can lie, MissingExtra where h5py is missing: before hours of play, not after."""
    if path.suffix in HDF5:
        require("h5py", "offline")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise DataError(f"cannot write {path}: name a file in a folder that exists")


def write_data(data: Workspace, path: Path) -> None:
    """Writes a data set: HDF5 where the name ends with .h5 or .hdf5, else a workspace file.

    Raises DataError where it cannot be written, MissingExtra.
    """
    if path.suffix not in HDF5:
        data.save(path)
        return
    try:
        with require("h5py", "offline").File(path, "w") as file:
            for name in data.names:
                file.create_dataset(name, data=data[name].squeeze(1).numpy(), compression="gzip")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error}") from error


def _of_hdf5(path: Path, team: TeamSpec) -> Workspace:
    """Our own fields, one data set each; or D4RL's flat names."""
    try:
        with require("h5py", "offline").File(path, "r") as file:
            names: list[str] = []
            file.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
            arrays: dict[str, np.ndarray] = {name: file[name][()] for name in names}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if "cut" in arrays:
        return as_data_set(team, {name: torch.from_numpy(array).unsqueeze(1) for name, array in arrays.items()})
    missing = [name for name in FLAT if name not in arrays]
    if missing:
        raise DataError(f"{path} is no data set: it lacks {', '.join(missing)} and holds {', '.join(names)}")
    return data_set(team, list(_flat(arrays, team)))


def _flat(arrays: Mapping[str, np.ndarray], team: TeamSpec) -> Iterator[Fields]:
    """Episodes of arrays that hold them end to end, cut at `terminals` and `timeouts`; what is unfinished is left out.

    Without `next_observations` nobody knows what was seen last. After a true end nothing depends on it; before a
    timeout the last step is given up, so that what it saw stands there.
    """
    seen, done, reward = (arrays[name] for name in ("observations", "actions", "rewards"))
    terminal = arrays["terminals"].astype(bool).ravel()
    ends = terminal | arrays.get("timeouts", np.zeros_like(terminal)).astype(bool).ravel()
    begin = 0
    for last in np.flatnonzero(ends):
        end = int(last) + 1
        after = arrays.get("next_observations", seen)[last : last + 1]
        if not (terminal[last] or "next_observations" in arrays):
            end -= 1
        if end > begin:
            rows = {"obs": np.concatenate((seen[begin:end], after))}
            yield _alone(team, rows, done[begin:end], reward[begin:end], bool(terminal[last]))
        begin = int(last) + 1


def _of_minari(name: str, team: TeamSpec) -> Iterator[Fields]:
    """The episodes of a Minari data set that was downloaded or made before."""
    try:
        found = require("minari", "offline").load_dataset(name)
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"there is no Minari data set {name} here: `minari download {name}` brings it") from error
    agent = team.agents[0]
    seats = Seats(team, {agent: found.observation_space}, {agent: found.action_space})
    for episode in found.iterate_episodes():
        steps = len(episode)
        rows = {field: np.zeros((steps + 1, *_shape(team, field)), _kind(team, field)) for field in team.parts}
        for t in range(steps + 1):
            row = {field: content[t] for field, content in rows.items()} | {"agent_mask": np.ones(1, bool)}
            seats.show(row, {agent: _at(episode.observations, t)})
        done = np.stack([ours(found.action_space, _at(episode.actions, t)) for t in range(steps)])
        yield _alone(team, rows, done, episode.rewards, bool(episode.terminations[-1]))


def _shape(team: TeamSpec, field: str) -> tuple[int, ...]:
    return Schema.from_team(team).shape(field, 1, 1)[2:]


def _kind(team: TeamSpec, field: str) -> np.dtype:
    return torch.empty(0, dtype=Schema.from_team(team)[field].dtype).numpy().dtype


def _at(content: object, t: int) -> object:
    """Step t of what may be an array, or arrays by name or in a tuple."""
    match content:
        case Mapping():
            return {name: _at(part, t) for name, part in content.items()}
        case tuple():
            return tuple(_at(part, t) for part in content)
        case _:
            return np.asarray(content)[t]


def _alone(
    team: TeamSpec, seen: Mapping[str, np.ndarray], done: np.ndarray, reward: np.ndarray, is_terminal: bool
) -> Fields:
    """The fields of one episode of a team of one. Raises DataError where the team is larger, or of another kind."""
    if team.size > 1:
        raise DataError(f"this data set holds the episodes of one agent; the team is {', '.join(team.agents)}")
    steps = len(done)
    discount = torch.ones(steps, 1)
    discount[-1] = not is_terminal
    try:
        rows = {field: torch.from_numpy(rows).reshape(steps + 1, *_shape(team, field)) for field, rows in seen.items()}
        action = torch.from_numpy(done).reshape(steps, *_shape(team, "action"))
    except (RuntimeError, KeyError) as error:
        raise DataError(f"this data set does not fit the task: {error}") from error
    return {
        **rows,
        "action": action,
        "reward": torch.from_numpy(reward).reshape(steps, 1).float(),
        "discount": discount,
    }
