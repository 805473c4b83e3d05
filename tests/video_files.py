"""Small videos whose frames say which they are: the frame number is painted as big black and white blocks.

Sixteen blocks, eight a row, survive any lossy coding; a moving gradient behind them gives the coder motion to
predict, so that a frame decoded without its references does not come out right by accident.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.video.stream
import numpy as np
from numpy.typing import NDArray

from roboreel.columns.scheduling import ordinary_threads

HEIGHT, WIDTH = 64, 96

X264_B = {"g": "12", "bf": "3", "x264-params": "b-adapt=0:scenecut=0"}
"""H.264 with a key frame every twelfth frame, and three B-frames in a row."""

_ROWS, _COLUMNS = 2, 8


def painted_frame(number: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 that shows `number`, 0 to 65535."""
    y, x = np.mgrid[0:height, 0:width]
    frame = np.stack([(x + 5 * number) % 256, (2 * y + 3 * number) % 256, (x + y + 7 * number) % 256], axis=-1)
    block_h, block_w = height // (_ROWS + 1), width // _COLUMNS
    for bit in range(_ROWS * _COLUMNS):
        top, left = (bit // _COLUMNS) * block_h, (bit % _COLUMNS) * block_w
        frame[top : top + block_h, left : left + block_w] = 255 if number >> bit & 1 else 0
    return frame.astype(np.uint8)


def painted_frames(numbers: Iterable[int], height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """(n, height, width, 3) uint8."""
    return np.stack([painted_frame(number, height, width) for number in numbers])


def read_number(frame: NDArray[np.uint8]) -> int:
    """The number that `painted_frame` painted; AssertionError where a block is neither black nor white."""
    height, width = frame.shape[:2]
    block_h, block_w = height // (_ROWS + 1), width // _COLUMNS
    number = 0
    for bit in range(_ROWS * _COLUMNS):
        top, left = (bit // _COLUMNS) * block_h, (bit % _COLUMNS) * block_w
        inner = frame[top + 3 : top + block_h - 3, left + 3 : left + block_w - 3]
        level = float(inner.mean())
        assert level < 80 or level > 175, f"block {bit} is grey ({level:.0f}): not a decoded painted frame"
        number |= int(level > 128) << bit
    return number


def read_numbers(frames: Iterable[NDArray[np.uint8]]) -> list[int]:
    return [read_number(frame) for frame in frames]


def write_video(
    path: Path,
    numbers: Sequence[int],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: int = 10,
    pts: Sequence[int] | None = None,
    packet_shift: int = 0,
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
) -> Path:
    """Encode one painted frame a number; returns `path`.

    Args:
        pts: presentation times in steps of 1/fps; 0, 1, 2, … where left out.
        packet_shift: added to every packet's times, in steps. Below zero the muxer writes an edit list that hides
            the frames before time zero, as cutting a file without encoding it again does.
    """
    os.environ.setdefault("SVT_LOG", "1")  # else SVT-AV1 fills the test log
    rate = Fraction(fps)
    with ordinary_threads(), av.open(str(path), "w", options=dict(container_options or {})) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        stream.codec_context.time_base = 1 / rate
        times = range(len(numbers)) if pts is None else pts

        def mux(packets: Iterable[Any]) -> None:
            for packet in packets:
                steps = packet_shift / rate / packet.time_base
                packet.pts, packet.dts = packet.pts + int(steps), packet.dts + int(steps)
                container.mux(packet)

        for number, time in zip(numbers, times, strict=True):
            frame = av.VideoFrame.from_ndarray(painted_frame(number), format="rgb24")
            frame.pts, frame.time_base = time, 1 / rate
            mux(stream.encode(frame))
        mux(stream.encode(None))
    return path


def replace_edit_list(path: Path, parts: Sequence[tuple[int, int]], fps: int = 10) -> Path:
    """Have an MP4 of `write_video` show these parts of itself, one after the other: (first frame, frames) each.

    The box is put in the place of the one that the muxer has written, and those around it are told of its length: the
    index lies behind the pictures, so that nothing else moves. Returns `path`.
    """
    data = bytearray(path.read_bytes())
    names = {name: data.find(name) for name in (b"moov", b"mvhd", b"trak", b"edts", b"elst", b"mdhd")}
    (movie_scale,) = struct.unpack_from(">I", data, names[b"mvhd"] + 16)
    (track_scale,) = struct.unpack_from(">I", data, names[b"mdhd"] + 16)
    delay = struct.unpack_from(">IIii", data, names[b"elst"] + 4)[3]  # what B-frames put off
    entries = b"".join(
        struct.pack(">iihh", length * movie_scale // fps, delay + first * track_scale // fps, 1, 0)
        for first, length in parts
    )
    box = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(parts)) + entries
    box = struct.pack(">I4s", 8 + len(box), b"edts") + box
    begin = names[b"edts"] - 4
    (before,) = struct.unpack_from(">I", data, begin)
    data[begin : begin + before] = box
    for name in (b"moov", b"trak"):
        (size,) = struct.unpack_from(">I", data, names[name] - 4)
        struct.pack_into(">I", data, names[name] - 4, size + len(box) - before)
    path.write_bytes(data)
    return path
