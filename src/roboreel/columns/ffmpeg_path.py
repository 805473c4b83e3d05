"""A path as FFmpeg is to be told it."""

from __future__ import annotations

import os
from pathlib import Path


def ffmpeg_path(path: Path | str) -> str:
    """Return a path from the root on: of `run:1/video.mp4` FFmpeg takes `run:` for the name of a protocol.

    >>> ffmpeg_path("/data/run:1/video.mp4")
    '/data/run:1/video.mp4'
    """
    return os.path.join(os.getcwd(), path)
