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
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from roboreel.columns.base import VideoDecoderName
from roboreel.columns.decode import VideoDecoder
from roboreel.columns.frame_table import FrameTable
from roboreel.errors import InvalidArgumentError, VideoError

MAX_FILES = 64
MAX_BYTES = 512 << 20

_PICTURES_HELD = 16
"""About how many pictures a decoder keeps for reference and output."""
_FIXED_BYTES = 2 << 20
"""About what a container and a decoder take beside their pictures."""

_TRIM_EVERY = 512
"""Decoders closed from one look for memory to give back to the next."""

_Ints = NDArray[np.int64]


class Decoder(Protocol):
    """One open video file, for one thread at a time."""

    def read(self, indices: _Ints, rows: _Ints, out: NDArray[np.uint8]) -> None:
        """Decode frame `indices[j]` into `out[rows[j]]`; indices increasing."""

    def close(self) -> None: ...


def _opened(name: VideoDecoderName, path: str, table: FrameTable) -> Decoder:
    if name == "pyav":
        return VideoDecoder(path, table)
    from roboreel.columns.decode_torchcodec import TorchcodecDecoder

    return TorchcodecDecoder(path, table)


@dataclass(frozen=True)
class _Source:
    """What a decoder must have been opened for, to be used again."""

    name: VideoDecoderName
    path: str
    identity: tuple[int, int, int, int]
    """Device, inode, size, time of change: a path may be used again for other content."""
    table_digest: int


@dataclass(eq=False)
class _Open:
    source: _Source
    decoder: Decoder
    bytes: int


class DecoderPool:
    """Reads frames of any number of videos through at most `max_files` open ones (least recently used goes first).

    A decoder is taken out while a thread reads with it, so that threads never wait for each other: two that want
    frames of one file open it twice. After a fork the child begins with an empty pool and leaves alone what it
    inherited.
    """

    def __init__(self, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> None:
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._begin()
        os.register_at_fork(after_in_child=functools.partial(_forget, weakref.ref(self)))

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[_Open, None] = OrderedDict()
        """Least recently used first."""
        self._in_use = 0
        self._bytes = 0
        """Of all that are open."""
        self._closed = 0

    def read(
        self,
        path: Path | str,
        table: FrameTable,
        indices: _Ints,
        rows: _Ints,
        out: NDArray[np.uint8],
        decoder: VideoDecoderName = "pyav",
    ) -> None:
        """Decode frame `indices[j]` of the video `path` into `out[rows[j]]`.

        Args:
            table: the frame table of that file.
            indices: (k,) int64, increasing for speed.
            rows: (k,) int64.
            out: (n, height, width, 3) uint8, contiguous or not.
            decoder: the library that decodes.

        Raises:
            VideoError: the file is gone, or a frame is not in it or cannot be decoded.

            pool.read("a.mp4", table, np.array([3, 7]), np.array([1, 0]), out)   # out[1] is frame 3, out[0] frame 7
        """
        if out.dtype != np.uint8 or out.shape[1:] != table.shape:
            raise InvalidArgumentError(
                f"{path}: its frames need an array of uint8 (n, {', '.join(map(str, table.shape))}); "
                f"got {out.dtype} {out.shape}"
            )
        with self._decoder(decoder, str(path), table) as taken:
            taken.read(indices, rows, out)

    def close(self) -> None:
        """Close every decoder that no thread is using."""
        with self._lock:
            idle = list(self._idle)
            for one in idle:
                self._drop(one)
        self._close(idle)

    def __len__(self) -> int:
        """How many decoders are open, or about to be."""
        return len(self._idle) + self._in_use

    def __reduce__(self) -> tuple[type[DecoderPool], tuple[int, int]]:
        return DecoderPool, (self._max_files, self._max_bytes)  # a decoder does not travel; its limits do

    @contextmanager
    def _decoder(self, name: VideoDecoderName, path: str, table: FrameTable) -> Iterator[Decoder]:
        source = _source(name, path, table)
        need = _FIXED_BYTES + _PICTURES_HELD * table.height * table.width * 3 // 2
        with self._lock:
            taken = next((one for one in reversed(self._idle) if one.source == source), None)
            if taken is not None:
                del self._idle[taken]
            else:
                self._bytes += need
            self._in_use += 1
            surplus = self._surplus(path, source)
        self._close(surplus)
        try:
            if taken is None:
                taken = _Open(source, _opened(name, path, table), need)
            yield taken.decoder
        finally:
            with self._lock:
                self._in_use -= 1
                if taken is None:
                    self._bytes -= need  # it could not be opened
                else:
                    self._idle[taken] = None
                surplus = self._surplus()
            self._close(surplus)

    def _surplus(self, path: str | None = None, source: _Source | None = None) -> list[_Open]:
        """Take out what the limits do not allow, and what was opened for other content of `path`."""
        gone = [] if path is None else [one for one in self._idle if _is_stale(one.source, path, source)]
        for one in gone:
            self._drop(one)
        # the newest stays, however big
        while len(self._idle) + bool(self._in_use) > 1 and (
            len(self) > self._max_files or self._bytes > self._max_bytes
        ):
            oldest = next(iter(self._idle))
            self._drop(oldest)
            gone.append(oldest)
        return gone

    def _close(self, gone: list[_Open]) -> None:
        for one in gone:
            one.decoder.close()
        before, self._closed = self._closed, self._closed + len(gone)
        if before // _TRIM_EVERY != self._closed // _TRIM_EVERY:
            _give_back_memory()

    def _drop(self, one: _Open) -> None:
        del self._idle[one]
        self._bytes -= one.bytes


def _source(name: VideoDecoderName, path: str, table: FrameTable) -> _Source:
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoError(f"{path}: cannot be opened ({error.strerror})") from error
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return _Source(name, path, identity, table.digest)


def _is_stale(source: _Source, path: str, current: _Source | None) -> bool:
    return current is not None and source.path == path and source.identity != current.identity


def _forget(reference: weakref.ref[DecoderPool]) -> None:
    """In a forked child: keep what the parent opened for ever, and begin anew (its lock may be held by no one)."""
    pool = reference()
    if pool is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pool._idle))
        pool._begin()


def _give_back_memory() -> None:
    """Have glibc return what is free between what is in use; elsewhere, nothing.

    Decoders that come and go in several threads leave holes in the memory of each: over 2,000 videos a process would
    take three times what it uses.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.lru_cache(maxsize=1)
def default_pool() -> DecoderPool:
    """The pool of this process."""
    return DecoderPool()
