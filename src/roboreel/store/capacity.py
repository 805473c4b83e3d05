"""`buffer_capacity`, in frames or in bytes; a capacity in bytes counts columns whole and image files as they come."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import CapacityError, DiskSpaceError, InvalidArgumentError
from roboreel.format import paths
from roboreel.format.manifest import ByteCapacity, Manifest
from roboreel.schema import LeRobotDatasetV2ImageMode
from roboreel.store.byte_size import parse_bytes
from roboreel.store.layout import frame_bytes
from roboreel.store.store import Store

Ints = NDArray[np.int64]

ENCODED_MARGIN = Fraction(5, 4)
"""What a frame of an encoded camera counts for, in frames of the first episode: others may code less well."""

_WOULD_DO = "a positive number of frames would do, or a size such as '20GB', '500MB', '1.5TB' or '20GiB'"


@dataclass(frozen=True)
class Capacity:
    """What was asked for: `amount` frames, or bytes."""

    amount: int
    in_bytes: bool
    given: str
    """As the caller wrote it, for errors."""

    def __str__(self) -> str:
        return f"buffer_capacity={self.given}"


def parse_capacity(given: Any) -> Capacity | None:
    """Return the capacity for a number of frames or a size with a unit; None for None.

    >>> parse_capacity(1000).amount, parse_capacity("1.5kB").amount, parse_capacity("20GiB").amount
    (1000, 1500, 21474836480)
    """
    if given is None:
        return None
    if isinstance(given, np.integer):
        given = int(given)
    if type(given) is int and given > 0:
        return Capacity(given, in_bytes=False, given=str(given))
    if isinstance(given, str):
        amount = parse_bytes(given)
        if amount is not None:
            return Capacity(amount, in_bytes=True, given=repr(given))
    raise InvalidArgumentError(f"buffer_capacity={given!r}; {_WOULD_DO}")


def with_capacity(manifest: Manifest, asked: Capacity | None) -> Manifest:
    """Return the metadata of a new dataset with what was asked for; bytes become frames after the first episode."""
    if asked is None:
        return manifest
    if asked.in_bytes:
        limit = ByteCapacity(asked.amount, frame_bytes(manifest))
        return replace(manifest, fixed_capacity=True, byte_capacity=limit)
    return replace(manifest, capacity=asked.amount, fixed_capacity=True)


def check_not_smaller(store: Store, asked: Capacity) -> None:
    """Refuse a capacity below what is stored: no file that a reader may have mapped ever shrinks."""
    capacity, known = store.state.capacity, store.manifest.byte_capacity
    if not asked.in_bytes:
        frames, meant = asked.amount, ""
    elif known is not None:
        if asked.amount >= known.total:
            return
        raise CapacityError(
            f"{asked} is less than the {known.total:,} bytes with which {store.root} was made; storage cannot shrink: "
            "leave it out, or give more"
        )
    else:
        frames, limit = ImageBytes(store).capacity_for(asked.amount)
        meant = f", {frames} frames of {limit.a_frame:,} bytes,"
    if frames < capacity:
        raise CapacityError(
            f"{asked}{meant} is less than the {capacity} frames for which {store.root} has room; "
            "storage cannot shrink: leave it out, or give more"
        )


def check_first(manifest: Manifest, length: int) -> None:
    """Refuse a capacity in bytes for which the first episode's columns alone are too much."""
    if manifest.byte_capacity is None:
        return
    total = manifest.byte_capacity.total
    room = total // frame_bytes(manifest)
    if room < length:
        raise CapacityError(
            f"an episode of {length} frames is longer than the {room} frames for which {total:,} bytes of "
            f"buffer_capacity have room, at {frame_bytes(manifest):,} bytes a frame; give "
            f"buffer_capacity='{length * frame_bytes(manifest)}B' or more"
        )


