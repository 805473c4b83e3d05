"""The one writer of a dataset directory: an episode is there whole or not at all, whatever happens in between.

For each episode: check everything; stage image files; reserve slots; publish the range that is going to change; write
owners and columns; commit one record; only then remove what nothing refers to any more. `docs/format.md` has the why.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.columns.memmap import MemmapColumn, MemmapWriter
from roboreel.columns.png import PngWriter
from roboreel.columns.video import VideoWriter
from roboreel.errors import InvalidArgumentError, StorageError
from roboreel.format import files, paths
from roboreel.format.files import DataFile
from roboreel.format.lock import WriterLock, boot_id
from roboreel.format.manifest import Manifest, metadata_hash
from roboreel.format.records import (
    DURABLE_OFFSETS,
    FLAG_INTEGER_WINDOWS,
    FLAG_LOST,
    LIVE_OFFSET,
    NO_STRING,
    OWNER_DTYPE,
    STATE_RECORD_BYTES,
    State,
    seal_row,
)
from roboreel.schema import (
    EPISODE_INDEX_KEY,
    FRAME_INDEX_KEY,
    INDEX_KEY,
    TASK_KEY,
    TIMESTAMP_KEY,
    LeRobotDatasetV2ImageMode,
)
from roboreel.store.episode import Episode, is_regular, parse_episode
from roboreel.store.layout import allocate, creating, frame_bytes, give_back, image_numbers, make_files
from roboreel.store.ring import Place, check_space, grown_capacity, place_episode
from roboreel.store.store import Store


class Writer:
    """Holds the writer's lock from construction to `close()`."""

    def __init__(self, store: Store, lock: WriterLock) -> None:
        self.store = store
        self.closed = False
        self._lock = lock
        self._untidy = True  # a writer that was killed may have left image files that nothing refers to
        root, manifest = store.root, store.manifest
        self._state_file = DataFile(root / paths.STATE)
        self._episodes = DataFile(root / paths.EPISODES)
        self._strings = DataFile(root / paths.STRINGS)
        self._owners = DataFile(root / paths.OWNERS)
        self._columns: dict[str, MemmapWriter] = {}
        self._pngs: dict[str, PngWriter] = {}
        self._videos: dict[str, VideoWriter] = {}
        for key, spec in manifest.keys.items():
            if spec.image_mode is LeRobotDatasetV2ImageMode.VIDEO:
                self._videos[key] = VideoWriter(root, spec, manifest.fps, self._next_video_file(key))
            elif spec.image_mode is LeRobotDatasetV2ImageMode.PNG:
                self._pngs[key] = PngWriter(root, spec)
            else:
                self._columns[key] = MemmapWriter(root, spec)
        self._codes = {text: code for code, text in enumerate(store.strings)}

    @classmethod
    def open(cls, root: Path) -> Writer:
        """Take the lock and open a dataset for writing; clean up after a writer that died."""
        lock = WriterLock(root)
        try:
            store = Store.open(root)
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
        check_space(manifest.capacity * frame_bytes(manifest), files.free_bytes(root))
        with creating(root) as lock:
            raw = manifest.to_bytes()
            make_files(root, manifest, raw)
            writer = cls(Store(root, manifest), lock)
            writer._add_parsed(first)
            files.replace_atomically(root / paths.METADATA, raw)  # last: from here on this is a dataset
            return writer

    # One episode

    def add(self, episode: Episode) -> None:
        """Add one episode; when this returns it is committed, when it raises nothing has changed."""
        self._add_parsed(parse_episode(episode, self.store.manifest.keys, self.store.manifest.fps))

    def _add_parsed(self, episode: Episode) -> None:
        self._lock.check_owned()
        manifest, state = self.store.manifest, self.store.state
        place = place_episode(
            episode.length, state.next_slot, state.capacity, fixed=manifest.fixed_capacity, ring=manifest.ring
        )
        if place.capacity > state.capacity:
            self.grow(self._grown(place.capacity))
        live_before = self.store.table.live
        with self._rolled_back(place):
            row = self._row(episode, place, self._stage_images(episode))
            self._publish(place)
            self._write(episode, place)
            self._commit(episode, place, row)
        gone = None if self._untidy else np.setdiff1d(live_before, self.store.table.live)
        self._untidy = True
        with contextlib.suppress(StorageError):  # the episode is in; the next one sweeps what stayed behind
            self._evict(gone)
            self._untidy = False

    def _stage_images(self, episode: Episode) -> list[tuple[int, int]]:
        for key, png in self._pngs.items():
            png.stage(self.store.state.rows, episode.cameras[key])
        return [self._videos[key].stage(episode.cameras[key]) for key in self.store.manifest.video_keys]

    def _row(self, episode: Episode, place: Place, clips: list[tuple[int, int]]) -> NDArray[np.void]:
        state, times = self.store.state, episode.columns[TIMESTAMP_KEY]
        regular = episode.integer_windows or is_regular(times, self.store.manifest.fps)
        row = np.zeros(1, self.store.table.rows.dtype)
        row["uuid"] = np.void(uuid.uuid4().bytes)
        row["start"], row["length"] = place.start, episode.length
        row["first_index"], row["episode_index"] = state.next_index, state.next_episode_index
        row["flags"] = FLAG_INTEGER_WINDOWS if regular else 0
        row["task"] = self._code(episode.strings[TASK_KEY][0]) if TASK_KEY in episode.strings else NO_STRING
        row["source"] = NO_STRING if episode.source is None else self._code(episode.source)
        row["source_episode"] = episode.source_episode
        row["max_gap"] = np.max(np.diff(times), initial=0.0)
        row["wall_start"] = episode.wall_start
        if clips:
            row["clips"] = np.array([clips], row["clips"].dtype)
        return row

    def _publish(self, place: Place) -> None:
        self._put_live(replace(self.store.state, busy_start=place.start, busy_stop=place.stop))

    def _write(self, episode: Episode, place: Place) -> None:
        state = self.store.state
        if place.start < state.frames:  # without an owner nobody takes what is being replaced for a frame
            overlap = min(place.stop, state.frames) - place.start
            self._owners.write_at(place.start * OWNER_DTYPE.itemsize, np.zeros(overlap, OWNER_DTYPE))
        for key, column in self._columns.items():
            slot = place.start
            for block in self._blocks(episode, key):
                column.write(slot, block)
                slot += len(block)
            if slot != place.stop:
                raise InvalidArgumentError(f"{key!r} gave {slot - place.start} frames of the {episode.length} promised")
        owners = np.full(episode.length, state.rows + 1, OWNER_DTYPE)
        self._owners.write_at(place.start * OWNER_DTYPE.itemsize, owners)

    def _blocks(self, episode: Episode, key: str) -> Iterator[NDArray[Any]]:
        spec, state = self.store.manifest.keys[key], self.store.state
        if spec.is_camera:
            yield from episode.cameras[key].blocks()
        elif spec.is_string:
            yield np.array([self._code(text) for text in episode.strings[key]], spec.dtype)
        elif key == INDEX_KEY:
            yield np.arange(state.next_index, state.next_index + episode.length, dtype=spec.dtype)
        elif key == FRAME_INDEX_KEY:
            yield np.arange(episode.length, dtype=spec.dtype)
        elif key == EPISODE_INDEX_KEY:
            yield np.full(episode.length, state.next_episode_index, spec.dtype)
        else:
            yield episode.columns[key]

    def _commit(self, episode: Episode, place: Place, row: NDArray[np.void]) -> None:
        state = self.store.state
        self._episodes.write_at(state.rows * row.dtype.itemsize, seal_row(row))
        new_strings = list(self._codes)[state.strings :]
        encoded = b"".join(json.dumps(text, ensure_ascii=False).encode() + b"\n" for text in new_strings)
        if encoded:
            self._strings.write_at(state.string_bytes, encoded)
        self._put_live(
            replace(
                state,
                generation=state.generation + 1,
                rows=state.rows + 1,
                frames=max(state.frames, place.stop),
                next_slot=place.stop,
                next_index=state.next_index + episode.length,
                next_episode_index=state.next_episode_index + 1,
                strings=len(self._codes),
                string_bytes=state.string_bytes + len(encoded),
                busy_start=0,
                busy_stop=0,
            )
        )

    def _put_live(self, state: State) -> None:
        """Make `state` what readers see, in one write."""
        state = replace(state, seq=self.store.state.seq + 1, boot_id=boot_id(), writer_pid=os.getpid())
        self._state_file.write_at(LIVE_OFFSET, state.to_bytes())
        self.store.refresh()

    def _code(self, text: str) -> int:
        return self._codes.setdefault(text, len(self._codes))

    # When it goes wrong

    @contextlib.contextmanager
    def _rolled_back(self, place: Place) -> Iterator[None]:
        """Have a failure inside leave everything as it was before."""
        saved = self._saved(place)
        try:
            yield
        except BaseException as error:
            try:
                self._roll_back(place, saved)
            except BaseException as second:
                # The range stays published. Without the lock, readers need not wait for us: they take what is half
                # done for lost, and whoever opens for writing next gives it up.
                self._close_files()
                self._lock.release()
                if isinstance(second, StorageError):
                    raise StorageError(f"{error}; and it could not be undone: {second}") from error
                raise
            raise

    def _saved(self, place: Place) -> dict[str, NDArray[Any]]:
        """Copy what the episode will overwrite; nothing where it goes into fresh slots."""
        stop = min(place.stop, self.store.state.frames)
        if place.start >= stop:
            return {}
        saved = {"": self.store.owner_words(place.start, stop)}
        for key in self._columns:
            column = self.store.columns[key]
            assert isinstance(column, MemmapColumn)
            saved[key] = column.array[place.start : stop].copy()
        return saved

    def _roll_back(self, place: Place, saved: Mapping[str, NDArray[Any]]) -> None:
        state = self.store.state
        self._untidy = True
        self._codes = {text: code for code, text in enumerate(self.store.strings)}
        for png in self._pngs.values():
            png.drop(state.rows)
        for key, video in self._videos.items():
            video.drop_staged(self._video_files(key).tolist())
        if state.busy_start == state.busy_stop:
            return  # not published yet: no slot was touched
        for key, column in self._columns.items():
            if key in saved:
                column.write(place.start, saved[key])
        if "" in saved:
            self._owners.write_at(place.start * OWNER_DTYPE.itemsize, saved[""])
        self._put_live(replace(state, busy_start=0, busy_stop=0))

    def _recover(self) -> None:
        """Give up the frames that a writer was replacing when it died; everything else is as it was."""
        state = self.store.state
        if state.busy_start == state.busy_stop:
            return
        lost = self.store.lost_slots(state.busy_start, min(state.busy_stop, state.frames))
        if not len(lost):
            self._put_live(replace(state, busy_start=0, busy_stop=0))
            return
        start, stop = int(lost[0]), int(lost[-1]) + 1
        self._owners.write_at(start * OWNER_DTYPE.itemsize, np.zeros(stop - start, OWNER_DTYPE))
        row = np.zeros(1, self.store.table.rows.dtype)
        row["start"], row["length"], row["flags"] = start, stop - start, FLAG_LOST
        row["task"] = row["source"] = row["source_episode"] = NO_STRING
        self._episodes.write_at(state.rows * row.dtype.itemsize, seal_row(row))
        self._put_live(replace(state, generation=state.generation + 1, rows=state.rows + 1, busy_start=0, busy_stop=0))

    # Space

    def _grown(self, needed: int) -> int:
        root, capacity = self.store.root, self.store.state.capacity
        return grown_capacity(capacity, needed, frame_bytes(self.store.manifest), files.free_bytes(root))

    def grow(self, capacity: int) -> None:
        """Give every column room for `capacity` frames; `DiskSpaceError` before anything has changed."""
        state, manifest = self.store.state, self.store.manifest
        check_space((capacity - state.capacity) * frame_bytes(manifest), files.free_bytes(self.store.root), share=1.0)
        try:
            allocate(self._columns, self._owners, capacity)
            self._sync_slots()  # the metadata must not count on room that a power cut takes back
        except BaseException:
            with contextlib.suppress(StorageError):
                give_back(self._columns, self._owners, state.capacity)
            raise
        self._put_metadata(manifest, capacity)

    def finish(self, provenance: Mapping[str, Any]) -> None:
        """End an import: from here on the dataset can be opened, and says where it comes from."""
        self._lock.check_owned()
        manifest = replace(self.store.manifest, provenance=provenance, unfinished=False)
        self._put_metadata(manifest, self.store.state.capacity)

    def fix_capacity(self, capacity: int) -> None:
        """Grow to `capacity` frames if that is more, and grow no further on demand."""
        self._lock.check_owned()
        if capacity > self.store.state.capacity:
            self.grow(capacity)
        if not self.store.manifest.fixed_capacity:
            self._put_metadata(replace(self.store.manifest, fixed_capacity=True), self.store.state.capacity)

    def _put_metadata(self, manifest: Manifest, capacity: int) -> None:
        raw = replace(manifest, capacity=capacity).to_bytes()
        files.replace_atomically(self.store.root / paths.METADATA, raw)
        self.store.manifest = replace(manifest, capacity=capacity)
        state = self.store.state
        self._put_live(
            replace(state, generation=state.generation + 1, capacity=capacity, metadata_hash=metadata_hash(raw))
        )

    def _video_files(self, key: str) -> NDArray[np.int64]:
        """Numbers of the video files that hold a live episode of the camera."""
        table = self.store.table
        found: NDArray[np.int64] = np.unique(
            table.rows["clips"]["file"][table.live, self.store.manifest.video_keys.index(key)]
        )
        return found

    def _next_video_file(self, key: str) -> int:
        table = self.store.table
        clip = self.store.manifest.video_keys.index(key)
        return int(np.max(table.rows["clips"]["file"][:, clip], initial=-1)) + 1

    def _evict(self, gone: NDArray[np.int64] | None) -> None:
        """Remove the image files of rows that nothing is left of; None: all that no live row refers to."""
        table, root = self.store.table, self.store.root
        for key, video in self._videos.items():
            clip = self.store.manifest.video_keys.index(key)
            held = image_numbers(root, key) if gone is None else table.rows["clips"]["file"][gone, clip]
            for file in np.setdiff1d(held, self._video_files(key)).tolist():
                video.drop(file)
        for key, png in self._pngs.items():
            held = image_numbers(root, key) if gone is None else gone
            for row in np.setdiff1d(held, table.live).tolist():
                png.drop(row)

    # The end

    def flush(self) -> None:
        """Have everything committed survive a power cut, then write it down as durable."""
        self._lock.check_owned()
        self._sync_slots()
        for png in self._pngs.values():
            png.sync()
        for video in self._videos.values():
            video.sync()
        self._episodes.sync()
        self._strings.sync()
        if any(state.generation == self.store.state.generation for state in self.store.durable_states()):
            return
        self._state_file.write_at(self._older_place(), self.store.state.to_bytes())
        self._state_file.sync()

    def _sync_slots(self) -> None:
        for column in self._columns.values():
            column.sync()
        self._owners.sync()

    def _older_place(self) -> int:
        """The durable place to overwrite: an empty one, or the one with the older record."""

        def age(offset: int) -> int:
            state = State.from_bytes(self._state_file.read_at(offset, STATE_RECORD_BYTES))
            return -1 if state is None else state.generation

        return min(DURABLE_OFFSETS, key=age)

    def close(self) -> None:
        """Flush, let go of the files and of the lock; a forked child lets go of its copies only."""
        try:
            if self._lock.is_owned:
                self.flush()
        finally:
            self._close_files()
            self._lock.release()

    def _close_files(self) -> None:
        self.closed = True
        for file in (self._state_file, self._episodes, self._strings, self._owners):
            file.close()
        for column in self._columns.values():
            column.close()
