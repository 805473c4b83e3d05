"""A dataset directory, opened for reading: what is committed, followed as a writer goes on.

A read is an attempt: gather, then look whether a writer touched what was gathered, and if so gather again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from roboreel.columns.base import Column, Frames
from roboreel.columns.memmap import MemmapColumn, map_slots
from roboreel.columns.png import PngColumn
from roboreel.columns.video import VideoColumn
from roboreel.errors import DatasetBusyError, InvalidArgumentError, StorageDirCorruptError, UnknownKeyError
from roboreel.format import paths
from roboreel.format.lock import boot_id, writer_is_alive
from roboreel.format.manifest import Manifest, read_manifest
from roboreel.format.records import (
    CHECKSUM_DTYPE,
    DURABLE_OFFSETS,
    LIVE_OFFSET,
    OWNER_DTYPE,
    OWNER_ROW_MASK,
    STATE_RECORD_BYTES,
    State,
    episode_dtype,
    parse_rows,
    parse_strings,
)
from roboreel.format.redo import Redo
from roboreel.schema import LeRobotDatasetV2ImageMode
from roboreel.store.episodes import EpisodeTable
from roboreel.store.records import newest
from roboreel.store.ring import ring_ranges

Ints = NDArray[np.int64]
T = TypeVar("T")

WAIT_FOR_WRITER_S = 10.0
"""How long a reader waits for a write in progress over the frames that it wants."""
_PAUSE_S = 0.0005
_RECORD_TRIES = 200


@dataclass(frozen=True)
class Touched:
    """The slots that an attempt read, and the owner words it found there before reading."""

    slots: Ints
    words: NDArray[np.uint64]


class _UnsettledError(Exception):
    """An attempt met slots that hold no committed frame just now."""


class Store:
    """Opened by `Store.open`; picklable pieces are its root only: each process opens its own."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self.state = State()
        self.strings: list[str] = []
        self.table = EpisodeTable(episode_dtype(len(manifest.video_keys)))
        self._raw: bytes | None = None
        self._capacity = 0
        self._lossy = False
        """Whether slots may be lost of which the episode table does not tell yet."""
        self._pending: Redo | None = None
        """The edit that a dead writer has committed and not wholly applied: readers take its values from here."""
        self._fds = {name: os.open(root / name, os.O_RDONLY | os.O_CLOEXEC) for name in _followed(root)}
        self.columns: dict[str, Column] = {}
        self.checksums: dict[str, NDArray[np.uint64]] = {}
        """xxh3-64 of each frame: (capacity,) for every key that is not stored as video."""
        self._owners: NDArray[np.uint64] = np.zeros(0, OWNER_DTYPE)
        self.refresh()

    @classmethod
    def open(cls, root: Path) -> Store:
        """Open a directory; `NotADatasetError` or `StorageDirCorruptError` where it cannot be read."""
        manifest, _ = read_manifest(root)
        return cls(root, manifest)

    def refresh(self) -> bytes:
        """Take notice of what was committed meanwhile; return the raw live record that was looked at."""
        raw = os.pread(self._fds[paths.STATE], STATE_RECORD_BYTES, LIVE_OFFSET)
        if raw != self._raw:
            raw, state = self._current_state()
            self._follow(state)
            self._raw = raw
        return raw

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
            return raw, live
        durable = self.durable_states()
        if not durable:
            raise StorageDirCorruptError(f"{self.root / paths.STATE} holds no whole record; restore it from a copy")
        return raw, newest(durable)

    def durable_states(self) -> list[State]:
        """The whole ones of the two records that `flush` writes in turn."""
        found = (State.from_bytes(os.pread(self._fds[paths.STATE], STATE_RECORD_BYTES, at)) for at in DURABLE_OFFSETS)
        return [state for state in found if state is not None]

    @property
    def at_risk(self) -> list[tuple[int, int]]:
        """Slot ranges that hold nothing certain, because power was lost while they were overwritten."""
        state = self.state
        ranges = ring_ranges(state.at_risk_start, state.at_risk_length, state.capacity)
        return [(start, min(stop, state.frames)) for start, stop in ranges if start < state.frames]

    def _follow(self, state: State) -> None:
        if state.capacity != self._capacity:
            self._map(state.capacity)
        known = len(self.table)
        if state.rows > known:
            size = self.table.rows.dtype.itemsize
            raw = os.pread(self._fds[paths.EPISODES], (state.rows - known) * size, known * size)
            if len(raw) != (state.rows - known) * size:
                raise StorageDirCorruptError(
                    f"{self.root / paths.EPISODES} holds {known + len(raw) // size} rows, {state.rows} are committed; "
                    "restore it from a copy"
                )
            self.table.append(parse_rows(raw, self.table.rows.dtype, known))
        if state.strings > len(self.strings):
            raw = os.pread(self._fds[paths.STRINGS], state.string_bytes, 0)
            self.strings = parse_strings(raw, state.strings)
        self.state = state
        self._pending = None
        for start, stop in self.at_risk:  # only a record that was read after a power cut has any
            self.table.lose(start, stop)
            self._lossy = True

    def _map(self, capacity: int) -> None:
        if not self.columns:
            self.columns = {key: self._open_column(key, capacity) for key in self.manifest.keys}
        for column in self.columns.values():
            column.reopen(capacity)
        self._owners = map_slots(self.root / paths.OWNERS, OWNER_DTYPE, (), capacity)
        self.checksums = {
            key: map_slots(paths.checksum_path(self.root, key), CHECKSUM_DTYPE, (), capacity)
            for key, spec in self.manifest.keys.items()
            if spec.has_checksums
        }
        self._capacity = capacity

    def _open_column(self, key: str, capacity: int) -> Column:
        spec = self.manifest.keys[key]
        if spec.image_mode is LeRobotDatasetV2ImageMode.VIDEO:
            return VideoColumn(self.root, spec, self.manifest.video_keys.index(key))
        if spec.image_mode is LeRobotDatasetV2ImageMode.PNG:
            return PngColumn(self.root, spec)
        return MemmapColumn(self.root, spec, capacity)

    # Reading

    def rows_of(self, slots: Ints) -> tuple[Ints, NDArray[np.uint64]]:
        """Return the episode rows that own the slots, and the owner words as they stand.

        To be called inside an attempt: a slot that is being written, or that no committed episode owns, ends it.
        """
        words = self.words_at(slots)
        rows = (words & OWNER_ROW_MASK).astype(np.int64) - 1
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self.table)):
            raise _UnsettledError
        return rows, words

    def words_of(self, slots: Ints, rows: Ints) -> NDArray[np.uint64]:
        """Return the owner words of the slots; as `rows_of`, but the owners must be the given rows."""
        words = self.words_at(slots)
        if not np.array_equal((words & OWNER_ROW_MASK).astype(np.int64) - 1, rows):
            raise _UnsettledError
        return words

    def words_at(self, slots: Ints) -> NDArray[np.uint64]:
        """A copy of the owner words of the slots, as they are."""
        words: NDArray[np.uint64] = self._owners[slots]
        if self._pending is not None:
            edited, at = self._edited(self._pending, slots)
            words[edited] = self._pending.words[at]
        return words

    @staticmethod
    def _edited(redo: Redo, slots: Ints) -> tuple[NDArray[np.bool_], Ints]:
        """Return which of the slots an edit touches, and where in it."""
        at = np.minimum(np.searchsorted(redo.slots, slots), len(redo.slots) - 1)
        edited = redo.slots[at] == slots
        return edited, at[edited]

    def read_key(self, key: str, frames: Frames, out: NDArray[Any]) -> None:
        """Fill `out` (N, *shape) with a key's values for the frames; to be called inside an attempt."""
        self.columns[key].read(frames, out)
        if self._pending is not None and self._pending.key == key:
            edited, at = self._edited(self._pending, frames.slots)
            out[edited] = self._pending.values[at]

    def memmap(self, key: str) -> NDArray[Any]:
        """The mapping of a key that is stored as raw numbers: (capacity, *shape), read-only."""
        column = self.columns[key]
        assert isinstance(column, MemmapColumn)
        return column.array

    def memmap_of(self, key: str) -> NDArray[Any]:
        """As `memmap`, for a key that a user named."""
        if key not in self.manifest.keys:
            raise UnknownKeyError(f"no key {key!r}; the dataset has {sorted(self.manifest.keys)}")
        column = self.columns[key]
        if not isinstance(column, MemmapColumn):
            raise InvalidArgumentError(
                f"{key!r} has no column: it is stored as {self.manifest.keys[key].to_dict()['stored']} files; "
                "read frames by index"
            )
        return column.array

    def frames_at(self, slots: Ints, rows: Ints) -> Frames:
        """Return what columns need to know of the frames in `slots`, which `rows` own; arrays (N,)."""
        table = self.table.rows
        clips = table["clips"][rows] if self.manifest.video_keys else None
        return Frames(slots, rows, slots - table["start"][rows], clips)

    def read(self, attempt: Callable[[], tuple[T, Touched]]) -> T:
        """Return what `attempt` gathers, once it has gathered without a writer in between.

        Raises:
            DatasetBusyError: a living writer was over the wanted frames for longer than a reader waits.
        """
        deadline = time.monotonic() + WAIT_FOR_WRITER_S
        while True:
            before = self.refresh()
            try:
                result, touched = attempt()
            except (_UnsettledError, FileNotFoundError) as error:
                self._after_failed_attempt(before, error)
            else:
                after = os.pread(self._fds[paths.STATE], STATE_RECORD_BYTES, LIVE_OFFSET)
                if after == before or self._still_owned(touched):
                    return result
            if time.monotonic() > deadline:
                raise DatasetBusyError(
                    f"{self.root}: process {self.state.writer_pid} was writing the wanted frames for more than "
                    f"{WAIT_FOR_WRITER_S:g} s; try again"
                )
            time.sleep(_PAUSE_S)

    def _still_owned(self, touched: Touched) -> bool:
        self.refresh()
        if not np.array_equal(self.words_at(touched.slots), touched.words):
            return False
        busy = (touched.slots >= self.state.busy_start) & (touched.slots < self.state.busy_stop)
        return not np.any(busy)

    def _after_failed_attempt(self, before: bytes, error: Exception) -> None:
        """Return if trying again makes sense; otherwise say what is wrong."""
        if self.refresh() != before:
            return
        if self.state.busy_start < self.state.busy_stop and writer_is_alive(self.root):
            return
        if self.refresh() != before:  # the writer ended between the two looks
            return
        if isinstance(error, FileNotFoundError):
            raise StorageDirCorruptError(f"{error.filename} is missing; restore it from a copy") from error
        if not self._take_over():
            raise StorageDirCorruptError(
                f"{self.root}: {paths.OWNERS} does not agree with {paths.EPISODES}; restore both from a copy"
            ) from error

    def settle(self) -> None:
        """Take notice of what was committed, and of what a writer that died has left half done."""
        self.refresh()
        if self.state.busy_start < self.state.busy_stop and not writer_is_alive(self.root):
            self._take_over()

    def _take_over(self) -> bool:
        """See what a dead writer left as the next writer will: its edit applied, what it was replacing given up.

        Returns whether that changed what is seen.
        """
        if self.state.redo:
            if self._pending is None:
                self._pending = self.read_redo()
                return True
            return False
        start, stop = self.state.busy_start, min(self.state.busy_stop, self.state.frames)
        gone = self.lost_slots(start, stop)
        if not len(gone):
            return False
        known, self._lossy = self._lossy, True
        before = self.table.live_starts.copy()
        self.table.lose(int(gone[0]), int(gone[-1]) + 1)
        return not known or not np.array_equal(before, self.table.live_starts)

    def read_redo(self) -> Redo:
        """The edit that the current record refers to."""
        path = self.root / paths.REDO
        try:
            return Redo.from_bytes(path.read_bytes(), self.state.redo, dict(self.manifest.keys))
        except OSError as error:
            raise StorageDirCorruptError(f"{path}, an edit half applied, cannot be read: {error}") from error

    def owner_words(self, start: int, stop: int) -> NDArray[np.uint64]:
        """A copy of the owner words of slots [start, stop)."""
        return self._owners[start:stop].copy()

    def owner_rows(self, start: int, stop: int) -> Ints:
        """The episode rows that own slots [start, stop); -1 where none does."""
        return (self._owners[start:stop] & OWNER_ROW_MASK).astype(np.int64) - 1

    def lost_slots(self, start: int, stop: int) -> Ints:
        """The slots of [start, stop) that hold no frame of a committed episode."""
        slots = np.arange(start, stop)
        return slots[self._is_lost(slots)]

    def _is_lost(self, slots: Ints) -> NDArray[np.bool_]:
        rows = (self.words_at(slots) & OWNER_ROW_MASK).astype(np.int64) - 1
        lost = (rows < 0) | (rows >= len(self.table))
        # a slot that its owner no longer counts as its own was at risk when power was lost
        lost[~lost] = slots[~lost] < self.table.live_starts[rows[~lost]]
        return lost

    def surviving(self, slots: Ints) -> Ints:
        """Return the slots (below `state.frames`), each lost one replaced by the nearest that holds a frame."""
        if not self._lossy and not self.table.has_losses:
            return slots
        lost = self._is_lost(slots)
        if not np.any(lost):
            return slots
        alive = np.flatnonzero(~self._is_lost(np.arange(self.state.frames)))
        if not len(alive):
            raise StorageDirCorruptError(f"{self.root}: no frame survives")
        after = np.minimum(np.searchsorted(alive, slots), len(alive) - 1)
        before = np.maximum(after - 1, 0)
        nearer = np.where(slots - alive[before] <= alive[after] - slots, alive[before], alive[after])
        return np.where(lost, nearer, slots)

    def bytes_on_disk(self) -> int:
        """Bytes that the directory really takes: allocated blocks, not file lengths."""
        total = 0
        for directory, _, names in os.walk(self.root):
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
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def _followed(root: Path) -> list[str]:
    names = [paths.STATE, paths.EPISODES, paths.STRINGS]
    if missing := [name for name in names if not (root / name).is_file()]:
        raise StorageDirCorruptError(f"{root} lacks the files {missing}; restore them from a copy")
    return names
