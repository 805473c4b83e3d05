"""The survivors nearest to a slot that was lost: looked for from the slot outwards, not among all there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_NEAR = (64, 512, 4096, 32_768)
"""Slots on each side that are looked at first; then where episodes have survivors, of which there can be none near."""
PIECE_SLOTS = 1 << 20
"""Slots whose owners are looked at at once: there may be more than memory, where files have holes."""


def survivors_around(
    slot: int,
    frames: int,
    is_lost: Callable[[Ints], NDArray[np.bool_]],
    live_ranges: Callable[[], tuple[Ints, Ints]],
) -> tuple[int, int]:
    """Return the nearest slots before and after that are not lost; -1, or the number of frames, where none is.

    `live_ranges` gives the first slots of ranges, and those after their last, outside which every slot is lost.

    >>> everything = lambda: (np.array([0]), np.array([10]))
    >>> survivors_around(5, 10, lambda slots: (slots >= 3) & (slots < 7), everything)
    (2, 7)
    >>> survivors_around(1, 9, lambda slots: slots < 9, everything)
    (-1, 9)
    """

    def is_alive(slots: Ints) -> NDArray[np.bool_]:
        return ~is_lost(slots)

    before = next((int(some[-1]) for some in _chosen(_pieces_before(slot, live_ranges), is_alive)), -1)
    after = next((int(some[0]) for some in _chosen(_pieces_after(slot, frames, live_ranges), is_alive)), frames)
    return before, after


def lost_range(start: int, stop: int, is_lost: Callable[[Ints], NDArray[np.bool_]]) -> tuple[int, int] | None:
    """Return the range from the first to the last of slots [start, stop) that are lost, None where none is.

    >>> lost_range(0, 100, lambda slots: (slots == 7) | (slots == 40))
    (7, 41)
    """
    pieces = _cut(start, stop)
    first = next(_chosen(pieces, is_lost), None)
    last = next(_chosen(reversed(pieces), is_lost), None)
    return None if first is None or last is None else (int(first[0]), int(last[-1]) + 1)


def _chosen(pieces: Iterable[tuple[int, int]], choose: Callable[[Ints], NDArray[np.bool_]]) -> Iterator[Ints]:
    """Yield of each piece the slots that are chosen, if any are."""
    for start, stop in pieces:
        slots = np.arange(start, stop)
        if len(chosen := slots[choose(slots)]):
            yield chosen


def _pieces_before(slot: int, live_ranges: Callable[[], tuple[Ints, Ints]]) -> Iterator[tuple[int, int]]:
    stop = slot
    for reach in _NEAR:
        start = max(0, stop - reach)
        yield start, stop
        stop = start
    starts, stops = live_ranges()
    stops = np.minimum(stops, stop)
    for at in np.argsort(-stops, kind="stable").tolist():
        yield from reversed(_cut(int(starts[at]), int(stops[at])))


def _pieces_after(slot: int, frames: int, live_ranges: Callable[[], tuple[Ints, Ints]]) -> Iterator[tuple[int, int]]:
    start = slot + 1
    for reach in _NEAR:
        stop = min(frames, start + reach)
        yield start, stop
        start = stop
    starts, stops = live_ranges()
    starts = np.maximum(starts, start)
    for at in np.argsort(starts, kind="stable").tolist():
        yield from _cut(int(starts[at]), min(frames, int(stops[at])))


def _cut(start: int, stop: int) -> list[tuple[int, int]]:
    return [(at, min(at + PIECE_SLOTS, stop)) for at in range(start, stop, PIECE_SLOTS)]
