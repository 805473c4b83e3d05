"""The small files of a dataset, read leniently: what of them is whole, also where the dataset cannot be opened."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import StorageDirCorruptError
from roboreel.format import files, paths
from roboreel.format.lock import boot_id
from roboreel.format.manifest import Manifest, metadata_hash, read_manifest
from roboreel.format.records import (
    DURABLE_OFFSETS,
    FLAG_LOST,
    LIVE_OFFSET,
    STATE_RECORD_BYTES,
    STRING_SUM_DTYPE,
    State,
    episode_dtype,
    is_sealed,
    parse_strings,
    strings_hash,
)
from roboreel.format.redo import Redo
from roboreel.store.episodes import EpisodeTable, lost_row
from roboreel.store.problem import Problem
from roboreel.store.records import newest
from roboreel.store.room import SlotFile, size_of, slot_files
from roboreel.store.row_check import end_problem, row_problems
from roboreel.store.string_files import unlike_sums

RECORDS = {LIVE_OFFSET: "live", DURABLE_OFFSETS[0]: "first durable", DURABLE_OFFSETS[1]: "second durable"}

_MISSING_ROWS = 1 << 20
"""More rows than this are not missing: the count is wrong."""


@dataclass(frozen=True)
class Structure:
    root: Path
    manifest: Manifest
    metadata_hash: int
    records: dict[int, State | None]
    """Offset in `state.bin` → the record there, None where it is not whole."""
    never_written: frozenset[int]
    """Offsets of records that are all zeros."""
    state: State
    """The record that counts."""
    raw_rows: list[bytes]
    """The committed rows as they lie in `episodes.bin`; short or empty at its end."""
    raw_strings: bytes
    string_sums: list[int]
    """`strings_hash` after each line; fewer, or 0, where it is not known."""

    @property
    def broken_records(self) -> list[int]:
        """Offsets of records that were written and are not whole; the live one is always written."""
        durable = [offset for offset in DURABLE_OFFSETS if self.records[offset] is not None]
        needed = {
            offset: offset == LIVE_OFFSET or offset not in self.never_written or not durable for offset in self.records
        }
        return [
            offset
            for offset, state in self.records.items()
            if needed[offset] and (state is None or state.problem() is not None)
        ]

    @functools.cached_property
    def bad_rows(self) -> list[int]:
        size = episode_dtype(len(self.manifest.video_keys)).itemsize
        return [row for row, raw in enumerate(self.raw_rows) if len(raw) != size or not is_sealed(raw)]

    @functools.cached_property
    def rows(self) -> NDArray[np.void]:
        """(rows,): every committed row; one that is spoiled is replaced by a lost one without a slot."""
        dtype = episode_dtype(len(self.manifest.video_keys))
        bad = set(self.bad_rows)
        rows = np.zeros(len(self.raw_rows), dtype)
        for row, raw in enumerate(self.raw_rows):
            if row in bad:
                rows[row] = lost_row(dtype, 0, 0)[0]
            else:
                rows[row] = np.frombuffer(raw, dtype)[0]
        return rows

    @functools.cached_property
    def table(self) -> EpisodeTable:
        table = EpisodeTable(self.rows.dtype)
        table.append(self.rows)
        return table

    def slot_files(self) -> dict[str, SlotFile]:
        return slot_files(self.root, self.manifest)


def read_structure(root: Path) -> Structure:
    """Read the small files; `RoboreelError` where `metadata.json` or every record is beyond use."""
    manifest, found_hash = read_manifest(root)
    raw = read_or_nothing(root / paths.STATE)
    parts = {offset: raw[offset : offset + STATE_RECORD_BYTES] for offset in RECORDS}
    records = {offset: State.from_bytes(part) for offset, part in parts.items()}
    zeros = frozenset(offset for offset, part in parts.items() if part == bytes(STATE_RECORD_BYTES))
    state = counting(records)
    if state is None:
        raise StorageDirCorruptError(f"{root / paths.STATE} holds no whole record")
    if what := state.problem():
        raise StorageDirCorruptError(f"{root / paths.STATE}: {what}; restore it from a copy")
    size = episode_dtype(len(manifest.video_keys)).itemsize
    rows = read_or_nothing(root / paths.EPISODES, state.rows * size)
    if state.rows - len(rows) // size > _MISSING_ROWS:
        raise StorageDirCorruptError(
            f"{root / paths.EPISODES} holds {len(rows) // size} rows, {state.rows} are committed"
        )
    strings = read_or_nothing(root / paths.STRINGS, state.string_bytes)
    if state.strings - strings.count(b"\n") > _MISSING_ROWS:
        raise StorageDirCorruptError(
            f"{root / paths.STRINGS} holds {strings.count(bytes([10]))} strings, {state.strings} are committed"
        )
    return Structure(
        root,
        manifest,
        found_hash,
        records,
        zeros,
        state,
        [rows[row * size : (row + 1) * size] for row in range(state.rows)],
        strings,
        read_sums(root, state.strings),
    )


def read_sums(root: Path, count: int) -> list[int]:
    raw = read_or_nothing(root / paths.STRING_SUMS, count * STRING_SUM_DTYPE.itemsize)
    found: list[int] = np.frombuffer(raw[: len(raw) // 8 * 8], STRING_SUM_DTYPE).tolist()
    return found


def counting(records: dict[int, State | None]) -> State | None:
    """Return the record that counts: the live one if it is of this boot, else the newest durable one."""
    live = records[LIVE_OFFSET]
    if live is not None and live.boot_id == boot_id():
        return live
    durable = [state for offset in DURABLE_OFFSETS if (state := records[offset]) is not None]
    return newest(durable) if durable else None


def structure_problems(structure: Structure) -> Iterator[Problem]:
    """Everything that is wrong with the small files and with the sizes of the others."""
    root, state = structure.root, structure.state
    for offset in structure.broken_records:
        yield Problem(paths.STATE, f"the {RECORDS[offset]} record, at byte {offset}, is not whole")
    if not is_metadata_expected(structure):
        yield Problem(
            paths.METADATA,
            f"its hash is {structure.metadata_hash:016x}, {state.metadata_hash:016x} is written down in {paths.STATE}",
        )
    if state.capacity > structure.manifest.capacity:
        yield Problem(
            paths.METADATA, f"says capacity {structure.manifest.capacity}, and {paths.STATE} counts {state.capacity}"
        )
    if state.frames > state.capacity:
        yield Problem(paths.STATE, f"counts {state.frames} frames where there is room for {state.capacity}")
    for name in (paths.EPISODES, paths.STRINGS):
        if not (root / name).is_file():
            yield Problem(name, "is missing")
    yield from _row_problems(structure)
    if wrong := strings_problem(state, structure.raw_strings):
        yield Problem(paths.STRINGS, wrong)
    elif unlike := unlike_sums(structure.raw_strings, structure.string_sums):
        yield Problem(paths.STRING_SUMS, f"{len(unlike)} hashes are not those of their lines; no string is lost by it")
    if state.redo and (wrong := redo_problem(structure)):
        yield Problem(paths.REDO, wrong)
    for name, (path, slot_bytes, key) in structure.slot_files().items():
        yield from _size_problems(structure, name, path, slot_bytes, key)


def _row_problems(structure: Structure) -> Iterator[Problem]:
    for row in structure.bad_rows:
        what = f"row {row} does not match its checksum" if structure.raw_rows[row] else f"row {row} is missing"
        yield Problem(paths.EPISODES, what, row, _guessed_episode(structure, row))
    rows, state = structure.rows, structure.state
    wrong = list(row_problems(rows, state, ring=structure.manifest.ring, spoiled=structure.bad_rows))
    for row, what in wrong:
        episode = -1 if rows["flags"][row] & FLAG_LOST else int(rows["episode_index"][row])
        yield Problem(paths.EPISODES, f"row {row} {what}", row, episode)
    if not wrong and (end := end_problem(rows, state, is_all=True)):
        yield Problem(paths.STATE, end)


def redo_problem(structure: Structure) -> str | None:
    """Return what is wrong with the edit, committed and half applied, that the record refers to, or None."""
    try:
        Redo.from_bytes(read_or_nothing(structure.root / paths.REDO), structure.state, structure.manifest.keys)
    except StorageDirCorruptError as error:
        return f"is not the edit, committed and half applied, that {paths.STATE} refers to: {error}"
    return None


def is_metadata_expected(structure: Structure) -> bool:
    """Whether `metadata.json` is what the record says, or what a growth has put there just before its record.

    That comes first and may have been the last that a writer did: it has another capacity, and is otherwise the same.
    """
    state, manifest = structure.state, structure.manifest
    if structure.metadata_hash == state.metadata_hash:
        return True
    if any(size_of(path) < manifest.capacity * size for path, size, _ in structure.slot_files().values()):
        return False  # a growth makes room first: the capacity is not one that a writer has put there
    if metadata_hash(manifest.to_bytes()) != structure.metadata_hash:
        return False  # not as a writer writes it, byte for byte: fields that nobody reads count too
    limits = {manifest.byte_capacity, None}
    before = (
        replace(manifest, capacity=capacity, fixed_capacity=fixed, byte_capacity=limit)
        for capacity, fixed, limit in product({state.capacity, manifest.capacity}, (False, True), limits)
    )
    return any(metadata_hash(one.to_bytes()) == state.metadata_hash for one in before)


def strings_problem(state: State, raw: bytes) -> str | None:
    """Return what is wrong with the committed bytes of `strings.jsonl`, or None."""
    if len(raw) < state.string_bytes:
        return f"has {len(raw)} bytes, {state.string_bytes} are committed"
    if strings_hash(raw) != state.strings_hash:
        return f"its first {state.string_bytes} bytes do not match their checksum in {paths.STATE}"
    try:
        parse_strings(raw, state.strings)
    except StorageDirCorruptError:
        return f"does not hold the {state.strings} strings, all different, that are committed"
    return None


def _size_problems(structure: Structure, name: str, path: Path, slot_bytes: int, key: str) -> Iterator[Problem]:
    capacity = max(structure.state.capacity, structure.manifest.capacity)
    wanted, present = capacity * slot_bytes, size_of(path)
    if present >= wanted:
        return
    what = "is missing" if present < 0 else f"has {present:,} bytes; {capacity} frames need {wanted:,}"
    table, whole = structure.table, max(present, 0) // max(slot_bytes, 1)
    hit = table.live[table.stops[table.live] > whole].tolist()
    if not hit:
        yield Problem(name, f"{what}; no frame is lost by it", key=key)
    for row in hit:
        yield Problem(name, f"{what}; frames are lost", row, int(table.rows["episode_index"][row]), key=key)


def _guessed_episode(structure: Structure, row: int) -> int:
    """Return the number of the episode whose row is spoiled: one after that before it."""
    before = np.setdiff1d(np.arange(row), structure.bad_rows)
    real = before[(structure.rows["flags"][before] & FLAG_LOST) == 0]
    if not len(real):
        return row
    return row - int(before[-1]) + int(structure.rows["episode_index"][real[-1]])


def _stop(row: Any) -> int:
    return int(row["start"]) + int(row["length"])


def read_or_nothing(path: Path, size: int = -1) -> bytes:
    """Return the first `size` bytes of a small file, all of it where -1; nothing where it is missing."""
    try:
        with os.fdopen(files.open_to_read(path), "rb") as file:
            present = os.fstat(file.fileno()).st_size
            wanted = present if size < 0 else min(size, present)
            if wanted > memory_bytes():  # a hole takes no room on the disk, and all of its size here
                raise MemoryError
            return file.read(wanted)
    except FileNotFoundError:
        return b""
    except MemoryError:
        raise StorageDirCorruptError(
            f"{path} has {present:,} bytes, more than there is memory to look at it; restore it from a copy"
        ) from None


def memory_bytes() -> int:
    """Of the machine: where memory is promised before it is there, asking for more is no error, but the end."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
