"""The first half of a repair: the small files, so that the dataset can be opened. The writer's lock is held.

Where one bit of a checksummed record is all that flipped, the checksum tells which, and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash

from roboreel.errors import RoboreelError, StorageDirCorruptError
from roboreel.format import files, paths
from roboreel.format.files import DataFile
from roboreel.format.manifest import metadata_hash, read_manifest
from roboreel.format.records import (
    CHECKSUM_DTYPE,
    FLAG_LOST,
    LIVE_OFFSET,
    STATE_BYTES,
    STATE_RECORD_BYTES,
    STRING_SUM_DTYPE,
    State,
    episode_dtype,
    is_sealed,
    line_hashes,
    strings_hash,
)
from roboreel.format.redo import Redo, redo_hash
from roboreel.store.frame_check import BLOCK_BYTES, FrameCheck, SlotReader
from roboreel.store.records import StateFile
from roboreel.store.rewriting import keep_copy, mended_bit, write_at
from roboreel.store.ring import check_space
from roboreel.store.room import size_of
from roboreel.store.row_mending import check_ring, mend_rows, mended_end, named_frames
from roboreel.store.slots import frame_checksums
from roboreel.store.store import Store
from roboreel.store.string_files import encoded, surviving_strings, unlike_sums
from roboreel.store.structure import (
    RECORDS,
    Structure,
    counting,
    is_metadata_expected,
    read_or_nothing,
    read_structure,
    read_sums,
    strings_problem,
)

_MOST_LOST_STRINGS = 1 << 16
"""More hashes than this without a line are not those of strings that are gone."""


def mend_small_files(root: Path) -> list[str]:
    """Make the small files whole, and the others as long as they must be; return a line for each thing done.

    Raises:
        StorageDirCorruptError: what is lost cannot be made again; nothing that is good was changed.
    """
    done = [*_mend_records(root), *_mend_metadata(root)]
    if (rebuilt := _rebuilt_state(root)) is not None:
        _put_live(root, rebuilt)
        done.append(f"{paths.STATE}: no record was whole; made anew from {paths.EPISODES}: {rebuilt.rows} episodes")
    structure = read_structure(root)
    state = structure.state
    if not is_metadata_expected(structure):
        _check_metadata_fits(root)
        state = replace(state, metadata_hash=structure.metadata_hash)
        done.append(
            f"{paths.METADATA}: not what was written, but all frames fit it: taken as it is; look at fps, names, units"
        )
    check_ring(structure)
    room = _room(structure)
    state, more = _mend_strings(structure, state)
    done += more
    state = replace(state, frames=named_frames(structure))
    done += mend_rows(root, state)
    structure = read_structure(root)
    ended = mended_end(structure.rows, state)
    if ended != state:
        done.append(f"{paths.STATE}: made to agree with {paths.EPISODES}")
        state = ended
    if room != structure.manifest.capacity:
        raw = replace(structure.manifest, capacity=room).to_bytes()
        keep_copy(root / paths.METADATA)
        files.replace_atomically(root / paths.METADATA, raw)
        state = replace(state, metadata_hash=metadata_hash(raw))
        done.append(f"{paths.METADATA}: capacity {room}, for which there is room, not {structure.manifest.capacity}")
    for name in (paths.EPISODES, paths.STRINGS):
        if not (root / name).exists():
            files.write_new(root / name, b"")
            done.append(f"{name}: was missing")
    done += _mend_sizes(structure)
    state, more = _mend_redo(structure, state)
    done += more
    if done or LIVE_OFFSET in structure.broken_records:  # also where the record was right: readers look again then
        _put_live(root, replace(state, generation=state.generation + 1, seq=state.seq + 1))
    if LIVE_OFFSET in structure.broken_records:
        done.append(f"{paths.STATE}: the live record was lost; what was added after the last flush is not counted")
    return done


# State and metadata


def _mend_records(root: Path) -> Iterator[str]:
    path = root / paths.STATE
    raw = read_or_nothing(path, STATE_BYTES)
    for offset, name in RECORDS.items():
        part = raw[offset : offset + STATE_RECORD_BYTES]
        if len(part) < STATE_RECORD_BYTES or is_sealed(part) or not any(part):
            continue
        if (mended := mended_bit(part, lambda one: State.from_bytes(one) is not None)) is not None:
            keep_copy(path)
            write_at(path, offset, mended)
            yield f"{paths.STATE}: a flipped bit of the {name} record put right"


def _mend_metadata(root: Path) -> Iterator[str]:
    path = root / paths.METADATA
    raw, state = read_or_nothing(path), _counting_state(root)
    if not raw or state is None or metadata_hash(raw) == state.metadata_hash:
        return
    try:
        if is_metadata_expected(read_structure(root)):
            return
    except StorageDirCorruptError:
        pass
    if (mended := mended_bit(raw, lambda one: metadata_hash(one) == state.metadata_hash)) is not None:
        keep_copy(path)
        files.replace_atomically(path, mended)
        yield f"{paths.METADATA}: a flipped bit put right"


def _check_metadata_fits(root: Path) -> None:
    """Refuse to go on by a `metadata.json` that may be wrong, if a single frame speaks against it.

    By a wrong shape or dtype every episode would look damaged, and be dropped.
    """
    try:
        store = Store.open(root)
        try:
            problem = next(FrameCheck(store, every_byte=True).problems(), None)
        finally:
            store.close()
    except RoboreelError as error:
        raise StorageDirCorruptError(f"{_BEYOND.format(root / paths.METADATA)} ({error})") from error
    if problem is not None:
        raise StorageDirCorruptError(f"{_BEYOND.format(root / paths.METADATA)} ({problem})")


_BEYOND = "{} is damaged and what it said cannot be found out; restore it from a copy, nothing else was changed"


def _counting_state(root: Path) -> State | None:
    raw = read_or_nothing(root / paths.STATE, STATE_BYTES)
    return counting({offset: State.from_bytes(raw[offset : offset + STATE_RECORD_BYTES]) for offset in RECORDS})


def _rebuilt_state(root: Path) -> State | None:
    """Return a state made from the episode table where no record is whole; None where one is.

    Every row up to the last whole one is taken: one that was never committed has its frames, or fails their checksums.
    """
    if _counting_state(root) is not None:
        return None
    manifest, found_hash = read_manifest(root)
    dtype = episode_dtype(len(manifest.video_keys))
    raw = read_or_nothing(root / paths.EPISODES)
    size = dtype.itemsize
    parts = [raw[row * size : (row + 1) * size] for row in range(len(raw) // size)]
    while parts and not is_sealed(parts[-1]):
        parts.pop()
    whole = np.frombuffer(b"".join(part for part in parts if is_sealed(part)), dtype)
    real = whole[(whole["flags"] & FLAG_LOST) == 0]
    if not len(real):
        raise StorageDirCorruptError(
            f"{root / paths.STATE} holds no whole record, and {paths.EPISODES} no whole row; restore them from a copy"
        )
    last, stops = real[-1], whole["start"] + whole["length"]
    strings = read_or_nothing(root / paths.STRINGS)
    strings = strings[: strings.rfind(b"\n") + 1]
    lines = strings.count(b"\n")
    sums = read_sums(root, lines + _MOST_LOST_STRINGS)
    while sums and not sums[-1]:
        sums.pop()
    count = max(lines, len(sums))  # lines may be gone, of which rows and columns have the numbers
    return State(
        generation=len(parts) + 1,
        seq=1,
        rows=len(parts),
        frames=int(stops.max()),
        capacity=manifest.capacity,
        next_slot=int(last["start"] + last["length"]),
        next_index=int(last["first_index"] + last["length"]),
        next_episode_index=int(last["episode_index"]) + 1,
        strings=count,
        string_bytes=max(len(strings), count * len('""\n')),
        metadata_hash=found_hash,
        strings_hash=sums[-1] if sums and len(sums) == count else strings_hash(strings),
    )


def _put_live(root: Path, state: State) -> None:
    path = root / paths.STATE
    keep_copy(path)
    record = StateFile(root, create=size_of(path) < STATE_BYTES)
    try:
        record.put_live(state)
    finally:
        record.close()


def _mend_redo(structure: Structure, state: State) -> tuple[State, list[str]]:
    """Give up an edit of which the values are lost; frames that it had changed fail their checksums, or pass whole."""
    path = structure.root / paths.REDO
    raw = read_or_nothing(path)
    if not state.redo:
        return state, []
    try:
        Redo.from_bytes(raw, state, structure.manifest.keys)
        return state, []
    except StorageDirCorruptError:
        mended = mended_bit(raw, lambda one: redo_hash(one) == state.redo)
    if mended is not None:
        keep_copy(path)
        files.replace_atomically(path, mended)
        return state, [f"{paths.REDO}: a flipped bit put right"]
    return replace(state, redo=0).with_busy(0, 0), [f"{paths.REDO}: damaged; the edit that it held is given up"]


# Strings


def _mend_strings(structure: Structure, state: State) -> tuple[State, list[str]]:
    path, raw = structure.root / paths.STRINGS, structure.raw_strings
    what = strings_problem(state, raw)
    if what is None:
        return state, _mend_sums(structure, raw)
    if len(raw) == state.string_bytes and strings_hash(raw) == state.strings_hash:  # then it is the count that is wrong
        counted = replace(state, strings=raw.count(b"\n"))
        if strings_problem(counted, raw) is None:
            return counted, [f"{paths.STATE}: {counted.strings} strings are committed, not {state.strings}"]
    whole = read_or_nothing(path)
    if (ended := _repaired_before(state, whole, structure.string_sums)) is not None:
        return ended, [f"{paths.STATE}: counts the strings that a repair, which was cut off, has saved"]
    keep_copy(path)
    if len(raw) == state.string_bytes:
        mended = mended_bit(raw, lambda one: strings_hash(one) == state.strings_hash)
        if mended is not None:
            files.replace_atomically(path, mended)
            return state, [f"{paths.STRINGS}: a flipped bit put right", *_mend_sums(structure, mended)]
    # The lines of a repair that was cut off before its hashes may take more than the bytes that were committed.
    tries = [surviving_strings(some, structure.string_sums, state.strings) for some in (raw, whole)]
    strings = min(tries, key=lambda strings: len(_lost(strings)))
    lines = encoded(strings)
    files.replace_atomically(path, lines)
    _put_sums(structure.root, lines)
    lost = _lost(strings)
    done = [f"{paths.STRINGS}: {what}; {len(strings) - len(lost)} proved themselves, the others are {lost[:20]}"]
    return replace(state, string_bytes=len(lines), strings_hash=strings_hash(lines)), done


def _lost(strings: list[str]) -> list[str]:
    return [text for text in strings if text.startswith("lost string ")]


def _repaired_before(state: State, raw: bytes, sums: list[int]) -> State | None:
    """Return the record that counts the lines of a repair that was cut off just before it would have written it."""
    *lines, _ = raw.split(b"\n")
    kept = b"".join(line + b"\n" for line in lines[: state.strings])
    hashes = line_hashes(kept)
    if len(hashes) != state.strings or hashes != sums:
        return None
    counted = replace(state, string_bytes=len(kept), strings_hash=[0, *hashes][-1])
    return counted if strings_problem(counted, kept) is None else None


def _mend_sums(structure: Structure, lines: bytes) -> list[str]:
    if not unlike_sums(lines, structure.string_sums):
        return []
    _put_sums(structure.root, lines)
    return [f"{paths.STRING_SUMS}: made anew from {paths.STRINGS}"]


def _put_sums(root: Path, lines: bytes) -> None:
    keep_copy(root / paths.STRING_SUMS)
    files.replace_atomically(root / paths.STRING_SUMS, np.array(line_hashes(lines), STRING_SUM_DTYPE).tobytes())


# Files that are too short


def _room(structure: Structure) -> int:
    """Return the capacity for which there is room, or is to be made.

    Raises:
        StorageDirCorruptError: the record counts on more than the metadata promises, and the files do not have it.
    """
    said, counted = structure.manifest.capacity, structure.state.capacity
    most = max(said, counted)
    short = any(size_of(path) < most * size for path, size, _ in structure.slot_files().values())
    if said > counted:
        return counted if short else said  # a growth that made no room: no record counts on it
    if counted > said and short:
        raise StorageDirCorruptError(
            f"{structure.root / paths.STATE} counts capacity {counted}, and {paths.METADATA} says {said}: restore them "
            "from a copy, nothing was changed"
        )
    return counted


def _mend_sizes(structure: Structure) -> Iterator[str]:
    """Lengthen what is too short. Checksums come first, made from columns that still end where they were cut."""
    wanted = structure.slot_files()
    missing = (structure.state.capacity * size - max(size_of(path), 0) for path, size, _ in wanted.values())
    check_space(sum(max(one, 0) for one in missing), files.free_bytes(structure.root), share=1.0)
    names = sorted(wanted, key=lambda name: not name.startswith(paths.CHECKSUMS))
    for name in names:
        path, size, key = wanted[name]
        present = size_of(path)
        if present >= structure.state.capacity * size:
            continue
        whole = max(present, 0) // max(size, 1)
        files.make_dir(path.parent)
        file = DataFile(path, create=present < 0)
        try:
            file.allocate(structure.state.capacity * size)
            made = 0
            if name.startswith(paths.CHECKSUMS):
                for slots, sums in _sums_of_data(structure, key, whole):
                    file.write_at(int(slots[0]) * size, sums)
                    made += len(slots)
            file.sync()
        finally:
            file.close()
        yield f"{name}: lengthened to {structure.state.capacity} frames" + (
            f"; {made} checksums made anew from the data, which they can no longer vouch for" if made else ""
        )


def _sums_of_data(structure: Structure, key: str, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield slots and the checksums of what lies in them, from slot `first` on."""
    root, spec = structure.root, structure.manifest.keys[key]
    table, path = structure.table, paths.column_path(root, key)
    step = max(1, min(BLOCK_BYTES // max(spec.frame_bytes, 1), 1 << 18))
    whole = max(size_of(path), 0) // max(spec.frame_bytes, 1)
    for row in table.live.tolist():
        start, stop = max(int(table.live_starts[row]), first), int(table.stops[row])
        if spec.needs_decoding:
            for slot in range(start, stop):
                image = paths.image_path(root, key, row, slot - int(table.starts[row]))
                if image.is_file():
                    yield np.array([slot]), np.array([xxhash.xxh3_64_intdigest(files.read_file(image))], CHECKSUM_DTYPE)
            continue
        for at in range(start, min(stop, whole), step):
            slots = np.arange(at, min(at + step, stop, whole))
            yield slots, frame_checksums(SlotReader(path, spec.dtype, spec.shape).read(slots))
