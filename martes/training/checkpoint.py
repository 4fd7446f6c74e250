"""Checkpoints: safetensors and JSON, nothing unpickled; a crash at any instant leaves the last good one as it was."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from martes.data.storage import read_tensors, write_tensors
from martes.errors import CheckpointError, DataError
from martes.training.packing import Packing, unpacked

FORMAT = "martes.checkpoint"
VERSION = 1
TENSORS, TREE, MANIFEST = "tensors.safetensors", "tree.json", "manifest.json"
NAME = re.compile(r"(\d{12,})(\.replaced)?")


def save(folder: Path, tree: Mapping[str, object], step: int, keep: int) -> Path:
    """The new checkpoint `folder/<step>`, complete or absent: it is written beside, synced, and then renamed.

    Afterwards the `keep` newest stay; those of a later step belong to a future that was abandoned and go as well.
    Raises CheckpointError where the disk is full or cannot be written to; all that was saved before is unharmed.
    """
    target, draft = folder / f"{step:012d}", folder / f".{step}.{os.getpid()}"
    packing = Packing()
    form = packing.packed(tree)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clean(folder)
        draft.mkdir()
        write_tensors(draft / TENSORS, packing.tensors, {"format": FORMAT, "version": VERSION})
        _write_synced(draft / TREE, json.dumps(form, allow_nan=False))
        files = {name: _fingerprint(draft / name) for name in (TENSORS, TREE)}
        manifest = {"format": FORMAT, "version": VERSION, "step": step, "files": files}
        _write_synced(draft / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        _sync(draft)
        _replace(draft, target)
    except (OSError, DataError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        cause = error.__cause__ if isinstance(error, DataError) and error.__cause__ else error
        reason = cause.strerror or str(cause) if isinstance(cause, OSError) else str(cause)
        raise CheckpointError(
            f"cannot write the checkpoint {target}: {reason}. Make room, then resume: {_last_good(folder)}"
        ) from error
    _prune(folder, step, keep)
    return target


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes the names in a folder last through a power cut (where folders can be opened at all)."""
    if os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _fingerprint(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _replace(draft: Path, target: Path) -> None:
    """Puts the draft at its place. One that stands there steps aside under a name that `newest` knows, too."""
    if target.exists():
        aside = target.with_name(f"{target.name}.replaced")
        shutil.rmtree(aside, ignore_errors=True)
        target.replace(aside)
    draft.replace(target)
    _sync(target.parent)


def _all(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first; at equal steps one that was to be replaced comes last."""
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: (step_of(path), not path.suffix), reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step at which it was saved, from its name."""
    return int(checkpoint.name.partition(".")[0])


def newest(folder: Path) -> Path | None:
    """The checkpoint of the latest step, or None where there is none yet. It may be damaged: `load` tells."""
    return next(iter(_all(folder)), None)


def nearest_to(folder: Path, step: int) -> Path | None:
    """The checkpoint whose step is nearest (of two that are as near, the later), or None where there is none yet."""
    return min(_all(folder), key=lambda path: abs(step_of(path) - step), default=None)


def _prune(folder: Path, step: int, keep: int) -> None:
    kept = [path for path in _all(folder) if step_of(path) <= step and not path.suffix][: max(keep, 1)]
    for path in set(_all(folder)) - set(kept):
        path.rename(path.with_name(f".{path.name}"))  # from here on it is no checkpoint, however far removal gets
    _clean(folder)


def _clean(folder: Path) -> None:
    """Removes what killed processes left behind."""
    for path in folder.glob(".[0-9]*"):
        shutil.rmtree(path, ignore_errors=True)


def load(path: Path) -> object:
    """The tree that `save` was given, tensors on the CPU.

    Raises CheckpointError, naming the file and the newest good checkpoint that is older, where one is missing, cut
    short, altered or of another kind.
    """
    problem = _problem(path)
    if problem is None:
        try:
            tensors, _ = read_tensors(path / TENSORS, FORMAT)
            return unpacked(json.loads((path / TREE).read_text(encoding="utf-8")), tensors)
        except (DataError, OSError, ValueError, KeyError) as error:
            problem = f"{path} cannot be read: {error}"
    raise CheckpointError(f"{problem}. {_older(path)}")


def _problem(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"{path} is no checkpoint of martes ({MANIFEST} says {manifest['format']!r})"
        if manifest["version"] > VERSION:
            return f"{path} has version {manifest['version']}, this martes reads up to {VERSION}: upgrade martes"
        return next(_wrong_files(path, manifest["files"]), None)
    except FileNotFoundError:
        return f"{path} is no checkpoint: it has no {MANIFEST}"
    except OSError as error:
        return f"cannot read {path / MANIFEST}: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return f"{path / MANIFEST} is damaged"


def _wrong_files(path: Path, files: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    for name in (TENSORS, TREE):
        file, expected = path / name, files[name]
        if not file.is_file():
            yield f"{file} is missing"
        elif file.stat().st_size != expected["size"]:
            yield f"{file} has {file.stat().st_size} bytes in place of {expected['size']}: it was cut short or altered"
        elif _fingerprint(file) != expected:
            yield f"{file} is damaged: its content is not what was saved"


def _older(path: Path) -> str:
    step = step_of(path) if NAME.fullmatch(path.name) else None
    good = (each for each in _all(path.parent) if each != path and step is not None and step_of(each) <= step)
    found = next((each for each in good if _problem(each) is None), None)
    return f"An older one is good, go on from it: {found}" if found else "There is no older one: start the run again"


def _last_good(folder: Path) -> str:
    found = newest(folder)
    return f"the last good one is {found}" if found else "none was saved before"
