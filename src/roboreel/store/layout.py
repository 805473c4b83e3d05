"""Laying out the files of a new dataset, and taking them away again where its making failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from roboreel.errors import DatasetLockedError, InvalidArgumentError
from roboreel.format import files, paths
from roboreel.format.lock import WriterLock
from roboreel.format.manifest import Manifest, metadata_hash
from roboreel.format.records import CHECKSUM_DTYPE, OWNER_DTYPE, State
from roboreel.store.records import StateFile
from roboreel.store.slots import SlotFiles


def frame_bytes(manifest: Manifest) -> int:
    """Bytes of one frame in all files that are addressed by slot: columns, checksums, owners."""
    stored = sum(spec.frame_bytes for spec in manifest.keys.values() if not spec.needs_decoding)
    checksums = sum(CHECKSUM_DTYPE.itemsize for spec in manifest.keys.values() if spec.has_checksums)
    return stored + checksums + OWNER_DTYPE.itemsize


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


def make_files(root: Path, manifest: Manifest, metadata: bytes) -> None:
    """Lay out every file but `metadata.json`: columns with room for the capacity, the rest empty."""
    slots = SlotFiles(root, manifest.keys, create=True)
    state_file = StateFile(root, create=True)
    try:
        slots.allocate(manifest.capacity)
        slots.sync()
        for name in (paths.EPISODES, paths.STRINGS, paths.STRING_SUMS):
            files.write_new(root / name, b"")
        state = State(capacity=manifest.capacity, metadata_hash=metadata_hash(metadata))
        state_file.put_live(state)
        state_file.put_durable(state)  # a power cut before the first flush leaves an empty dataset
        for directory in (root / paths.COLUMNS, root / paths.CHECKSUMS, root, root.parent):
            files.sync_path(directory)
    finally:
        slots.close()
        state_file.close()


def discard(root: Path, *, keep_dir: bool) -> None:
    """Remove all of ours that is in a directory; `DatasetLockedError` where somebody is writing it."""
    if not root.is_dir() or not any(root.iterdir()):
        return
    lock = WriterLock(root)
    try:
        files.remove(root / paths.METADATA)  # first: what is half gone must not open
        remove_leftovers(root)
        for name in (paths.LOCK, paths.LOCK_OWNER):  # still held: whoever waits for it sees it unlinked
            files.remove(root / name)
    finally:
        lock.release()
    if not keep_dir:
        with contextlib.suppress(OSError):  # not empty: somebody else's, too
            root.rmdir()
