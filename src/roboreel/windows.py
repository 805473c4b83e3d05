"""Which frames a window takes: a pure function of integers (regular episodes) or of timestamps (the others).

Positions are slots, so that a result can be gathered as it is. `lo` and `hi` are the first slot of an episode and the
one after its last; in a ring `lo` is the first that survives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import InvalidArgumentError

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

_SNAP_FRAMES = 1e-6
"""0.3 s at 10 Hz is 3.0000000000000004 frames: offsets this near to a whole or a half number of frames mean it."""
_MAX_OFFSET_FRAMES = 1 << 40


def stretches(starts: Ints, stops: Ints) -> Ints:
    """Return the slots of several ranges, [start, stop) each, one range after the other.

    >>> stretches(np.array([7, 0]), np.array([9, 3])).tolist()
    [7, 8, 0, 1, 2]
    """
    lengths = stops - starts
    return np.arange(int(lengths.sum())) + np.repeat(stops - np.cumsum(lengths), lengths)


def tolerance_s(fps: float) -> float:
    """Return how far from a frame, in seconds, a requested time may lie.

    >>> round(tolerance_s(10), 6)
    0.0999
    """
    return max(1 / fps - 1e-4, 0.5 / fps)  # above 5 kHz the 1e-4 s would leave less than to the next frame


@dataclass(frozen=True)
class Deltas:
    """The `delta_timestamps` of one key, with what follows from them and the frame rate. Arrays of shape (T,)."""

    seconds: Floats
    offsets: Ints
    """Frames from the current one to the requested; half-way requests go to the earlier frame."""
    pad_before: Ints
    """The request is padding where the episode begins at least so many frames after the current one."""
    pad_after: Ints
    """The request is padding where the current frame comes at least so many frames after the episode's last."""
    tolerance_s: float
    tie_s: float
    """Two frames are as near to a request where their distances differ by no more than this."""

    @property
    def signature(self) -> bytes:
        """Equal for keys that take the same frames."""
        return self.seconds.tobytes()

    def __len__(self) -> int:
        return len(self.seconds)


def parse_deltas(key: str, seconds: Sequence[float] | Floats, fps: float) -> Deltas:
    """Parse the offsets (seconds) asked for `key`.

    >>> parse_deltas("action", [-0.1, 0, 0.05, 0.15], 10).offsets.tolist()
    [-1, 0, 0, 1]
    """
    advice = f"give seconds such as [-{1 / fps:g}, 0, {1 / fps:g}] (one frame is {1 / fps:g} s at {fps:g} Hz)"
    try:
        array = np.asarray(seconds, np.float64)
    except (TypeError, ValueError):
        raise InvalidArgumentError(
            f"delta_timestamps[{key!r}]={seconds!r} is not a list of numbers; {advice}"
        ) from None
    if array.ndim != 1 or not len(array) or not np.all(np.isfinite(array)):
        raise InvalidArgumentError(f"delta_timestamps[{key!r}]={seconds!r} is not a list of finite numbers; {advice}")
    frames = array * fps
    halves = np.round(frames * 2) / 2
    frames = np.where(np.abs(frames - halves) < _SNAP_FRAMES, halves, frames)
    if np.any(np.abs(frames) > _MAX_OFFSET_FRAMES):
        raise InvalidArgumentError(f"delta_timestamps[{key!r}]={seconds!r} reaches beyond any episode; {advice}")
    reach = tolerance_s(fps) * fps
    return Deltas(
        seconds=array,
        offsets=np.ceil(frames - 0.5).astype(np.int64),
        pad_before=np.floor(frames + reach).astype(np.int64) + 1,
        pad_after=np.floor(reach - frames).astype(np.int64) + 1,
        tolerance_s=tolerance_s(fps),
        tie_s=2 * _SNAP_FRAMES / fps,
    )


