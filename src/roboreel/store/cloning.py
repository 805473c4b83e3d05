"""A copy of a dataset as it stands: files that never change are linked, the others cloned or copied.

The caller sees to it that nothing changes meanwhile: it is the writer, between two commits, or looks afterwards.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from roboreel.errors import StorageDirCorruptError
from roboreel.format import clone, files, paths
from roboreel.format.manifest import metadata_hash
from roboreel.format.records import STATE_BYTES, STRING_SUM_DTYPE, State
from roboreel.schema import LeRobotDatasetV2ImageMode
from roboreel.store.check import find_problems
from roboreel.store.records import StateFile
from roboreel.store.replacing import (
    SNAPSHOT,
    building,
    earlier_snapshot,
    has_leftovers,
    origin_of,
    parse_dest,
    put_in_place,
)
from roboreel.store.ring import check_space
from roboreel.store.room import size_of, slot_files
from roboreel.store.store import Store

Media = Iterator[tuple[Path, int]]
"""Image and video files, as paths inside the dataset, with an episode row that has frames in each."""


@dataclass(frozen=True)
class SnapshotReport:
    """What a snapshot cost, in bytes and seconds."""

    bytes_written: int
    """Copied byte by byte, or made anew: all columns, where the file system cannot share blocks."""
    bytes_linked: int
    """Of images and videos that were given a second name."""
    bytes_cloned: int
    """Of which the blocks are shared until one of the two is written."""
    seconds: float
    generation: int
    """Of the dataset when the snapshot was taken of it."""


def take_snapshot(store: Store, dest: Path, *, recover: Callable[[Path], bool] | None = None) -> SnapshotReport:
    """Copy what is committed to `dest`, which holds the old snapshot or the new one at any time; durable on return.

    Nothing is written where the earlier snapshot in `dest` is of the same generation. Otherwise columns are copied
    whole where they cannot be cloned: to write into the earlier snapshot's would leave it half done, and to share them
    with it would let a writer of one change the other.

    Args:
        store: The dataset; nobody changes it meanwhile, or the caller finds out in `recover`.
        dest: A free place, or one where an earlier snapshot of the same dataset lies.
        recover: Called with the copy before it goes to its place: raises where the copy is no good, opens it once for
            writing where a dead writer left something half done, and returns whether it did. None where the
            dataset's writer asks, who has nothing half done, and has synced all images.
    """
    began = time.monotonic()
    dest = parse_dest(store.root, dest)
    if _is_there_already(dest, store):  # refuses before anything is made; again when nobody else can put one there
        return SnapshotReport(0, 0, 0, time.monotonic() - began, store.state.generation)
    with building(dest) as build:
        earlier = earlier_snapshot(dest, origin_of(store.manifest))
        try:
            copy = _Copy(store, build, earlier, sync_links=recover is not None)
            copy.take()
            if recover is not None and recover(build):
                copy.take_over()
            copy.sync()
        finally:
            if earlier is not None:
                earlier.close()
        put_in_place(build, dest)
    return SnapshotReport(copy.written, copy.linked, copy.cloned, time.monotonic() - began, copy.generation)


def _is_there_already(dest: Path, store: Store) -> bool:
    """Whether `dest` holds this very generation, and nothing is wrong with it; refuses what `earlier_snapshot` does."""
    earlier = earlier_snapshot(dest, origin_of(store.manifest))
    if earlier is None:
        return False
    if has_leftovers(dest):  # swept by the next that is built
        earlier.close()
        return False
    with contextlib.closing(earlier):
        told, now, then = earlier.manifest.provenance[SNAPSHOT], store.state, earlier.state
        half_done = now.redo or now.at_risk_length or now.busy_start < now.busy_stop
        if half_done or (told["uuid"], then.generation) != (store.manifest.uuid, now.generation):
            return False
        # After a power cut a generation's number is given again. Rows have an identity, and edits change owner words.
        return (
            now.frames == then.frames
            and np.array_equal(store.table.rows, earlier.table.rows)
            and np.array_equal(store.owner_words(0, now.frames), earlier.owner_words(0, then.frames))
            and not find_problems(earlier)
        )


class _Copy:
    """One copy in the making."""

    def __init__(self, store: Store, build: Path, earlier: Store | None, *, sync_links: bool) -> None:
        self._store = store
        self._state = store.state  # the reader's view may move on meanwhile
        self._build = build
        self._earlier = earlier
        self._sync_links = sync_links
        self._can_clone = True
        self._unsynced: list[Path] = []
        self._directories = {build}
        # What is grown on demand is grown by the first episode that comes; what has a size keeps it, as holes.
        fixed = store.manifest.fixed_capacity
        self._capacity = self._state.capacity if fixed else max(self._state.frames, 1)
        self.generation = self._state.generation
        self.written = self.linked = self.cloned = 0

    def take(self) -> None:
        """Make every file of the copy."""
        sizes = list(mutable_files(self._store, self._state, self._capacity))
        for name, size, length in sizes:
            self._copy(name, size, length, left=sum(size for _, size, _ in sizes))
        same = self._same_rows()
        for path, row in media_files(self._store, self._store.manifest.keys):
            self._link(path, is_earlier=row < len(same) and bool(same[row]))
        if self._state.redo:
            self._copy(Path(paths.REDO), _size(self._store.root / paths.REDO))
            self._unsynced.pop()  # applied and removed when the copy is opened for writing
        self._put_records(self._state)

    def take_over(self) -> None:
        """Take for the state what opening the copy for writing has made of it."""
        recovered = Store.open(self._build)
        state = recovered.state
        recovered.close()
        for name in (paths.LOCK, paths.LOCK_OWNER, paths.STATE):
            files.remove(self._build / name)
        self._put_records(state)

    def _put_records(self, state: State) -> None:
        manifest = self._store.manifest
        told = {"uuid": manifest.uuid, "generation": state.generation, "origin": origin_of(manifest)}
        raw = replace(
            manifest,
            uuid=str(uuid.uuid4()),
            capacity=self._capacity,
            provenance={**manifest.provenance, SNAPSHOT: told},
        ).to_bytes()
        files.write_new(self._build / paths.METADATA, raw)
        records = StateFile(self._build, create=True)
        try:
            state = replace(state, capacity=self._capacity, metadata_hash=metadata_hash(raw))
            records.put_live(state)
            records.put_durable(state)
        finally:
            records.close()
        self._unsynced += [self._build / paths.METADATA]
        self.written += len(raw) + STATE_BYTES
        self.generation = state.generation

    def sync(self) -> None:
        """Have all of it reach the device."""
        for path in self._unsynced:
            files.sync_path(path)
        for directory in sorted(self._directories, reverse=True):
            files.sync_path(directory)

    # What there is

    def _same_rows(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """For each row that the earlier snapshot has too, whether it is the same episode."""
        if self._earlier is None:
            return np.zeros(0, np.bool_)
        old, new = self._earlier.table.rows, self._store.table.rows
        if old.dtype != new.dtype:
            return np.zeros(0, np.bool_)
        count = min(len(old), len(new))
        same: np.ndarray[tuple[int], np.dtype[np.bool_]] = old["uuid"][:count] == new["uuid"][:count]
        return same

    # How it gets there

    def _copy(self, name: Path, size: int, length: int | None = None, left: int = 0) -> None:
        source, target = self._store.root / name, self._build / name
        length = size if length is None else length
        self._make_dir(target.parent)
        if self._can_clone and clone.clone(source, target, length):
            self.cloned += size
        else:
            if self._can_clone:  # then all of it is to be written: better none than a part
                check_space(left, files.free_bytes(self._build), share=1.0)
            self._can_clone = False
            clone.copy(source, target, size, length)
            self.written += size
        self._unsynced.append(target)

    def _link(self, name: Path, *, is_earlier: bool) -> None:
        source, target = self._store.root / name, self._build / name
        size = _size(source)
        self._make_dir(target.parent)
        linked = clone.link(source, target)
        if not linked and is_earlier and self._earlier is not None:  # then the dataset is on another file system
            before = self._earlier.root / name
            linked = before.exists() and before.stat().st_size == size and clone.link(before, target)
        if not linked:
            self._copy(name, size)
            return
        self.linked += size
        if self._sync_links:
            self._unsynced.append(target)

    def _make_dir(self, directory: Path) -> None:
        while directory not in self._directories:
            files.make_dir(directory)
            self._directories.add(directory)
            directory = directory.parent


def mutable_files(store: Store, state: State, capacity: int) -> Iterator[tuple[Path, int, int]]:
    """Yield every file that is written in place or appended to: path in the dataset, bytes that count, length."""
    for name, (_, width, _) in slot_files(store.root, store.manifest).items():
        yield Path(name), state.frames * width, capacity * width
    rows = state.rows * store.table.rows.dtype.itemsize
    yield Path(paths.EPISODES), rows, rows
    yield from ((name, size, size) for name, size in string_files(store, state))


def string_files(store: Store, state: State) -> Iterator[tuple[Path, int]]:
    """Yield the files of the strings: path in the dataset, bytes that count."""
    yield Path(paths.STRINGS), state.string_bytes
    sums = min(state.strings * STRING_SUM_DTYPE.itemsize, size_of(store.root / paths.STRING_SUMS))
    if sums >= 0:
        yield Path(paths.STRING_SUMS), sums


def media_files(store: Store, keys: Iterable[str]) -> Media:
    """Yield every image and video file of these keys that a surviving frame is in."""
    nowhere, table, manifest = Path(), store.table, store.manifest
    frame_name = paths.IMAGE_TEMPLATE.rpartition("/")[2]
    for key in keys:
        if manifest.keys[key].image_mode is LeRobotDatasetV2ImageMode.PNG:
            for row in table.live.tolist():
                folder = paths.image_dir(nowhere, key, row)
                first = int(table.live_starts[row] - table.starts[row])
                for frame in range(first, int(table.rows["length"][row])):
                    yield folder / frame_name.format(frame=frame), row
        elif manifest.keys[key].image_mode is LeRobotDatasetV2ImageMode.VIDEO:
            clips = table.rows["clips"]["file"][:, manifest.video_keys.index(key)]
            numbers, firsts = np.unique(clips[table.live], return_index=True)
            for number, row in zip(numbers.tolist(), table.live[firsts].tolist(), strict=True):
                for path_of in (paths.frame_table_path, paths.video_path):
                    yield path_of(nowhere, key, number), row


def _size(path: Path) -> int:
    try:
        with files.looking_at(path):
            return path.stat().st_size
    except FileNotFoundError as error:
        raise StorageDirCorruptError(f"{path} is missing; restore it from a copy") from error
