"""What an import will take: bytes before and after, by encoding some frames of the source itself, and room for it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.convert.foreign import DecodedImages, ForeignDataset, StreamedSource
from roboreel.errors import DiskSpaceError, SourceError
from roboreel.schema import KeySpec, LeRobotDatasetV2ImageMode
from roboreel.store import (
    ENCODED_MARGIN,
    CameraForecast,
    CameraFrames,
    Manifest,
    PngFrames,
    VideoFrames,
    at_size,
    check_channels,
    encoded_bytes,
    frame_bytes,
    free_bytes,
    on_disk,
    written_bytes,
)

_MOST_UNFOLDING, _WORTH_REFUSING_BYTES = 1000, 64 << 20
"""Times that files of rows may grow, and up to what size it does not matter."""
_RUN, _RUNS = 16, 4
"""Frames that follow each other, so that video can be coded as it will be; and how many such runs, one an episode."""


@dataclass(frozen=True)
class ImportForecast:
    """What an import takes and gives, in bytes."""

    storage_dir: str
    frames: int
    cameras: Mapping[str, CameraForecast]
    """As they are in the source, and as they will be."""
    bytes_after: int
    """That the dataset will take on disk."""
    bytes_needed: int
    """Of free space, besides what an earlier try has left. Estimates count 1.25 times."""
    bytes_free: int
    rows_bytes: int = 0
    """Of `bytes_after`, what is no camera's."""
    rows_before: int = 0
    """Bytes of the files that it comes from; 0: not known."""

    @property
    def fits(self) -> bool:
        return self.bytes_needed <= self.bytes_free

    def check(self) -> None:
        """Raise `DiskSpaceError` where it does not fit, `SourceError` where files unfold as no recording does."""
        if 0 < self.rows_before * _MOST_UNFOLDING < self.rows_bytes and self.rows_bytes > _WORTH_REFUSING_BYTES:
            raise SourceError(
                f"{self.rows_before:,} bytes of files would become {self.rows_bytes:,} besides images, more than "
                f"{_MOST_UNFOLDING:,} times as many, which no recording does; if it is to be, type --force (force=True)"
            )
        if self.fits:
            return
        larger = any(camera.bytes_after > camera.bytes_before for camera in self.cameras.values())
        advice = "keep the cameras as they are (no decode_images, no image_mode), " if larger else ""
        raise DiskSpaceError(
            f"the import of {self.frames:,} frames needs {self.bytes_needed:,} bytes and {self.bytes_free:,} are free "
            f"in {self.storage_dir}; {advice}free some space, choose another storage_dir, or type --force (force=True) "
            "to try all the same"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "fits": self.fits}


def forecast_source(source: ForeignDataset, manifest: Manifest, storage_dir: Path) -> ImportForecast:
    """Forecast the import of `source` as the dataset that `manifest` describes; nothing is written."""
    stored = source.num_frames
    if manifest.fixed_capacity and manifest.byte_capacity is None:
        stored = min(stored, manifest.capacity)  # a ring keeps no more
    cameras = {key: spec for key, spec in manifest.keys.items() if spec.is_camera}
    samples = _samples(source, cameras)
    found = {key: _camera(source, manifest, key, samples[key], stored) for key in cameras}
    slots = manifest.capacity * frame_bytes(manifest)
    encoded = {key: one for key, one in found.items() if one.after != LeRobotDatasetV2ImageMode.MEMMAP.value}
    exact = sum(one.bytes_after for one in encoded.values() if not one.measured_frames)
    estimated = sum(one.bytes_after for one in encoded.values() if one.measured_frames)
    needed = slots + exact + round(estimated * ENCODED_MARGIN)
    if manifest.byte_capacity is not None:
        needed = manifest.byte_capacity.total
    going = source.released_bytes if isinstance(source, StreamedSource) else 0
    return ImportForecast(
        str(storage_dir),
        source.num_frames,
        found,
        bytes_after=slots + exact + estimated,
        bytes_needed=max(0, needed - going - written_bytes(storage_dir)),
        bytes_free=free_bytes(storage_dir),
        rows_bytes=stored * sum(spec.frame_bytes for spec in source.keys if not spec.is_camera),
        rows_before=source.row_bytes,
    )


def _samples(source: ForeignDataset, cameras: Mapping[str, KeySpec]) -> dict[str, list[CameraFrames]]:
    """The frames of the first episodes, which are decoded only if they are asked for."""
    found: dict[str, list[CameraFrames]] = {key: [] for key in cameras}
    # where videos are copied nothing need be read at all
    if all(source.camera_files(key) and _is_kept(cameras[key]) for key in cameras):
        return found
    for episode in itertools.islice(source.episodes(), _RUNS):
        for key in cameras:
            found[key].append(episode.cameras[key])
    return found


def _is_kept(spec: KeySpec) -> bool:
    """Whether a camera that comes as video files goes on as such; the sizes of pictures are not known here."""
    return spec.image_mode is LeRobotDatasetV2ImageMode.VIDEO and spec.resized is None


def _camera(
    source: ForeignDataset, manifest: Manifest, key: str, sample: Sequence[CameraFrames], frames: int
) -> CameraForecast:
    """The forecast of one camera; `frames` are those that stay."""
    spec = manifest.keys[key]
    assert spec.image_mode is not None
    check_channels(spec)
    files = source.camera_files(key)
    images = [data for one in sample for data in _image_bytes(one)]
    share = Fraction(frames, max(1, source.num_frames))
    size = sum(map(on_disk, files.values()))
    before = "video" if files else "images" if images or not sample else "raw pixels"
    bytes_before = size if files else _mean(list(map(len, images)), source.num_frames)
    if before == "raw pixels":
        bytes_before = source.num_frames * math.prod(sample[0].shape) * sample[0].dtype.itemsize
    mode = spec.image_mode
    if mode is LeRobotDatasetV2ImageMode.MEMMAP:
        after, measured = manifest.capacity * spec.frame_bytes, 0
    elif files and _is_kept(spec) and all(isinstance(one, VideoFrames) for one in sample):
        after, measured = round(size * share) + len(files) * on_disk(1), 0  # beside each a small table
    elif mode is LeRobotDatasetV2ImageMode.PNG and all(
        isinstance(one, PngFrames) and one.shape == spec.shape for one in sample
    ):
        after, measured = _mean([on_disk(len(data)) for data in images], frames), len(images)
    else:
        runs = [_run(one, spec) for one in sample]
        after = encoded_bytes(spec, runs, frames, source.num_episodes, manifest.fps)
        measured = sum(map(len, runs))
    return CameraForecast(before, mode.value, bytes_before, after, measured)


def _run(frames: CameraFrames, spec: KeySpec) -> NDArray[Any]:
    run: NDArray[Any] = next(iter(at_size(frames, spec).blocks()))[:_RUN]
    return run


def _image_bytes(frames: CameraFrames) -> list[bytes]:
    """The files of some images of an episode; none of a video."""
    files = frames.files if isinstance(frames, DecodedImages) else frames
    if not isinstance(files, PngFrames):
        return []
    at = np.unique(np.linspace(0, files.length - 1, _RUN).astype(np.int64))
    return [files.read(i) for i in at.tolist()]


def _mean(sizes: Sequence[int], frames: int) -> int:
    """Bytes of so many frames of these sizes."""
    return round(Fraction(sum(sizes), len(sizes)) * frames) if sizes else 0
