"""Batches of windows as arrays: which frames, one gather a key, nothing mixed by a writer in between."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from roboreel.dataset.buffers import New, Room
from roboreel.dataset.filling import Filling
from roboreel.dataset.plan import Arrays, Plan, Rows
from roboreel.errors import InvalidArgumentError, TimestampOutsideToleranceError, UnknownKeyError
from roboreel.schema import IS_PAD_POSTFIX, TIMESTAMP_KEY
from roboreel.store import Store, Touched
from roboreel.windows import Deltas, integer_windows, parse_deltas, time_windows, tolerance_s

Ints = NDArray[np.int64]
OnHole = Literal["raise", "nearest", "pad"]

_NEW = New()


@dataclass(frozen=True)
class Windows:
    """The offsets asked for each key, parsed for one frame rate."""

    deltas: Mapping[str, Deltas]
    on_hole: OnHole = "raise"

    def __post_init__(self) -> None:
        if self.on_hole not in ("raise", "nearest", "pad"):
            raise InvalidArgumentError(f"on_hole={self.on_hole!r}; 'raise', 'nearest' and 'pad' would do")


def parse_windows(
    delta_timestamps: Mapping[str, Sequence[float] | NDArray[np.float64]] | None,
    fps: float,
    on_hole: OnHole,
) -> Windows:
    """Parse `{key: [seconds, …]}`."""
    if delta_timestamps is not None and not isinstance(delta_timestamps, Mapping):
        raise InvalidArgumentError(f"delta_timestamps={delta_timestamps!r}; a dict {{key: [seconds, …]}} would do")
    parsed = {key: parse_deltas(key, seconds, fps) for key, seconds in (delta_timestamps or {}).items()}
    return Windows(parsed, on_hole)


def check_window_keys(windows: Windows, keys: Collection[str]) -> None:
    """Refuse keys that the dataset does not have, and masks that would hide a key that it has."""
    if unknown := [key for key in windows.deltas if key not in keys]:
        raise UnknownKeyError(f"delta_timestamps has the keys {unknown}; the dataset has {sorted(keys)}")
    if taken := [key for key in windows.deltas if key + IS_PAD_POSTFIX in keys]:
        raise InvalidArgumentError(
            f"delta_timestamps has {taken[0]!r}, of which the mask would be called {taken[0] + IS_PAD_POSTFIX!r}, and "
            "the dataset has a key of that name; record or import it under another one"
        )


def check_windows(windows: Windows, store: Store, episodes: Sequence[int] | None) -> None:
    """Refuse at once what would be refused, or would be all padding, in the middle of training.

    Raises:
        UnknownKeyError: a key that the dataset does not have.
        TimestampOutsideToleranceError: an episode has a hole in time; the message names it.
        InvalidArgumentError: no frame of any episode could ever match an offset asked for.
    """
    check_window_keys(windows, store.manifest.keys)
    table, fps = store.table, store.manifest.fps
    shown_rows = table.live
    if episodes is not None:
        shown_rows = shown_rows[np.isin(table.rows["episode_index"][shown_rows], episodes)]
    if not windows.deltas or not len(shown_rows):
        return
    irregular = shown_rows[~table.integer_windows_of(shown_rows)]
    holes = table.rows["episode_index"][irregular[table.rows["max_gap"][irregular] > 2 * tolerance_s(fps)]].tolist()
    if holes and windows.on_hole == "raise":
        shown = ", ".join(map(str, holes[:10])) + (", …" if len(holes) > 10 else "")
        raise TimestampOutsideToleranceError(
            f"{len(holes)} episodes have neighbouring frames over {2 * tolerance_s(fps):.4g} s apart, at {fps:g} Hz: "
            f"{shown}; type set_delta_timestamps(…, on_hole='nearest') or 'pad' to take them all the same"
        )
    if store.manifest.ring or len(irregular):
        return  # longer episodes may come; and irregular ones may last longer than their frames count
    longest = int(table.rows["length"][shown_rows].max())
    for key, deltas in windows.deltas.items():
        if np.all(np.abs(deltas.offsets) >= longest):
            raise InvalidArgumentError(
                f"delta_timestamps[{key!r}]={deltas.seconds.tolist()} s matches no frame: the longest episode has "
                f"{longest} frames ({longest / fps:g} s at {fps:g} Hz); offsets are seconds, not frames"
            )


def gather(store: Store, slots: Ints, keys: Sequence[str]) -> Arrays:
    """Return the keys' values as they are stored, (B, *shape), without windows.

    All of them as they were at one moment: no edit, and no episode, is in a part of them only.
    """
    plan = Plan.make(store.manifest.keys, keys, {}, None)
    arrays = plan.arrays(len(slots), _NEW)
    rows = Rows(arrays)
    store.read(lambda strict: _attempt(Batching(store, plan), slots, rows, strict=strict))
    _check_strings(store, plan, rows)
    return {key: arrays[key] for key in plan.keys}


@dataclass(slots=True)  # not frozen, which takes three times as long to make
class Batching:
    """Where the samples of a batch come from, and what they consist of."""

    store: Store
    plan: Plan
    on_hole: OnHole = "raise"
    held: int = 0
    """Decode the episodes of the frames whole, and keep so many of them in memory."""
    room: Room = _NEW
    """Where images are decoded that are then given in another form."""


def gather_samples(batching: Batching, slots: Ints, rows: Rows) -> None:
    """Fill rows of the arrays of `plan` with the samples of the slots, each as it was at one moment.

    Where a writer was at some of them meanwhile, the halves are read apart, so that the others are not read again. A
    batch of a small ring, read anew as a whole, would meet the next episode, and the next, until readers gave up.
    """
    _gather_parts(batching, slots, rows)
    _check_strings(batching.store, batching.plan, rows)


def _gather_parts(batching: Batching, slots: Ints, rows: Rows) -> None:
    store = batching.store
    if len(slots) < 2:
        store.read(lambda strict: _attempt(batching, slots, rows, strict=strict))
    elif store.read_once(lambda strict: _attempt(batching, slots, rows, strict=strict)) is None:
        half = len(slots) // 2
        batching.plan.complete(rows.arrays, len(slots))
        _gather_parts(batching, slots[:half], rows[:half])
        _gather_parts(batching, slots[half:], rows[half:])


def _check_strings(store: Store, plan: Plan, rows: Rows) -> None:
    for key in plan.strings:
        store.check_codes(key, rows.values(key))


def _attempt(batching: Batching, slots: Ints, into: Rows, *, strict: bool) -> tuple[None, Touched | None]:
    """Fill rows; where `strict`, say which owners were found there, which otherwise are not looked at."""
    store, plan = batching.store, batching.plan
    slots = store.surviving(slots)
    rows, words = store.rows_of(slots)
    filling = Filling(store, batching.held, batching.room)
    filling.fill(plan.single, slots, rows, into)
    if plan.deltas is not None:
        if not strict and store.table.integer_windows and plan.near_ends is not None:
            cells = plan.near_ends.cells(slots, *store.table.bounds_of(rows))
            _fill_near(filling, plan, cells, slots, rows, into)
        else:
            wanted, is_pad = _window_slots(store, slots, rows, plan.deltas, batching.on_hole)
            if strict:
                slots = np.concatenate([slots, wanted.reshape(-1)])
                words = np.concatenate([words, store.words_of(slots[len(rows) :], np.repeat(rows, wanted.shape[1]))])
            for group in plan.windowed:
                filling.fill(group, np.ascontiguousarray(wanted[:, group.columns]), rows, into)
                for key in group.masks:
                    into.put(key, is_pad[:, group.columns])
    filling.finish()
    return None, Touched(slots, words) if strict else None


def _fill_near(filling: Filling, plan: Plan, cells: Ints, slots: Ints, rows: Ints, into: Rows) -> None:
    """Fill the windows by looking up which frames they take.

    Where a writer was at them meanwhile, owners and table may not agree; what is read is not given to anybody then, and
    "clip" has it come from somewhere within what there is.
    """
    assert plan.near_ends is not None
    for group, (taken, is_pad) in zip(plan.windowed, plan.near_ends.tables, strict=True):
        wanted = taken.take(cells, 0, None, "clip")
        wanted += slots[:, None]
        filling.fill(group, wanted, rows, into)
        for key in group.masks:
            if into.at is None:
                into.arrays[key] = is_pad.take(cells, 0, into.arrays.get(key), "clip")
            else:
                into.put(key, is_pad.take(cells, 0, None, "clip"))


def _window_slots(
    store: Store, slots: Ints, rows: Ints, deltas: Deltas, on_hole: OnHole
) -> tuple[Ints, NDArray[np.bool_]]:
    table = store.table
    lo, hi = table.bounds_of(rows)
    if table.integer_windows:
        return integer_windows(slots, lo, hi, deltas)
    taken, is_pad = integer_windows(slots, lo, hi, deltas)
    odd = ~table.integer_windows_of(rows)
    if not np.any(odd):
        return taken, is_pad
    times = store.memmap(TIMESTAMP_KEY)
    taken[odd], is_pad[odd], hole = time_windows(times.__getitem__, slots[odd], lo[odd], hi[odd], deltas)
    if np.any(hole) and on_hole == "raise":
        at = int(np.argmax(np.any(hole, axis=1)))
        episode = int(table.rows["episode_index"][rows[odd][at]])
        raise TimestampOutsideToleranceError(
            f"episode {episode}: no frame within {deltas.tolerance_s:.4g} s of a time asked for around "
            f"{float(times[slots[odd][at]]):.4g} s; type set_delta_timestamps(…, on_hole='nearest') or 'pad' to take it"
        )
    if on_hole == "pad":
        is_pad[odd] |= hole
    return taken, is_pad
