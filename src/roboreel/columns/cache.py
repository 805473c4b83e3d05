"""A camera read through the cache of its decoded frames: decoded once, and copied ever after."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from roboreel.columns.base import Column, Decoding, Frames
from roboreel.columns.cache_file import CacheFile
from roboreel.columns.video import VideoColumn
from roboreel.errors import RoboreelError, StorageDirCorruptError, StorageError
from roboreel.format import paths

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

Identify = Callable[[Frames], Words]
"""What tells the images of frames from all others, (N,), never 0; `FileNotFoundError` where a file is gone."""

_FACTOR_A, _FACTOR_B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)
_KNOWN_FILES = 100_000
"""Videos whose identity is kept: a ring goes through ever new ones."""


class CachedColumn(Column):
    """Gives the frames of another column, from the cache where they are there."""

    def __init__(
        self,
        column: Column,
        identify: Identify,
        file: CacheFile,
        on_failure: Callable[[RoboreelError], None],
        decoding: Decoding,
    ) -> None:
        self.spec = column.spec
        self.file = file
        self.filling = True
        """Whether what is decoded is kept; ends where the disk is full."""
        self.hits = self.decoded = 0
        """Frames that this process was asked for and found, and those that it decoded."""
        self._column = column
        self._identify = identify
        self._on_failure = on_failure
        self._decoding = decoding

    def resize(self, slots: int, places: int) -> None:
        """Have room in the cache; where that cannot be, frames are decoded."""
        try:
            self.file.resize(slots, places)
        except (StorageError, StorageDirCorruptError) as error:
            self._on_failure(error)

    def read(self, frames: Frames, out: NDArray[Any]) -> None:
        identities = self._identify(frames)
        if not out.flags.c_contiguous or not len(out):
            self._column.read(frames, out)
            return
        pixels = out.reshape(len(out), -1).view(np.uint8)
        hit = self.file.read(frames.slots, identities, pixels, self._decoding.limit)
        missing = np.flatnonzero(~hit)
        self.hits += len(out) - len(missing)
        if not len(missing):
            return
        slots, first, back = np.unique(frames.slots[missing], return_index=True, return_inverse=True)
        chosen = missing[first]
        wanted = frames[chosen]
        decoded = np.empty((len(slots), *self.spec.shape), self.spec.dtype)
        self._column.read(wanted, decoded)
        out[missing] = decoded[back]
        self.decoded += len(slots)
        if self.filling:
            self._fill(wanted, identities[chosen], decoded)

    def _fill(self, frames: Frames, identities: Words, decoded: NDArray[Any]) -> None:
        try:
            if not np.array_equal(self._identify(frames), identities):
                return  # a file was replaced while we decoded
            self.file.fill(frames.slots, identities, decoded.reshape(len(decoded), -1).view(np.uint8))
        except (StorageError, StorageDirCorruptError) as error:
            self._on_failure(error)
        except FileNotFoundError:
            return  # a ring has just overwritten the episode

    def close(self) -> None:
        self.file.close()


class VideoIdentity:
    """Tells frames of videos apart by the hash of their file, its inode, size and time of change, and by number.

    The hash was taken at ingest. Size and time are looked at with each batch, so that a file that somebody has put in
    the place of another is decoded, whatever its table says.
    """

    def __init__(self, root: Path, column: VideoColumn, clip: int) -> None:
        self._root = root
        self._column = column
        self._clip = clip
        self._known: dict[int, tuple[str, tuple[int, int, int], int]] = {}

    def __call__(self, frames: Frames) -> Words:
        assert frames.clips is not None
        clips = frames.clips[:, self._clip]
        numbers, back = np.unique(clips["file"], return_inverse=True)
        files = np.array([self._of_file(number) for number in numbers.tolist()], np.uint64)
        return _mixed(files[back], clips["first"] + frames.positions)

    def _of_file(self, number: int) -> int:
        known = self._known.get(number)
        path = known[0] if known else str(paths.video_path(self._root, self._column.spec.name, number))
        status = os.stat(path)
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        if known is None or known[1] != seen:
            parts = (self._column.table(number).file_hash, *seen)  # a time of change can be set, by `cp -p` or `tar`
            identity = xxhash.xxh3_64_intdigest(np.array(parts, np.uint64).tobytes())
            if len(self._known) >= _KNOWN_FILES:
                self._known.clear()
            known = self._known[number] = (path, seen, identity)
        return known[2]


def png_identity(frames: Frames, checksums: Words) -> Words:
    """Tell PNG files apart by the checksums of their bytes, and by episode row and place in it.

    These, because a checksum that is read while a ring is overwritten may be that of the next episode.
    """
    return _mixed(_mixed(checksums, frames.rows), frames.positions)


def _mixed(words: Words, numbers: Ints) -> Words:
    """Hash pairs of integers, (N,) and (N,), to (N,) words that are not 0.

    >>> pairs = _mixed(np.array([7, 7, 8], np.uint64), np.array([0, 1, 0]))
    >>> len(set(pairs.tolist()))
    3
    """
    mixed = words + (numbers.astype(np.uint64) + np.uint64(1)) * _FACTOR_A
    for _ in range(2):
        mixed ^= mixed >> _SHIFT
        mixed *= _FACTOR_B
    mixed ^= mixed >> _SHIFT
    return np.maximum(mixed, np.uint64(1))
