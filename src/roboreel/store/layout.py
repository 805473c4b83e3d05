"""Laying out the files of a new dataset, and taking them away again where its making failed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from roboreel.columns.memmap import MemmapWriter
from roboreel.errors import InvalidArgumentError
from roboreel.format import files, paths
from roboreel.format.files import DataFile
from roboreel.format.lock import WriterLock, boot_id
from roboreel.format.manifest import Manifest, metadata_hash
from roboreel.format.records import LIVE_OFFSET, OWNER_DTYPE, STATE_BYTES, State


def frame_bytes(manifest: Manifest) -> int:
    """Bytes of one frame in all column files, the owner word included."""
    stored = (spec.frame_bytes for spec in manifest.keys.values() if not spec.needs_decoding)
    return sum(stored) + OWNER_DTYPE.itemsize


def check_empty(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise InvalidArgumentError(f"storage_dir {root} is a file; give a directory")
    foreign = sorted({path.name for path in root.iterdir()} - paths.ENTRIES) if root.is_dir() else []
    if foreign:
        raise InvalidArgumentError(
            f"storage_dir {root} holds other things ({', '.join(foreign[:5])}); give an empty or a new directory"
        )


def remove_leftovers(root: Path) -> None:
    """Remove what a creation that did not come to its end has left; the lock stays."""
    for name in paths.ENTRIES - {paths.LOCK, paths.LOCK_OWNER}:
        files.remove(root / name)


def make_files(root: Path, manifest: Manifest, metadata: bytes) -> None:
    """Lay out every file but `metadata.json`: columns with room for the capacity, the rest empty."""
    files.make_dir(root / paths.COLUMNS)
    columns = {
        key: MemmapWriter(root, spec, create=True) for key, spec in manifest.keys.items() if not spec.needs_decoding
    }
    owners = DataFile(root / paths.OWNERS, create=True)
    state_file = DataFile(root / paths.STATE, create=True)
    try:
        allocate(columns, owners, manifest.capacity)
        for name in (paths.EPISODES, paths.STRINGS):
            files.write_new(root / name, b"")
        state_file.allocate(STATE_BYTES)
        state = State(capacity=manifest.capacity, boot_id=boot_id(), metadata_hash=metadata_hash(metadata))
        state_file.write_at(LIVE_OFFSET, state.to_bytes())
        for directory in (root / paths.COLUMNS, root, root.parent):
            files.sync_path(directory)
    finally:
        for column in columns.values():
            column.close()
        owners.close()
        state_file.close()


def allocate(columns: Mapping[str, MemmapWriter], owners: DataFile, capacity: int) -> None:
    """Give every slot file room for `capacity` frames."""
    for column in columns.values():
        column.allocate(capacity)
    owners.allocate(capacity * OWNER_DTYPE.itemsize)


def give_back(columns: Mapping[str, MemmapWriter], owners: DataFile, capacity: int) -> None:
    """Free the room beyond `capacity` frames, which no reader has mapped because no record counts it yet."""
    for column in columns.values():
        column.truncate(capacity)
    owners.truncate(capacity * OWNER_DTYPE.itemsize)


def discard(root: Path) -> None:
    """Remove a dataset, finished or not; `DatasetLockedError` where somebody is writing it."""
    if not root.is_dir():
        return
    lock = WriterLock(root)
    try:
        files.remove(root)
    finally:
        lock.release()
