"""What reading costs, measured: random windows of the frames as they are stored; and when decoding once has paid."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.columns.frame_table import FrameTable
from roboreel.columns.frames import CameraFrames, PngFrames, VideoFrames
from roboreel.store.store import Store

WINDOW = 2
"""Neighbouring frames in a window that is timed."""
_BATCH = 64
_BUDGET_S = 0.5
_MAX_BATCHES = 8
_SEED = 0


def window_seconds(store: Store, keys: Iterable[str]) -> float:
    """Return the seconds that a random window of these cameras costs, read in batches by one thread.

    The caller sees to it that nobody writes meanwhile. 0 where there is no frame.
    """
    table = store.table
    live = table.live
    if not len(live):
        return 0.0
    spans = np.stack([live, table.live_starts[live], table.stops[live]], axis=1)
    columns = [(store.columns[key], store.manifest.keys[key]) for key in keys]

    def read(chosen: NDArray[np.int64], rng: np.random.Generator) -> None:
        rows, starts, stops = spans[chosen].T
        slots, rows = _windows(starts, stops, rng), np.repeat(rows, WINDOW)
        frames = store.frames_at(slots, rows)
        for column, spec in columns:
            column.read(frames, np.empty((len(slots), *spec.shape), spec.dtype))

    return _timed(read, spans[:, 2] - spans[:, 1])


def source_window_seconds(episodes: Sequence[Mapping[str, CameraFrames]]) -> float:
    """As `window_seconds`, of the cameras of some episodes of a foreign dataset, of which the files are read."""
    tables = {
        frames.path: FrameTable.from_video(frames.path)
        for cameras in episodes
        for frames in cameras.values()
        if isinstance(frames, VideoFrames)
    }
    lengths = [next(iter(cameras.values())).length if cameras else 0 for cameras in episodes]

    def read(chosen: NDArray[np.int64], rng: np.random.Generator) -> None:
        for number in np.unique(chosen).tolist():
            count = int(np.sum(chosen == number))
            wanted = _windows(np.zeros(count, np.int64), np.full(count, lengths[number]), rng)
            for frames in episodes[number].values():
                _read(frames, wanted, tables)

    return _timed(read, np.array(lengths))


def _read(frames: CameraFrames, wanted: NDArray[np.int64], tables: Mapping[Any, FrameTable]) -> None:
    if isinstance(frames, VideoFrames):
        from roboreel.columns.decoder_pool import default_pool  # brings the decoder in

        distinct = np.unique(wanted)
        out = np.empty((len(distinct), *frames.shape), np.uint8)
        indices = frames.first + distinct
        default_pool().read(frames.path, tables[frames.path], indices, np.arange(len(distinct)), out)
    elif isinstance(frames, PngFrames):
        for position in np.unique(wanted).tolist():
            frames.decoded(position)


def _windows(starts: NDArray[np.int64], stops: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return `WINDOW` neighbouring slots within each span, the last one repeated at its end: (n * WINDOW,)."""
    first = rng.integers(starts, stops)
    windows: NDArray[np.int64] = np.minimum(first[:, None] + np.arange(WINDOW), stops[:, None] - 1)
    return windows.reshape(-1)


def _timed(read: Callable[[NDArray[np.int64], np.random.Generator], None], lengths: NDArray[np.int64]) -> float:
    """Return seconds a window: long episodes are drawn more often, as frames are."""
    if not lengths.sum():
        return 0.0
    rng = np.random.default_rng(_SEED)
    weights = lengths / lengths.sum()
    read(np.zeros(1, np.int64), rng)  # what is imported and opened once is no part of an epoch
    batch = min(_BATCH, int(lengths.sum()))
    windows, began = 0, time.perf_counter()
    for _ in range(_MAX_BATCHES):
        read(rng.choice(len(lengths), batch, p=weights), rng)
        windows += batch
        if time.perf_counter() - began > _BUDGET_S:
            break
    return (time.perf_counter() - began) / windows


def break_even_epochs(spent_s: float, before_s: float, after_s: float) -> int | None:
    """Return the first epoch by the end of which the seconds spent are saved; None where they never are.

    100 s spent, and an epoch of 60 s instead of one of 90 s: after the fourth, 120 s are saved.

    >>> break_even_epochs(100, before_s=90, after_s=60), break_even_epochs(1, before_s=5, after_s=6)
    (4, None)
    """
    saved = before_s - after_s
    return max(1, math.ceil(spent_s / saved)) if saved > 0 else None


def payoff_text(spent_s: float, before_s: float, after_s: float) -> str:
    """Say what an epoch's reading cost and costs, and when the seconds spent have paid for themselves.

    >>> print(payoff_text(100, 90, 60))
    reading the cameras in random windows of 2 frames costs 60.0 s an epoch, was 90.0 s (measured, one thread)
    the 100.0 s have paid for themselves after 4 epochs
    """
    lines = [
        f"reading the cameras in random windows of {WINDOW} frames costs {_seconds(after_s)} an epoch, was "
        f"{_seconds(before_s)} (measured, one thread)"
    ]
    epochs = break_even_epochs(spent_s, before_s, after_s)
    if epochs is None:
        lines.append(f"that is no faster than before: in time the {_seconds(spent_s)} never pay for themselves")
    else:
        lines.append(f"the {_seconds(spent_s)} have paid for themselves after {epochs:,} epoch{'s' * (epochs != 1)}")
    return "\n".join(lines)


def _seconds(seconds: float) -> str:
    """Return seconds with three digits.

    >>> _seconds(0.01234), _seconds(61.0)
    ('0.0123 s', '61.0 s')
    """
    return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:,.1f} s"
