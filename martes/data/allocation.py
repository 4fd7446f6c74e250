"""Room for large tensors that start as zeros: in memory, which is taken as it is used, or in the files of a folder."""

import json
import os
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from martes.errors import DataError

MANIFEST = "replay.json"
CHUNK = 1 << 24


class Room(NamedTuple):
    """The shape and dtype of a tensor that is to be made."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """How much it takes."""
        return max(prod(self.shape), 1) * self.dtype.itemsize

    def of(self, content: Tensor) -> Tensor:
        """The tensor whose bytes `content` holds (a view)."""
        return content.view(self.dtype)[: prod(self.shape)].view(self.shape)


def in_memory(rooms: Mapping[str, Room], device: torch.device) -> dict[str, Tensor]:
    """A tensor of zeros a room. On a CPU the system gives the memory only where something is written."""
    if device.type != "cpu":
        return {name: torch.zeros(room.shape, dtype=room.dtype, device=device) for name, room in rooms.items()}
    return {name: room.of(torch.as_tensor(np.zeros(room.bytes, np.uint8))) for name, room in rooms.items()}


def in_files(rooms: Mapping[str, Room], folder: Path, form: Mapping[str, object]) -> tuple[dict[str, Tensor], str]:
    """A tensor a room, each in a memory-mapped file, as the folder held it or zeros; and the folder's identity.

    `form` says what the tensors mean. Raises DataError where the folder holds another form, a file was cut short, or
    there is no room; what this call wrote is then gone.
    """
    files = {name: folder / f"{quote(name, safe='')}.bin" for name in rooms}
    try:
        identity = _identity(folder, form)
        if identity is None:
            folder.mkdir(parents=True, exist_ok=True)
            for name, room in rooms.items():
                _take(files[name], room.bytes)
            identity = _declare(folder, form)
    except OSError as error:
        _remove(files.values())
        total = sum(room.bytes for room in rooms.values())
        raise DataError(
            f"cannot keep a replay of {total:,} bytes in {folder}: {error.strerror}. "
            "Make room, keep fewer rows, or name a folder that can be written to"
        ) from error
    for name, room in rooms.items():
        size = files[name].stat().st_size if files[name].is_file() else 0
        if size != room.bytes:
            raise DataError(f"{files[name]} has {size:,} bytes in place of {room.bytes:,}: remove {folder}, start anew")
    return {name: room.of(_mapped(files[name], room.bytes)) for name, room in rooms.items()}, identity


def tensor_at(state: Mapping[str, object], name: str) -> Tensor:
    """The tensor of that name in a saved state. Raises KeyError, or DataError where it is something else."""
    found = state[name]
    if not isinstance(found, Tensor):
        raise DataError(f"{name!r} of the saved state is a {type(found).__name__}, not a tensor: it is of another kind")
    return found


def _mapped(path: Path, size: int) -> Tensor:
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)


def _identity(folder: Path, form: Mapping[str, object]) -> str | None:
    """The identity of what the folder holds, or None where it holds nothing yet."""
    path = folder / MANIFEST
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        identity, held = str(told["identity"]), dict(told["form"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged: remove {folder}, or name another folder") from None
    refuse_other_form(f"the replay in {folder}", held, form)
    return identity


def refuse_other_form(place: str, held: Mapping[str, object], asked: Mapping[str, object]) -> None:
    """Raises DataError naming each part in which what `place` holds is not of the form that is asked for."""
    parts = [name for name in {**held, **asked} if held.get(name) != asked.get(name)]
    if parts:
        told = "; ".join(f"{name} {held.get(name)!r} in place of {asked.get(name)!r}" for name in parts)
        raise DataError(f"{place} is another one than asked for: {told}. Ask for that one, or name another place")


def _declare(folder: Path, form: Mapping[str, object]) -> str:
    """Writes the manifest, last of all and at once: a folder without one holds nothing."""
    identity = uuid4().hex
    draft = folder / f".{MANIFEST}.{os.getpid()}"
    draft.write_text(json.dumps({"identity": identity, "form": form}, indent=2) + "\n", encoding="utf-8")
    draft.replace(folder / MANIFEST)
    return identity


def _take(path: Path, size: int) -> None:
    """Makes a file of zeros for which the disk has room now: a mapped file without room would end the process later."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        for begin in range(0, size, CHUNK):
            file.write(bytes(min(CHUNK, size - begin)))


def _remove(files: Iterable[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)
