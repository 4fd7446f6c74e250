"""The state of one learner in one file: safetensors, with the form of the tree in its header; nothing is unpickled."""

from collections.abc import Mapping
from pathlib import Path

from martes.data.storage import read_tensors, write_tensors
from martes.errors import CheckpointError, DataError
from martes.training.packing import Packing, unpacked


def save_file(path: Path, kind: str, tree: Mapping[str, object]) -> None:
    """Writes a tree of tensors, numbers and text; an old file stays until the new one is complete.

    Raises CheckpointError where it cannot be written, or the tree holds anything else.
    """
    packing = Packing()
    header = {"format": kind, "version": 1, "tree": packing.packed(tree)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, packing.tensors, header)
    except (OSError, DataError) as error:
        raise CheckpointError(f"no checkpoint was saved: {error}") from error


def load_file(path: Path, kind: str) -> Mapping[str, object]:
    """What `save_file` wrote, on the CPU. Raises CheckpointError where it is missing, damaged or of another kind."""
    try:
        tensors, header = read_tensors(path, kind)
        tree = unpacked(header["tree"], tensors)
    except (DataError, KeyError) as error:
        raise CheckpointError(f"no checkpoint was loaded: {error}") from error
    assert isinstance(tree, dict)
    return tree
