"""The arrays of a batch, filled: one read a key, images by several threads, each in the form in which it is given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.dataset.buffers import Room
from roboreel.dataset.plan import Arrays, Form, Group, Part
from roboreel.schema import DEPTH_UNITS, KeySpec
from roboreel.store import Frames, Store

_PIECE_BYTES = 1 << 18
"""Pixels are made floats while they are in the processor's cache: so many bytes of them at a time."""
_WORTH_A_THREAD_BYTES = 1 << 20

_MOST_PIXEL = np.float32(255)

Job = Callable[[], None]


class Filling:
    """One attempt to read a batch: small columns are read at once, images as jobs that run beside each other."""

    def __init__(self, store: Store, held: int, room: Room) -> None:
        self._store = store
        self._held = held
        self._room = room
        self._jobs: list[Job] = []

    def fill(self, group: Group, frames: Frames, arrays: Arrays) -> None:
        """Read the keys of a group into `arrays`, (B[, T], *shape); images are there after `finish` only."""
        for part in group.parts:
            out = arrays[part.key]
            if part.steps is not None:
                out = out.reshape(len(frames.slots), *part.spec.shape)
            if not part.spec.is_camera:
                read = self._read if part.form is Form.STORED else self._convert
                read(part, frames, out)
            elif part.spec.needs_decoding:
                self._jobs.append(partial(self._decode, part, frames, out))
            else:
                self._split(part, frames, out)

    def finish(self) -> None:
        """Read what was left for threads."""
        # Let go of first: they refer to this object, and a cycle would keep the batch's memory from being used again.
        jobs, self._jobs = self._jobs, []
        if jobs:
            self._store.run(jobs)

    def _decode(self, part: Part, frames: Frames, out: NDArray[Any]) -> None:
        if part.form is Form.STORED:
            self._store.read_key(part.key, frames, out, self._held)
            return
        raw = self._room.empty((len(out), *part.spec.shape), part.spec.dtype, len(out) * part.spec.frame_bytes)
        self._store.read_key(part.key, frames, raw, self._held)
        pieces = _pieces(part.spec, len(out))
        self._store.run([partial(_give, part, raw[piece], out[piece]) for piece in pieces])

    def _split(self, part: Part, frames: Frames, out: NDArray[Any]) -> None:
        """Share a camera's raw pixels out among threads."""
        count = len(out)
        share = max(1, _WORTH_A_THREAD_BYTES // max(1, part.spec.frame_bytes), -(-count // self._store.decoding.limit))
        read = self._convert if part.form is not Form.STORED else self._read
        for begin in range(0, count, share):
            piece = slice(begin, begin + share)
            self._jobs.append(partial(read, part, frames[piece], out[piece]))

    def _read(self, part: Part, frames: Frames, out: NDArray[Any]) -> None:
        self._store.read_key(part.key, frames, out)

    def _convert(self, part: Part, frames: Frames, out: NDArray[Any]) -> None:
        """Read and convert a piece at a time, through memory that stays in the cache."""
        pieces = _pieces(part.spec, len(out))
        raw = np.empty((pieces[0].stop if pieces else 0, *part.spec.shape), part.spec.dtype)
        for piece in pieces:
            some = raw[: piece.stop - piece.start]
            self._store.read_key(part.key, frames[piece], some)
            _give(part, some, out[piece])


def _pieces(spec: KeySpec, count: int) -> list[slice]:
    size = max(1, _PIECE_BYTES // max(1, spec.frame_bytes))
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


def _give(part: Part, raw: NDArray[Any], out: NDArray[Any]) -> None:
    """Put stored values into the form in which they are given."""
    if part.form is Form.UNIT:
        np.divide(raw, _MOST_PIXEL, out=out)
    elif part.form is Form.METRES:
        assert part.spec.unit is not None
        # Divided, not times 0.001, which no float is: 1,001 mm would come out as another number than 1.001.
        np.divide(raw, np.float32(DEPTH_UNITS[part.spec.unit]), out=out, dtype=np.float32)
    else:
        out[...] = raw
