"""Laying out the files of a new dataset, and taking them away again where its making failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from roboreel.columns.memmap import MemmapWriter
from roboreel.errors import DatasetLockedError, InvalidArgumentError
from roboreel.format import files, paths
from roboreel.format.files import DataFile
from roboreel.format.lock import WriterLock, boot_id
from roboreel.format.manifest import Manifest, metadata_hash
from roboreel.format.records import DURABLE_OFFSETS, LIVE_OFFSET, OWNER_DTYPE, STATE_BYTES, State


def frame_bytes(manifest: Manifest) -> int:
    """Bytes of one frame in all column files, the owner word included."""
    stored = (spec.frame_bytes for spec in manifest.keys.values() if not spec.needs_decoding)
    return sum(stored) + OWNER_DTYPE.itemsize


def check_empty(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise InvalidArgumentError(f"storage_dir {root} is a file; give a directory")
    names = {path.name for path in root.iterdir()} if root.is_dir() else set()
    # whatever a creation has left lies beside its lock; without that, a folder `images` is somebody else's
    foreign = sorted(names - paths.ENTRIES if paths.LOCK in names else names)
    if foreign:
        raise InvalidArgumentError(
            f"storage_dir {root} holds other things ({', '.join(foreign[:5])}); give an empty or a new directory"
        )


@contextlib.contextmanager
def creating(root: Path) -> Iterator[WriterLock]:
    """Hold the lock while a dataset is made; where that fails, have nothing stay, not even the directories.

    Raises:
        InvalidArgumentError: there are other things in the directory.
        DatasetLockedError: another process is making, or has just made, a dataset there: that is not touched.
    """
    check_empty(root)
    missing = [path for path in (root, *root.parents) if not path.exists()]
    lock = None
    try:
        files.make_dir(root)
        lock = WriterLock(root)
        if (root / paths.METADATA).exists():  # made between the caller's look and our lock
            raise DatasetLockedError(f"another process has just made a dataset in {root}; try again to add to it")
        remove_leftovers(root)
        yield lock
    except BaseException as error:
        if lock is not None and not isinstance(error, DatasetLockedError):
            with contextlib.suppress(OSError):
                remove_leftovers(root)
                for name in (paths.LOCK, paths.LOCK_OWNER):  # still held: whoever waits for it sees it unlinked
                    files.remove(root / name)
        if lock is not None:
            lock.release()
        with contextlib.suppress(OSError):  # not empty: not ours alone
            for path in missing:
                path.rmdir()
        raise


def remove_leftovers(root: Path) -> None:
    """Remove what a creation that did not come to its end has left; the lock stays."""
    for name in paths.ENTRIES - {paths.LOCK, paths.LOCK_OWNER}:
        files.remove(root / name)


def image_numbers(root: Path, key: str) -> list[int]:
    """The numbers of a camera's image directories (episode rows) or video files, as they are on disk."""
    folders = (paths.image_dir(root, key, 0).parent, paths.video_path(root, key, 0).parent)
    names = [path.name.partition(".")[0] for folder in folders if folder.is_dir() for path in folder.iterdir()]
    return [int(name) for name in names if name.isdigit()]


def make_files(root: Path, manifest: Manifest, metadata: bytes) -> None:
    """Lay out every file but `metadata.json`: columns with room for the capacity, the rest empty."""
    files.make_dir(root / paths.COLUMNS)
    columns = {
        key: MemmapWriter(root, spec, create=True) for key, spec in manifest.keys.items() if not spec.needs_decoding
    }
    owners = DataFile(root / paths.OWNERS, create=True)
    state_file = DataFile(root / paths.STATE, create=True)
    everything: list[MemmapWriter | DataFile] = [*columns.values(), owners, state_file]
    try:
        allocate(columns, owners, manifest.capacity)
        for name in (paths.EPISODES, paths.STRINGS):
            files.write_new(root / name, b"")
        state_file.allocate(STATE_BYTES)
        state = State(capacity=manifest.capacity, boot_id=boot_id(), metadata_hash=metadata_hash(metadata))
        for place in (LIVE_OFFSET, DURABLE_OFFSETS[1]):  # a power cut before the first flush leaves an empty dataset
            state_file.write_at(place, state.to_bytes())
        for file in everything:
            file.sync()
        for directory in (root / paths.COLUMNS, root, root.parent):
            files.sync_path(directory)
    finally:
        for file in everything:
            file.close()


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