def joined(several: Sequence[Deltas]) -> Deltas | None:
    """Return the offsets of several keys one after the other, so that all of them are looked for at once.

    >>> both = joined([parse_deltas("state", [-0.1, 0], 10), parse_deltas("action", [0, 0.1], 10)])
    >>> both.offsets.tolist()
    [-1, 0, 0, 1]
    """
    if len(several) < 2:
        return several[0] if several else None
    seconds, offsets, before, after = (
        np.concatenate([getattr(deltas, name) for deltas in several])
        for name in ("seconds", "offsets", "pad_before", "pad_after")
    )
    return Deltas(seconds, offsets, before, after, several[0].tolerance_s, several[0].tie_s)


def integer_windows(position: Ints, lo: Ints, hi: Ints, deltas: Deltas) -> tuple[Ints, Bools]:
    """Return slots (B, T) and padding mask (B, T) for frames at `position` (B,) of episodes [lo, hi) (B,).

    One episode of 5 frames at 10 Hz, the frame in its middle:

    >>> deltas = parse_deltas("index", [-0.3, -0.2, 0, 0.2, 0.3], 10)
    >>> slots, is_pad = integer_windows(np.array([2]), np.array([0]), np.array([5]), deltas)
    >>> slots.tolist(), is_pad.tolist()
    ([[0, 0, 2, 4, 4]], [[True, False, False, False, True]])
    """
    # Computed as (T, B), and returned as it lies: numpy is fast along long axes, and T is a few.
    slots = deltas.offsets[:, None] + position
    last = hi - 1
    np.maximum(slots, lo, out=slots)
    np.minimum(slots, last, out=slots)
    is_pad = deltas.pad_before[:, None] <= lo - position
    is_pad |= deltas.pad_after[:, None] <= position - last
    return slots.T, is_pad.T


@dataclass(frozen=True)
class NearEnds:
    """Windows made beforehand, looked up by how far the ends of the episode are: beyond a few frames all is the same.

    An episode of 5 frames, its last two:

    >>> near = NearEnds.of([parse_deltas("index", [-0.1, 0, 0.2], 10)], most_bytes=1 << 10)
    >>> cells = near.cells(np.array([3, 4]), np.array([0, 0]), np.array([5, 5]))
    >>> [table.take(cells, 0).tolist() for table in near.tables[0]]
    [[[-1, 0, 1], [-1, 0, 0]], [[False, False, True], [False, False, True]]]
    """

    before: Ints
    """So many frames before it an episode may begin as well much earlier, (); an array, which numpy takes as it is."""
    width: Ints
    """As many frames before its end it may end as well much later, ()."""
    tables: tuple[tuple[Ints, Bools], ...]
    """For each of several keys, by cell: the frames that its window takes, from the current one on, and padding."""

    @classmethod
    def of(cls, several: Sequence[Deltas], most_bytes: int) -> NearEnds | None:
        """Make the windows of several keys; None where they would take more than `most_bytes`."""
        before = max(max(-deltas.offsets.min(), 1 - deltas.pad_before.min(), 0) for deltas in several)
        width = 1 + max(max(deltas.offsets.max(), 1 - deltas.pad_after.min(), 0) for deltas in several)
        cells = int(before + 1) * int(width) + 1  # the first one is nobody's
        if cells * sum(map(len, several)) * (np.dtype(np.int64).itemsize + 1) > most_bytes:
            return None
        behind, ahead = np.divmod(np.arange(-1, cells - 1), width)
        tables = [integer_windows(np.zeros(cells, np.int64), -behind, ahead + 1, deltas) for deltas in several]
        contiguous = [(np.ascontiguousarray(taken), np.ascontiguousarray(is_pad)) for taken, is_pad in tables]
        return cls(np.array(before), np.array(width), tuple(contiguous))

    def cells(self, position: Ints, lo: Ints, hi: Ints) -> Ints:
        """Return where the tables have the windows of frames at `position` of episodes [lo, hi), all (B,)."""
        cells = position - lo
        np.minimum(cells, self.before, out=cells)
        np.multiply(cells, self.width, out=cells)
        ahead = hi - position
        np.minimum(ahead, self.width, out=ahead)
        cells += ahead
        return cells


