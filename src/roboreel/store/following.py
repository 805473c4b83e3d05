"""A dataset directory, open and mapped: what its records count, followed as a writer goes on."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.columns.base import Column, Decoding
from roboreel.columns.memmap import MemmapColumn, map_slots
from roboreel.columns.png import PngColumn
from roboreel.columns.video import VideoColumn
from roboreel.errors import StorageDirCorruptError
from roboreel.format import files, paths
from roboreel.format.lock import boot_id
from roboreel.format.manifest import Manifest
from roboreel.format.records import (
    CHECKSUM_DTYPE,
    DURABLE_OFFSETS,
    LIVE_OFFSET,
    OWNER_DTYPE,
    STATE_RECORD_BYTES,
    State,
    episode_dtype,
    parse_rows,
    parse_strings,
)
from roboreel.format.redo import Redo
from roboreel.schema import LeRobotDatasetV2ImageMode
from roboreel.store.episodes import EpisodeTable
from roboreel.store.frame_cache import DecodedCache, FrameCache
from roboreel.store.records import newest
from roboreel.store.ring import ring_ranges
from roboreel.store.row_check import check_rows

_PAUSE_S = 0.0005
_RECORD_TRIES = 200
_PIECE_BYTES = 16 << 20
_ROWS_PIECE_BYTES = 1 << 20
"""Of the episode table: memory that the next piece is read into while it is in the processor's cache."""


