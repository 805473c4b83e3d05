"""Compares what lies in the slots with its checksums and with the episode table, block by block.

Works beside a living writer: what looks wrong is looked at again until no writer was at it meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from roboreel.columns.frame_table import FrameTable, video_digest
from roboreel.errors import DatasetBusyError, RoboreelError
from roboreel.format import files, paths
from roboreel.format.lock import writer_is_alive
from roboreel.format.records import CHECKSUM_DTYPE, OWNER_DTYPE, OWNER_ROW_MASK
from roboreel.schema import (
    FRAME_INDEX_KEY,
    INDEX_KEY,
    TIMESTAMP_KEY,
    KeySpec,
    LeRobotDatasetV2ImageMode,
)
from roboreel.store.problem import Problem, frames_text
from roboreel.store.slots import frame_checksums
from roboreel.store.store import WAIT_FOR_WRITER_S, Store

Ints = NDArray[np.int64]
Look = Callable[[Ints], Ints]

BLOCK_BYTES = 8 << 20
_PAUSE_S = 0.001
_UNLIKE = "not matching the checksum"
_VIDEO_TRIES = 3


class SlotReader:
    """Reads a file of slots by `pread`: an unreadable block is an error here, and would kill through a mapping."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...] = ()) -> None:
        self._dtype, self._shape = dtype, shape
        self._bytes = dtype.itemsize * int(np.prod(shape, dtype=object))
        self._fd = files.open_to_read(path)

    def read(self, slots: Ints) -> NDArray[Any]:
        """Return what ascending slots hold, (n, *shape); zeros for what is beyond the end of the file."""
        out = np.zeros((len(slots), *self._shape), self._dtype)
        flat = out.reshape(-1).view(np.uint8)
        for run in np.split(np.arange(len(slots)), np.flatnonzero(np.diff(slots) != 1) + 1):
            if len(run) and self._bytes:
                raw = os.pread(self._fd, len(run) * self._bytes, int(slots[run[0]]) * self._bytes)
                flat[int(run[0]) * self._bytes :][: len(raw)] = np.frombuffer(raw, np.uint8)
        return out

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)


