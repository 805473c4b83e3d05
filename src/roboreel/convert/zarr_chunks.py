"""The chunks of a zarr, before its library decodes them: what is cut off, and what would unfold to any size.

Codecs go by what a chunk says of itself. Blosc reads on beyond the end of one that is cut off; Zstandard and LZ4 take
the memory that a header asks for; gzip and its like have no header that says how much is to come.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from roboreel.convert.zarr_files import METADATA, ZarrArray, ZarrFiles
from roboreel.errors import SourceError

_HEADER_BYTES = 18
"""Of Blosc 16, of a Zstandard frame up to 18."""
_SLACK_BYTES = 1 << 16
_MOST_SIZES = 8
"""Filters may make numbers wider before they are coded, and shards have an index."""
_CHECKSUM_BYTES = {"crc32c": 4, "crc32": 4, "adler32": 4, "fletcher32": 4}
_WORTH_UNFOLDING_BYTES = 1 << 28
_UNFOLDING: dict[str, tuple[int, Callable[[], Any]]] = {
    "gzip": (1032, lambda: zlib.decompressobj(31)),
    "zlib": (1032, zlib.decompressobj),
    "bz2": (1 << 20, bz2.BZ2Decompressor),
    "lzma": (1 << 20, lzma.LZMADecompressor),
}
"""By how much a codec may unfold, and what does so no further than it is told."""


def check_chunks(files: ZarrFiles, arrays: Mapping[str, ZarrArray]) -> None:
    """Refuse chunks that are cut off or would take far more memory than what the metadata declare.

    Raises:
        SourceError: such a chunk; it is named.
    """
    read = {path: array for path, array in arrays.items() if array.flaw is None}
    for name in files.names():
        folder, _, file = name.rpartition("/")
        path = next((str(one) for one in (folder, *PurePosixPath(folder).parents) if str(one) in read), None)
        if path is not None and file not in METADATA and not file.startswith("."):
            _check_chunk(files, name, read[path])


def _check_chunk(files: ZarrFiles, name: str, array: ZarrArray) -> None:
    most = _MOST_SIZES * array.chunk_bytes + _SLACK_BYTES
    size, codec, trailing = files.size(name), array.codecs[-1] if array.codecs else "", 0
    if size > most:
        raise _too_large(files, name, size, array)
    if codec in _CHECKSUM_BYTES and len(array.codecs) > 1:
        codec, trailing = array.codecs[-2], _CHECKSUM_BYTES[codec]
    if codec == "blosc":
        head = files.read(name, _HEADER_BYTES)
        decoded, coded = (int.from_bytes(head[at : at + 4], "little") for at in (4, 12))
        if len(head) < 16 or coded + trailing != size:
            raise SourceError(
                f"{files.path}: chunk {name} has {size} bytes, and should have {coded + trailing}: it is cut off; copy "
                "it again"
            )
    elif codec == "zstd":
        decoded = _zstd_size(files, name)
    elif codec == "lz4":
        decoded = int.from_bytes(files.read(name, 4), "little")
    elif codec in _UNFOLDING:
        decoded = _unfolded(files, name, codec, size, most)
    else:
        return
    if decoded > most:
        raise _too_large(files, name, decoded, array)


def _too_large(files: ZarrFiles, name: str, size: int, array: ZarrArray) -> SourceError:
    return SourceError(
        f"{files.path}: chunk {name} holds {size:,} bytes or more where a chunk has {array.chunk_bytes:,}; copy it "
        "again"
    )


def _zstd_size(files: ZarrFiles, name: str) -> int:
    """What the header of a Zstandard frame says that it holds (RFC 8878, 3.1.1.1)."""
    head = files.read(name, _HEADER_BYTES)
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return 0  # the library will say so
    flags = head[4]
    single, kind = flags >> 5 & 1, flags >> 6
    width = (single, 2, 4, 8)[kind]
    if not width:
        raise SourceError(
            f"{files.path}: chunk {name} does not say how much it holds, and may hold any; write it again"
        )
    start = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(head[start : start + width], "little") + (256 if width == 2 else 0)


def _unfolded(files: ZarrFiles, name: str, codec: str, size: int, most: int) -> int:
    """Bytes that a chunk unfolds to, counted only where they may be many, and no further than one beyond `most`."""
    times, decoder = _UNFOLDING[codec]
    if size * times < _WORTH_UNFOLDING_BYTES:
        return 0
    try:
        return len(decoder().decompress(files.read(name, size), most + 1))
    except (zlib.error, lzma.LZMAError, OSError, EOFError):
        return 0  # the library will say so
