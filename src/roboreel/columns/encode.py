"""Frames into an MP4 file, through PyAV; what the encoder made of them is counted afterwards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.columns.frame_table import FrameTable
from roboreel.columns.scheduling import ordinary_threads
from roboreel.columns.silence import silence
from roboreel.errors import InvalidArgumentError, StorageError, VideoError
from roboreel.format import files
from roboreel.format.new_file import NewFile
from roboreel.schema import VideoOptions

_BUFFER_BYTES = 1 << 18
"""What is written in one go."""
_NARROW = 28
_ENCODERS = {"av1": "libsvtav1", "h264": "libx264", "hevc": "libx265"}


def encode_video(
    path: Path | str, blocks: Iterable[NDArray[np.uint8]], *, fps: float, options: VideoOptions | None = None
) -> FrameTable:
    """Encode frames into the new MP4 file `path`, frame k at exactly k / fps seconds; returns its frame table.

    Args:
        blocks: arrays (k, height, width, 3) uint8 RGB, all of one height and width.
        options: AV1 as LeRobot writes it where left out.

    Raises:
        InvalidArgumentError: no frames, frames of another type, or a size that the codec cannot take.
        DiskSpaceError, StorageError: the file could not be written; what there was of it is removed.
        VideoError: the file does not hold the frames that went in.

        encode_video("a.mp4", [frames], fps=10)   # frames: (161, 96, 96, 3) -> a FrameTable of length 161
    """
    av = require("av", purpose="writing video")
    path, options = Path(path), options or VideoOptions()
    if options.codec == "av1":
        # SVT-AV1 reports its settings on stderr, and reads this once, when it first starts
        os.environ.setdefault("SVT_LOG", "1")
    rate = Fraction(fps).limit_denominator(1001) or 1 / Fraction(1 / fps).limit_denominator(1)
    file = NewFile(path)
    try:
        with silence():
            count = _write(av, file, path, blocks, rate, options)
        file.check()
    except BaseException as error:
        file.close()
        with contextlib.suppress(StorageError):
            files.remove(path)
        if isinstance(error, av.FFmpegError):
            raise StorageError(f"{path}: the video could not be written ({error.strerror})") from error
        raise
    file.close()
    table = FrameTable.from_video(path)
    _check_written(table, count, rate, path)
    return table


def _write(
    av: Any, file: NewFile, path: Path, blocks: Iterable[NDArray[np.uint8]], rate: Fraction, options: VideoOptions
) -> int:
    """Write the file; returns how many frames went in."""
    settings = {"g": str(options.gop), "crf": str(options.crf)}
    if options.preset is not None:
        settings["preset"] = options.preset
    if options.codec == "h264":
        settings["bf"] = "0"  # a decoder must wait for B-frames, and a single frame is what is asked of it most
    if options.codec == "hevc":
        # its own log is no log of ours; a group that leans on the one before could not be decoded alone
        settings["x265-params"] = "bframes=0:open-gop=0:log-level=none"
    count, shape = 0, None
    with av.open(file, "w", format="mp4", buffer_size=_BUFFER_BYTES) as container:
        stream = None
        for block in blocks:
            file.check()
            if (
                block.dtype != np.uint8
                or block.ndim != 4
                or block.shape[-1] != 3
                or shape not in (None, block.shape[1:])
            ):
                raise InvalidArgumentError(
                    f"{path}: frames must be uint8 (k, height, width, 3), all of one size; "
                    f"got {block.dtype} {block.shape}"
                )
            if stream is None:
                shape = block.shape[1:]
                options.check_frames(shape[0], shape[1], float(rate))
                _check_encoder(av.__version__, options.codec, shape[1])
                stream = container.add_stream(_ENCODERS[options.codec], rate=rate, options=settings)
                stream.height, stream.width, stream.pix_fmt = *shape[:2], options.pix_fmt
                with ordinary_threads():
                    stream.codec_context.open()
            for pixels in block:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts, frame.time_base = count, 1 / rate
                container.mux(stream.encode(frame))
                count += 1
        if stream is None or not count:
            raise InvalidArgumentError(f"{path}: a video needs at least one frame")
        container.mux(stream.encode(None))
    return count


def _check_encoder(pyav: str, codec: str, width: int) -> None:
    """Refuse what would end the process: the SVT-AV1 in PyAV 15 divides by zero on pictures that narrow.

    >>> _check_encoder("18.1.0", "av1", 16)
    """
    if codec == "av1" and width < _NARROW and int(pyav.split(".")[0]) < 18:
        raise InvalidArgumentError(
            f"pictures of {width} pixels a row crash the AV1 encoder of PyAV {pyav}; type pip install 'av>=18', or "
            "give video_options=VideoOptions(codec='h264'), or image_mode='png'"
        )


def _check_written(table: FrameTable, count: int, rate: Fraction, path: Path) -> None:
    if len(table) != count:
        raise VideoError(f"{path}: {count} frames went into the encoder, and {len(table)} are in the file")
    num, den = table.time_base
    if (table.pts * (num * rate.numerator) != np.arange(count) * (den * rate.denominator)).any():
        raise VideoError(f"{path}: the encoder moved frames off the times k / {rate} s")
