"""The files of a cache of decoded frames, mapped: a table with a record for each slot of the dataset, and the pixels.

A reader takes no lock, and believes nothing that it has not seen: what it copies must have the checksum in the slot's
record, of which the seed is the image that it wants, and the record must be the same after the copy. So pixels that are
half written, of another image, or spoiled by a kill or a power cut, are no hit. Where a place has had its checksum
once, later reads look at the record alone, before and after: taking checksums costs as much as copying.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from roboreel.columns.threads import shared
from roboreel.format import files
from roboreel.format.filesystem import remote_type
from roboreel.format.records import CACHE_HEADER_DTYPE, CACHE_MAGIC, CACHE_SLOT_DTYPE

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Bytes = NDArray[np.uint8]

HEADER_BYTES = CACHE_HEADER_DTYPE.itemsize
_RECORD_BYTES = CACHE_SLOT_DTYPE.itemsize
_WORDS = _RECORD_BYTES // 8
PLACE, IDENTITY, CHECKSUM = range(_WORDS)
"""Words of a record."""
_COPY_BYTES = 1 << 18
"""Pixels that are copied before their checksums are taken: they are still in the processor's cache then."""
_JOB_BYTES = 1 << 20
"""Pixels that are worth a thread."""


def table_bytes(slots: int) -> int:
    """Bytes of the table for so many slots."""
    return HEADER_BYTES + slots * _RECORD_BYTES


@dataclass(frozen=True)
class CacheMap:
    """Both files, mapped read-only; the header shows what other processes do to it."""

    header: NDArray[np.void]
    """(1,)"""
    records: Words
    """(slots, 3): place, identity, checksum."""
    pixels: Bytes
    """(places, bytes of a frame)."""
    seen: Words
    """(places,): the checksum that the pixels there had; since then only living processes can have changed them."""
    is_remote: bool
    """Whether what another machine writes may be shown in any order, so that checksums alone tell."""

    @property
    def is_current(self) -> bool:
        return not self.header["retired"][0] and int(self.header["places"][0]) == len(self.pixels)

    def trust(self, places: Ints, checksums: Words) -> None:
        """Take the checksums of these places no more while their records say these."""
        if not self.is_remote:
            self.seen[places] = checksums

    def read(self, slots: Ints, identities: Words, out: Bytes, threads: int) -> NDArray[np.bool_]:
        """Copy frames that are in the cache into `out`; return which of them are; see `CacheFile.read`."""
        if not len(self.records):
            return np.zeros(len(slots), np.bool_)
        records = np.take(self.records, slots, axis=0, mode="clip")
        places = records[:, PLACE].astype(np.int64) - 1
        hit: NDArray[np.bool_] = (records[:, IDENTITY] == identities) & (slots < len(self.records))
        hit &= (places >= 0) & (places < len(self.pixels))
        at = np.flatnonzero(hit)  # what has no record is not even looked at: it may be a hole
        share = max(1, _JOB_BYTES // self.pixels.shape[1], -(-len(at) // threads))
        pieces = [at[begin : begin + share] for begin in range(0, len(at), share)]
        shared.run([partial(_copy, self, records, some, out, hit) for some in pieces], threads)
        # whoever overwrites a place has set the identity in its record to 0 before
        hit[at] &= np.all(np.take(self.records, slots[at], axis=0) == records[at], axis=1)
        self.trust(places[hit], records[hit, CHECKSUM])
        return hit


def mapped(table: Path, pixels: Path, frame_bytes: int) -> CacheMap | None:
    """Map what is there; None where that is no cache of frames of so many bytes."""
    try:
        raw = _map_file(table)
        present = os.stat(pixels).st_size
    except (OSError, ValueError):  # not there, or empty, or no file
        return None
    if len(raw) < HEADER_BYTES:
        return None
    header = raw[:HEADER_BYTES].view(CACHE_HEADER_DTYPE)
    places = int(header["places"][0])
    if header["magic"][0].tobytes() != CACHE_MAGIC or int(header["frame_bytes"][0]) != frame_bytes:
        return None
    if header["retired"][0] or present < places * frame_bytes:  # mapped, it would end in a SIGBUS
        return None
    slots = (len(raw) - HEADER_BYTES) // _RECORD_BYTES
    records = raw[HEADER_BYTES : table_bytes(slots)].view("<u8").reshape(slots, _WORDS)
    try:
        frames = _map_file(pixels) if places else np.zeros(0, np.uint8)
    except (OSError, ValueError):
        return None
    frames = frames[: places * frame_bytes].reshape(places, frame_bytes)
    return CacheMap(header, records, frames, np.zeros(places, np.uint64), remote_type(table.parent) is not None)


def _map_file(path: Path) -> Bytes:
    """Map a regular file read-only."""
    with os.fdopen(files.open_to_read(path), "rb") as file:
        return np.memmap(file, np.uint8, "r").view(np.ndarray)


def _copy(found: CacheMap, records: Words, rows: Ints, out: Bytes, hit: NDArray[np.bool_]) -> None:
    """Copy the frames of `rows`, ascending, into theirs of `out`; clear in `hit` those that have another checksum."""
    places = records[rows, PLACE].astype(np.int64) - 1
    unknown = found.seen[places] != records[rows, CHECKSUM]
    in_one_go = rows[-1] - rows[0] + 1 == len(rows)
    step = len(rows) if in_one_go and not np.any(unknown) else max(1, _COPY_BYTES // out.shape[1])
    scratch = None if in_one_go else np.empty((min(step, len(rows)), out.shape[1]), np.uint8)
    for begin in range(0, len(rows), step):
        some = rows[begin : begin + step]
        block = out[some[0] : some[0] + len(some)] if scratch is None else scratch[: len(some)]
        found.pixels.take(places[begin : begin + step], 0, block, "clip")
        if new := np.flatnonzero(unknown[begin : begin + step]).tolist():
            known = records[some[new]]
            hit[some[new]] = checksums_of([block[k] for k in new], known[:, IDENTITY]) == known[:, CHECKSUM]
        if scratch is not None:
            out[some] = block


def checksums_of(frames: Iterable[Bytes], identities: Words) -> Words:
    """Return what the records of frames, (bytes of a frame,) each, have as their checksums, (n,)."""
    pairs = zip(frames, identities.tolist(), strict=True)
    return np.array([xxhash.xxh3_64_intdigest(frame.data, seed) for frame, seed in pairs], np.uint64)
