"""What a conversion will take: bytes before and after, by encoding frames of the dataset itself, and room for it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import DiskSpaceError
from roboreel.format import paths
from roboreel.format.files import free_bytes
from roboreel.format.manifest import Manifest
from roboreel.format.records import CHECKSUM_DTYPE
from roboreel.schema import KeySpec, LeRobotDatasetV2ImageMode
from roboreel.store.attempt import Touched
from roboreel.store.capacity import ENCODED_MARGIN
from roboreel.store.cloning import media_files
from roboreel.store.forecast import png_sizes, video_bytes
from roboreel.store.room import slot_files
from roboreel.store.store import Store

_RUN, _RUNS = 16, 4
"""Frames that follow each other, so that video can be coded as it will be; and how many such runs."""
_BLOCK_BYTES = 4096
"""What file systems give a file at least, and in steps of which it grows."""


@dataclass(frozen=True)
class CameraForecast:
    """Bytes on disk of one camera, as it is stored and as it will be."""

    before: str
    """Its image mode now."""
    after: str
    bytes_before: int
    bytes_after: int
    measured_frames: int
    """Frames that were encoded to tell `bytes_after`; 0: it is exact."""


@dataclass(frozen=True)
class ConversionForecast:
    """What a conversion takes and gives, in bytes."""

    cameras: Mapping[str, CameraForecast]
    """Those that are converted."""
    bytes_before: int
    """That the dataset takes on disk."""
    bytes_after: int
    bytes_needed: int
    """Of free space: the old and the new dataset are both there until the end. Estimates count 1.25 times."""
    bytes_free: int
    bytes_copied: int
    """Of other files, copied where the file system cannot share their blocks; part of `bytes_needed`."""
    media_bytes: int
    """That the image files of all cameras, converted or not, will take."""

    @property
    def fits(self) -> bool:
        return self.bytes_needed <= self.bytes_free

    def check(self) -> None:
        """Raise `DiskSpaceError` where it does not fit."""
        if not self.fits:
            raise DiskSpaceError(
                f"the conversion needs {self.bytes_needed:,} bytes beside the old dataset, and {self.bytes_free:,} are "
                "free; free some space, convert fewer cameras at a time, convert to another disk (--to DEST, "
                "to=), or type --force (force=True) to try all the same"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "fits": self.fits}


def forecast_conversion(store: Store, manifest: Manifest, changed: Iterable[str], place: Path) -> ConversionForecast:
    """Forecast the conversion of the cameras `changed` to what `manifest` says of them, built in `place`.

    May be asked of a dataset that another process writes: it is a forecast.
    """
    frames = int(np.sum((store.table.stops - store.table.live_starts)[store.table.live]))
    cameras = {key: _camera(store, manifest, key, frames) for key in changed}
    exact = sum(one.bytes_after for one in cameras.values() if not one.measured_frames)
    estimated = sum(one.bytes_after for one in cameras.values() if one.measured_frames)
    by_slot = slot_files(store.root, store.manifest).values()
    copied = sum(store.state.frames * file.slot_bytes for file in by_slot if file.key not in cameras)
    kept = [key for key, spec in store.manifest.keys.items() if spec.needs_decoding and key not in cameras]
    media = sum(_size(store.root / path) for path, _ in media_files(store, kept))
    if not _same_disk(store.root, place):
        copied += media
    before = store.bytes_on_disk()
    change = sum(one.bytes_after - one.bytes_before for one in cameras.values())
    return ConversionForecast(
        cameras,
        bytes_before=before,
        bytes_after=max(0, before + change),
        bytes_needed=max(0, exact + round(estimated * ENCODED_MARGIN) + copied - written_bytes(place)),
        bytes_free=free_bytes(place),
        bytes_copied=copied,
        media_bytes=media + estimated,
    )


def _camera(store: Store, manifest: Manifest, key: str, frames: int) -> CameraForecast:
    old, new = store.manifest.keys[key], manifest.keys[key]
    assert old.image_mode is not None
    assert new.image_mode is not None
    sums = manifest.capacity * CHECKSUM_DTYPE.itemsize
    measured = 0
    if new.image_mode is LeRobotDatasetV2ImageMode.MEMMAP:
        after = manifest.capacity * new.frame_bytes + sums
    else:
        runs = _sample(store, key)
        measured = sum(map(len, runs))
        after = encoded_bytes(new, runs, frames, len(store.table.live), manifest.fps)
        after += sums if new.has_checksums else 0
    return CameraForecast(old.image_mode.value, new.image_mode.value, _stored_bytes(store, key), after, measured)


def encoded_bytes(spec: KeySpec, runs: list[NDArray[Any]], frames: int, episodes: int, fps: float) -> int:
    """Bytes on disk of a camera's frames in all episodes, as those of the runs, (n, *shape) each, have come out."""
    if not runs:
        return 0
    count = sum(map(len, runs))
    if spec.image_mode is LeRobotDatasetV2ImageMode.PNG:
        taken = sum(on_disk(size) for run in runs for size in png_sizes(run))
        return round(Fraction(taken, count) * frames)
    assert spec.video_options is not None
    coded = [video_bytes(run, len(run), fps, spec.video_options) for run in runs]
    a_frame = sum((each * len(run) for (each, _), run in zip(coded, runs, strict=True)), Fraction()) / count
    an_episode = sum((once for _, once in coded), Fraction()) / len(coded)
    # two files an episode, a video and the table of its frames, each of which ends within a block
    return round(a_frame * frames + an_episode * episodes) + episodes * _BLOCK_BYTES


def _sample(store: Store, key: str) -> list[NDArray[Any]]:
    """Return runs of neighbouring frames, evenly spread over what survives."""
    spec = store.manifest.keys[key]
    live = store.table.live
    if not len(live):
        return []
    spread = live[np.unique(np.linspace(0, len(live) - 1, _RUNS).astype(np.int64))]
    runs = []
    for row in spread.tolist():
        start, stop = int(store.table.live_starts[row]), int(store.table.stops[row])
        begin = start + max(0, stop - start - _RUN) // 2
        slots = np.arange(begin, min(begin + _RUN, stop))

        def attempt(_strict: bool, slots: NDArray[np.int64] = slots) -> tuple[NDArray[Any], Touched]:
            alive = store.surviving(slots)
            rows, words = store.rows_of(alive)
            out = np.empty((len(alive), *spec.shape), spec.dtype)
            store.read_key(key, store.frames_at(alive, rows), out)
            return out, Touched(alive, words)

        runs.append(store.read(attempt))
    return runs


def _stored_bytes(store: Store, key: str) -> int:
    """Bytes on disk of the files of a camera."""
    root = store.root
    slots = (paths.column_path(root, key), paths.checksum_path(root, key))
    return sum(map(_size, slots)) + sum(_size(root / path) for path, _ in media_files(store, [key]))


def _size(path: Path) -> int:
    """Bytes that a file takes on disk; what is not written out yet counts as long as it will be."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return 0
    return status.st_blocks * 512 or on_disk(status.st_size)


def on_disk(size: int) -> int:
    """Bytes that a file of this length takes."""
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


def written_bytes(place: Path) -> int:
    """Bytes of what an earlier try has left, and this one goes on with; hard links cost nothing."""
    found = 0
    for folder, _, names in os.walk(place):
        for name in names:
            status = os.lstat(os.path.join(folder, name))
            found += status.st_blocks * 512 if status.st_nlink == 1 else 0
    return found


def _same_disk(root: Path, place: Path) -> bool:
    while not place.exists():
        place = place.parent
    return os.stat(root).st_dev == os.stat(place).st_dev
