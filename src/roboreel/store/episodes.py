"""The episode table in memory: which slots belong to which episode, and what of it survives in a ring."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from roboreel.format.records import FLAG_INTEGER_WINDOWS, FLAG_LOST, NO_STRING

Ints = NDArray[np.int64]

_FEW_ROWS = 64
"""Up to so many new rows are taken one by one; more, as on opening, in one pass over all."""


class EpisodeTable:
    """Rows as they were committed, with the part of each that later rows have not overwritten.

    A ring writes forward, so what survives of an episode is always its end: slots [live_start, stop).

    Rows are only ever appended; `live_start` of older rows moves when a newer one takes their slots.
    """

    NONE: Final[Ints] = np.zeros(0, np.int64)
    """No rows."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._rows: NDArray[np.void] = np.zeros(0, dtype)
        self._live_start: Ints = np.zeros(0, np.int64)
        self._stop: Ints = np.zeros(0, np.int64)
        self._count = 0
        self._live: Ints | None = None
        self._oldest = 0
        """Of no row before it anything survives: cost follows what is stored, not what ever was."""
        self._integer_windows: bool | None = None
        self._last_stop = 0
        self._wrapped = False
        self._has_losses = False

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> NDArray[np.void]:
        return self._rows[: self._count]

    @property
    def starts(self) -> Ints:
        starts: Ints = self.rows["start"]
        return starts

    @property
    def stops(self) -> Ints:
        return self._stop[: self._count]

    def integer_windows_of(self, rows: Ints) -> NDArray[np.bool_]:
        """Whether each of the given rows takes its windows from frame numbers."""
        chosen: NDArray[np.bool_] = (self._rows["flags"][rows] & FLAG_INTEGER_WINDOWS) != 0
        return chosen

    def stops_of(self, rows: Ints) -> Ints:
        """The slots after the last of the given rows."""
        stops: Ints = self._stop[rows]
        return stops

    def bounds_of(self, rows: Ints) -> tuple[Ints, Ints]:
        """The first surviving slots of the given rows, and those after their last."""
        return self._live_start[rows], self._stop[rows]

    @property
    def live_starts(self) -> Ints:
        """First surviving slot of each row; equal to its stop where nothing survives."""
        return self._live_start[: self._count]

    @property
    def live(self) -> Ints:
        """Row numbers of the episodes of which at least one frame is readable, oldest first."""
        live = self._live
        if live is None:  # once each: another thread may be here, too
            oldest, count = self._oldest, self._count
            rows = np.arange(oldest, count)
            lost = (self._rows["flags"][oldest:count] & FLAG_LOST) != 0
            live = self._live = rows[(self._live_start[rows] < self.stops_of(rows)) & ~lost]
            self._oldest = int(live[0]) if len(live) else count
        return live

    def live_ranges(self) -> tuple[Ints, Ints]:
        """The slots that survive: first of each live episode, and after the last."""
        live = self.live
        return self._live_start[live], self.stops_of(live)

    @property
    def integer_windows(self) -> bool:
        """Whether every live episode takes its windows from frame numbers."""
        if self._integer_windows is None:
            self._integer_windows = bool(np.all(self.rows["flags"][self.live] & FLAG_INTEGER_WINDOWS))
        return self._integer_windows

    @property
    def last_episode(self) -> int:
        """The row of the newest episode; 0 where there is none."""
        row = self._count - 1
        while row > 0 and self._rows["flags"][row] & FLAG_LOST:
            row -= 1
        return max(row, 0)

    @property
    def has_losses(self) -> bool:
        """Whether a writer ever died in the middle of an overwrite."""
        return self._has_losses

    def touching(self, start: int, stop: int) -> Ints:
        """The live rows that have a frame in slots [start, stop)."""
        live = self.live
        touching: Ints = live[(self._live_start[live] < stop) & (self.stops_of(live) > start)]
        return touching

    def outside(self, start: int, stop: int) -> Ints:
        """The live rows that keep a frame when slots [start, stop) are taken."""
        live = self.live
        outside: Ints = live[(self._live_start[live] < start) | (self.stops_of(live) > stop)]
        return outside

    def lose(self, start: int, stop: int) -> None:
        """Take slots from whatever episodes hold them."""
        hit = self.touching(start, stop)
        self._live_start[hit] = np.minimum(stop, self.stops_of(hit))
        self._live = self._integer_windows = None

    def append(self, new: NDArray[np.void]) -> None:
        """Add rows in the order of their commits; the first ones are not copied, and are the table's from then on."""
        if not len(new):
            return
        first = self._count
        if first:
            self._grow(first + len(new))
            self._rows[first : first + len(new)] = new
            self._live_start[first : first + len(new)] = new["start"]
            self._stop[first : first + len(new)] = new["start"] + new["length"]
        else:
            self._rows, self._live_start, self._stop = new, new["start"].copy(), new["start"] + new["length"]
        self._has_losses |= bool(np.any(new["flags"] & FLAG_LOST))
        self._count += len(new)
        self._live = self._integer_windows = None
        starts, stops = new["start"], self._stop[first : self._count]
        previous = np.concatenate([[self._last_stop], stops[:-1]])
        overwrites = self._wrapped or bool(np.any(starts < previous))
        self._last_stop = int(stops[-1])
        if overwrites and self._wrapped and len(new) <= _FEW_ROWS:
            for row in range(first, self._count):
                self._trim_under(row)
        elif overwrites:
            self._trim_all()
        self._wrapped = overwrites

    def _grow(self, count: int) -> None:
        if count <= len(self._rows):
            return
        size = max(count, 2 * len(self._rows), 16)
        rows = np.zeros(size, self._rows.dtype)
        rows[: self._count] = self.rows
        live_start, stop = np.zeros(size, np.int64), np.zeros(size, np.int64)
        live_start[: self._count], stop[: self._count] = self.live_starts, self.stops
        self._rows, self._live_start, self._stop = rows, live_start, stop

    def _trim_under(self, row: int) -> None:
        """Take the slots of one new row from the older ones."""
        start = self._rows["start"][row]
        stop = start + self._rows["length"][row]
        older = np.arange(self._oldest, row)
        stops = self.stops_of(older)
        hit = (self._live_start[older] < np.minimum(stop, stops)) & (stops > start)
        self._live_start[older[hit]] = np.minimum(stop, stops[hit])

    def _trim_all(self) -> None:
        """Find what survives, newest row first: later rows cover what earlier ones wrote.

        Stops as soon as all slots are covered, so that the cost follows what is stored, not what ever was.
        """
        starts, stops = self.starts, self.stops
        end = int(stops.max())
        covered: list[tuple[int, int]] = []  # disjoint, ascending
        row = self._count - 1
        while row >= 0 and covered != [(0, end)]:
            start, stop = int(starts[row]), int(stops[row])
            live = start
            for a, b in covered:
                if a <= live < b:
                    live = b
            self._live_start[row] = min(max(live, start), stop)
            covered = _merged(covered, start, stop)
            row -= 1
        self._live_start[: row + 1] = stops[: row + 1]
        self._oldest = row + 1


def lost_row(dtype: np.dtype[Any], start: int, stop: int) -> NDArray[np.void]:
    """Return the row, (1,), that says that slots [start, stop) hold nothing."""
    row = np.zeros(1, dtype)
    row["start"], row["length"], row["flags"] = start, stop - start, FLAG_LOST
    row["task"] = row["source"] = row["source_episode"] = NO_STRING
    return row


def _merged(covered: list[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """Return the union of disjoint ascending ranges and one more, touching ones joined.

    >>> _merged([(0, 2), (5, 9)], 2, 5)
    [(0, 9)]
    """
    apart = [(a, b) for a, b in covered if b < start or a > stop]
    near = [(a, b) for a, b in covered if not (b < start or a > stop)]
    joined = (min([start, *(a for a, _ in near)]), max([stop, *(b for _, b in near)]))
    return sorted([*apart, joined])
