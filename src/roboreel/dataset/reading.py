"""Batches of windows as arrays: which frames, one gather a key, nothing mixed by a writer in between."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import InvalidArgumentError, TimestampOutsideToleranceError, UnknownKeyError
from roboreel.schema import IS_PAD_POSTFIX, TIMESTAMP_KEY
from roboreel.store import Frames, Store, Touched
from roboreel.windows import Deltas, integer_windows, parse_deltas, time_windows, tolerance_s

Ints = NDArray[np.int64]
Arrays = dict[str, NDArray[Any]]
OnHole = Literal["raise", "nearest", "pad"]


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
    rows = table.rows[shown_rows]
    irregular = ~table.integer_windows_of(shown_rows)
    holes = rows["episode_index"][irregular & (rows["max_gap"] > 2 * tolerance_s(fps))].tolist()
    if holes and windows.on_hole == "raise":
        shown = ", ".join(map(str, holes[:10])) + (", …" if len(holes) > 10 else "")
        raise TimestampOutsideToleranceError(
            f"{len(holes)} episodes have neighbouring frames over {2 * tolerance_s(fps):.4g} s apart, at {fps:g} Hz: "
            f"{shown}; type set_delta_timestamps(…, on_hole='nearest') or 'pad' to take them all the same"
        )
    if store.manifest.ring or np.any(irregular):
        return  # longer episodes may come; and irregular ones may last longer than their frames count
    longest = int(rows["length"].max())
    for key, deltas in windows.deltas.items():
        if np.all(np.abs(deltas.offsets) >= longest):
            raise InvalidArgumentError(
                f"delta_timestamps[{key!r}]={deltas.seconds.tolist()} s matches no frame: the longest episode has "
                f"{longest} frames ({longest / fps:g} s at {fps:g} Hz); offsets are seconds, not frames"
            )


def gather(store: Store, slots: Ints, keys: Sequence[str], windows: Windows) -> tuple[Arrays, Arrays]:
    """Return the keys' arrays, (B, *shape) or (B, T, *shape), and the padding masks (B, T) of the windowed ones.

    All of them as they were at one moment: no edit, and no episode, is in a part of them only.
    """
    return _checked(store, *store.read(lambda: _attempt(store, slots, keys, windows, 0)))


def gather_samples(
    store: Store, slots: Ints, keys: Sequence[str], windows: Windows, held: int
) -> tuple[Arrays, Arrays]:
    """As `gather`, but it is each sample that is as it was at one moment.

    Where a writer was at some of them meanwhile, the halves are read apart, so that the others are not read again. A
    batch of a small ring, read anew as a whole, would meet the next episode, and the next, until readers gave up.
    With `held`, the episodes of the frames are decoded whole, and so many of them are kept in memory.
    """
    if len(slots) < 2:
        return _checked(store, *store.read(lambda: _attempt(store, slots, keys, windows, held)))
    found = store.read_once(lambda: _attempt(store, slots, keys, windows, held))
    if found is not None:
        return _checked(store, *found[0])
    halves = [gather_samples(store, half, keys, windows, held) for half in np.array_split(slots, 2)]
    arrays, masks = ({key: np.concatenate([half[i][key] for half in halves]) for key in halves[0][i]} for i in (0, 1))
    return arrays, masks


def _checked(store: Store, arrays: Arrays, masks: Arrays) -> tuple[Arrays, Arrays]:
    for key, array in arrays.items():
        if store.manifest.keys[key].is_string:
            store.check_codes(key, array)
    return arrays, masks


def _attempt(
    store: Store, slots: Ints, keys: Sequence[str], windows: Windows, held: int
) -> tuple[tuple[Arrays, Arrays], Touched]:
    slots = store.surviving(slots)
    rows, words = store.rows_of(slots)
    single = store.frames_at(slots, rows)
    made: dict[bytes, tuple[Any, NDArray[np.bool_]]] = {}  # keys with the same offsets take the same frames
    touched = [(slots, words)]
    arrays: Arrays = {}
    masks: Arrays = {}
    to_decode: list[tuple[str, Frames, NDArray[Any]]] = []

    def read(key: str, frames: Frames, out: NDArray[Any]) -> None:
        if store.manifest.keys[key].needs_decoding:
            to_decode.append((key, frames, out))
        else:
            store.read_key(key, frames, out)

    for key in keys:
        spec = store.manifest.keys[key]
        if key not in windows.deltas:
            arrays[key] = np.empty((len(slots), *spec.shape), spec.dtype)
            read(key, single, arrays[key])
            continue
        deltas = windows.deltas[key]
        if deltas.signature not in made:
            wanted, is_pad = _window_slots(store, slots, rows, deltas, windows.on_hole)
            flat = wanted.reshape(-1)
            flat_words = store.words_of(flat, np.repeat(rows, len(deltas)))
            made[deltas.signature] = (store.frames_at(flat, np.repeat(rows, len(deltas))), is_pad)
            touched.append((flat, flat_words))
        frames, is_pad = made[deltas.signature]
        out = np.empty((len(frames.slots), *spec.shape), spec.dtype)
        read(key, frames, out)
        arrays[key] = out.reshape(len(slots), len(deltas), *spec.shape)
        masks[key] = is_pad.copy()
    store.decode_keys(to_decode, held)
    return (arrays, masks), Touched(*(np.concatenate(part) for part in zip(*touched, strict=True)))


def _window_slots(
    store: Store, slots: Ints, rows: Ints, deltas: Deltas, on_hole: OnHole
) -> tuple[Ints, NDArray[np.bool_]]:
    table = store.table
    lo, hi = table.live_starts[rows], table.stops_of(rows)
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