def time_windows(
    time_of: Callable[[Ints], Floats], position: Ints, lo: Ints, hi: Ints, deltas: Deltas
) -> tuple[Ints, Bools, Bools]:
    """Return slots, padding mask and hole mask, all (B, T), by nearest timestamp; ties go to the earlier frame.

    `time_of` gives the timestamps (s, never decreasing within an episode) of slots of any shape. A hole is a request
    inside the episode from which the nearest frame is farther than the tolerance.

    >>> times = np.array([0.0, 0.1, 0.5, 0.6])
    >>> deltas = parse_deltas("index", [-1, 0, 0.15], 10)
    >>> slots, is_pad, hole = time_windows(times.__getitem__, np.array([1]), np.array([0]), np.array([4]), deltas)
    >>> slots.tolist(), is_pad.tolist(), hole.tolist()
    ([[0, 1, 1]], [[True, False, False]], [[False, False, True]])
    """
    now = time_of(position)
    wanted = now[:, None] + deltas.seconds
    first, stop = np.broadcast_to(lo[:, None], wanted.shape), np.broadcast_to(hi[:, None], wanted.shape)
    right = _first_not_before(time_of, wanted, first, stop)
    left = np.maximum(right - 1, first)
    right = np.minimum(right, stop - 1)
    left_time, right_time = time_of(left), time_of(right)
    left_distance, right_distance = np.abs(wanted - left_time), np.abs(right_time - wanted)
    # 0.1 s + 0.05 s is half-way between 0.1 s and 0.2 s, but not in binary; and times of a clock have fewer digits.
    rounding_s = _rounding_s(now[:, None], left_time, right_time)
    take_left = left_distance <= right_distance + np.maximum(deltas.tie_s, rounding_s)
    nearest = np.where(take_left, left, right)
    # Timestamps may repeat: of several frames at one time the earliest counts, except that now is the frame itself.
    nearest = _first_not_before(time_of, time_of(nearest), first, stop)
    nearest = np.where(deltas.seconds == 0, position[:, None], nearest)
    distance = np.where(deltas.seconds == 0, 0.0, np.where(take_left, left_distance, right_distance))
    outside = (wanted < time_of(lo)[:, None]) | (wanted > time_of(hi - 1)[:, None])
    too_far = distance > deltas.tolerance_s
    return nearest, too_far & outside, too_far & ~outside


def _rounding_s(*times: Floats) -> Floats:
    """Return by how much two distances between these times may differ where only rounding makes them differ.

    Times that all are float32 values, as in most recordings, were rounded to them, each by up to half of their spacing.
    """
    largest = np.max([np.abs(each) for each in np.broadcast_arrays(*times)], axis=0)
    is_single = np.all([each == each.astype(np.float32) for each in np.broadcast_arrays(*times)], axis=0)
    rounding: Floats = np.where(is_single, 2 * np.spacing(largest.astype(np.float32)), 4 * np.spacing(largest))
    return rounding


def _first_not_before(time_of: Callable[[Ints], Floats], wanted: Floats, lo: Ints, hi: Ints) -> Ints:
    """Return for each request the first slot of [lo, hi) with a timestamp >= it, or hi: bisection, all at once."""
    low, high = lo.copy(), hi.copy()
    for _ in range(math.ceil(math.log2(max(2, int(np.max(hi - lo, initial=1)) + 1))) + 1):
        middle = (low + high) // 2
        open_ = low < high
        before = open_ & (time_of(np.minimum(middle, hi - 1)) < wanted)
        low = np.where(before, middle + 1, low)
        high = np.where(open_ & ~before, middle, high)
    return low