class ImageBytes:
    """The sizes of the image files of a dataset: a directory of PNG an episode row, video files that rows share."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sizes: dict[tuple[str, int], int] = {}

    def check(self, rows: Ints, row: int, clips: list[tuple[int, int]]) -> None:
        """Before a commit: refuse what would take columns and image files beyond the capacity in bytes.

        `rows` are the episodes that stay; `row` and `clips` those of the new one, whose files are staged. A ring gives
        up what is too much, so that there the new one's files alone must fit.

        Raises:
            DiskSpaceError: the message says what fits and what to type.
        """
        limit = self._store.manifest.byte_capacity
        if limit is None:
            return
        staged, ring = list(self._staged(row, clips)), self._store.manifest.ring
        columns = self._store.state.capacity * frame_bytes(self._store.manifest)
        files = sum(self._size(*file) for file in staged) if ring else self._total([*self._files(rows), *staged])
        if columns + files > limit.total:
            which = "this episode's image files alone" if ring else "with this episode the image files"
            raise DiskSpaceError(
                f"{self._store.root}: {which} take {files:,} bytes beside {columns:,} of columns, and buffer_capacity "
                f"is {limit.total:,} bytes; reopen with a larger buffer_capacity"
                + ("" if ring else ", or create with use_as_fifo_buffer=True")
            )

    def are_too_many(self, more: float = 0) -> bool:
        """Whether the columns, all image files and `more` bytes are more than the capacity in bytes."""
        limit = self._store.manifest.byte_capacity
        if limit is None:
            return False
        columns = self._store.state.capacity * frame_bytes(self._store.manifest)
        return columns + self._total(list(self._files(self._store.table.live))) + more > limit.total

    def leave_no_room(self, length: int, held: Collection[str]) -> bool:
        """Whether an episode of `length` frames, with images as large as the newest's, would be too much.

        Of the cameras in `held` its file is here already, and counted.
        """
        live = self._store.table.live
        if self._store.manifest.byte_capacity is None or not len(live):
            return False
        return self.are_too_many(float(self._encoded(int(live[-1]), held) * length))

    def capacity_for(self, total: int) -> tuple[int, ByteCapacity]:
        """Return for how many frames `total` bytes have room, and what a frame was counted for."""
        known = self._store.manifest.byte_capacity
        a_frame = self.a_frame() if known is None else known.a_frame
        return total // a_frame, ByteCapacity(total, a_frame)

    def a_frame(self) -> int:
        """What a frame counts for, by the oldest episode that is left: its columns, and its images with a margin."""
        live = self._store.table.live
        encoded = self._encoded(int(live[0])) if len(live) else Fraction(0)
        return frame_bytes(self._store.manifest) + int(np.ceil(float(encoded * ENCODED_MARGIN)))

    def _encoded(self, row: int, held: Collection[str] = ()) -> Fraction:
        """Bytes of image files for which a frame of the episode counts, those of the cameras in `held` left out."""
        encoded, length = Fraction(0), int(self._store.table.rows["length"][row])
        for key, number in self._files(np.array([row])):
            if key in held:
                continue
            frames = length
            if self._store.manifest.keys[key].image_mode is LeRobotDatasetV2ImageMode.VIDEO:
                frames = self._video_frames(key, number)  # other episodes may be in the same file
            encoded += Fraction(self._size(key, number), frames)
        return encoded

    def _total(self, files: list[tuple[str, int]]) -> int:
        """Bytes of these files; sizes of others are forgotten."""
        self._sizes = {file: self._size(*file) for file in files}
        return sum(self._sizes.values())

    def _files(self, rows: Ints) -> Iterator[tuple[str, int]]:
        manifest, table = self._store.manifest, self._store.table
        for key, spec in manifest.keys.items():
            if spec.image_mode is LeRobotDatasetV2ImageMode.PNG:
                yield from ((key, row) for row in rows.tolist())
        for place, key in enumerate(manifest.video_keys):
            yield from ((key, file) for file in np.unique(table.rows["clips"]["file"][rows, place]).tolist())

    def _staged(self, row: int, clips: list[tuple[int, int]]) -> Iterator[tuple[str, int]]:
        manifest = self._store.manifest
        for key, spec in manifest.keys.items():
            if spec.image_mode is LeRobotDatasetV2ImageMode.PNG:
                self._sizes.pop((key, row), None)  # of an earlier try
                yield key, row
        for key, (file, _) in zip(manifest.video_keys, clips, strict=True):
            self._sizes.pop((key, file), None)
            yield key, file

    def _size(self, key: str, number: int) -> int:
        known = self._sizes.get((key, number))
        if known is not None:
            return known
        if self._store.manifest.keys[key].image_mode is LeRobotDatasetV2ImageMode.VIDEO:
            video = paths.video_path(self._store.root, key, number)
            return _bytes_of(video) + _bytes_of(paths.frame_table_path(self._store.root, key, number))
        try:
            with os.scandir(paths.image_dir(self._store.root, key, number)) as entries:
                return sum(entry.stat().st_size for entry in entries)
        except FileNotFoundError:
            return 0

    def _video_frames(self, key: str, number: int) -> int:
        from roboreel.columns.video import VideoColumn

        column = self._store.columns[key]
        assert isinstance(column, VideoColumn)
        return len(column.table(number))


def _bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
