"""One directory and what was asked of it: opened when it is there, made by the first episode, followed, let go."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import (
    CapacityError,
    DatasetReplacedError,
    EditOpenError,
    InvalidArgumentError,
    NotADatasetError,
    ReadOnlyError,
    RoboreelError,
    StorageDirCorruptError,
)
from roboreel.store import (
    AskedMode,
    AskedOptions,
    CameraStorage,
    Conversion,
    ConversionReport,
    Episode,
    Manifest,
    SnapshotReport,
    Store,
    Writer,
    changed_rows,
    check_no_lerobot,
    check_not_smaller,
    check_ring_place,
    check_room,
    find_problems,
    infer_keys,
    is_dataset,
    parse_capacity,
    parse_decoded_cache,
    request_snapshot,
    with_capacity,
)

Read = TypeVar("Read")

_LOOK_S = 0.1
"""How often a reader looks whether the dataset was converted; a look costs some microseconds."""


class Opening:
    """What the constructor was given, checked against what is stored; the open store and writer behind it.

    Pickles as what was given: another process opens the directory for itself. Threads change it one after another.
    """

    def __init__(
        self,
        root: Path,
        fps: float | None,
        buffer_capacity: int | str | None,
        ring: bool | None,
        cameras: CameraStorage,
        *,
        readonly: bool,
        decoded_cache: Any = None,
    ) -> None:
        self.root = root
        self.fps = _plain(fps)
        self.cameras = cameras
        self._capacity = parse_capacity(buffer_capacity)
        self._ring = ring
        self._readonly = readonly
        self._cache = parse_decoded_cache(decoded_cache)
        self._cache_checked = False
        self._store: Store | None = None
        self._writer: Writer | None = None
        self._edited: str | None = None
        """The key of which an edit is open."""
        self._look_again = 0.0
        self._renew_lock()
        self._check_arguments()
        try:
            if self.store() is None:
                self._check_new()
        except BaseException:
            self.close()  # not the lock for as long as somebody keeps the error
            raise
        self._cache_checked = True  # in the middle of training a full disk is no error

    def __getstate__(self) -> dict[str, Any]:
        asked = {} if self._store is None else {"_ring": None, "fps": None, "cameras": CameraStorage()}
        # What was asked has been checked here; by the time a worker opens, another process may have changed it.
        own = {"_store": None, "_writer": None, "_edited": None, "_lock": None}
        return {**self.__dict__, **own, **asked}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._renew_lock()

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()
        _OPEN.add(self)

    @contextlib.contextmanager
    def _changing(self, what: str) -> Iterator[None]:
        """Have other threads wait; refuse what would pull an open edit's column from under it."""
        with self._lock:
            if self._edited is not None:
                raise EditOpenError(
                    f"{what} inside `with dataset.edit({self._edited!r})`: it would change what is being edited; "
                    "leave the block first"
                )
            yield

    def _check_arguments(self) -> None:
        fps = self.fps
        if fps is not None and (type(fps) not in (int, float) or not 0 < fps < float("inf")):
            raise InvalidArgumentError(f"fps={self.fps!r}; a positive number of frames a second would do")

    def _check_new(self) -> None:
        check_no_lerobot(self.root)
        if self._readonly:
            raise NotADatasetError(f"{self.root} holds no dataset, so there is nothing to read; leave readonly out")
        if self.root.exists() and not self.root.is_dir():
            raise InvalidArgumentError(f"storage_dir {self.root} is a file; give a directory")
        if self._ring and self._capacity is None:
            raise CapacityError("use_as_fifo_buffer=True needs buffer_capacity, in frames or as '20GB'")
        if self._ring:
            check_ring_place(self.root)
        if self.fps is None:
            raise InvalidArgumentError(f"{self.root} holds no dataset yet; a new one needs fps, frames a second")

    # Opening

    def store(self) -> Store | None:
        """Return the open store, or None while there is no dataset in the directory."""
        store = self._store
        if store is None:
            with self._lock:
                self._open_store()
                return self._store
        if time.monotonic() > self._look_again:
            return self.follow()
        return store  # whatever another thread has made of it since

    def _open_store(self) -> None:
        if self._store is not None or not is_dataset(self.root):
            return  # another thread was first, or there is none yet
        store = Store.open(self.root)
        self._check_stored(store)
        self._use_cache(store)
        self._store = store
        if self._capacity is not None and not self._readonly:
            self._take_capacity(store)
        self._capacity = None  # taken: when we open again, another process may have given it more

    def follow(self) -> Store:
        """Return the open store; a new one where the dataset was converted: the same frames in the same slots."""
        self._look_again = time.monotonic() + _LOOK_S
        store = self._store
        if store is not None and not store.is_converted:
            return store
        with self._lock:
            if self._store is store or self._store is None:  # else another thread was first
                self._writer = None  # not ours: nobody converts what we hold the lock of
                self._open_anew()
            assert self._store is not None
            return self._store

    def _open_anew(self) -> None:
        """Open what is there now; the old store is not closed: another thread may be reading from it."""
        opened = Store.open(self.root)
        self._use_cache(opened)
        if self._store is not None:
            opened.decoding.take(self._store.decoding)
        self._store = opened  # at no moment None, for those who read without the lock

    def read(self, reading: Callable[[Store], Read]) -> Read:
        """Return what `reading` gives, also while the dataset is converted."""
        store = self.store()
        assert store is not None
        try:
            return reading(store)
        except DatasetReplacedError:  # converted just now: the same frames are in the same slots
            return reading(self.follow())

    def _check_stored(self, store: Store) -> None:
        manifest = store.manifest
        if manifest.ring:
            check_ring_place(self.root)
        if self.fps is not None and self.fps != manifest.fps:
            raise InvalidArgumentError(
                f"fps={self.fps:g}, but {self.root} was made with {manifest.fps:g}; leave it out"
            )
        if self._ring is not None and self._ring != manifest.ring:
            raise InvalidArgumentError(
                f"use_as_fifo_buffer={self._ring}, but {self.root} was made with {manifest.ring}; leave it out"
            )
        if self._capacity is not None:
            check_not_smaller(store, self._capacity)
        self.cameras.check_stored(manifest.keys.values(), self.root)

    def _use_cache(self, store: Store) -> None:
        if self._cache is not None:
            if not self._cache_checked:
                check_room(self._cache, self.root, store.manifest, store.state.capacity)
            store.use_cache(self._cache)

    def _take_capacity(self, store: Store) -> None:
        asked, manifest = self._capacity, store.manifest
        assert asked is not None
        if asked.in_bytes:
            differs = manifest.byte_capacity is None or asked.amount != manifest.byte_capacity.total
        else:
            differs = asked.amount > store.state.capacity
        half_grown = manifest.capacity > store.state.capacity  # a writer died at it
        if differs or half_grown or not manifest.fixed_capacity:
            self.writer().take_capacity(asked)

    # Writing

    def add(self, episode: Episode) -> None:
        """Commit one episode, making the dataset if there is none yet."""
        with self._changing("add_episodes"):
            if self.store() is not None:
                self.writer().add(episode)
            else:
                self._create(episode)

    def _create(self, episode: Episode) -> None:
        self._check_writable()
        assert self.fps is not None
        manifest = Manifest(
            fps=self.fps,
            keys=self.cameras.applied(infer_keys(episode)),
            capacity=episode.length,
            fixed_capacity=False,
            ring=bool(self._ring),
        )
        self._writer = Writer.create(self.root, with_capacity(manifest, self._capacity), episode)
        self._use_cache(self._writer.store)
        self._store = self._writer.store
        self._capacity = None  # as above

    def _check_writable(self) -> None:
        if self._readonly:
            raise ReadOnlyError(f"{self.root} was opened with readonly=True; open it without to change it")

    def writer(self) -> Writer:
        """The open writer; takes the directory's lock the first time. For those who hold that of the threads."""
        self._check_writable()
        if self._writer is None or self._writer.closed:
            self._writer = Writer.open(self.root)
            self._use_cache(self._writer.store)
            self._store = self._writer.store  # the old one is not closed: another thread may be reading from it
        return self._writer

    @contextlib.contextmanager
    def edit(self, key: str) -> Iterator[NDArray[Any]]:
        """Give a draft of a key's values; leaving the block applies what was changed in it."""
        with self._changing(f"edit({key!r})"):
            writer = self.writer()
            draft = writer.draft(key)
            self._edited = key
            try:
                yield draft
            finally:
                self._edited = None
            slots = changed_rows(writer.store.memmap_of(key)[: len(draft)], draft)
            writer.edit(key, slots, np.ascontiguousarray(draft[slots]))

    def flush(self) -> None:
        with self._lock:
            if self._writer is not None and not self._writer.closed:
                self._writer.flush()

    def snapshot(self, dest: Path, timeout_s: float) -> SnapshotReport:
        """Copy what is committed, by whichever process can."""
        return request_snapshot(self.root, dest, self._turn, readonly=self._readonly, timeout_s=timeout_s)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[Writer | None]:
        """Have other threads wait; gives the writer that they write through, if it is open."""
        with self._lock:
            is_ours = self._writer is not None and self._writer.is_ours
            yield self._writer if is_ours else None

    @contextlib.contextmanager
    def still(self, what: str) -> Iterator[Store]:
        """Give the open store, which no thread of this process changes until the block is left."""
        with self._changing(what):
            store = self.store()
            assert store is not None
            yield store

    def conversion(self, image_mode: AskedMode, video_options: AskedOptions, dest: Path | None) -> Conversion:
        """What a conversion would do."""
        store = self.store()
        assert store is not None
        return Conversion.plan(store, image_mode, video_options, dest)

    def convert(
        self,
        image_mode: AskedMode,
        video_options: AskedOptions,
        dest: Path | None,
        *,
        force: bool,
        progress: bool,
    ) -> ConversionReport:
        """Convert, holding the writer's lock; a copy of what cannot be written is made without."""
        if dest is not None and (self._readonly or not os.access(self.root, os.W_OK)):
            return self.conversion(image_mode, video_options, dest).run(None, force=force, progress=progress)
        with self._changing("convert"):
            had_writer = self._writer is not None and self._writer.is_ours
            writer = self.writer()
            try:
                conversion = self.conversion(image_mode, video_options, dest)
                report = conversion.run(writer, force=force, progress=progress)
            finally:
                if not had_writer and not writer.closed:
                    writer.close()
            if dest is None and conversion.changed:
                # what was asked on opening was true then
                self.cameras = CameraStorage()
                self._writer = None
                self._open_anew()
            return report

    def close(self) -> None:
        """Let go of everything; the next `store()` opens again."""
        self._close("close")

    def _close(self, what: str) -> None:
        with self._changing(what):
            writer = self._writer
            # The store is let go of, not closed: another thread may be reading from it, and the last one closes it.
            self._writer = self._store = None
            if writer is not None and not writer.closed:
                writer.close()

    def reopen(self) -> None:
        self._close("reload")
        self.store()


