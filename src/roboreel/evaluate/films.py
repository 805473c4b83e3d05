"""Videos of an evaluation's episodes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from roboreel.columns.encode import encode_video
from roboreel.envs import Episode
from roboreel.schema import VideoOptions

VIDEOS = "videos"
VIDEO_NAME = r"seed_\d+_(observation\.image.*|film)_(no_success|success|end)\.mp4"
"""What `write_videos` calls its files."""


def write_videos(folder: Path, episode: Episode, fps: float) -> list[Path]:
    """Write a video of each camera of an episode, or of its film; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    # h264 and not the datasets' AV1: every browser and player shows it
    options = VideoOptions(codec="h264", gop=30, crf=20, preset="veryfast", pix_fmt="yuv420p")
    outcome = "end" if not episode.tells_success else "success" if episode.success else "no_success"
    films = {key: frames for key, frames in episode.data.items() if frames.ndim == 4}
    if not films and episode.film is not None:
        films = {"film": episode.film}
    paths = []
    for key, frames in films.items():
        paths.append(folder / f"seed_{episode.seed}_{key}_{outcome}.mp4")
        coloured = np.repeat(frames, 3, axis=-1) if frames.shape[-1] == 1 else frames
        # of odd sizes yuv420p has no half
        height, width = (size - size % 2 for size in coloured.shape[1:3])
        encode_video(paths[-1], [np.ascontiguousarray(coloured[:, :height, :width])], fps=fps, options=options)
    return paths


def remove_videos(output_dir: Path) -> None:
    """Remove the videos of an earlier evaluation, also of one that was killed; files of others stay."""
    for path in (output_dir / VIDEOS).glob("*.mp4"):
        if re.fullmatch(VIDEO_NAME, path.name):
            path.unlink()
