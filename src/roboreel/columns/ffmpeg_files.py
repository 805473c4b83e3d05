"""A file as FFmpeg is to be told it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roboreel._optional import require

if TYPE_CHECKING:
    from av.container import InputContainer

_CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,ogg,ivf,nut,asf,mxf,h264,hevc,mjpeg,obu"
"""What holds its frames itself. FFmpeg goes by what a file begins with, whatever its name: lists of other files
(`ffconcat`, HLS) would have it read those, on the network too."""


def ffmpeg_path(path: Path | str) -> str:
    """Return a path from the root on: of `run:1/video.mp4` FFmpeg takes `run:` for the name of a protocol.

    >>> ffmpeg_path("/data/run:1/video.mp4")
    '/data/run:1/video.mp4'
    """
    return os.path.join(os.getcwd(), path)


def open_video(path: Path | str) -> InputContainer:
    """Open a video file for reading; PyAV's error for what is none, or leads to other files."""
    av: Any = require("av", purpose="reading video")
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    container: InputContainer = av.open(ffmpeg_path(path), metadata_errors="ignore", options=options)
    return container
