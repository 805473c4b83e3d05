"""`redo.bin`: an edit, written down whole before it is applied, so that it can be applied again after a kill."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from roboreel.errors import StorageDirCorruptError
from roboreel.format.records import CHECKSUM_DTYPE, OWNER_DTYPE, OWNER_ROW_MASK, State, is_sealed, sealed
from roboreel.schema import KeySpec

REDO_MAGIC = b"RRREDO\x00\x01"
_HEADER = struct.Struct("<8sQQ")  # magic, bytes of the key's name, frames
_SLOT_DTYPE = np.dtype("<i8")


@dataclass(frozen=True)
class Redo:
    """New values of one key for n frames; arrays (n,) and `values` (n, *shape)."""

    key: str
    slots: NDArray[np.int64]
    """Ascending."""
    words: NDArray[np.uint64]
    """The owner words after the edit."""
    checksums: NDArray[np.uint64]
    values: NDArray[Any]

    def to_bytes(self) -> bytes:
        name = self.key.encode()
        parts = [
            _HEADER.pack(REDO_MAGIC, len(name), len(self.slots)),
            name,
            self.slots.astype(_SLOT_DTYPE).tobytes(),
            self.words.astype(OWNER_DTYPE).tobytes(),
            self.checksums.astype(CHECKSUM_DTYPE).tobytes(),
            np.ascontiguousarray(self.values).tobytes(),
        ]
        return sealed(b"".join(parts))

    @classmethod
    def from_bytes(cls, raw: bytes, state: State, keys: Mapping[str, KeySpec]) -> Redo:
        """Parse the file that a state record names by its hash; `StorageDirCorruptError` for anything else."""
        if redo_hash(raw) != state.redo or not is_sealed(raw):
            raise StorageDirCorruptError("redo.bin is not the edit that state.bin refers to; restore it from a copy")
        spec, count = _parse_header(raw, keys)
        offset = _HEADER.size + len(spec.name.encode())
        arrays = []
        for dtype, shape in (
            (_SLOT_DTYPE, (count,)),
            (OWNER_DTYPE, (count,)),
            (CHECKSUM_DTYPE, (count,)),
            (spec.dtype, (count, *spec.shape)),
        ):
            array = np.frombuffer(raw, dtype, int(np.prod(shape)), offset).reshape(shape)
            arrays.append(array)
            offset += array.nbytes
        redo = cls(spec.name, *arrays)
        redo._check_slots(state)
        return redo

    def _check_slots(self, state: State) -> None:
        """Refuse slots that hold no frame of a committed episode, or that the record does not tell of."""
        if np.any(self.slots[1:] <= self.slots[:-1]):  # not their differences, which can overflow
            raise StorageDirCorruptError("redo.bin: its slots are not ascending")
        if self.slots[0] < state.busy_start or self.slots[-1] >= min(state.busy_stop, state.frames):
            raise StorageDirCorruptError(
                f"redo.bin: its slots go from {self.slots[0]} to {self.slots[-1]}; state.bin tells of an edit from "
                f"{state.busy_start} to {state.busy_stop - 1}, with {state.frames} frames"
            )
        rows = self.words & np.uint64(OWNER_ROW_MASK)
        if np.any((rows == 0) | (rows > state.rows)):
            raise StorageDirCorruptError(f"redo.bin: it names owners that are none of the {state.rows} rows")


def _parse_header(raw: bytes, keys: Mapping[str, KeySpec]) -> tuple[KeySpec, int]:
    """Return the key and the number of frames; what follows is as long as both of them say."""
    if len(raw) < _HEADER.size or not raw.startswith(REDO_MAGIC):
        raise StorageDirCorruptError("redo.bin is no edit of this version: its first bytes are others")
    _, name_bytes, count = _HEADER.unpack_from(raw)
    key = raw[_HEADER.size : _HEADER.size + min(name_bytes, len(raw))].decode(errors="replace")
    spec = keys.get(key)
    if spec is None or spec.role == "index" or spec.is_string or spec.needs_decoding:
        raise StorageDirCorruptError(f"redo.bin: it edits the key {key[:100]!r}, which is none that can be edited")
    each = _SLOT_DTYPE.itemsize + OWNER_DTYPE.itemsize + CHECKSUM_DTYPE.itemsize + spec.frame_bytes
    wanted = _HEADER.size + name_bytes + count * each + CHECKSUM_DTYPE.itemsize
    if not count or len(raw) != wanted:
        raise StorageDirCorruptError(f"redo.bin has {len(raw):,} bytes, and {count} frames take {wanted:,}")
    return spec, count


def redo_hash(raw: bytes) -> int:
    """What a state record keeps of the file; never 0, which means that there is none."""
    return xxhash.xxh3_64_intdigest(raw) or 1
