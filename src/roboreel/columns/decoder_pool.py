"""Open decoders, kept for the next batch: few, bounded, shared by the threads of one process, never by a fork."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roboreel.columns.decode import VideoDecoder
from roboreel.columns.frame_table import FrameTable
from roboreel.errors import InvalidArgumentError, VideoError

MAX_FILES = 64
MAX_BYTES = 512 << 20

_PICTURES_HELD = 16
"""About how many pictures a decoder keeps for reference and output."""
_FIXED_BYTES = 2 << 20
"""About what a container and a decoder take beside their pictures."""

_Identity = tuple[int, int, int, int]


@dataclass(eq=False)
class _Entry:
    path: str
    identity: _Identity
    table: FrameTable
    lock: threading.Lock = field(default_factory=threading.Lock)
    decoder: VideoDecoder | None = None
    """Opened by the first user, under `lock`."""
    users: int = 0
    """Threads that hold or wait for `lock`; changed under the pool's lock, and not evicted while above 0."""

    @property
    def bytes(self) -> int:
        return _FIXED_BYTES + _PICTURES_HELD * self.table.height * self.table.width * 3 // 2


class DecoderPool:
    """Reads frames of any number of videos through at most `max_files` open ones (least recently used goes first).

    After a fork the child begins with an empty pool and leaves alone what it inherited.
    """

    def __init__(self, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> None:
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._begin()
        os.register_at_fork(after_in_child=functools.partial(_forget, weakref.ref(self)))

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def read(self, path: Path | str, table: FrameTable, indices: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Decode frame `indices[j]` of the video `path` into `out[j]`, each distinct frame once.

        Args:
            table: the frame table of that file.
            indices: (n,) int64 in any order, repeats allowed.
            out: (n, height, width, 3) uint8, contiguous or not.

        Raises:
            VideoError: the file is gone, or a frame is not in it or cannot be decoded.

            pool.read("a.mp4", table, np.array([7, 3, 7]), out)   # out[0] == out[2], decoded once, 3 before 7
        """
        if out.dtype != np.uint8 or out.shape != (len(indices), *table.shape):
            raise InvalidArgumentError(
                f"{path}: {len(indices)} frames need an array of uint8 {(len(indices), *table.shape)}; "
                f"got {out.dtype} {out.shape}"
            )
        if not len(indices):
            return
        distinct, rows, inverse = np.unique(indices, return_index=True, return_inverse=True)
        with self._decoder(str(path), table) as decoder:
            decoder.read(distinct, rows, out)
        source = rows[inverse]
        for row in np.flatnonzero(source != np.arange(len(indices))).tolist():
            out[row] = out[source[row]]

    def close(self) -> None:
        """Close every decoder that no other thread is using; those are closed when they are next the oldest."""
        with self._lock:
            idle = [entry for entry in self._entries.values() if not entry.users]
            for entry in idle:
                del self._entries[entry.path]
        _close(idle)

    def __len__(self) -> int:
        """How many files are open, or about to be."""
        return len(self._entries)

    def __reduce__(self) -> tuple[type[DecoderPool], tuple[int, int]]:
        return DecoderPool, (self._max_files, self._max_bytes)  # a decoder does not travel; its limits do

    @contextmanager
    def _decoder(self, path: str, table: FrameTable) -> Iterator[VideoDecoder]:
        entry = self._take(path, table)
        try:
            with entry.lock:
                if entry.decoder is None:
                    entry.decoder = VideoDecoder(path, table)
                yield entry.decoder
        finally:
            self._give_back(entry)

    def _take(self, path: str, table: FrameTable) -> _Entry:
        try:
            status = os.stat(path)
        except OSError as error:
            raise VideoError(f"{path}: cannot be opened ({error.strerror})") from error
        # a path may be used again for other content while a decoder of the old file is open
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        with self._lock:
            entry = self._entries.get(path)
            stale = []
            if entry is None or entry.identity != identity or entry.table.digest != table.digest:
                stale = [entry] if entry is not None and not entry.users else []
                entry = self._entries[path] = _Entry(path, identity, table)
            self._entries.move_to_end(path)
            entry.users += 1
            stale += self._evict()
        _close(stale)
        return entry

    def _give_back(self, entry: _Entry) -> None:
        with self._lock:
            entry.users -= 1
            stale = self._evict()
            if not entry.users:
                in_pool = self._entries.get(entry.path) is entry
                if in_pool and entry.decoder is None:
                    del self._entries[entry.path]  # it could not be opened
                elif not in_pool and entry not in stale:
                    stale.append(entry)  # replaced by a newer file meanwhile: nobody else will close it
        _close(stale)

    def _evict(self) -> list[_Entry]:
        """Take the least recently used idle entries out until the limits hold; called under the lock."""
        evicted = []
        held = sum(entry.bytes for entry in self._entries.values())
        for entry in list(self._entries.values())[:-1]:  # the newest stays, however big
            if len(self._entries) <= self._max_files and held <= self._max_bytes:
                break
            if not entry.users:
                del self._entries[entry.path]
                held -= entry.bytes
                evicted.append(entry)
        return evicted


def _close(entries: list[_Entry]) -> None:
    for entry in entries:
        if entry.decoder is not None:
            entry.decoder.close()


def _forget(reference: weakref.ref[DecoderPool]) -> None:
    """In a forked child: keep what the parent opened for ever, and begin anew (its lock may be held by no one)."""
    pool = reference()
    if pool is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pool._entries))
        pool._begin()


@functools.lru_cache(maxsize=1)
def default_pool() -> DecoderPool:
    """The pool of this process."""
    return DecoderPool()
