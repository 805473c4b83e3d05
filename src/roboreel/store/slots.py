"""The files that are addressed by slot: columns, checksums of their frames, owners; written and undone together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from roboreel.columns.memmap import MemmapWriter
from roboreel.format import paths
from roboreel.format.files import DataFile, make_dir, sync_all
from roboreel.format.records import CHECKSUM_DTYPE, OWNER_DTYPE, OWNER_EDIT
from roboreel.schema import KeySpec
from roboreel.store.store import Store

Words = NDArray[np.uint64]


class SlotFiles:
    """Every file of `capacity` slots of a dataset, open for writing."""

    def __init__(self, root: Path, keys: Mapping[str, KeySpec], *, create: bool = False) -> None:
        if create:
            for directory in (paths.COLUMNS, paths.CHECKSUMS):
                make_dir(root / directory)
        self.owners = DataFile(root / paths.OWNERS, create=create)
        self.columns = {
            key: MemmapWriter(root, spec, create=create) for key, spec in keys.items() if not spec.needs_decoding
        }
        self.checksums = {
            key: DataFile(paths.checksum_path(root, key), create=create)
            for key, spec in keys.items()
            if spec.has_checksums
        }

    @property
    def files(self) -> list[DataFile]:
        return [*(column.file for column in self.columns.values()), self.owners, *self.checksums.values()]

    def allocate(self, capacity: int) -> None:
        """Give every file room for `capacity` frames."""
        for column in self.columns.values():
            column.allocate(capacity)
        for file in (self.owners, *self.checksums.values()):
            file.allocate(capacity * OWNER_DTYPE.itemsize)

    def give_back(self, capacity: int) -> None:
        """Free the room beyond `capacity` frames, which no reader has mapped because no record counts it yet."""
        for column in self.columns.values():
            column.truncate(capacity)
        for file in (self.owners, *self.checksums.values()):
            file.truncate(capacity * OWNER_DTYPE.itemsize)

    def write_owners(self, slot: int, words: Words) -> None:
        self.owners.write_at(slot * OWNER_DTYPE.itemsize, words)

    def write(self, key: str, slot: int, block: NDArray[Any]) -> None:
        """Write frames (n, *shape) of one key from `slot` on, and their checksums."""
        sums = frame_checksums(block)  # first: the block may lie in a mapping of what is written
        self.columns[key].write(slot, block)
        self.write_checksums(key, slot, sums)

    def write_checksums(self, key: str, slot: int, sums: Words) -> None:
        self.checksums[key].write_at(slot * CHECKSUM_DTYPE.itemsize, sums)

    def save(self, store: Store, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Copy what slots [start, stop) hold, for `restore`; nothing where the range is empty."""
        if start >= stop:
            return {}
        columns = {key: store.memmap(key)[start:stop].copy() for key in self.columns}
        checksums = {f"{key}\0": store.checksums[key][start:stop].copy() for key in self.checksums}
        return {**columns, **checksums, "": store.owner_words(start, stop)}

    def restore(self, start: int, saved: Mapping[str, NDArray[Any]]) -> None:
        """Write back what `save` copied; the owners last, and changed, for a reader may have seen both in between."""
        for name in sorted(saved, reverse=True):
            if not name:
                words = saved[name]
                self.write_owners(start, np.where(words == 0, words, words + np.uint64(OWNER_EDIT)))
            elif name.endswith("\0"):
                self.write_checksums(name[:-1], start, saved[name])
            else:
                self.columns[name].write(start, saved[name])

    def sync(self) -> None:
        sync_all(self.files)

    def close(self) -> None:
        for column in self.columns.values():
            column.close()
        for file in (self.owners, *self.checksums.values()):
            file.close()


def frame_checksums(block: NDArray[Any]) -> Words:
    """Return the xxh3-64 of each frame's bytes: (n, *shape) to (n,).

    >>> frame_checksums(np.zeros((2, 3), np.uint8)).tolist()
    [16959823422411450475, 16959823422411450475]
    """
    frames = np.ascontiguousarray(block).reshape(len(block), -1).view(np.uint8)
    return np.fromiter((xxhash.xxh3_64_intdigest(frame.data) for frame in frames), CHECKSUM_DTYPE, len(frames))
