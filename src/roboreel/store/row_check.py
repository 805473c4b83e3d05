"""What must hold of the rows of the episode table, looked at all at once: an open of 100,000 episodes must not wait."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import StorageDirCorruptError
from roboreel.format import paths
from roboreel.format.records import FLAG_INTEGER_WINDOWS, FLAG_LOST, State

Bools = NDArray[np.bool_]

_MOST = 1 << 62
"""No number of frames or episodes reaches it, and a sum of two such does not overflow."""


def check_rows(rows: NDArray[np.void], state: State, *, ring: bool, first: int = 0, known: int = 0) -> None:
    """Refuse what cannot be: rows from number `first` on, of which `known` have been looked at before.

    Raises:
        StorageDirCorruptError: names the row and what is wrong with it.
    """
    for row, what in row_problems(rows, state, ring=ring, first=first):
        if row >= first + known:
            raise StorageDirCorruptError(f"{paths.EPISODES}: row {row} {what}; {_ADVICE}")
    if wrong := end_problem(rows, state, is_all=first == 0):
        raise StorageDirCorruptError(f"{paths.STATE}: {wrong}; {_ADVICE}")


_BLOCK = 4096
"""So many rows are looked at from all sides while they are in the processor's cache."""
_ADVICE = "type roboreel verify, or restore both from a copy"


def row_problems(
    rows: NDArray[np.void], state: State, *, ring: bool, first: int = 0, spoiled: Collection[int] = ()
) -> Iterator[tuple[int, str]]:
    """Yield (row, what is wrong with it) of rows from number `first` on; `spoiled` ones are passed over."""
    lost = (rows["flags"] & FLAG_LOST) != 0
    passed = np.isin(np.arange(len(rows)), list(spoiled))
    wrong = np.zeros(len(rows), np.bool_)
    for begin in range(0, len(rows), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        for at_fault, say in (*_alone(rows[block], state, lost[block]), *_clips(rows[block])):
            for row in (begin + np.flatnonzero(at_fault & ~passed[block] & ~wrong[block])).tolist():
                wrong[row] = True
                yield first + row, say(rows[row])
    real = np.flatnonzero(~lost & ~passed & ~wrong)
    for at, what in _out_of_order(rows, real, ring=ring, is_first=first == 0):
        yield first + at, what


def _alone(rows: NDArray[np.void], state: State, lost: Bools) -> Iterator[tuple[Bools, Any]]:
    """Yield which rows are wrong by themselves, and how to say so."""
    start, length = rows["start"], rows["length"]
    inside = (start >= 0) & (start <= state.frames) & (length >= np.where(lost, 0, 1))
    inside &= length <= state.frames - np.where(inside, start, 0)  # in this order nothing overflows
    yield ~inside, lambda one: f"covers {one['length']} slots from {one['start']}, where {state.frames} are in use"
    unknown = (rows["flags"] & ~np.uint32(FLAG_INTEGER_WINDOWS | FLAG_LOST)) != 0
    yield unknown, lambda one: f"has the flags {one['flags']}, which are not known"
    for name in ("task", "source"):
        yield (
            (rows[name] < -1) | (rows[name] >= state.strings),
            lambda one, name=name: f"names string {one[name]} as its {name}; there are {state.strings}",
        )
    for name in ("first_index", "episode_index"):
        outside = (rows[name] < 0) | (rows[name] >= _MOST)
        yield outside & ~lost, lambda one, name=name: f"has the {name} {one[name]}"
    yield rows["source_episode"] < -1, lambda one: f"has the source_episode {one['source_episode']}"
    yield ~(rows["max_gap"] >= 0), lambda one: f"has the max_gap {one['max_gap']}"
    yield ~np.isfinite(rows["wall_start"]), lambda one: f"has the wall_start {one['wall_start']}"


def _clips(rows: NDArray[np.void]) -> Iterator[tuple[Bools, Any]]:
    if "clips" not in (rows.dtype.names or ()):
        return
    # a file may begin with the first frame that survived, later than the episode; but not after its end
    lowest = {"file": np.zeros(len(rows), np.int64), "first": np.minimum(0, 1 - rows["length"])}
    for name, low in lowest.items():
        outside = np.any((rows["clips"][name] < low[:, None]) | (rows["clips"][name] >= _MOST), axis=1)
        yield outside, lambda one, name=name: f"has clips of which {name} is {one['clips'][name].tolist()}"


def _out_of_order(
    rows: NDArray[np.void], real: NDArray[np.int64], *, ring: bool, is_first: bool
) -> Iterator[tuple[int, str]]:
    """Yield the episodes that do not go on where the one before ended."""
    chosen = slice(None) if len(real) == len(rows) else real  # all of them need no gather
    starts, lengths, index, episode = (
        rows[name][chosen] for name in ("start", "length", "first_index", "episode_index")
    )
    stops = starts + lengths
    if is_first and len(real) and real[0] == 0 and starts[0] != 0:
        yield 0, f"begins at slot {starts[0]}, and is the first"
    next_to = np.diff(real) == 1  # else what lies between may have ended anywhere
    apart = next_to & (starts[1:] != stops[:-1]) & ~((starts[1:] == 0) & ring)
    lower = (episode[1:] <= episode[:-1]) | (index[1:] < index[:-1] + lengths[:-1])
    for k in np.flatnonzero(apart | lower).tolist():
        if apart[k]:
            yield int(real[k + 1]), f"begins at slot {starts[k + 1]}, where the one before ended at {stops[k]}"
        else:
            told = f"has number {episode[k + 1]} and index {index[k + 1]}"
            yield int(real[k + 1]), f"{told}, lower than those before it"


def end_problem(rows: NDArray[np.void], state: State, *, is_all: bool) -> str | None:
    """Return in what the record contradicts the rows that it counts, or None; `is_all`: not only the last ones."""
    lost = (rows["flags"] & FLAG_LOST) != 0
    stops = rows["start"] + rows["length"]
    if is_all and not np.any(lost) and state.frames != np.max(stops, initial=0):
        return f"frames is {state.frames}, and the episodes end at {np.max(stops, initial=0)}"
    real = np.flatnonzero(~lost)
    if not len(real):
        return None
    last = rows[real[-1]]
    if real[-1] == len(rows) - 1 and state.next_slot != stops[-1]:
        return f"next_slot is {state.next_slot}, and the last episode ends at {stops[-1]}"
    if state.next_index < last["first_index"] + last["length"]:
        return f"next_index is {state.next_index}, and the last episode has index {last['first_index']} and on"
    if state.next_episode_index <= last["episode_index"]:
        return f"next_episode_index is {state.next_episode_index}, and the last episode is {last['episode_index']}"
    return None
