"""How many bytes a LeRobot folder will take: what is copied by its size, what is encoded by encoding some frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.convert.store_source import StoreSource
from roboreel.errors import DiskSpaceError
from roboreel.schema import KeySpec, LeRobotDatasetV2ImageMode
from roboreel.store import (
    ENCODED_MARGIN,
    CameraFrames,
    FrameTable,
    PngFrames,
    VideoFrames,
    encoded_bytes,
    free_bytes,
)

_EPISODES, _RUN = 4, 16
"""So many episodes are looked at, and of each so many frames."""


def check_export_fits(source: StoreSource, keys: Sequence[KeySpec], folder: Path) -> None:
    """Raise `DiskSpaceError` where the folder would not fit; cameras count 1.25 times."""
    columns = sum(spec.frame_bytes for spec in keys if not spec.is_camera) * source.num_frames
    cameras = sum(_camera_bytes(source, spec) for spec in keys if spec.is_camera)
    needed = columns + round(cameras * ENCODED_MARGIN)
    free = free_bytes(folder.absolute())
    if needed > free:
        raise DiskSpaceError(
            f"{source.num_frames:,} frames as a LeRobot folder need {needed:,} bytes and {free:,} are free for "
            f"{folder}; free some space, choose another place, or type --force (force=True) to try all the same"
        )


def _camera_bytes(source: StoreSource, spec: KeySpec) -> int:
    wanted = np.unique(np.linspace(0, source.num_episodes - 1, _EPISODES).astype(np.int64))
    sample = [source.camera(spec.name, number) for number in wanted.tolist()]
    is_video = spec.image_mode is LeRobotDatasetV2ImageMode.VIDEO
    if is_video and all(isinstance(frames, VideoFrames) for frames in sample):
        a_frame = float(np.mean([_video_frame_bytes(frames) for frames in sample]))
    elif not is_video and all(isinstance(frames, PngFrames) for frames in sample):
        sizes = [len(data) for frames in sample if isinstance(frames, PngFrames) for data in _some(frames)]
        a_frame = float(np.mean(sizes))
    else:
        runs = [_run(frames) for frames in sample]
        return encoded_bytes(spec, runs, source.num_frames, source.num_episodes, source.fps)
    return round(a_frame * source.num_frames)


def _video_frame_bytes(frames: CameraFrames) -> float:
    assert isinstance(frames, VideoFrames)
    return frames.path.stat().st_size / len(FrameTable.from_video(frames.path))


def _some(frames: PngFrames) -> list[bytes]:
    return [frames.read(i) for i in np.unique(np.linspace(0, frames.length - 1, _RUN).astype(np.int64)).tolist()]


def _run(frames: CameraFrames) -> NDArray[Any]:
    run: NDArray[Any] = next(iter(frames.blocks()))[:_RUN]
    return run
