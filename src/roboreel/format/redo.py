"""`redo.bin`: an edit, written down whole before it is applied, so that it can be applied again after a kill."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from roboreel.errors import StorageDirCorruptError
from roboreel.format.records import CHECKSUM_DTYPE, OWNER_DTYPE, is_sealed, sealed
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
    def from_bytes(cls, raw: bytes, expected_hash: int, keys: dict[str, KeySpec]) -> Redo:
        """Parse the file that a state record names by its hash; `StorageDirCorruptError` for anything else."""
        if redo_hash(raw) != expected_hash or not is_sealed(raw):
            raise StorageDirCorruptError("redo.bin is not the edit that state.bin refers to; restore it from a copy")
        _, name_bytes, count = _HEADER.unpack_from(raw)
        offset = _HEADER.size + name_bytes
        key = raw[_HEADER.size : offset].decode()
        arrays = []
        for dtype, shape in (
            (_SLOT_DTYPE, (count,)),
            (OWNER_DTYPE, (count,)),
            (CHECKSUM_DTYPE, (count,)),
            (keys[key].dtype, (count, *keys[key].shape)),
        ):
            array = np.frombuffer(raw, dtype, int(np.prod(shape)), offset).reshape(shape)
            arrays.append(array)
            offset += array.nbytes
        return cls(key, *arrays)


def redo_hash(raw: bytes) -> int:
    """What a state record keeps of the file; never 0, which means that there is none."""
    return xxhash.xxh3_64_intdigest(raw) or 1
