"""Makes a damaged dataset whole: what can be told for certain is put right, episodes that cannot be saved are dropped.

A dropped episode gets what slots get of which a writer died: a row that says that they hold nothing, and no owner. The
length stays, and so does every byte of the other episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from roboreel.columns.frame_table import FrameTable
from roboreel.columns.frames import png_flaw
from roboreel.errors import RoboreelError
from roboreel.format import files, paths
from roboreel.format.lock import WriterLock
from roboreel.format.manifest import read_manifest
from roboreel.format.records import CHECKSUM_DTYPE, LIVE_OFFSET, OWNER_DTYPE, is_sealed
from roboreel.schema import EPISODE_INDEX_KEY, FRAME_INDEX_KEY, INDEX_KEY
from roboreel.store.check import is_dataset
from roboreel.store.frame_check import FrameCheck, SlotReader
from roboreel.store.leftovers import leftovers
from roboreel.store.mending import mend_small_files
from roboreel.store.problem import Problem
from roboreel.store.records import StateFile
from roboreel.store.rewriting import keep_copy, mended_bit
from roboreel.store.slots import SlotFiles, frame_checksums
from roboreel.store.structure import RECORDS, read_structure
from roboreel.store.verify import verify
from roboreel.store.writer import Writer

Ints = NDArray[np.int64]

_ROUNDS = 3
_FEW_BITS = 3
"""Two unlike checksums of 64 bits are never so near by chance (1 in 10^14): one of them was hit, not the frame."""
_BY_TABLE = (INDEX_KEY, EPISODE_INDEX_KEY, FRAME_INDEX_KEY)
"""Columns of which the episode table tells every value."""


@dataclass(frozen=True)
class Repaired:
    done: list[str]
    """A line for each thing that was done; empty where nothing was wrong."""
    remaining: list[Problem]
    """What `verify` still finds."""


def repair(root: Path) -> Repaired:
    """Make the dataset in `root` pass `verify`, taking the writer's lock.

    Raises:
        NotADatasetError: there is none. DatasetLockedError: another process is writing it.
        StorageDirCorruptError: what is lost cannot be made again; no episode was touched.
    """
    if not is_dataset(root):
        read_manifest(root)  # says what is there instead
    lock = WriterLock(root)
    try:
        done = mend_small_files(root)
    finally:
        lock.release()
    writer = Writer.open(root)
    try:
        done += _FrameMender(writer).mend()
        done += _mend_durable(writer)
        for path in list(leftovers(writer.store)):
            files.remove(path)
            done.append(f"{path.relative_to(root)}: removed, nothing refers to it")
    finally:
        writer.close()
    return Repaired(done, verify(root).problems)


def _mend_durable(writer: Writer) -> list[str]:
    """Flush, and write durable records that are not whole anew: `flush` writes one of them, or none."""
    broken = [offset for offset in read_structure(writer.store.root).broken_records if offset != LIVE_OFFSET]
    writer.flush()
    records = StateFile(writer.store.root)
    try:
        for _ in broken:
            records.put_durable(writer.store.state)  # takes a place that is not whole, if there is one
    finally:
        records.close()
    return [f"{paths.STATE}: the {RECORDS[offset]} record written anew" for offset in broken]


class _FrameMender:
    """Goes through what a `FrameCheck` finds, and writes through files of its own beside the writer's."""

    def __init__(self, writer: Writer) -> None:
        self._writer, self._store = writer, writer.store
        self._done: list[str] = []

    def mend(self) -> list[str]:
        for _ in range(_ROUNDS):  # what is put right may show what was behind it
            problems = list(FrameCheck(self._store, every_byte=True).problems())
            if not problems:
                break
            slots = SlotFiles(self._store.root, self._store.manifest.keys)
            try:
                self._mend(problems, slots)
                slots.sync()
            finally:
                slots.close()
        return self._done

    def _mend(self, problems: list[Problem], slots: SlotFiles) -> None:
        doomed: dict[int, list[Problem]] = {}
        for problem in problems:
            if problem.file != paths.OWNERS and problem.row >= 0 and not self._saved(problem, slots):
                doomed.setdefault(problem.row, []).append(problem)
        for problem in problems:
            if problem.file == paths.OWNERS and problem.row not in doomed:
                self._put_owners(problem, slots)
        for row, reasons in doomed.items():
            start, stop = int(self._store.table.live_starts[row]), int(self._store.table.stops[row])
            self._writer.give_up(start, stop)
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            self._done.append(f"episode {reasons[0].episode}: dropped, {stop - start} frames. {reasons[0]}{more}")

    def _put_owners(self, problem: Problem, slots: SlotFiles) -> None:
        for slot in problem.slots:
            slots.write_owners(slot, np.array([problem.row + 1], OWNER_DTYPE))
        what = f"episode {problem.episode}: " if problem.row >= 0 else ""
        self._done.append(f"{paths.OWNERS}: {what}{len(problem.slots)} slots put right")

    def _saved(self, problem: Problem, slots: SlotFiles) -> bool:
        """Put right what is certain; return whether that was all of the problem."""
        spec = self._store.manifest.keys[problem.key]
        if problem.file.endswith(".frames"):
            return self._table_saved(self._store.root / problem.file)
        if not problem.slots:
            return False
        where = np.array(problem.slots)
        found = self._sums(problem.key, problem.row, where)
        stored = SlotReader(paths.checksum_path(self._store.root, problem.key), CHECKSUM_DTYPE).read(where)
        if problem.key in _BY_TABLE:
            if found is None or np.any(found == stored):
                return False  # the column is as it was written: it is the table that is wrong
            rows = np.full(len(where), problem.row)
            values = FrameCheck(self._store, every_byte=False).expected_values(problem.key, where, rows)
            for slot, value in zip(where.tolist(), values.astype(spec.dtype), strict=True):
                slots.write(problem.key, slot, value[None])
            self._done.append(f"{problem.file}: episode {problem.episode}: {len(where)} values taken from the table")
            return True
        if found is None:
            return False
        gone = _are_gone(stored, found)
        near = [0 < int(bits).bit_count() <= _FEW_BITS for bits in (found ^ stored).tolist()]
        if not np.all(gone | near) or not self._pngs_are_whole(problem, where[gone]):
            return False
        for slot, one in zip(where.tolist(), found, strict=True):
            slots.write_checksums(problem.key, slot, np.array([one], CHECKSUM_DTYPE))
        name = paths.checksum_path(self._store.root, problem.key).relative_to(self._store.root)
        if flipped := len(where) - int(gone.sum()):
            self._done.append(f"{name}: episode {problem.episode}: flipped bits of {flipped} checksums put right")
        if np.any(gone):
            self._done.append(
                f"{name}: episode {problem.episode}: {gone.sum()} checksums were gone and made anew from the data, "
                "which they can no longer vouch for"
            )
        return True

    def _pngs_are_whole(self, problem: Problem, where: Ints) -> bool:
        """Whether files of which the checksum is gone pass those that a PNG has of its own."""
        if not self._store.manifest.keys[problem.key].needs_decoding:
            return True
        images = self._images(problem.key, problem.row, where)
        return not any(png_flaw(files.read_file(image)) for image in images)

    def _sums(self, key: str, row: int, where: Ints) -> NDArray[Any] | None:
        """Return the checksums of what lies in the slots, one by one; None where a file is missing."""
        root, spec = self._store.root, self._store.manifest.keys[key]
        if not spec.needs_decoding:
            values = SlotReader(paths.column_path(root, key), spec.dtype, spec.shape)
            return np.concatenate([frame_checksums(values.read(where[at : at + 1])) for at in range(len(where))])
        images = self._images(key, row, where)
        if not all(image.is_file() for image in images):
            return None
        return np.array([xxhash.xxh3_64_intdigest(files.read_file(image)) for image in images], CHECKSUM_DTYPE)

    def _images(self, key: str, row: int, where: Ints) -> list[Path]:
        first = int(self._store.table.starts[row])
        return [paths.image_path(self._store.root, key, row, slot - first) for slot in where.tolist()]

    def _table_saved(self, path: Path) -> bool:
        """Put a frame table's flipped bit right, or make the table anew from its video, if that is readable."""
        name = path.relative_to(self._store.root)
        raw = path.read_bytes() if path.is_file() else b""
        if raw and _is_table(raw):
            return name.as_posix() in "".join(self._done)  # another episode of the same file came first
        mended = mended_bit(raw, lambda one: is_sealed(one) and _is_table(one)) if raw else None
        done = "a flipped bit put right"
        if mended is None:
            video = path.with_suffix(".mp4")
            try:
                mended = FrameTable.from_video(video).vouching_for(video).to_bytes()
            except (RoboreelError, OSError):
                return False
            done = "made anew from the video, which could not be checked"
        keep_copy(path)
        files.replace_atomically(path, mended)
        self._done.append(f"{name}: {done}")
        return True


def _are_gone(stored: NDArray[Any], found: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether of each checksum (n,) bytes are gone, which are 0, and what is left, if anything, agrees with the data.

    Of a checksum that speaks against the data no such thing is left by chance (1 in 10^16).
    """
    left, wanted = (words.astype(CHECKSUM_DTYPE).view(np.uint8).reshape(-1, 8) for words in (stored, found))
    return np.asarray(((left == 0) | (left == wanted)).all(axis=1) & (stored != found))


def _is_table(raw: bytes) -> bool:
    try:
        FrameTable.from_bytes(raw)
    except RoboreelError:
        return False
    return True
