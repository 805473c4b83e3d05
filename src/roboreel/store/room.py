"""The files that are addressed by slot: which there are, and whether each has room for all slots."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from roboreel.errors import StorageDirCorruptError
from roboreel.format import files, paths
from roboreel.format.manifest import Manifest
from roboreel.format.records import CHECKSUM_DTYPE, OWNER_DTYPE, State


class SlotFile(NamedTuple):
    path: Path
    slot_bytes: int
    key: str
    """The data key; empty for the owners."""


def slot_files(root: Path, manifest: Manifest) -> dict[str, SlotFile]:
    """Return every file that is addressed by slot, by its name within the directory."""
    found = [SlotFile(root / paths.OWNERS, OWNER_DTYPE.itemsize, "")]
    for key, spec in manifest.keys.items():
        if not spec.needs_decoding:
            found.append(SlotFile(paths.column_path(root, key), spec.frame_bytes, key))
        if spec.has_checksums:
            found.append(SlotFile(paths.checksum_path(root, key), CHECKSUM_DTYPE.itemsize, key))
    return {file.path.relative_to(root).as_posix(): file for file in found}


def check_room(root: Path, manifest: Manifest, state: State) -> None:
    """Refuse a record that counts more room than `metadata.json` promises.

    A growth makes room first, then replaces the metadata, then commits the record.
    """
    if state.capacity > manifest.capacity:
        raise StorageDirCorruptError(
            f"{root / paths.METADATA} says capacity {manifest.capacity}, and {paths.STATE} counts {state.capacity}; "
            "restore both from a copy"
        )


def size_of(path: Path) -> int:
    """Bytes of a file; -1 where there is none. `StorageError`: it cannot be looked at."""
    try:
        with files.looking_at(path):
            return os.stat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return -1