class FrameCheck:
    """The frames of an opened store; `every_byte=False` looks only at what costs little."""

    def __init__(self, store: Store, *, every_byte: bool) -> None:
        store.settle()
        self._store = store
        self._every_byte = every_byte
        self._live: Ints | None = None
        self._starts = self._stops = self._rows = np.zeros(0, np.int64)

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong, key by key; nothing where all is well."""
        store, frames = self._store, self._store.state.frames
        yield from self._scan(
            paths.OWNERS, "", OWNER_DTYPE.itemsize, self._wrong_owners, "owned by another episode, or by none", frames
        )
        for key, spec in store.manifest.keys.items():
            if spec.image_mode is LeRobotDatasetV2ImageMode.VIDEO:
                yield from self._videos(key)
            elif spec.image_mode is LeRobotDatasetV2ImageMode.PNG:
                yield from self._pngs(key, frames)
            elif self._every_byte:
                yield from self._column(key, spec, frames)

    # What a slot should hold

    def expected_rows(self, slots: Ints) -> Ints:
        """Return the episode row of which each slot holds a frame, -1 where it should hold none."""
        live = self._store.table.live
        if live is not self._live:
            order = np.argsort(self._store.table.live_starts[live])
            self._rows = live[order]
            self._starts = self._store.table.live_starts[self._rows]
            self._stops = self._store.table.stops[self._rows]
            self._live = live
        if not len(self._rows):
            return np.full(len(slots), -1, np.int64)
        at = np.maximum(np.searchsorted(self._starts, slots, "right") - 1, 0)
        held = (slots >= self._starts[at]) & (slots < self._stops[at])
        rows: Ints = np.where(held, self._rows[at], -1)
        return rows

    def _wrong_owners(self, slots: Ints) -> Ints:
        words = self._store.words_at(slots)
        rows, wanted = (words & OWNER_ROW_MASK).astype(np.int64) - 1, self.expected_rows(slots)
        state = self._store.state
        uncertain = (slots >= state.busy_start) & (slots < state.busy_stop)
        for start, stop in self._store.at_risk:
            uncertain |= (slots >= start) & (slots < stop)
        wrong: Ints = slots[(rows != wanted) & ((wanted >= 0) | ~uncertain)]
        return wrong

    # Columns

    def _column(self, key: str, spec: KeySpec, frames: int) -> Iterator[Problem]:
        path = paths.column_path(self._store.root, key)
        values = SlotReader(path, spec.dtype, spec.shape)
        sums = SlotReader(paths.checksum_path(self._store.root, key), CHECKSUM_DTYPE)

        def unlike_checksum(slots: Ints) -> Ints:
            slots = self._settled_slots(key, slots)
            return slots[frame_checksums(values.read(slots)) != sums.read(slots)] if len(slots) else slots

        def wrong_value(slots: Ints) -> Ints:
            slots = self._settled_slots(key, slots)
            return slots[self._contradicts(spec, values, slots)] if len(slots) else slots

        name = path.relative_to(self._store.root).as_posix()
        seen: dict[int, set[int]] = {}
        what = f"{_UNLIKE} in {_checksum_name(key)}"
        for problem in self._scan(name, key, spec.frame_bytes, unlike_checksum, what, frames):
            seen.setdefault(problem.row, set()).update(problem.slots)
            yield problem
        if spec.role in ("index", "string"):
            for problem in self._scan(
                name, key, spec.frame_bytes, wrong_value, "not what the episode table allows there", frames
            ):
                if not set(problem.slots) <= seen.get(problem.row, set()):
                    yield problem

    def _settled_slots(self, key: str, slots: Ints) -> Ints:
        """Leave out slots without a frame, and those to which a dead writer's edit has yet to be applied."""
        slots = slots[self.expected_rows(slots) >= 0]
        pending = self._store.pending_slots(key)
        return slots if pending is None else np.setdiff1d(slots, pending)

    def _contradicts(self, spec: KeySpec, values: SlotReader, slots: Ints) -> NDArray[np.bool_]:
        found, rows = values.read(slots), self.expected_rows(slots)
        if spec.is_string:
            return np.asarray((found < 0) | (found >= len(self._store.strings)))
        if spec.name == TIMESTAMP_KEY:
            same = (slots > 0) & (self.expected_rows(slots - 1) == rows)
            before = values.read(np.maximum(slots - 1, 0))
            return np.asarray(~np.isfinite(found) | (same & (found < before)))
        return np.asarray(found != self.expected_values(spec.name, slots, rows))

    def expected_values(self, key: str, slots: Ints, rows: Ints) -> Ints:
        """What the table says of `index`, `episode_index` or `frame_index` in slots that `rows` own."""
        table = self._store.table.rows
        position: Ints = slots - table["start"][rows]
        if key == FRAME_INDEX_KEY:
            return position
        first: Ints = table["first_index" if key == INDEX_KEY else "episode_index"][rows]
        return first + position if key == INDEX_KEY else first

    # Images

    def _pngs(self, key: str, frames: int) -> Iterator[Problem]:
        store = self._store
        sums = SlotReader(paths.checksum_path(store.root, key), CHECKSUM_DTYPE)

        def missing(slots: Ints) -> Ints:
            slots = slots[self.expected_rows(slots) >= 0]
            return np.array([slot for slot in slots.tolist() if not self._png(key, slot).is_file()], np.int64)

        def spoiled(slots: Ints) -> Ints:
            slots = slots[self.expected_rows(slots) >= 0]
            wanted = zip(slots.tolist(), sums.read(slots).tolist(), strict=True)
            return np.array([slot for slot, one in wanted if self._png_hash(key, slot) not in (one, None)], np.int64)

        looks = [(missing, "no PNG file")]
        if self._every_byte:
            looks.append((spoiled, f"PNG file {_UNLIKE} in {_checksum_name(key)}"))
        for look, what in looks:
            for problem in self._scan(paths.IMAGES, key, 1 << 14, look, what, frames):
                if not len(problem.slots):  # they could not be looked at
                    yield problem
                    continue
                path = self._png(key, problem.slots[0])
                yield replace(problem, file=path.relative_to(store.root).as_posix())

    def _png(self, key: str, slot: int) -> Path:
        row = int(self.expected_rows(np.array([slot]))[0])
        return paths.image_path(self._store.root, key, row, slot - int(self._store.table.starts[row]))

    def _png_hash(self, key: str, slot: int) -> int | None:
        """Return the file's hash; None where it is missing, which is told of elsewhere, and -1 where unreadable."""
        try:
            return xxhash.xxh3_64_intdigest(files.read_file(self._png(key, slot)))
        except FileNotFoundError:
            return None
        except (OSError, RoboreelError):
            return -1

    def _videos(self, key: str) -> Iterator[Problem]:
        clip = self._store.manifest.video_keys.index(key)
        table = self._store.table
        for file in np.unique(table.rows["clips"]["file"][table.live, clip]).tolist():
            what = ""
            for _ in range(_VIDEO_TRIES):
                before = self._store.refresh()
                path, what = self._video_problem(key, clip, file)
                if not what or self._store.refresh() == before:
                    break
            live = self._store.table.live
            rows = self._store.table.rows
            hit = live[rows["clips"]["file"][live, clip] == file].tolist() if what else []
            for row in hit:
                name = path.relative_to(self._store.root).as_posix()
                yield Problem(name, what, row, int(rows["episode_index"][row]), key=key)

    def _video_problem(self, key: str, clip: int, file: int) -> tuple[Path, str]:
        """Return what is wrong with a video or its frame table, and with which of the two; "" where all is well."""
        path = paths.video_path(self._store.root, key, file)
        table_path = paths.frame_table_path(self._store.root, key, file)
        try:
            table = FrameTable.from_bytes(files.read_file(table_path), "the frame table")
        except FileNotFoundError:
            return table_path, "is missing"
        except (OSError, RoboreelError) as error:
            return table_path, f"cannot be read: {error}"
        if (table.height, table.width) != self._store.manifest.keys[key].shape[:2]:
            return table_path, f"tells of {table.width}x{table.height} pixels, which is not what the key has"
        rows, live = self._store.table.rows, self._store.table.live
        mine = live[rows["clips"]["file"][live, clip] == file]
        firsts = rows["clips"]["first"][mine, clip]
        begins = firsts + self._store.table.live_starts[mine] - rows["start"][mine]
        if int(begins.min(initial=0)) < 0:
            return table_path, "begins after the first frame that its episodes need"
        ends = firsts + rows["length"][mine]
        if len(table) < int(ends.max(initial=0)):
            return table_path, f"has {len(table)} frames, its episodes need {int(ends.max())}"
        try:
            size = path.stat().st_size
            if size != table.file_bytes:
                return path, f"has {size:,} bytes, its frame table says {table.file_bytes:,}"
            if self._every_byte and video_digest(path)[1] != table.file_hash:
                return path, "does not match its checksum, which the frame table has"
        except FileNotFoundError:
            return path, "is missing"
        except OSError as error:
            return path, f"cannot be read: {error.strerror or error}"
        return path, ""

    # Blocks, and looking again

    def _scan(self, file: str, key: str, slot_bytes: int, look: Look, what: str, frames: int) -> Iterator[Problem]:
        """Yield one problem for each episode in which `look` finds slots."""
        step = max(1, min(BLOCK_BYTES // max(slot_bytes, 1), 1 << 18))
        found: dict[int, list[Ints]] = {}
        for start in range(0, frames, step):
            slots = np.arange(start, min(start + step, frames))
            try:
                bad = look(slots)
                if len(bad):
                    bad = self._undisturbed(look, bad)
            except OSError as error:
                if isinstance(error, DatasetBusyError):
                    raise
                yield Problem(file, f"cannot be read: {error.strerror or error}", key=key)
                return
            rows = self.expected_rows(bad)
            for row in np.unique(rows).tolist():
                found.setdefault(row, []).append(bad[rows == row])
        for row, parts in sorted(found.items()):
            yield self._problem(file, key, row, np.concatenate(parts), what)

    def _problem(self, file: str, key: str, row: int, slots: Ints, what: str) -> Problem:
        if row < 0:
            many = f"slots {slots[0]} to {slots[-1]}" if len(slots) > 1 else f"slot {slots[0]}"
            return Problem(file, f"{many}, where no episode is: {what}", slots=tuple(slots.tolist()), key=key)
        table = self._store.table.rows
        text = frames_text(slots - int(table["start"][row]))
        return Problem(file, f"{text}: {what}", row, int(table["episode_index"][row]), tuple(slots.tolist()), key)

    def _undisturbed(self, look: Look, slots: Ints) -> Ints:
        """Return what `look` still finds in the slots when no writer was at them meanwhile."""
        deadline = time.monotonic() + WAIT_FOR_WRITER_S
        while True:
            self._store.settle()
            before, words = self._store.refresh(), self._store.words_at(slots)
            found = look(slots)
            state, after = self._store.state, self._store.refresh()
            busy = np.any((slots >= state.busy_start) & (slots < state.busy_stop)) and writer_is_alive(self._store.root)
            if not len(found):
                return found
            if not busy and (after == before or np.array_equal(self._store.words_at(slots), words)):
                return found
            if time.monotonic() > deadline:
                raise DatasetBusyError(
                    f"{self._store.root}: its writer was at the same frames for more than {WAIT_FOR_WRITER_S:g} s; "
                    "try again"
                )
            time.sleep(_PAUSE_S)


def _checksum_name(key: str) -> str:
    return paths.checksum_path(Path(), key).as_posix()
