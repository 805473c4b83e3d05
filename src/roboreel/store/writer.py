"""The one writer of a dataset directory: an episode is there whole or not at all, whatever happens in between.

For each episode: check everything; stage image files; reserve slots; publish the range that is going to change; write
owners and columns; commit one record; only then remove what nothing refers to any more. `docs/format.md` has the why.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import DiskSpaceError, InvalidArgumentError, StorageError
from roboreel.format import files, paths
from roboreel.format.files import DataFile
from roboreel.format.filesystem import check_ring_place
from roboreel.format.lock import WriterLock
from roboreel.format.manifest import ByteCapacity, Manifest, metadata_hash
from roboreel.format.records import OWNER_DTYPE, OWNER_ROW_MASK, State, seal_row
from roboreel.store.capacity import Capacity, ImageBytes, check_first
from roboreel.store.cloning import SnapshotReport, take_snapshot
from roboreel.store.editing import apply_redo, drop_redo, make_draft, make_redo
from roboreel.store.episode import Episode, blocks_of, in_memory_for, parse_episode
from roboreel.store.episode_row import episode_row
from roboreel.store.episodes import lost_row
from roboreel.store.layout import creating, frame_bytes, make_files
from roboreel.store.media import MediaFiles
from roboreel.store.records import StateFile
from roboreel.store.requests import serve
from roboreel.store.ring import FREE_SHARE, Place, check_space, grown_capacity, place_episode
from roboreel.store.slots import SlotFiles, Words
from roboreel.store.store import Store
from roboreel.store.string_files import StringFiles


class Writer:
    """Holds the writer's lock from construction to `close()`."""

    def __init__(self, store: Store, lock: WriterLock) -> None:
        self.store = store
        self.closed = False
        self._lock = lock
        self._records = StateFile(store.root)
        self._episodes = DataFile(store.root / paths.EPISODES)
        self._strings = StringFiles(store.root)
        self._slots = SlotFiles(store.root, store.manifest.keys)
        self._media = MediaFiles(store)
        self._image_bytes = ImageBytes(store)
        self._codes = {text: code for code, text in enumerate(store.strings)}
        self._promised = store.manifest.capacity  # by `metadata.json`, also where replacing it failed at the last step

    @property
    def is_ours(self) -> bool:
        """Whether it can be written through: not closed, and not what a forked child has inherited."""
        return not self.closed and self._lock.is_owned

    @classmethod
    def open(cls, root: Path, *, unfinished: bool = False, for_snapshot: bool = False) -> Writer:
        """Take the lock and open a dataset for writing, or half an import; clean up after a writer that died."""
        lock = WriterLock(root, for_snapshot=for_snapshot)
        try:
            store = Store.open(root, unfinished=unfinished)
            writer = cls(store, lock)
            writer._recover()
            return writer
        except BaseException:
            lock.release()
            raise

    @classmethod
    def create(cls, root: Path, manifest: Manifest, first: Episode) -> Writer:
        """Make a dataset that holds one episode. On any failure nothing of it stays, not even the directory."""
        first = parse_episode(first, manifest.keys, manifest.fps)
        place_episode(first.length, 0, manifest.capacity, fixed=manifest.fixed_capacity, ring=manifest.ring)
        check_first(manifest, first.length)
        limit = manifest.byte_capacity
        check_space(limit.total if limit else manifest.capacity * frame_bytes(manifest), files.free_bytes(root))
        if manifest.ring:
            check_ring_place(root)
        with creating(root) as lock:
            raw = manifest.to_bytes()
            make_files(root, manifest, raw)
            writer = cls(Store(root, manifest), lock)
            writer._add_parsed(first)
            if limit is None:
                files.replace_atomically(root / paths.METADATA, raw)  # last: from here on this is a dataset
            else:  # only now it is known what a frame takes
                a_frame = writer._image_bytes.a_frame()
                writer._fix(max(limit.total // a_frame, first.length), ByteCapacity(limit.total, a_frame))
            return writer

    # One episode

    def add(self, episode: Episode) -> None:
        """Add one episode; when this returns it is committed, when it raises nothing has changed."""
        self._add_parsed(parse_episode(episode, self.store.manifest.keys, self.store.manifest.fps))
        serve(self.store.root, self.snapshot)

    def _add_parsed(self, episode: Episode) -> None:
        self._lock.check_owned()
        manifest, state = self.store.manifest, self.store.state
        start = state.next_slot
        is_next_new = manifest.ring and start == state.frames
        if is_next_new and self._image_bytes.leave_no_room(episode.length, self._media.held(episode)):
            start = 0  # over the oldest, rather than to give these up and use slots that nothing is in yet
        place = place_episode(episode.length, start, state.capacity, fixed=manifest.fixed_capacity, ring=manifest.ring)
        if place.capacity > state.capacity:
            self.grow(self._grown(place.capacity))
        table = self.store.table
        hit = table.touching(place.start, place.stop) if place.start < state.frames else table.NONE
        if place.start < state.frames:
            episode = in_memory_for(episode, self._slots.columns)
        with self._rolled_back(place):
            clips, checksums = self._media.stage(episode)
            if manifest.byte_capacity is not None:
                stay = table.NONE if manifest.ring else table.outside(place.start, place.stop)
                self._image_bytes.check(stay, state.rows, clips)
            row = episode_row(self.store, episode, place, clips, self._code)
            self._put_at_risk(place)
            self._put_live(self.store.state.with_busy(place.start, place.stop))
            self._write(episode, place, checksums)
            self._commit(episode, place, row)
        with contextlib.suppress(StorageError):  # the episode is in; the next one sweeps what stayed behind
            self._media.evict(np.concatenate([hit, self._drop_beyond_bytes()]))

    def _drop_beyond_bytes(self) -> NDArray[np.int64]:
        """In a ring, give up the oldest episodes until the files fit the capacity in bytes; return their rows."""
        gone: list[int] = []
        table = self.store.table
        while self.store.manifest.ring and len(table.live) > 1 and self._image_bytes.are_too_many():
            row = int(table.live[0])  # which the next episodes would overwrite
            start, stop = int(table.live_starts[row]), int(table.stops_of(table.live[:1])[0])
            self._put_at_risk(Place(start, stop, self.store.state.capacity))
            with self._let_go_on_failure():
                self._put_live(self.store.state.with_busy(start, stop))
                self.give_up(start, stop)
                self._put_live(self.store.state.with_busy(0, 0))
            gone.append(row)
        return np.array(gone, np.int64)

    def _put_at_risk(self, place: Place) -> None:
        """Before a slot that the durable record counts is overwritten, have that record say so."""
        durable = self._records.durable()
        if place.start < durable.frames and durable.capacity != place.capacity:
            self._make_durable()  # what is at risk was counted around a smaller ring
        self._records.put_at_risk(place, self.store.state.seq)

    def _write(self, episode: Episode, place: Place, image_checksums: Mapping[str, Words]) -> None:
        state = self.store.state
        if place.start < state.frames:  # without an owner nobody takes what is being replaced for a frame
            overlap = min(place.stop, state.frames) - place.start
            self._slots.write_owners(place.start, np.zeros(overlap, OWNER_DTYPE))
        for key in self._slots.columns:
            slot = place.start
            for block in blocks_of(episode, self.store.manifest.keys[key], state, self._code):
                self._slots.write(key, slot, block)
                slot += len(block)
            if slot != place.stop:
                raise InvalidArgumentError(f"{key!r} gave {slot - place.start} frames of the {episode.length} promised")
        for key, checksums in image_checksums.items():
            self._slots.write_checksums(key, place.start, checksums)
        self._slots.write_owners(place.start, np.full(episode.length, state.rows + 1, OWNER_DTYPE))

    def _commit(self, episode: Episode, place: Place, row: NDArray[np.void]) -> None:
        state = self.store.state
        self._episodes.write_at(state.rows * row.dtype.itemsize, seal_row(row))
        state = self._strings.append(
            list(itertools.islice(reversed(self._codes), len(self._codes) - state.strings))[::-1], state
        )
        self._put_live(
            replace(
                state.with_busy(0, 0),
                generation=state.generation + 1,
                rows=state.rows + 1,
                frames=max(state.frames, place.stop),
                next_slot=place.stop,
                next_index=state.next_index + episode.length,
                next_episode_index=state.next_episode_index + 1,
            )
        )

    def _put_live(self, state: State) -> None:
        """Make `state` what readers see, in one write."""
        self._records.put_live(replace(state, seq=self.store.state.seq + 1, at_risk_start=0, at_risk_length=0))
        self.store.refresh()

    def _code(self, text: str) -> int:
        return self._codes.setdefault(text, len(self._codes))

    # When it goes wrong

    @contextlib.contextmanager
    def _rolled_back(self, place: Place) -> Iterator[None]:
        """Have a failure inside leave everything as it was before, unless the episode is committed already."""
        saved = self._slots.save(self.store, place.start, min(place.stop, self.store.state.frames))
        generation = self.store.state.generation
        try:
            yield
        except BaseException as error:
            try:
                with self._let_go_on_failure():  # the range stays published, and is given up
                    self.store.refresh()  # Ctrl-C may have come between a write of the record and our notice of it
                    self._codes = {text: code for code, text in enumerate(self.store.strings)}
                    self._media.drop_staged()
                    if self.store.state.generation == generation:
                        self._roll_back(place.start, saved)
                    else:  # what readers have seen is never taken back
                        error.add_note("the episode was committed before that, and stays")
            except StorageError as second:
                raise StorageError(f"{error}; and it could not be undone: {second}") from error
            raise

    def _roll_back(self, start: int, saved: Mapping[str, NDArray[Any]]) -> None:
        state = self.store.state
        if state.busy_start != state.busy_stop:  # else it was not published yet, and no slot was touched
            self._slots.restore(start, saved)
            self._put_live(state.with_busy(0, 0))

    def _recover(self) -> None:
        """Finish the edit and give up the frames of which a writer died, or power was lost; the rest is as it was."""
        self._records.sync()  # who died may have written a durable record that is none yet
        durable = self._records.durable()
        if durable.generation != self.store.state.generation:
            self._media.take_for_unsynced(durable.rows)
        if self.store.state.redo:
            self._apply_redo()
        elif durable.redo:  # the durable record must not need the file any more
            self._make_durable()
        drop_redo(self.store.root)
        state = self.store.state
        busy = [(state.busy_start, min(state.busy_stop, state.frames))] if state.busy_start < state.busy_stop else []
        for start, stop in (*busy, *self.store.at_risk):
            if lost := self.store.lost_range(start, stop):
                self.give_up(*lost)
        if busy or self.store.at_risk:
            self._put_live(self.store.state.with_busy(0, 0))
        if self.store.manifest.capacity > self.store.state.capacity:  # died between the metadata and the record
            self._end_growth()

    def _end_growth(self) -> None:
        """Give the files the room that the metadata promise, or have the metadata promise no more than there is."""
        capacity = self.store.manifest.capacity
        try:
            self._allocate(capacity)
        except DiskSpaceError:
            capacity = self.store.state.capacity
        self._put_metadata(self.store.manifest, capacity)

    def give_up(self, start: int, stop: int) -> None:
        """Append a row that says that slots [start, stop) hold nothing, and take their owners away."""
        state = self.store.state
        for at, words in self.store.owned_pieces(start, stop):
            self._slots.write_owners(at, np.zeros(len(words), OWNER_DTYPE))
        row = lost_row(self.store.table.rows.dtype, start, stop)
        self._episodes.write_at(state.rows * row.dtype.itemsize, seal_row(row))
        self._records.put_live(replace(state, generation=state.generation + 1, rows=state.rows + 1, seq=state.seq + 1))
        self.store.refresh()

    # Editing

    def draft(self, key: str) -> NDArray[Any]:
        """A key's values, (frames, *shape), in a mapping whose changes stay in this process."""
        self._lock.check_owned()
        return make_draft(self.store, key)

    def edit(self, key: str, slots: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Replace a key's values, (n, *shape), in n ascending slots; a kill leaves all of the old or all of the new."""
        self._lock.check_owned()
        kept = (self.store.words_at(slots) & OWNER_ROW_MASK) != 0  # a lost slot holds no frame to be edited
        slots, values = slots[kept], values[kept]
        if not len(slots):
            return
        self._make_durable()  # so that one durable record can tell of the edit and of everything before it
        raw, redo = make_redo(self.store, key, slots, values)
        files.replace_atomically(self.store.root / paths.REDO, raw)
        state = self.store.state
        try:
            self._put_live(replace(state.with_busy(int(slots[0]), int(slots[-1]) + 1), redo=redo))
            self._records.put_durable(self.store.state)
        except BaseException:
            with self._let_go_on_failure():
                self.store.refresh()  # the record may be written, and we not have come to notice it
                self._put_live(state)
            raise
        with self._let_go_on_failure():
            self._apply_redo()
        drop_redo(self.store.root)

    @contextlib.contextmanager
    def _let_go_on_failure(self) -> Iterator[None]:
        """Without the lock, readers need not wait for us: they see what whoever opens for writing next will make."""
        try:
            yield
        except BaseException:
            self.let_go()
            raise

    def _apply_redo(self) -> None:
        """Apply the edit that is committed, however much of it was applied before."""
        apply_redo(self.store.read_redo(), self._slots)
        self._slots.sync()
        state = self.store.state
        self._put_live(replace(state.with_busy(0, 0), generation=state.generation + 1, redo=0))
        self._records.put_durable(self.store.state)

    # Space

    def _grown(self, needed: int) -> int:
        root, capacity = self.store.root, self.store.state.capacity
        return grown_capacity(capacity, needed, frame_bytes(self.store.manifest), files.free_bytes(root))

    def grow(self, capacity: int) -> None:
        """Give every column room for `capacity` frames; `DiskSpaceError` before anything has changed."""
        self._allocate(capacity)
        self._put_metadata(self.store.manifest, capacity)

    def _allocate(self, capacity: int, share: float = 1.0) -> None:
        state, manifest = self.store.state, self.store.manifest
        wanted = (capacity - state.capacity) * frame_bytes(manifest)
        check_space(wanted, files.free_bytes(self.store.root), share)
        try:
            self._slots.allocate(capacity)
            self._slots.sync()  # the metadata must not count on room that a power cut takes back
        except BaseException:
            with contextlib.suppress(StorageError):
                self._slots.give_back(max(state.capacity, self._promised))
            raise

    def finish(self, provenance: Mapping[str, Any]) -> None:
        """End an import: from here on the dataset can be opened, and says where it comes from."""
        self._lock.check_owned()
        manifest = replace(self.store.manifest, provenance=provenance, unfinished=False)
        self._put_metadata(manifest, self.store.state.capacity)

    def take_capacity(self, asked: Capacity) -> None:
        """Grow to what is asked for if that is more, and grow no further on demand."""
        self._lock.check_owned()
        if asked.in_bytes:
            frames, limit = self._image_bytes.capacity_for(asked.amount)
            if limit != self.store.manifest.byte_capacity:
                self._fix(frames, limit)
        elif asked.amount > self.store.state.capacity or not self.store.manifest.fixed_capacity:
            self._fix(asked.amount, None)

    def _fix(self, capacity: int, limit: ByteCapacity | None) -> None:
        capacity = max(capacity, self.store.state.capacity)  # a first episode may take more than its share of bytes
        if capacity > self.store.state.capacity:
            self._allocate(capacity, FREE_SHARE)
        self._put_metadata(replace(self.store.manifest, fixed_capacity=True, byte_capacity=limit), capacity)

    def _put_metadata(self, manifest: Manifest, capacity: int) -> None:
        raw = replace(manifest, capacity=capacity).to_bytes()
        self._promised = max(self._promised, capacity)
        files.replace_atomically(self.store.root / paths.METADATA, raw)
        self.store.manifest = replace(manifest, capacity=capacity)
        state = self.store.state
        self._put_live(
            replace(state, generation=state.generation + 1, capacity=capacity, metadata_hash=metadata_hash(raw))
        )

    # The end

    def flush(self) -> None:
        """Have everything committed survive a power cut; then take the snapshots that other processes asked for."""
        self._make_durable()
        serve(self.store.root, self.snapshot)

    def snapshot(self, dest: Path) -> SnapshotReport:
        """Copy what is committed to `dest`; see `take_snapshot`."""
        self._make_durable()  # images are linked, not copied: they must have reached the device
        return take_snapshot(self.store, dest)

    def _make_durable(self) -> None:
        self._lock.check_owned()
        files.sync_all([*self._slots.files, self._episodes, *self._strings.files], self._media.unsynced())
        self._media.forget_unsynced()
        durable, state = self._records.durable(), self.store.state
        if durable.generation != state.generation or durable.at_risk_length or durable.redo:
            self._records.put_durable(state)

    def close(self) -> None:
        """Flush, let go of the files and of the lock; a forked child lets go of its copies only."""
        try:
            if self._lock.is_owned and not self.closed:
                self.flush()
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Close the files and release the lock, without a flush."""
        self.closed = True
        for file in (self._records, self._episodes, self._strings, self._slots):
            file.close()
        self._lock.release()
