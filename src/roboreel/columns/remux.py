"""Video into other files without decoding it: packets of whole episodes, one episode after the other, timed anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.columns.ffmpeg_files import ffmpeg_path, open_video
from roboreel.columns.frames import VideoFrames
from roboreel.errors import DiskSpaceError, StorageError, VideoError

_TICKS = 512
"""To a frame; mp4 keeps time in whole ticks."""


@dataclass(frozen=True, slots=True)
class PacketRun:
    """Packets that are one episode."""

    start: int
    """The first, counted in decoding order."""
    delay: int
    """By how many packets a frame is decoded later than its number says, at most."""
    bytes: int


class PacketReader:
    """The packets of a video file in the order in which they are decoded, each with the number of its frame."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._av = require("av", purpose="reading video")
        pts: list[Any] = []
        key, shown, sizes = [], [], []
        for packet in self._begin():
            sizes.append(packet.size)
            pts.append(packet.pts)
            key.append(packet.is_keyframe)
            shown.append(not packet.is_discard and packet.pts is not None)
        visible = np.flatnonzero(shown)
        self._frames = np.full(len(pts), -1, np.int64)
        """Of each packet the number of its frame; -1 where it is not shown."""
        order = np.argsort([pts[i] for i in visible], kind="stable")
        self._frames[visible[order]] = np.arange(len(visible))
        self._keys = np.array(key, bool)
        self._sizes = np.array(sizes, np.int64)
        self._next = 0
        self._rest = self._begin()

    def _begin(self) -> Iterator[Any]:
        """Open the file anew; the stream, of which a new file takes its form, is that of what is open."""
        try:
            self._container = open_video(self.path)
            self.stream = self._container.streams.video[0]
        except (self._av.FFmpegError, OSError, IndexError) as error:
            raise VideoError(f"{self.path}: not readable as a video ({error})") from error
        return self._packets()

    def _packets(self) -> Iterator[Any]:
        try:
            yield from (packet for packet in self._container.demux(self.stream) if packet.size)
        except self._av.FFmpegError as error:
            raise VideoError(f"{self.path}: not readable as a video ({error})") from error

    def can_begin_at(self, frame: int) -> bool:
        """Whether decoding can begin with that frame."""
        at = np.flatnonzero(self._frames == frame)
        return bool(len(at)) and bool(self._keys[at[0]])

    def find(self, frames: VideoFrames) -> PacketRun | None:
        """The packets of an episode; None where they cannot be told from others'.

        They can stand alone if the first is a key frame and they are the packets of just these frames.
        """
        at = np.flatnonzero(self._frames == frames.first)
        if not len(at) or not self._keys[at[0]]:
            return None
        numbers = self._frames[at[0] : at[0] + frames.length] - frames.first
        if not np.array_equal(np.sort(numbers), np.arange(frames.length)):
            return None
        size = int(self._sizes[at[0] : at[0] + frames.length].sum())
        return PacketRun(int(at[0]), int(np.max(numbers_after(numbers))), size)

    def take(self, run: PacketRun, frames: VideoFrames) -> Iterator[tuple[int, Any]]:
        """Yield (frame of the episode, packet) in decoding order; cheapest one episode after the other."""
        start = run.start
        if start < self._next:
            self._rest, self._next = self._begin(), 0
        for packet in self._rest:
            position = self._next
            self._next += 1
            if position >= start:
                yield int(self._frames[position]) - frames.first, packet
            if self._next == start + frames.length:
                return

    @property
    def described(self) -> tuple[str, str, int]:
        """Codec and pixel format, as FFmpeg calls them, and the components of a pixel."""
        context = self.stream.codec_context
        pix_fmt = context.pix_fmt or ""
        channels = len(self._av.VideoFormat(pix_fmt).components) if pix_fmt else 0
        return context.codec.canonical_name, pix_fmt, channels

    @property
    def signature(self) -> tuple[Any, ...]:
        """What must be the same for packets to follow each other in one file."""
        context = self.stream.codec_context
        return (
            context.codec.canonical_name,
            context.width,
            context.height,
            context.pix_fmt,
            context.extradata,
            context.color_range,
            context.colorspace,
        )


def numbers_after(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """By how many places each packet comes later than its frame is shown.

    >>> numbers_after(np.array([0, 3, 1, 2])).tolist()
    [0, -2, 1, 1]
    """
    return np.arange(len(numbers)) - numbers


class JoinedVideo:
    """A new MP4 file, frame k of which is shown at exactly k / fps seconds."""

    def __init__(self, path: Path, fps: float, reader: PacketReader, delay: int) -> None:
        """`delay`: the most that any run has which will be added."""
        self.path = path
        self.frames = self.bytes = 0
        self.delay = delay
        self.signature = reader.signature
        self._av = require("av", purpose="writing video")
        rate = Fraction(fps).limit_denominator(1001) or 1 / Fraction(1 / fps).limit_denominator(1)
        self._base = 1 / (rate * _TICKS)
        self._container = self._av.open(ffmpeg_path(path), "w", format="mp4", options={"movflags": "faststart"})
        self._stream = self._container.add_stream_from_template(reader.stream, opaque=True)
        self._stream.time_base = self._base

    def takes(self, reader: PacketReader, delay: int) -> bool:
        return self.signature == reader.signature and delay <= self.delay

    def add(self, packets: Iterator[tuple[int, Any]]) -> None:
        """Add an episode; what is not an integer multiple of a frame in the source's clock is so here."""
        first = self.frames
        for number, packet in packets:
            packet.stream = self._stream
            packet.time_base = self._base
            packet.pts = (first + number) * _TICKS
            packet.dts = (self.frames - self.delay) * _TICKS
            packet.duration = _TICKS
            self.bytes += packet.size
            self.frames += 1
            self._mux(packet)

    def _mux(self, packet: Any) -> None:
        try:
            self._container.mux(packet)
        except self._av.FFmpegError as error:
            raise self._failed(error) from error

    def _failed(self, error: Any) -> StorageError:
        kind = DiskSpaceError if error.errno == 28 else StorageError
        return kind(f"{self.path}: the video could not be written ({error.strerror})")

    def close(self) -> None:
        try:
            self._container.close()
        except self._av.FFmpegError as error:
            raise self._failed(error) from error