class Following:
    """The files of a dataset, open and mapped as far as its records count them; each process opens its own."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self.decoding = Decoding()
        self.state = State()
        self.strings: list[str] = []
        self._string_bytes = 0
        """Where the next of them will stand."""
        self.table = EpisodeTable(episode_dtype(len(manifest.video_keys)))
        self._raw: bytes | None = None
        self._is_torn = False
        """Whether a failing disk has half a record, later than what is known, and nobody could put it right."""
        self.lock = threading.RLock()
        """Held by whoever looks at table, strings and mappings, so that threads see one generation of them."""
        _OPEN.add(self)
        self._capacity = 0
        self.has_cameras = any(spec.is_camera for spec in manifest.keys.values())
        self._has_image_files = any(spec.needs_decoding for spec in manifest.keys.values())
        self._lossy = False
        """Whether slots may be lost of which the episode table does not tell yet."""
        self._given_up: bytes | None = None
        """The live record of a writer that was found dead: what it was overwriting is lost, not in the making."""
        self.losses = 0
        """How often frames were found to be lost with a writer that died."""
        self._pending: Redo | None = None
        """The edit that a dead writer has committed and not wholly applied: readers take its values from here."""
        self._fds = {name: files.open_to_read(root / name) for name in _followed(root)}
        self.columns: dict[str, Column] = {}
        self.mapped: dict[str, NDArray[Any]] = {}
        """The mappings of the keys that are stored as raw numbers, (capacity, *shape), read-only."""
        self.checksums: dict[str, NDArray[np.uint64]] = {}
        """xxh3-64 of each frame: (capacity,) for every key that is not stored as video."""
        self._owners: NDArray[np.uint64] = np.zeros(0, OWNER_DTYPE)
        self.frame_cache: FrameCache | None = None
        """What decoded frames are kept in, once `use_cache` was called."""
        self.held: dict[str, OrderedDict[int, tuple[int, NDArray[Any]]]] = {}
        """Camera → episode row → its first position and its decoded frames, of the block that is being drawn from."""
        self.refresh()

    def refresh(self) -> bytes:
        """Take notice of what was committed meanwhile; return the raw live record that was looked at."""
        with self.lock:
            raw = self.record()
            if raw != self._raw:
                raw, state = self._current_state()
                try:
                    self._follow(state)
                except BaseException:  # half of it may be in, also after Ctrl-C
                    self._forget()
                    raise
                self._raw = raw
            return raw

    def record(self) -> bytes:
        """Return the live record as it stands: while it does, nothing is written."""
        return os.pread(self._fds[paths.STATE], STATE_RECORD_BYTES, LIVE_OFFSET)

    @property
    def is_in_place(self) -> bool:
        """Whether the path still leads to the directory that was opened.

        Then what was read by path before came from there: while its state file is open here, no other one can be
        taken for it.
        """
        try:
            return os.path.samestat(os.stat(self.root / paths.STATE), os.fstat(self._fds[paths.STATE]))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _forget(self) -> None:
        """Have the next look take in all of it."""
        self._raw, self.strings, self._string_bytes = None, [], 0
        self.table = EpisodeTable(self.table.rows.dtype)
        self.held.clear()
        self._capacity = 0

    def _current_state(self) -> tuple[bytes, State]:
        """Return what counts, and the live record that it was decided by: while that stays, so does the decision."""
        for _ in range(_RECORD_TRIES):  # a read that meets a write may see a part of each: the checksum tells
            raw = os.pread(self._fds[paths.STATE], STATE_RECORD_BYTES, LIVE_OFFSET)
            live = State.from_bytes(raw)
            if live is not None:
                break
            if raw.count(0) == len(raw):
                break  # never written: only a durable record can be there
            time.sleep(_PAUSE_S)
        if live is not None and live.boot_id == boot_id():
            self._is_torn = False
            return raw, live
        durable = self.durable_states()
        if not durable:
            raise StorageDirCorruptError(f"{self.root / paths.STATE} holds no whole record; restore it from a copy")
        state = newest(durable)
        self._is_torn = live is None and state.generation < self.state.generation
        return raw, self.state if self._is_torn else state

    def durable_states(self) -> list[State]:
        """The whole ones of the two records that `flush` writes in turn."""
        found = (State.from_bytes(os.pread(self._fds[paths.STATE], STATE_RECORD_BYTES, at)) for at in DURABLE_OFFSETS)
        return [state for state in found if state is not None]

    def read_redo(self) -> Redo:
        """The edit that the current record refers to."""
        path = self.root / paths.REDO
        try:
            return Redo.from_bytes(files.read_file(path), self.state, self.manifest.keys)
        except OSError as error:
            raise StorageDirCorruptError(f"{path}, an edit half applied, cannot be read: {error}") from error

    @property
    def at_risk(self) -> list[tuple[int, int]]:
        """Slot ranges that hold nothing certain, because power was lost while they were overwritten."""
        state = self.state
        ranges = ring_ranges(state.at_risk_start, state.at_risk_length, state.capacity)
        return [(start, min(stop, state.frames)) for start, stop in ranges if start < state.frames]

    def _follow(self, state: State) -> None:
        if what := state.problem():
            raise StorageDirCorruptError(f"{self.root / paths.STATE}: {what}; restore it from a copy")
        if state.rows < len(self.table) or state.generation < self.state.generation or not self._has_last_rows():
            self._forget()  # who has opened it anew did so from an earlier record
        if state.capacity != self._capacity:
            self._map(state.capacity)
        known = len(self.table)
        if state.rows > known:
            self.table.append(self._new_rows(state, known))
        self._reopen_strings()
        if state.strings > len(self.strings):
            self._follow_strings(state)
        self.state = state
        self._pending = None
        for start, stop in self.at_risk:  # only a record that was read after a power cut has any
            self.table.lose(start, stop)
            self._lossy = True

    def _has_last_rows(self) -> bool:
        """Whether the newest episode that is known, and the lost rows after it, are those in the file.

        Lost rows alone would not tell: two writers may give up the same slots after different episodes.
        """
        first = self.table.last_episode
        known = self.table.rows[first:]
        return os.pread(self._fds[paths.EPISODES], known.nbytes, first * known.dtype.itemsize) == known.tobytes()

    def _follow_strings(self, state: State) -> None:
        fd = self._fds[paths.STRINGS]
        present = os.fstat(fd).st_size  # asked for more, it would take the memory
        stop = min(state.string_bytes, present)
        pieces = []
        for piece in files.pieces(fd, self._string_bytes, stop, _PIECE_BYTES):
            if b"\0" in piece:  # of a hole, which can be larger than the memory
                raise StorageDirCorruptError(
                    f"{self.root / paths.STRINGS} has zeros where strings are committed; restore it from a copy"
                )
            pieces.append(piece)
        new = parse_strings(b"".join(pieces), state.strings - len(self.strings))
        if present < state.string_bytes:
            raise StorageDirCorruptError(
                f"{self.root / paths.STRINGS} has {present} bytes, {state.string_bytes} are committed; "
                "restore it from a copy"
            )
        self.strings = [*self.strings, *new]
        self._string_bytes = stop

    def _reopen_strings(self) -> None:
        """Take the file that a repair has put in the place of ours."""
        path = self.root / paths.STRINGS
        with contextlib.suppress(FileNotFoundError):  # the directory was exchanged: see `is_in_place`
            if not os.path.samestat(os.stat(path), os.fstat(self._fds[paths.STRINGS])) and self.is_in_place:
                fd = files.open_to_read(path)
                os.close(self._fds[paths.STRINGS])
                self._fds[paths.STRINGS] = fd
                self.strings, self._string_bytes = [], 0

    def _new_rows(self, state: State, known: int) -> NDArray[np.void]:
        """Return the rows that came in since there were `known`, checked."""
        dtype = self.table.rows.dtype
        present = os.fstat(self._fds[paths.EPISODES]).st_size // dtype.itemsize
        if present < state.rows:
            raise StorageDirCorruptError(
                f"{self.root / paths.EPISODES} holds {present} rows, {state.rows} are committed; restore it from a copy"
            )
        size = dtype.itemsize
        pieces = files.pieces(
            self._fds[paths.EPISODES], known * size, state.rows * size, max(1, _ROWS_PIECE_BYTES // size) * size
        )
        new, row = [self.table.rows[:0]], known
        for piece in pieces:  # looked at before the next is read: there may be more of nothing than fits the memory
            new.append(parse_rows(piece, dtype, row))
            row += len(new[-1])
        before = self.table.last_episode
        rows = np.concatenate([self.table.rows[before:], *new])
        check_rows(rows, state, ring=self.manifest.ring, first=before, known=known - before)
        return rows[known - before :]

    def _map(self, capacity: int) -> None:
        if not self.columns:
            self.columns = {key: self._open_column(key, capacity) for key in self.manifest.keys}
        for column in self.columns.values():
            column.reopen(capacity)
        self.mapped = {key: column.array for key, column in self.columns.items() if isinstance(column, MemmapColumn)}
        self._owners = map_slots(self.root / paths.OWNERS, OWNER_DTYPE, (), capacity)
        self.checksums = {
            key: map_slots(paths.checksum_path(self.root, key), CHECKSUM_DTYPE, (), capacity)
            for key, spec in self.manifest.keys.items()
            if spec.has_checksums
        }
        self._capacity = capacity
        if self.frame_cache is not None:
            self.frame_cache.resize(capacity)

    def use_cache(self, asked: DecodedCache) -> None:
        """Keep the frames that are decoded from now on, and read those that are kept."""
        with self.lock:
            us = weakref.proxy(self)  # no cycle: whoever lets go of a store last closes it at once
            self.frame_cache = FrameCache(
                asked,
                self.root,
                self.manifest,
                self.columns,
                lambda key, slots: us.checksums[key][slots],
                self.decoding,
            )
            self.frame_cache.resize(self._capacity)

    def _open_column(self, key: str, capacity: int) -> Column:
        spec = self.manifest.keys[key]
        if spec.image_mode is LeRobotDatasetV2ImageMode.VIDEO:
            return VideoColumn(self.root, spec, self.manifest.video_keys.index(key), self.decoding)
        if spec.image_mode is LeRobotDatasetV2ImageMode.PNG:
            return PngColumn(self.root, spec, self.decoding)
        return MemmapColumn(self.root, spec, capacity)

    def bytes_on_disk(self) -> int:
        """Bytes that the dataset really takes, decoded frames left out: allocated blocks, not file lengths."""
        total = 0
        for directory, folders, names in os.walk(self.root):
            if Path(directory) == self.root and paths.CACHE in folders:
                folders.remove(paths.CACHE)
            for name in names:
                try:
                    total += os.lstat(os.path.join(directory, name)).st_blocks * 512
                except FileNotFoundError:  # a ring may evict a file while we count
                    continue
        return total

    def __del__(self) -> None:
        if hasattr(self, "_fds"):  # opening may have failed
            self.close()

    def close(self) -> None:
        for column in self.columns.values():
            column.close()
        self.mapped = {}
        if self.frame_cache is not None:
            self.frame_cache.close()
        self.held.clear()
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def _followed(root: Path) -> list[str]:
    names = [paths.STATE, paths.EPISODES, paths.STRINGS]
    if missing := [name for name in names if not (root / name).exists()]:
        raise StorageDirCorruptError(f"{root} lacks the files {missing}; restore them from a copy")
    return names


_OPEN: weakref.WeakSet[Following] = weakref.WeakSet()


def _renew_locks() -> None:
    """A thread that held a lock when the process was forked is not there to release it, nor to end what it was at."""
    for following in list(_OPEN):
        if not following.lock.acquire(blocking=False):
            following._forget()
        following.lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_locks)
