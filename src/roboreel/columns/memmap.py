"""Raw numbers in one file a key: read through a read-only mapping, written by `pwrite` at the slot's offset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.columns.base import Column, Frames
from roboreel.errors import StorageDirCorruptError
from roboreel.format import files, paths
from roboreel.format.files import DataFile
from roboreel.schema import KeySpec


def map_slots(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], capacity: int) -> NDArray[Any]:
    """Map `capacity` slots of a file read-only; refuse a file that is shorter, which would end in a SIGBUS."""
    wanted = capacity * dtype.itemsize * int(np.prod(shape, dtype=object))
    try:
        file = os.fdopen(files.open_to_read(path), "rb")
    except FileNotFoundError:
        raise StorageDirCorruptError(f"{path} is missing; restore it from a copy") from None
    with file:
        present = os.fstat(file.fileno()).st_size
        if present < wanted:
            raise StorageDirCorruptError(
                f"{path} has {present:,} bytes; {capacity} frames need {wanted:,}: it was cut short; "
                "restore it from a copy"
            )
        if wanted == 0:  # the system refuses to map nothing
            return np.zeros((capacity, *shape), dtype)
        try:
            mapping = np.memmap(file, dtype, "r", shape=(capacity, *shape))
        except OSError as error:
            raise files.storage_error(f"mapping {path}", error) from error
    mapping.filename = str(path)  # for whoever asks, further down a view's `base`s, of which file it is
    return mapping.view(np.ndarray)  # np.memmap adds about 1 us of Python to every slice


class MemmapColumn(Column):
    def __init__(self, root: Path, spec: KeySpec, capacity: int) -> None:
        self.spec = spec
        self._path = paths.column_path(root, spec.name)
        self.array = map_slots(self._path, spec.dtype, spec.shape, capacity)

    def read(self, frames: Frames, out: NDArray[Any]) -> None:
        # "clip" because numpy gathers through a second buffer when it has to check the bounds; ours are checked.
        self.array.take(frames.slots, 0, out, "clip")

    def reopen(self, capacity: int) -> None:
        if capacity != len(self.array):
            self.array = map_slots(self._path, self.spec.dtype, self.spec.shape, capacity)

    def close(self) -> None:
        self.array = self.array[:0].copy()


class MemmapWriter:
    """The file of one key, for writing."""

    def __init__(self, root: Path, spec: KeySpec, *, create: bool = False) -> None:
        self.spec = spec
        self.file = DataFile(paths.column_path(root, spec.name), create=create)

    def allocate(self, capacity: int) -> None:
        self.file.allocate(capacity * self.spec.frame_bytes)

    def truncate(self, capacity: int) -> None:
        self.file.truncate(capacity * self.spec.frame_bytes)

    def write(self, slot: int, block: NDArray[Any]) -> None:
        self.file.write_at(slot * self.spec.frame_bytes, block)

    def close(self) -> None:
        self.file.close()
