"""How a repair writes: where one bit flipped, that one is put right; of what is written anew, a copy is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from roboreel.format import files, paths
from roboreel.format.files import DataFile

_MENDABLE_BYTES = 16 << 10
"""Longer records are not searched for a flipped bit: the time grows with the square."""


def mended_bit(raw: bytes, is_right: Callable[[bytes], bool]) -> bytes | None:
    """Return the bytes with the one bit flipped that makes them right; None where there is none.

    >>> import xxhash
    >>> mended_bit(b"roboseel", lambda raw: xxhash.xxh3_64_intdigest(raw) == 0x82457A17C6D9560E)
    b'roboreel'
    """
    if len(raw) > _MENDABLE_BYTES:
        return None
    changed = bytearray(raw)
    for at in range(len(raw)):
        for bit in range(8):
            changed[at] ^= 1 << bit
            if is_right(bytes(changed)):
                return bytes(changed)
            changed[at] ^= 1 << bit
    return None


def keep_copy(path: Path) -> None:
    """Keep what a file is before it is written anew; of several repairs the first copy stays."""
    kept = path.with_name(path.name + paths.BACKUP)
    if path.is_file() and not kept.exists():
        files.replace_atomically(kept, files.read_file(path))  # half a copy would stay, and pass for the first


def write_at(path: Path, offset: int, raw: bytes) -> None:
    """Write a part of a file, which is made where it is missing; durable when this returns."""
    file = DataFile(path, create=not path.exists())
    try:
        file.write_at(offset, raw)
        file.sync()
    finally:
        file.close()
