"""Decoded frames of one camera on disk: a table with a record for each slot of the dataset, and a file of pixels.

Any number of processes read through mappings (`cache_map`), without a lock, and fill under one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from roboreel.columns.cache_map import (
    CHECKSUM,
    HEADER_BYTES,
    IDENTITY,
    PLACE,
    CacheMap,
    checksums_of,
    mapped,
    table_bytes,
)
from roboreel.errors import DatasetBusyError, RoboreelError, StorageDirCorruptError, StorageError
from roboreel.format import clone, files, paths
from roboreel.format.files import DataFile
from roboreel.format.lock import shared_lock
from roboreel.format.records import CACHE_HEADER_DTYPE, CACHE_MAGIC

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Bytes = NDArray[np.uint8]

LOCK_TIMEOUT_S = 1.0
"""Who cannot fill for so long goes on without; the frames are decoded again."""
_SWEPT_SLOTS = 1 << 16
_CLEARED_TRIES = 5
_PIECE_BYTES = 256 << 10
"""Of pixels in one write: what is lost of a fill when the disk is full."""


class CacheFile:
    """The cache of one camera, in the directory `folder`. Holds mappings alone, which a forked child may use."""

    def __init__(self, folder: Path, key: str, frame_bytes: int) -> None:
        self._folder = folder
        self._table_path = paths.cache_slots_path(folder, key)
        self._pixels_path = paths.cache_pixels_path(folder, key)
        self._frame_bytes = frame_bytes
        self._slots = self._places = 0
        self._map: CacheMap | None = None
        self._mended: CacheMap | None = None
        """The mapping whose table was looked through for places that several slots have."""
        self._swept = False
        """Whether a full cache was searched for places that belong to no slot, and has none left."""

    def resize(self, slots: int, places: int) -> None:
        """Have records for `slots` slots and room for the pixels of `places` frames; files are made where none are.

        What is filled and still fits stays. No file is ever cut short: readers have them mapped.

        Raises:
            StorageError: the files cannot be made or changed; the cache is used as it is.
            StorageDirCorruptError: links or other things are in their place.
        """
        self._slots, self._places, self._swept = slots, places, False
        self._map = self._mapped()
        if not self._fits(self._map):
            files.check_dir(self._folder)
            files.make_dir(self._folder)
            with shared_lock(self._folder / paths.CACHE_LOCK, LOCK_TIMEOUT_S) as held:
                if held:
                    self._lay_out()

    def read(self, slots: Ints, identities: Words, out: Bytes, threads: int = 1) -> NDArray[np.bool_]:
        """Copy frames that are in the cache into `out`; return which of them are.

        Args:
            slots: (n,) of the dataset.
            identities: (n,) of the images that are wanted, never 0.
            out: (n, bytes of a frame), contiguous; rows that are no hits may hold anything afterwards.
            threads: how many copy beside each other.
        """
        found = self._current()
        return np.zeros(len(slots), np.bool_) if found is None else found.read(slots, identities, out, threads)

    def fill(self, slots: Ints, identities: Words, frames: Bytes) -> None:
        """Keep decoded frames, as far as there is room: (n,) distinct slots ascending, (n,), (n, bytes of a frame).

        A slot that has a place keeps it, so what was decoded from an image that is gone is overwritten. Killed at any
        instant, records tell of whole frames alone.

        Raises:
            StorageError: no space, or an error of the system; the frames of before are there.
        """
        for left in range(_CLEARED_TRIES, 0, -1):
            try:
                self._fill_locked(slots, identities, frames)
                return
            except StorageError as error:  # cleared between our making the directory and our taking the lock in it
                if left == 1 or not isinstance(error.__cause__, FileNotFoundError):
                    raise

    def _fill_locked(self, slots: Ints, identities: Words, frames: Bytes) -> None:
        files.check_dir(self._folder)
        files.make_dir(self._folder)
        with shared_lock(self._folder / paths.CACHE_LOCK, LOCK_TIMEOUT_S) as held:
            if not held:
                return
            found = self._current()
            if found is None or not len(found.pixels):
                self._lay_out()
                found = self._current()
            if found is not None:
                self._fill(found, slots, identities, frames)

    def count(self) -> tuple[int, int, int]:
        """Frames for which there is room, frames in the cache, bytes that its files take on disk."""
        found = self._mapped()
        if found is None:
            return 0, 0, 0
        try:
            taken = sum(os.stat(path).st_blocks * 512 for path in (self._table_path, self._pixels_path))
        except FileNotFoundError:  # just cleared
            return 0, 0, 0
        return len(found.pixels), int(np.count_nonzero(found.records[:, IDENTITY])), taken

    def close(self) -> None:
        self._map = self._mended = None

    # Mapping

    def _current(self) -> CacheMap | None:
        """The mapping, made anew where another process has cleared the cache or changed its size."""
        if self._map is None or not self._map.is_current:
            self._map = self._mapped()
        return self._map

    def _mapped(self) -> CacheMap | None:
        return mapped(self._table_path, self._pixels_path, self._frame_bytes)

    def _fits(self, found: CacheMap | None) -> bool:
        return found is not None and len(found.pixels) == self._places and len(found.records) >= self._slots

    # Changing, under the lock

    def _lay_out(self) -> None:
        found = self._mapped()
        if found is None:
            _retire(self._table_path)
            for path in (self._table_path, self._pixels_path):  # somebody may have them mapped
                files.remove(path)
            header = np.zeros(1, CACHE_HEADER_DTYPE)
            header["magic"], header["frame_bytes"] = np.void(CACHE_MAGIC), self._frame_bytes
            files.write_new(self._pixels_path, b"")
            files.write_new(self._table_path, header.tobytes())
            found = self._mapped()
        if found is not None and not self._fits(found):
            table = DataFile(self._table_path)
            try:
                table.allocate(table_bytes(self._slots))  # no holes: to read one on a full tmpfs is a SIGBUS
                self._change_places(table, found)
            finally:
                table.close()
        self._map = self._mapped()

    def _change_places(self, table: DataFile, found: CacheMap) -> None:
        before, places = len(found.pixels), self._places
        if places > before:
            pixels = DataFile(self._pixels_path)
            try:
                pixels.extend(places * self._frame_bytes)
            finally:
                pixels.close()
        for start in range(0, len(found.records) if places < before else 0, _SWEPT_SLOTS):
            block = found.records[start : start + _SWEPT_SLOTS].copy()
            gone = block[:, PLACE] > places
            if np.any(gone):
                block[gone] = 0
                table.write_at(table_bytes(start), block)
        header = found.header.copy()
        header["places"] = places
        header["used"] = min(int(header["used"][0]), places)
        table.write_at(0, header.tobytes())
        if places < before:
            clone.punch(self._pixels_path, places * self._frame_bytes, before * self._frame_bytes)

    def _mend(self, found: CacheMap) -> None:
        """Take back places that several slots have, as a power cut between two pages of the table may leave them.

        Filled for one of them, such a place would be trusted for the other. Done once: the living give none twice.
        """
        if self._mended is found:
            return
        given = np.zeros(len(found.pixels) + 1, np.bool_)
        table = DataFile(self._table_path)
        try:
            for start in range(0, len(found.records), _SWEPT_SLOTS):
                block = found.records[start : start + _SWEPT_SLOTS].copy()
                rows = np.flatnonzero((block[:, PLACE] > 0) & (block[:, PLACE] < len(given)))
                places = block[rows, PLACE]
                again = np.ones(len(rows), np.bool_)
                again[np.unique(places, return_index=True)[1]] = False
                again |= given[places]
                given[places] = True
                if np.any(again):
                    block[rows[again]] = 0
                    table.write_at(table_bytes(start), block)
            header, last = found.header.copy(), int(np.flatnonzero(given).max(initial=0))
            if int(header["used"][0]) < last:
                header["used"] = last
                table.write_at(0, header.tobytes())
        finally:
            table.close()
        self._mended = found

    def _fill(self, found: CacheMap, slots: Ints, identities: Words, frames: Bytes) -> None:
        self._mend(found)
        inside = slots < len(found.records)
        slots, identities, frames = slots[inside], identities[inside], frames[inside]
        records = found.records[slots]  # a copy
        records[records[:, PLACE] > len(found.pixels), PLACE] = 0
        wanted = np.ones(len(slots), np.bool_)
        for k in np.flatnonzero((records[:, IDENTITY] == identities) & (records[:, PLACE] > 0)).tolist():
            there = found.pixels[int(records[k, PLACE]) - 1]  # another process may just have filled it
            wanted[k] = xxhash.xxh3_64_intdigest(there, seed=int(identities[k])) != int(records[k, CHECKSUM])
        new = np.flatnonzero(records[:, PLACE] == 0)
        places = self._free_places(found, len(new))
        records[new[: len(places)], PLACE] = places
        wanted[new[len(places) :]] = False
        if not np.any(wanted):
            return
        slots, identities, frames, records = slots[wanted], identities[wanted], frames[wanted], records[wanted]
        table, pixels = DataFile(self._table_path), DataFile(self._pixels_path)
        try:
            header = found.header.copy()
            header["used"] = max(int(header["used"][0]), *places.tolist(), 0)
            table.write_at(0, header.tobytes())  # first: no place is ever given twice
            records[:, IDENTITY:] = 0
            _write_runs(table, slots, records, HEADER_BYTES)
            at = records[:, PLACE].astype(np.int64) - 1
            done = stop = 0
            try:
                for start, stop in _pieces(at, self._frame_bytes):
                    pixels.write_at(int(at[start]) * self._frame_bytes, frames[start:stop])
                    done = stop
            finally:  # also on a disk that has filled up meanwhile: what is whole counts, half a piece takes no room
                if done < stop:
                    clone.punch(
                        self._pixels_path, int(at[done]) * self._frame_bytes, int(at[stop - 1] + 1) * self._frame_bytes
                    )
                if done:
                    records[:done, IDENTITY] = identities[:done]
                    records[:done, CHECKSUM] = checksums_of(frames[:done], identities[:done])
                    _write_runs(table, slots[:done], records[:done], HEADER_BYTES)
                    found.trust(at[:done], records[:done, CHECKSUM])
        finally:
            table.close()
            pixels.close()

    def _free_places(self, found: CacheMap, count: int) -> Words:
        """Up to `count` places, from 1 on, that no slot has: the next ones, in the end those that a kill has cost."""
        used, places = int(found.header["used"][0]), len(found.pixels)
        if used + count <= places or self._swept:
            return np.arange(used + 1, min(used + count, places) + 1, dtype=np.uint64)
        is_free = np.ones(places + 1, np.bool_)
        is_free[0] = False
        for start in range(0, len(found.records), _SWEPT_SLOTS):
            is_free[np.minimum(found.records[start : start + _SWEPT_SLOTS, PLACE], places)] = False
        free = np.flatnonzero(is_free).astype(np.uint64)
        self._swept = len(free) <= count
        return free[:count]


def clear_cache(folder: Path) -> bool:
    """Remove a cache directory; whether there was one. Who has it mapped reads on, and makes it anew.

    Raises:
        DatasetBusyError: some process was filling it all the time.
    """
    files.check_dir(folder)  # through a link others' files would be removed
    if not (folder / paths.CACHE_LOCK).exists():
        return False  # not one of ours
    with shared_lock(folder / paths.CACHE_LOCK, 10 * LOCK_TIMEOUT_S) as held:
        if not held:
            raise DatasetBusyError(f"{folder} was being filled for {10 * LOCK_TIMEOUT_S:g} s; try again")
        for path in sorted(folder.iterdir(), key=lambda path: path.name == paths.CACHE_LOCK):  # the lock comes last
            _retire(path)
            files.remove(path)
        clone.remove_if_empty(folder)  # else somebody has just begun it anew
    return True


def link_cache(folder: Path, to: Path, keys: Sequence[str]) -> None:
    """Have what is kept of these cameras be in the directory `to` as well; what cannot be linked is decoded again.

    The lock goes along, first: whoever fills the files by either name holds the same one.
    """
    names = [path_of(Path(), key) for key in keys for path_of in (paths.cache_slots_path, paths.cache_pixels_path)]
    with contextlib.suppress(OSError, RoboreelError):
        files.check_dir(folder)
        present = [name for name in names if (folder / name).is_file()]
        if not present:
            return
        files.make_dir(to)
        for name in (Path(paths.CACHE_LOCK), *present):
            files.remove(to / name)
            if not clone.link(folder / name, to / name):
                return


def _retire(path: Path) -> None:
    """Tell those who have a table mapped that it is no longer the one."""
    try:
        with os.fdopen(files.open_to_read(path), "rb") as file:
            header = np.frombuffer(file.read(HEADER_BYTES), np.uint8)
    except (FileNotFoundError, StorageDirCorruptError):
        return
    if len(header) < HEADER_BYTES or header[: len(CACHE_MAGIC)].tobytes() != CACHE_MAGIC:
        return
    changed = header.view(CACHE_HEADER_DTYPE).copy()
    changed["retired"] = 1
    table = DataFile(path)
    try:
        table.write_at(0, changed.tobytes())
    finally:
        table.close()


def _write_runs(file: DataFile, at: Ints, rows: NDArray[Any], offset: int) -> None:
    """Write row k at place `at[k]` of a file of such rows that begins at `offset`; neighbours in one go."""
    for start, stop in _runs(at):
        file.write_at(offset + int(at[start]) * rows[0].nbytes, rows[start:stop])


def _pieces(at: Ints, frame_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield runs of places that follow each other, none much larger than `_PIECE_BYTES`."""
    step = max(1, _PIECE_BYTES // frame_bytes)
    for start, stop in _runs(at):
        for first in range(start, stop, step):
            yield first, min(first + step, stop)


def _runs(values: Ints) -> Iterator[tuple[int, int]]:
    """Yield where in `values` each run of consecutive numbers begins and ends.

    >>> list(_runs(np.array([4, 5, 6, 9, 2, 3])))
    [(0, 3), (3, 4), (4, 6)]
    """
    cuts = np.flatnonzero(np.diff(values) != 1) + 1
    edges = [0, *cuts.tolist(), len(values)]
    yield from itertools.pairwise(edges)
