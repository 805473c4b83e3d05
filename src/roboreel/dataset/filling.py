"""The arrays of a batch, filled: one read a key, images by several threads, each in the form in which it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.dataset.buffers import Room
from roboreel.dataset.plan import Form, Group, Ints, Part, Rows
from roboreel.schema import DEPTH_UNITS, KeySpec
from roboreel.store import Frames, Store

_PIECE_BYTES = 1 << 18
"""Pixels are made floats while they are in the processor's cache: so many bytes of them at a time."""
_WORTH_A_THREAD_BYTES = 1 << 20
_WORTH_A_CALL_BYTES = 1 << 12
"""Frames so large are divided one by one where they belong, rather than together and then copied there."""
_WORTH_A_READ_BYTES = 1 << 16
"""As much, in frames that follow one another, is read on its own, rather than with others and then copied."""

_MOST_PIXEL = np.float32(255)

Job = Callable[[], None]


class Filling:
    """One attempt to read a batch: small columns are read at once, images as jobs that run beside each other."""

    def __init__(self, store: Store, held: int, room: Room) -> None:
        self._store = store
        self._held = held
        self._room = room
        self._jobs: list[Job] = []

    def fill(self, group: Group, slots: Ints, rows: Ints, into: Rows) -> None:
        """Read the keys of a group, of frames in `slots` (B[, T]) that the episodes `rows` (B,) own, into a batch.

        Images are there after `finish` only.
        """
        take = self._store.take
        if into.at is None:
            self._store.take_all(group.as_stored, slots, into.arrays)
        else:
            for key in group.as_stored:
                into.put(key, take(key, slots))
        for part in group.cast:
            into.put(part.key, take(part.key, slots))
        if group.cameras:
            self._fill_images(group, slots, rows, into)

    def _fill_images(self, group: Group, slots: Ints, rows: Ints, into: Rows) -> None:
        full = group.needs_decoding
        owners = np.repeat(rows, slots.size // max(1, len(rows))) if full else rows
        frames = self._store.frames_at(slots.reshape(-1), owners, full=full)
        for part in group.cameras:
            out, at = into.frames(part)
            if part.spec.needs_decoding:
                self._jobs.append(partial(self._decode, part, frames, out, at))
            else:
                self._split(part, frames, out, at)

    def finish(self) -> None:
        """Read what was left for threads."""
        # Let go of first: they refer to this object, and a cycle would keep the batch's memory from being used again.
        jobs, self._jobs = self._jobs, []
        if jobs:
            self._store.run(jobs)

    def _decode(self, part: Part, frames: Frames, out: NDArray[Any], at: Ints | None) -> None:
        if part.form is Form.STORED and at is None:
            self._store.read_key(part.key, frames, out, self._held)
            return
        count = len(frames.slots)
        raw = self._room.empty((count, *part.spec.shape), part.spec.dtype, count * part.spec.frame_bytes)
        self._store.read_key(part.key, frames, raw, self._held)
        pieces = _pieces(part.spec, count)
        self._store.run([partial(_give, part, raw[piece], out, piece if at is None else at[piece]) for piece in pieces])

    def _split(self, part: Part, frames: Frames, out: NDArray[Any], at: Ints | None) -> None:
        """Share a camera's raw pixels out among threads."""
        count = len(frames.slots)
        share = max(1, _WORTH_A_THREAD_BYTES // max(1, part.spec.frame_bytes), -(-count // self._store.decoding.limit))
        for begin in range(0, count, share):
            piece = slice(begin, begin + share)
            if at is None:
                self._jobs.append(partial(self._read, part, frames[piece], out[piece], None))
            else:
                self._jobs.append(partial(self._read, part, frames[piece], out, at[piece]))

    def _read(self, part: Part, frames: Frames, out: NDArray[Any], at: Ints | None) -> None:
        """Read, where it must be a piece at a time, through memory that stays in the processor's cache."""
        if part.form is Form.STORED and at is None:
            self._store.read_key(part.key, frames, out)
            return
        if part.form is Form.STORED and at is not None and _are_long(at, part.spec):
            for ours, there in _runs(at):
                self._store.read_key(part.key, frames[ours], out[there])
            return
        pieces = _pieces(part.spec, len(frames.slots))
        raw = np.empty((pieces[0].stop if pieces else 0, *part.spec.shape), part.spec.dtype)
        for piece in pieces:
            some = raw[: piece.stop - piece.start]
            self._store.read_key(part.key, frames[piece], some)
            _give(part, some, out, piece if at is None else at[piece])


def _pieces(spec: KeySpec, count: int) -> list[slice]:
    size = max(1, _PIECE_BYTES // max(1, spec.frame_bytes))
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


def _give(part: Part, raw: NDArray[Any], out: NDArray[Any], at: slice | Ints) -> None:
    """Put stored values (n, *shape) into frames of `out`, in the form in which they are given."""
    if part.form in (Form.STORED, Form.CAST):
        out[at] = raw
    elif isinstance(at, slice):
        _divide(part, raw, out[at])
    elif part.spec.frame_bytes >= _WORTH_A_CALL_BYTES:
        for ours, there in _runs(at):
            _divide(part, raw[ours], out[there])
    else:
        given = np.empty(raw.shape, np.float32)
        _divide(part, raw, given)
        out[at] = given


def _divide(part: Part, raw: NDArray[Any], out: NDArray[Any]) -> None:
    if part.form is Form.UNIT:
        np.divide(raw, _MOST_PIXEL, out=out)
    else:
        assert part.spec.unit is not None
        # Divided, not times 0.001, which no float is: 1,001 mm would come out as another number than 1.001.
        np.divide(raw, np.float32(DEPTH_UNITS[part.spec.unit]), out=out, dtype=np.float32)


def _are_long(at: Ints, spec: KeySpec) -> bool:
    """Whether the stretches in which numbers follow one another are worth a read each."""
    if spec.frame_bytes < _WORTH_A_CALL_BYTES:
        return False
    runs = 1 + int(np.count_nonzero(at[1:] - at[:-1] != 1))
    return len(at) * spec.frame_bytes >= runs * _WORTH_A_READ_BYTES


def _runs(at: Ints) -> Iterator[tuple[slice, slice]]:
    """Yield where numbers follow one another: places in `at`, and the numbers that they have there.

    >>> list(_runs(np.array([4, 5, 6, 9])))
    [(slice(0, 3, None), slice(4, 7, None)), (slice(3, 4, None), slice(9, 10, None))]
    """
    breaks = (np.flatnonzero(at[1:] - at[:-1] != 1) + 1).tolist()
    for begin, stop in zip([0, *breaks], [*breaks, len(at)], strict=True):
        first = int(at[begin])
        yield slice(begin, stop), slice(first, first + stop - begin)