_OPEN: weakref.WeakSet[Opening] = weakref.WeakSet()


def _renew_locks() -> None:
    """A thread that held a lock when the process was forked is not there to release it."""
    for opening in list(_OPEN):
        opening._renew_lock()


os.register_at_fork(after_in_child=_renew_locks)


def check_storage(root: Path, image_mode: AskedMode) -> None:
    """Raise `StorageDirCorruptError` where the directory is no whole dataset, or its cameras are stored otherwise."""
    try:
        store = Store.open(root)
    except StorageDirCorruptError:
        raise
    except RoboreelError as error:
        raise StorageDirCorruptError(str(error)) from error
    try:
        problems = find_problems(store)
        asked = CameraStorage.parse(image_mode)
        asked.check_known([key for key, spec in store.manifest.keys.items() if spec.is_camera])
        for key, spec in store.manifest.keys.items():
            mode = asked.mode_of(key)
            if mode is not None and spec.image_mode not in (None, mode):
                problems.append(f"{key!r} is stored as {spec.image_mode.value!r}, not as {mode.value!r}")
    finally:
        store.close()
    if problems:
        shown = "\n".join(problems[:20])
        raise StorageDirCorruptError(f"{root} has {len(problems)} problems:\n{shown}")


def _plain(value: Any) -> Any:
    """Return Python's number for one of numpy's, which JSON does not know."""
    return value.item() if isinstance(value, np.generic) else value
