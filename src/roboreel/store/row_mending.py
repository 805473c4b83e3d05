"""The rows of the episode table, put right from the columns of their frames where those can be trusted, or given up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import StorageDirCorruptError
from roboreel.format import paths
from roboreel.format.records import (
    CHECKSUM_DTYPE,
    FLAG_INTEGER_WINDOWS,
    FLAG_LOST,
    OWNER_DTYPE,
    OWNER_ROW_MASK,
    State,
    is_sealed,
    seal_row,
)
from roboreel.schema import EPISODE_INDEX_KEY, FRAME_INDEX_KEY, INDEX_KEY
from roboreel.store.episodes import lost_row
from roboreel.store.frame_check import BLOCK_BYTES, SlotReader
from roboreel.store.rewriting import keep_copy, mended_bit, write_at
from roboreel.store.row_check import row_problems
from roboreel.store.slots import frame_checksums
from roboreel.store.structure import Structure, read_structure

Ints = NDArray[np.int64]

_ROUNDS = 4
"""What is put right may show what was behind it."""
_INDEX_KEYS = (INDEX_KEY, EPISODE_INDEX_KEY, FRAME_INDEX_KEY)


def check_ring(structure: Structure) -> None:
    """Refuse to drop episode after episode of a ring of which the metadata says that it is none."""
    rows = structure.rows
    real = np.flatnonzero((rows["flags"] & FLAG_LOST) == 0)
    around = real[1:][rows["start"][real[1:]] == 0]
    if not structure.manifest.ring and len(around):
        raise StorageDirCorruptError(
            f"{structure.root / paths.METADATA} says ring false, and row {around[0]} of {paths.EPISODES} begins at "
            "slot 0 again; restore it from a copy, nothing was changed"
        )


def named_frames(structure: Structure) -> int:
    """Return how many slots are in use: what the record counts, or more, where `owners.bin` gives more to its rows."""
    path, state = structure.root / paths.OWNERS, structure.state
    found = state.frames
    if not path.is_file():
        return found
    owners, step = SlotReader(path, OWNER_DTYPE), BLOCK_BYTES // OWNER_DTYPE.itemsize
    for start in range(found, state.capacity, step):
        slots = np.arange(start, min(start + step, state.capacity))
        named = (owners.read(slots) & OWNER_ROW_MASK).astype(np.int64) - 1
        held = slots[(named >= 0) & (named < state.rows)]
        held = held[held < structure.table.stops[named[held - start]]]
        found = max(found, int(held.max(initial=-1)) + 1)
    return found


def mend_rows(root: Path, state: State) -> Iterator[str]:
    """Put right, or drop, every row that is spoiled or says what cannot be; yield a line for each."""
    yield from _mend_spoiled(replace(read_structure(root), state=state))
    for _ in range(_ROUNDS):
        structure = replace(read_structure(root), state=state)
        suspects = _suspects(structure)
        if not suspects:
            return
        path, dtype, named = structure.root / paths.EPISODES, structure.rows.dtype, _slots_named(structure, suspects)
        keep_copy(path)
        done = list(_mend_suspects(structure, suspects, named))
        for row, new, line in done:
            write_at(path, row * dtype.itemsize, seal_row(new))
            yield f"{paths.EPISODES}: row {row} {line}"
        if not done:
            return


def _mend_spoiled(structure: Structure) -> Iterator[str]:
    bad = structure.bad_rows
    if not bad:
        return
    path, dtype = structure.root / paths.EPISODES, structure.rows.dtype
    keep_copy(path)
    lost = []
    for row in bad:
        raw = structure.raw_rows[row]
        if len(raw) == dtype.itemsize and (mended := mended_bit(raw, is_sealed)) is not None:
            write_at(path, row * dtype.itemsize, mended)
            yield f"{paths.EPISODES}: a flipped bit of row {row} put right"
        else:
            lost.append(row)
    for row, (start, stop) in _slots_named(structure, lost).items():
        write_at(path, row * dtype.itemsize, seal_row(lost_row(dtype, start, stop)))
        yield f"{paths.EPISODES}: row {row} cannot be read: its episode, of {stop - start} frames, is dropped"


def _mend_suspects(
    structure: Structure, suspects: dict[int, str], named: dict[int, tuple[int, int]]
) -> Iterator[tuple[int, NDArray[np.void], str]]:
    """Yield (row, what it is to be, what was done) for rows of which something is wrong."""
    dtype = structure.rows.dtype
    put_right = set()
    for row, what in suspects.items():
        old, (start, stop) = structure.rows[row : row + 1], named[row]
        new = _from_columns(structure, old, row, start, stop)
        if new is not None and new.tobytes() != old.tobytes():
            put_right.add(row)
            yield row, new, f"{what or 'contradicts its columns'}: put right from its columns"
    for row, what in suspects.items():
        if what and row not in put_right and not put_right:  # else look again first: the row before it was at fault
            start, stop = named[row]
            yield row, lost_row(dtype, start, stop), f"{what}: its episode, of {stop - start} frames, is dropped"


def _suspects(structure: Structure) -> dict[int, str]:
    """Return each row that may be wrong → what is; empty where only its columns, or the row after it, say so."""
    found = dict(row_problems(structure.rows, structure.state, ring=structure.manifest.ring))
    before = {row - 1: "" for row in found if row and row - 1 not in found}
    return {**dict.fromkeys(_contradicted(structure), ""), **before, **found}


def _contradicted(structure: Structure) -> list[int]:
    """Return the rows that say something else than the index columns of their frames do."""
    found: set[int] = set()
    rows, total = structure.rows, len(structure.rows)
    readers = _readers(structure)
    if readers is None or not total:
        return []
    owners, columns, _ = readers
    step = BLOCK_BYTES // OWNER_DTYPE.itemsize
    for first in range(0, structure.state.frames, step):
        slots = np.arange(first, min(first + step, structure.state.frames))
        named = (owners.read(slots) & OWNER_ROW_MASK).astype(np.int64) - 1
        slots, named = slots[(named >= 0) & (named < total)], named[(named >= 0) & (named < total)]
        frame = columns[FRAME_INDEX_KEY].read(slots)
        wrong = (slots - frame != rows["start"][named]) | (
            columns[INDEX_KEY].read(slots) - frame != rows["first_index"][named]
        )
        wrong |= columns[EPISODE_INDEX_KEY].read(slots) != rows["episode_index"][named]
        wrong &= (rows["flags"][named] & FLAG_LOST) == 0
        found.update(np.unique(named[wrong]).tolist())
    return sorted(found)


def _from_columns(
    structure: Structure, old: NDArray[np.void], row: int, start: int, stop: int
) -> NDArray[np.void] | None:
    """Return the row as its frames in slots [start, stop) tell it; None where they cannot be trusted, or disagree."""
    readers = _readers(structure)
    if readers is None or start >= stop:
        return None
    owners, columns, sums = readers
    slots = np.arange(start, stop)
    if np.any((owners.read(slots) & OWNER_ROW_MASK).astype(np.int64) - 1 != row):
        return None
    values = {}
    for key in _INDEX_KEYS:
        values[key] = columns[key].read(slots)
        if not np.array_equal(frame_checksums(values[key]), sums[key].read(slots)):
            return None
    frame, index, episode = (values[key] for key in (FRAME_INDEX_KEY, INDEX_KEY, EPISODE_INDEX_KEY))
    if len(np.unique(slots - frame)) + len(np.unique(index - frame)) + len(np.unique(episode)) != 3:
        return None
    new = old.copy()
    first = int(start - frame[0])
    if not (new["start"][0] == first and 0 < new["length"][0] == stop - first):
        new["start"], new["length"] = first, stop - first
    new["first_index"], new["episode_index"] = index[0] - frame[0], episode[0]
    new["flags"] &= FLAG_INTEGER_WINDOWS
    for name in ("task", "source"):
        if not -1 <= new[name][0] < structure.state.strings:
            new[name] = -1
    new["source_episode"] = max(int(new["source_episode"][0]), -1)
    if not new["max_gap"][0] >= 0:
        new["max_gap"] = np.inf
    if not np.isfinite(new["wall_start"][0]):
        new["wall_start"] = 0
    if any(row_problems(new, structure.state, ring=True, first=row)):
        return None
    return new


def _readers(structure: Structure) -> tuple[SlotReader, dict[str, SlotReader], dict[str, SlotReader]] | None:
    root = structure.root
    try:
        return (
            SlotReader(root / paths.OWNERS, OWNER_DTYPE),
            {key: SlotReader(paths.column_path(root, key), np.dtype("<i8")) for key in _INDEX_KEYS},
            {key: SlotReader(paths.checksum_path(root, key), CHECKSUM_DTYPE) for key in _INDEX_KEYS},
        )
    except FileNotFoundError:
        return None


def _slots_named(structure: Structure, rows: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Return the slots that `owners.bin` gives to each of the rows; an empty range where none."""
    found = dict.fromkeys(rows, (0, 0))
    path = structure.root / paths.OWNERS
    if not found or not path.exists():
        return found
    owners = SlotReader(path, OWNER_DTYPE)
    step = BLOCK_BYTES // OWNER_DTYPE.itemsize
    for start in range(0, structure.state.frames, step):
        slots = np.arange(start, min(start + step, structure.state.frames))
        named = (owners.read(slots) & OWNER_ROW_MASK).astype(np.int64) - 1
        for row in np.intersect1d(named, list(found)).tolist():
            mine = slots[named == row]
            before = found[row]
            found[row] = (before[0] if before[1] else int(mine[0]), int(mine[-1]) + 1)
    return found


def mended_end(rows: NDArray[np.void], state: State) -> State:
    """Return the record, agreeing with the rows that it counts, all of which are right by now."""
    lost = (rows["flags"] & FLAG_LOST) != 0
    stops = rows["start"] + rows["length"]
    end = int(np.max(stops, initial=0))
    fields: dict[str, Any] = {"frames": max(state.frames, end) if np.any(lost) else end}
    real = np.flatnonzero(~lost)
    if len(real):
        last = rows[real[-1]]
        if real[-1] == len(rows) - 1:
            fields["next_slot"] = int(stops[-1])
        fields["next_index"] = max(state.next_index, int(last["first_index"] + last["length"]))
        fields["next_episode_index"] = max(state.next_episode_index, int(last["episode_index"]) + 1)
    fields["next_slot"] = min(fields.get("next_slot", state.next_slot), fields["frames"])
    return replace(state, **fields)
