"""Reading beside a writer: no frame of one episode where another was meant, and nothing half written.

A read is an attempt: gather, then look whether a writer touched what was gathered, and if so gather again.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from roboreel.columns.base import Frames
from roboreel.columns.threads import shared
from roboreel.errors import (
    DatasetBusyError,
    DatasetReplacedError,
    InvalidArgumentError,
    RoboreelError,
    StorageDirCorruptError,
    UnknownKeyError,
)
from roboreel.format import paths
from roboreel.format.lock import writer_is_alive
from roboreel.format.manifest import read_manifest
from roboreel.format.records import OWNER_ROW_MASK
from roboreel.format.redo import Redo
from roboreel.store.attempt import Attempt, Touched, UnsettledError
from roboreel.store.following import Following
from roboreel.store.held import read_held
from roboreel.store.room import check_room
from roboreel.store.survivors import PIECE_SLOTS, lost_range, survivors_around
from roboreel.store.unreadable import missing, saying_which

Ints = NDArray[np.int64]
T = TypeVar("T")

WAIT_FOR_WRITER_S = 10.0
"""How long a reader waits for a write in progress over the frames that it wants."""
_PAUSE_S = 0.0005
_NONE = np.zeros(0, np.int64)
_ONE, _ROW_MASK = np.array(1, np.uint64), np.array(OWNER_ROW_MASK, np.uint64)


class Store(Following):
    """A dataset directory, opened for reading."""

    @classmethod
    def open(cls, root: Path, *, unfinished: bool = False) -> Store:
        """Open a directory; `NotADatasetError` or `StorageDirCorruptError` where it cannot be read.

        Half an import is refused, unless it is to be finished.
        """
        while True:
            before = _identity(root)
            try:
                store = cls._opened(root, unfinished=unfinished)
            except (RoboreelError, OSError):
                if _identity(root) == before:
                    raise
                continue  # exchanged by a conversion: a part of each was read
            if _identity(root) == before:
                return store
            store.close()

    @classmethod
    def _opened(cls, root: Path, *, unfinished: bool) -> Store:
        manifest, _ = read_manifest(root, unfinished=unfinished)
        store = cls(root, manifest)
        if store.state.capacity > manifest.capacity:  # grown between our two looks
            store.manifest, _ = read_manifest(root, unfinished=unfinished)
        check_room(root, store.manifest, store.state)
        return store

    def rows_of(self, slots: Ints) -> tuple[Ints, NDArray[np.uint64]]:
        """Return the episode rows that own the slots, and the owner words as they stand.

        To be called inside an attempt: a slot that is being written, or that no committed episode owns, ends it.
        """
        words = self.words_at(slots)
        rows = np.bitwise_and(words, _ROW_MASK)
        np.subtract(rows, _ONE, out=rows)
        if rows.size and np.maximum.reduce(rows) >= len(self.table):  # of no owner -1, the greatest
            raise UnsettledError
        return rows.view(np.int64), words

    def words_of(self, slots: Ints, rows: Ints) -> NDArray[np.uint64]:
        """Return the owner words of the slots; as `rows_of`, but the owners must be the given rows."""
        words = self.words_at(slots)
        if not np.array_equal((words & OWNER_ROW_MASK).astype(np.int64) - 1, rows):
            raise UnsettledError
        return words

    def words_at(self, slots: Ints) -> NDArray[np.uint64]:
        """A copy of the owner words of the slots, as they are."""
        words: NDArray[np.uint64] = self._owners.take(slots)
        if self._pending is not None:
            edited, at = self._edited(self._pending, slots)
            words[edited] = self._pending.words[at]
        return words

    def pending_slots(self, key: str) -> Ints | None:
        """The slots to which an edit of the key that a dead writer has committed is yet to be applied."""
        return self._pending.slots if self._pending is not None and self._pending.key == key else None

    @staticmethod
    def _edited(redo: Redo, slots: Ints) -> tuple[NDArray[np.bool_], Ints]:
        """Return which of the slots an edit touches, and where in it."""
        at = np.minimum(np.searchsorted(redo.slots, slots), len(redo.slots) - 1)
        edited = redo.slots[at] == slots
        return edited, at[edited]

    def read_key(self, key: str, frames: Frames, out: NDArray[Any], held: int = 0) -> None:
        """Fill `out` (N, *shape) with a key's values for the frames; to be called inside an attempt.

        With `held`, images are decoded by whole episodes, of which so many are kept in memory, a camera.
        """
        if held and self.manifest.keys[key].needs_decoding:
            episodes = self.held.setdefault(key, OrderedDict())
            read_held(episodes, held, frames, out, partial(self._decoded_episode, key))
        else:
            self._read_column(key, frames, out)
        if self._pending is not None and self._pending.key == key:
            edited, at = self._edited(self._pending, frames.slots)
            out[edited] = self._pending.values[at]

    def take(self, key: str, slots: Ints, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return what a key that is stored as raw numbers has in slots of any shape, in `out` where that is given.

        To be called inside an attempt, as `read_key`.
        """
        # "clip" because numpy gathers through a second buffer when it has to check the bounds.
        values = self.mapped[key].take(slots, 0, out, "clip")
        if self._pending is not None and self._pending.key == key:
            edited, at = self._edited(self._pending, slots)
            values[edited] = self._pending.values[at]
        return values

    def take_all(self, keys: Sequence[str], slots: Ints, arrays: dict[str, NDArray[Any]]) -> None:
        """Put into `arrays` what `take` gives of each key: into those that are there, and new ones."""
        if self._pending is None:
            for key in keys:
                arrays[key] = self.mapped[key].take(slots, 0, arrays.get(key), "clip")
        else:
            for key in keys:
                arrays[key] = self.take(key, slots, arrays.get(key))

    def _decoded_episode(self, key: str, row: int) -> tuple[int, NDArray[Any]]:
        """What survives of an episode, decoded in order, and the position of its first frame."""
        slots = np.arange(self.table.live_starts[row], self.table.stops[row])
        frames = self.frames_at(slots, np.full(len(slots), row))
        spec = self.manifest.keys[key]
        images = np.empty((len(slots), *spec.shape), spec.dtype)
        self._read_column(key, frames, images)
        return int(frames.positions[0]), images

    def _read_column(self, key: str, frames: Frames, out: NDArray[Any]) -> None:
        cached = None if self.frame_cache is None else self.frame_cache.columns.get(key)
        with saying_which(self.root, self.table, key, frames):
            (cached or self.columns[key]).read(frames, out)

    def run(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Run jobs beside each other, as many as images may be decoded at once; they may have jobs of their own."""
        shared.run(jobs, self.decoding.limit)

    def memmap(self, key: str) -> NDArray[Any]:
        """The mapping of a key that is stored as raw numbers: (capacity, *shape), read-only."""
        return self.mapped[key]

    def memmap_of(self, key: str) -> NDArray[Any]:
        """As `memmap`, for a key that a user named."""
        if key not in self.manifest.keys:
            raise UnknownKeyError(f"no key {key!r}; the dataset has {sorted(self.manifest.keys)}")
        if key not in self.mapped:
            raise InvalidArgumentError(
                f"{key!r} has no column: it is stored as {self.manifest.keys[key].to_dict()['stored']} files; "
                "read frames by index"
            )
        return self.mapped[key]

    def check_codes(self, key: str, codes: NDArray[Any]) -> None:
        """Refuse codes, of any shape, that no string has: a damaged column must not give the string of another."""
        if codes.size and np.maximum.reduce(codes.view(np.uint32), None) >= len(self.strings):  # below 0, above all
            raise StorageDirCorruptError(
                f"{paths.column_path(self.root, key)} has codes from {codes.min()} to {codes.max()}, and there are "
                f"{len(self.strings)} strings; type roboreel verify {self.root}"
            )

    def frames_at(self, slots: Ints, rows: Ints, *, full: bool = True) -> Frames:
        """Return what columns need to know of the frames in `slots`, which `rows` own; arrays (N,).

        Not `full`: those that are raw numbers, which need to know the slots alone.
        """
        if not full:
            return Frames(slots, _NONE, _NONE, None)
        table = self.table.rows
        clips = table["clips"][rows] if self.manifest.video_keys else None
        return Frames(slots, rows, slots - table["start"][rows], clips)

    def read(self, attempt: Attempt[T]) -> T:
        """Return what `attempt` gathers, once it has gathered without a writer in between.

        Raises:
            DatasetBusyError: a living writer was over the wanted frames for longer than a reader waits.
        """
        deadline = time.monotonic() + WAIT_FOR_WRITER_S
        while True:
            gathered = self.read_once(attempt)
            if gathered is not None:
                return gathered[0]
            if time.monotonic() > deadline:
                raise DatasetBusyError(
                    f"{self.root}: process {self.state.writer_pid} was writing the wanted frames for more than "
                    f"{WAIT_FOR_WRITER_S:g} s; try again"
                )
            time.sleep(_PAUSE_S)

    def read_once(self, attempt: Attempt[T]) -> tuple[T] | None:
        """As `read`, but None where a writer was at the wanted frames meanwhile."""
        with self.lock:  # not while `read` waits: the writer may be another thread of this process
            before = self.refresh()
            if self.is_quiet and (found := self._gathered(attempt, before, strict=False)):
                return found
            return self._gathered(attempt, self.refresh(), strict=True)

    @property
    def is_quiet(self) -> bool:
        """Whether the table alone says what is in each slot: nothing is being written, and nothing was lost."""
        quiet = self.state.busy_start == self.state.busy_stop
        return quiet and not self._is_torn and self._pending is None and not self._lossy and not self.table.has_losses

    def _gathered(self, attempt: Attempt[T], before: bytes, *, strict: bool) -> tuple[T] | None:
        """Return what an attempt gathered, or None where it makes sense to try again."""
        try:
            result, touched = attempt(strict)
        except (UnsettledError, FileNotFoundError) as error:
            self._check_in_place()
            self._after_failed_attempt(before, error)
            return None
        except RoboreelError:
            self._check_in_place()
            raise
        if self._has_image_files:  # they are opened by path: what is mapped stays what it was
            self._check_in_place()
        after = self.record()
        idle = self.state.busy_start == self.state.busy_stop  # else a write may have begun before we looked
        if (after == before and idle) or (touched is not None and self._still_owned(touched)):
            return (result,)
        return None

    @property
    def is_converted(self) -> bool:
        """Whether a conversion has put another directory, of the same dataset, into the place of this one."""
        try:
            return not self.is_in_place and read_manifest(self.root)[0].uuid == self.manifest.uuid
        except (OSError, RoboreelError):  # gone, moved, something else: what is open goes on being read
            return False

    def _check_in_place(self) -> None:
        if not self.is_in_place:
            raise DatasetReplacedError(
                f"{self.root} was replaced or removed since it was opened, so that its image files cannot be read any "
                "more; type dataset.reload() to go on with what is there now"
            )

    def _still_owned(self, touched: Touched) -> bool:
        self.refresh()
        if not np.array_equal(self.words_at(touched.slots), touched.words):
            return False
        busy = (touched.slots >= self.state.busy_start) & (touched.slots < self.state.busy_stop)
        if not np.any(busy):
            return True
        # of an edit that a dead writer has committed nothing need be applied yet: the values read were the old ones
        return not writer_is_alive(self.root) and not self._take_over()

    def _after_failed_attempt(self, before: bytes, error: Exception) -> None:
        """Return if trying again makes sense; otherwise say what is wrong."""
        if self.refresh() != before:
            return
        if (self.state.busy_start < self.state.busy_stop or self._is_torn) and writer_is_alive(self.root):
            return
        if self.refresh() != before:  # the writer ended between the two looks
            return
        if isinstance(error, FileNotFoundError):
            raise missing(Path(error.filename), self.root, self.manifest, self.table) from error
        if not self._take_over():
            raise StorageDirCorruptError(
                f"{self.root}: {paths.OWNERS} does not agree with {paths.EPISODES}; restore both from a copy"
            ) from error

    def settle(self) -> None:
        """Take notice of what was committed, and of what a writer that died has left half done."""
        with self.lock:
            self.refresh()
            if self.state.busy_start < self.state.busy_stop and not writer_is_alive(self.root):
                self._take_over()

    def _take_over(self) -> bool:
        """See what a dead writer left as the next writer will: its edit applied, what it was replacing given up.

        Returns whether that changed what is seen.
        """
        raw, known = self._raw, self._pending
        if self.refresh() != raw:  # it had ended well between our look at its record and at its lock
            return True
        if self.state.redo:
            try:
                self._pending = known or self.read_redo()
            except StorageDirCorruptError:
                if self.refresh() == raw:  # else the next writer has just applied and removed it
                    raise
            return known is None
        looked_at = [(self.state.busy_start, min(self.state.busy_stop, self.state.frames))]
        if self._is_torn:  # what was being overwritten then is not known: each episode by itself, older losses are told
            starts, stops = self.table.live_ranges()
            looked_at = list(zip(starts.tolist(), stops.tolist(), strict=True))
        gone = [lost for start, stop in looked_at if (lost := self.lost_range(start, stop))]
        news = self._given_up != self._raw
        self._given_up = self._raw
        if not gone:
            return False
        self._lossy = True
        before = self.table.live_starts.copy()
        for lost in gone:
            self.table.lose(*lost)
        is_less = not np.array_equal(before, self.table.live_starts)
        self.losses += is_less
        return news or is_less

    def owner_words(self, start: int, stop: int) -> NDArray[np.uint64]:
        """A copy of the owner words of slots [start, stop)."""
        return self._owners[start:stop].copy()

    def owner_rows(self, start: int, stop: int) -> Ints:
        """The episode rows that own slots [start, stop); -1 where none does."""
        return (self._owners[start:stop] & OWNER_ROW_MASK).astype(np.int64) - 1

    def owned_pieces(self, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Yield the parts of slots [start, stop) in which there is an owner: their first slot, and their words."""
        for at in range(start, stop, PIECE_SLOTS):
            words = self._owners[at : min(at + PIECE_SLOTS, stop)]
            if np.any(words):
                yield at, words

    def lost_range(self, start: int, stop: int) -> tuple[int, int] | None:
        """The range from the first to the last slot of [start, stop) that hold no frame of a committed episode."""
        return lost_range(start, stop, self._is_lost)

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
        if in_the_making := self._raw != self._given_up and not self.at_risk:  # then the attempt ends, to be repeated
            state, rows = self.state, self.words_at(slots) & OWNER_ROW_MASK
            lost &= (rows <= len(self.table)) & ~((slots >= state.busy_start) & (slots < state.busy_stop))
        if not np.any(lost):
            return slots
        nearest = slots.copy()
        left = np.unique(slots[lost])
        while len(left):
            before, after = survivors_around(int(left[0]), self.state.frames, self._is_lost, self.table.live_ranges)
            if before < 0 and after >= self.state.frames:
                if in_the_making and self.state.busy_start < self.state.busy_stop:
                    raise UnsettledError
                raise StorageDirCorruptError(
                    f"{self.root}: no frame survives: a writer died while it was overwriting all there were; "
                    "add episodes to go on"
                )
            if before < 0 or after >= self.state.frames:
                nearer = np.full(len(slots), after if before < 0 else before)
            else:
                nearer = np.where(slots - before <= after - slots, before, after)
            here = lost & (slots > before) & (slots < after)
            nearest[here] = nearer[here]
            left = left[left > after]
        return nearest


def _identity(root: Path) -> tuple[int, int]:
    try:
        status = os.stat(root)
    except OSError:
        return (-1, -1)
    return status.st_dev, status.st_ino
