"""Workspaces on disk and as TensorDicts: tensors beside a JSON header; nothing is ever unpickled."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from martes.data.schema import Field, Schema
from martes.data.trees import Memory, leaves, outline, rebuilt
from martes.errors import DataError, require

FORMAT = "martes.workspace"
VERSION = 1


Header = dict[str, Any]
"""What JSON holds."""


class Content(NamedTuple):
    """All that a workspace is made of."""

    schema: Schema
    tensors: dict[str, Tensor]
    filled: Tensor
    memory: Memory | None


# ---------------------------------------------------------------------------------------------------------- any file
def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, object]) -> None:
    """Writes tensors and a JSON header as one safetensors file, atomically: a reader sees the old file or the new one.

    Raises DataError where the disk is full or the folder cannot be written to; the old file is then as it was.
    """
    content = safetensors.torch.save(_apart(tensors), {"martes": json.dumps(header)})
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut can leave the new name on an empty file
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise DataError(
            f"cannot write {path}: {error.strerror}. What stood there before is unharmed: "
            "make room, or name a folder that exists and can be written to"
        ) from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, contiguous, on the CPU and with no storage in common: the format knows no views."""
    own: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        place = flat.untyped_storage().data_ptr()
        own[name] = flat.clone() if place in taken else flat
        taken.add(place)
    return own


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], Header]:
    """What `write_tensors` wrote, with a header whose `format` is `kind`.

    Raises DataError, naming the file, where it is missing, damaged, of another kind or of a newer version.
    """
    try:
        opened: Any = safetensors.safe_open(path, framework="pt")
        with opened as file:
            told: dict[str, str] = file.metadata() or {}
            names: list[str] = file.keys()
            tensors: dict[str, Tensor] = {name: file.get_tensor(name).clone() for name in names}
    except FileNotFoundError:
        raise DataError(f"there is no file {path}: check its name and folder") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise DataError(f"{path} is damaged or cut short ({error}): write it again, or take an older copy") from error
    header = _header(told.get("martes", ""))
    if header.get("format") != kind:
        raise DataError(f"{path} is no {kind} file (it says {header.get('format', 'nothing of its format')!r})")
    if header.get("version", 0) > VERSION:
        raise DataError(f"{path} has version {header['version']}, this martes reads up to {VERSION}: upgrade martes")
    return tensors, header


def _header(told: str) -> Header:
    try:
        header = json.loads(told)
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}  # pyright: ignore[reportUnknownVariableType]


# --------------------------------------------------------------------------------------------------------- workspaces
def write_workspace(
    path: Path, schema: Schema, tensors: Mapping[str, Tensor], filled: Tensor, memory: Memory | None
) -> None:
    """Writes all of a workspace to one file. Raises DataError as `write_tensors` does."""
    parts = {f"field/{name}": tensor for name, tensor in tensors.items()}
    parts |= {f"memory/{name}": leaf for name, leaf in leaves(() if memory is None else memory)}
    write_tensors(path, {**parts, "filled": filled}, _described(schema, memory))


def read_workspace(path: Path) -> Content:
    """What `write_workspace` wrote, on the CPU. Raises DataError as `read_tensors` does."""
    tensors, header = read_tensors(path, FORMAT)
    return _content(header, tensors, str(path))


def tensordict_of(schema: Schema, tensors: Mapping[str, Tensor], filled: Tensor, memory: Memory | None) -> Any:
    """A TensorDict with batch axis `env`: the fields, and what else a workspace holds under `martes`.

    Tensors over time are views with `env` before `time`. Raises MissingExtra without the package.
    """
    made = require("tensordict", "tensordict").TensorDict
    fields = {name: _env_first(schema[name], tensor) for name, tensor in tensors.items()}
    remembered = {f"memory/{name}": leaf for name, leaf in leaves(() if memory is None else memory)}
    rest = made({**remembered, "filled": filled.transpose(0, 1)}, filled.shape[1:])
    rest.set_non_tensor("header", json.dumps(_described(schema, memory)))
    return made({**fields, "martes": rest}, filled.shape[1:])


def workspace_parts(tensordict: Any) -> Content:
    """What `tensordict_of` made, rows chosen or not; nothing is copied. Raises DataError if it was made elsewhere."""
    rest: Any = tensordict.get("martes", None)
    header = {} if rest is None else _header(rest.get_non_tensor("header", default=""))
    if rest is None or header.get("format") != FORMAT:
        raise DataError("this TensorDict does not come from a workspace: make it with `workspace.to_tensordict()`")
    schema = _schema(header)
    tensors: dict[str, Tensor] = {name: leaf for name, leaf in rest.items() if name != "header"}
    for name, tensor in tensordict.items():
        if name in schema:
            tensors[f"field/{name}"] = _env_first(schema[name], tensor)
        elif name != "martes":
            raise DataError(
                f"{name!r} is no field of the workspace that this TensorDict came from: {', '.join(schema)}"
            )
    return _content(header, {**tensors, "filled": tensors["filled"].transpose(0, 1)}, "the TensorDict")


def _env_first(field: Field, tensor: Tensor) -> Tensor:
    """Exchanges time and env; its own inverse."""
    return tensor.transpose(0, 1) if field.over_time else tensor


# -------------------------------------------------------------------------------------------------------- the header
def _described(schema: Schema, memory: Memory | None) -> dict[str, object]:
    fields = {
        name: {**asdict(field), "dtype": str(field.dtype).removeprefix("torch.")} for name, field in schema.items()
    }
    header: dict[str, object] = {"format": FORMAT, "version": VERSION, "agents": schema.agents, "fields": fields}
    return header if memory is None else {**header, "memory": outline(memory)}


def _schema(header: Header) -> Schema:
    def field(told: Header) -> Field:
        known: Header = {**told, "shape": tuple(told["shape"]), "dtype": getattr(torch, told["dtype"])}
        return Field(**known)

    return Schema({name: field(told) for name, told in header["fields"].items()}, header["agents"])


def _content(header: Header, tensors: Mapping[str, Tensor], source: str) -> Content:
    try:
        schema = _schema(header)
        fields = {name: tensors[f"field/{name}"] for name in schema}
        leaf = {name.removeprefix("memory/"): tensor for name, tensor in tensors.items() if name.startswith("memory/")}
        memory = rebuilt(header["memory"], leaf) if "memory" in header else None
        filled = tensors["filled"]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{source} lacks a part of the workspace it names ({error}): write it again") from error
    time, envs = filled.shape
    for name, field in schema.items():
        expected = schema.shape(name, time, envs)
        if fields[name].shape != expected or fields[name].dtype != field.dtype:
            raise DataError(
                f"{source}: field {name!r} should be {list(expected)} {field.dtype}, "
                f"is {list(fields[name].shape)} {fields[name].dtype}"
            )
    return Content(schema, fields, filled, memory)
