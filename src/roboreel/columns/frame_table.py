"""Which frames a video holds and when each is shown: made once by reading packets, kept as a small record.

After that a frame is an integer. Times are compared as the container's own integers, never as floats of seconds:
those miss a frame now and then, and which one depends on the file's clock.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from roboreel._optional import require
from roboreel.columns.ffmpeg_files import open_video
from roboreel.errors import StorageDirCorruptError, VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

MAGIC = b"RRFT"
VERSION = 2
"""1 had no size and hash of the video."""

_HEADER = np.dtype(
    [
        ("magic", "S4"),
        ("version", "<u2"),
        ("reserved", "<u2"),  # zero
        ("frames", "<u8"),
        ("time_base_num", "<u4"),
        ("time_base_den", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("codec", "S16"),
        ("pix_fmt", "S16"),
        ("file_bytes", "<u8"),
        ("file_hash", "<u8"),
    ]
)
"""Then `frames` times <i8 pts, `frames` times u1 key flag, and xxh3-64 (<u8) of everything before it."""

_NEVER_ZERO = ("av1", "h264", "hevc", "mpeg4", "vp9")
"""Codecs whose packets never begin with four zero bytes; the blocks that a power cut left unwritten do."""

_CHECKSUM_BYTES = 8
_FRAME_BYTES = 9
_READ_BYTES = 4 << 20


@dataclass(frozen=True, eq=False)
class FrameTable:
    """The frames of one video file in order of presentation; frame i is shown at `pts[i] * num / den` seconds.

    Shapes: `pts` (n,) int64 strictly increasing, in units of `time_base` seconds; `key` (n,) bool, true where
    decoding can begin. `n` is at least 1.

        >>> table = FrameTable(
        ...     np.array([0, 512, 1024]), np.array([True, False, True]), (1, 5120), 96, 64, "av1", "yuv420p"
        ... )
        >>> table.times.tolist(), table.nearest(0.14)
        ([0.0, 0.1, 0.2], 1)
    """

    pts: NDArray[np.int64]
    key: NDArray[np.bool_]
    time_base: tuple[int, int]
    width: int
    height: int
    codec: str
    """FFmpeg's name of the coding, e.g. `av1`, `h264`: not that of a decoder."""
    pix_fmt: str
    file_bytes: int = 0
    """Length of the video file; 0, and `file_hash` too, in a table that is not stored beside one."""
    file_hash: int = 0
    """xxh3-64 of the whole video file: it vouches for every byte that its frames are decoded from."""

    def __post_init__(self) -> None:
        if self.pts.shape != self.key.shape or self.pts.ndim != 1 or not len(self.pts):
            raise ValueError(
                f"a frame table needs pts and key of one length >= 1; got {self.pts.shape}, {self.key.shape}"
            )
        if not (np.diff(self.pts) > 0).all():
            raise ValueError("the pts of a frame table must increase")
        if min(*self.time_base, self.width, self.height) < 1:
            raise ValueError(f"time base {self.time_base} and size {self.width}x{self.height} must be positive")
        for array in (self.pts, self.key):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.pts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrameTable) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return self.digest

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of a decoded frame."""
        return self.height, self.width, 3

    @property
    def times(self) -> NDArray[np.float64]:
        """(n,) float64 seconds: the clock of LeRobot's `from_timestamp`, torchvision and torchcodec."""
        return self.pts.astype(np.float64) * self.time_base[0] / self.time_base[1]

    @functools.cached_property
    def digest(self) -> int:
        """xxh3-64 of the record: two tables are equal where it is."""
        return int.from_bytes(self.to_bytes()[-_CHECKSUM_BYTES:], "little")

    @functools.cached_property
    def keys(self) -> NDArray[np.int64]:
        """Indices of the key frames, increasing."""
        return np.flatnonzero(self.key).astype(np.int64)

    def nearest(self, seconds: float) -> int:
        """The index of the frame whose time is nearest to `seconds`; the earlier of two equally near ones."""
        return int(self.nearest_all([seconds])[0])

    def nearest_all(self, seconds: ArrayLike) -> NDArray[np.int64]:
        """`nearest` of each: (k,) seconds to (k,) int64 indices."""
        times = self.times
        # 1 ns is what float noise in a recorded time may be: a tie within it is a tie
        borders = (times[1:] + times[:-1]) / 2 + 1e-9
        return np.searchsorted(borders, np.asarray(seconds, np.float64), side="left").astype(np.int64)

    def to_bytes(self) -> bytes:
        """The record that `from_bytes` reads."""
        header = np.zeros((), _HEADER)
        header["magic"], header["version"], header["frames"] = MAGIC, VERSION, len(self)
        header["time_base_num"], header["time_base_den"] = self.time_base
        header["width"], header["height"] = self.width, self.height
        for field, text in (("codec", self.codec), ("pix_fmt", self.pix_fmt)):
            header[field] = text.encode("ascii")[: _HEADER[field].itemsize]
        header["file_bytes"], header["file_hash"] = self.file_bytes, self.file_hash
        body = header.tobytes() + self.pts.astype("<i8").tobytes() + self.key.astype("u1").tobytes()
        return body + xxhash.xxh3_64_intdigest(body).to_bytes(_CHECKSUM_BYTES, "little")

    @classmethod
    def from_bytes(cls, data: bytes, source: str = "frame table") -> FrameTable:
        """Parse `to_bytes`; `StorageDirCorruptError`, beginning with `source`, for anything else."""
        if len(data) < _HEADER.itemsize + _CHECKSUM_BYTES:
            raise StorageDirCorruptError(f"{source}: {len(data)} bytes are too few for a frame table")
        header = np.frombuffer(data, _HEADER, 1)[0]
        if header["magic"] != MAGIC:
            raise StorageDirCorruptError(f"{source}: does not begin with {MAGIC!r}, so it is no frame table")
        if header["version"] != VERSION:
            raise StorageDirCorruptError(
                f"{source}: version {header['version']} of the frame table; this roboreel reads version {VERSION}"
            )
        count = int(header["frames"])  # a Python integer: a lying count must not wrap around
        if len(data) != _HEADER.itemsize + count * _FRAME_BYTES + _CHECKSUM_BYTES:
            raise StorageDirCorruptError(f"{source}: {len(data)} bytes do not fit its {count} frames")
        if xxhash.xxh3_64_intdigest(data[:-_CHECKSUM_BYTES]) != int.from_bytes(data[-_CHECKSUM_BYTES:], "little"):
            raise StorageDirCorruptError(f"{source}: its checksum does not fit its bytes")
        pts = np.frombuffer(data, "<i8", count, _HEADER.itemsize).astype(np.int64)
        key = np.frombuffer(data, "u1", count, _HEADER.itemsize + 8 * count).astype(bool)
        try:
            return cls(
                pts,
                key,
                (int(header["time_base_num"]), int(header["time_base_den"])),
                int(header["width"]),
                int(header["height"]),
                header["codec"].decode("ascii"),
                header["pix_fmt"].decode("ascii"),
                int(header["file_bytes"]),
                int(header["file_hash"]),
            )
        except ValueError as error:
            raise StorageDirCorruptError(f"{source}: {error}") from None

    def vouching_for(self, path: Path) -> FrameTable:
        """Return the table with length and hash of the video file `path`, which is read once, in blocks."""
        file_bytes, file_hash = video_digest(path)
        return replace(self, file_bytes=file_bytes, file_hash=file_hash)

    @classmethod
    def from_video(cls, path: Path | str) -> FrameTable:
        """Read the packets of the first video stream of `path`; nothing is decoded.

        Frames that an edit list hides are left out. `VideoError` names the file and the cause where it cannot be
        opened, has no video, is cut short, or has frames without a time or two at one time.
        """
        av = require("av", purpose="reading video")
        path = Path(path)
        try:
            _check_boxes(path)
            with open_video(path) as container:
                return _read_packets(container, str(path))
        except (OSError, ValueError, av.FFmpegError) as error:
            if isinstance(error, VideoError):
                raise
            reason = getattr(error, "strerror", None) or error
            raise VideoError(f"{path}: not readable as a video ({reason})") from error


def video_digest(path: Path) -> tuple[int, int]:
    """Return length and xxh3-64 of a file."""
    digest, size = xxhash.xxh3_64(), 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
            size += len(block)
    return size, digest.intdigest()


def _read_packets(container: InputContainer, source: str) -> FrameTable:
    if not container.streams.video:
        raise VideoError(f"{source}: has no video stream (cut short, or not a video)")
    stream = container.streams.video[0]
    if stream.codec_context is None:  # PyAV's types say it never is; a damaged header makes it so
        raise VideoError(f"{source}: its video is in no codec that this FFmpeg knows (damaged?); encode it anew")
    # an MP4 index is whole after opening (edit lists applied), others grow while reading; PyAV shows it from 17 on
    promised = len(getattr(stream, "index_entries", ())) if "mp4" in container.format.name else 0
    codec = stream.codec_context.codec.canonical_name
    pts: list[int] = []
    key: list[bool] = []
    packets = 0
    for packet in container.demux(stream):
        if not packet.size:
            continue  # the flush packet at the end
        if packet.is_corrupt:
            raise VideoError(f"{source}: cut short or damaged: the packet of frame {packets} is not whole")
        if codec in _NEVER_ZERO and bytes(memoryview(packet)[:4]) == b"\0\0\0\0":
            raise VideoError(f"{source}: damaged: the packet of frame {packets} is zeros (a power cut while writing?)")
        packets += 1
        if packet.is_discard:
            continue  # decoded for others' sake, hidden by an edit list
        if packet.pts is None:
            raise VideoError(f"{source}: frame {len(pts)} has no presentation time; remux the file to MP4")
        pts.append(packet.pts)
        key.append(packet.is_keyframe)
    if packets < promised:
        raise VideoError(f"{source}: cut short: {packets} of {promised} frames are in the file")
    if not pts:
        raise VideoError(f"{source}: holds no frame (cut short?)")
    return _sorted_table(stream, pts, key, source)


def _sorted_table(stream: VideoStream, pts: Sequence[int], key: Sequence[bool], source: str) -> FrameTable:
    unsorted = np.array(pts, np.int64)
    order = np.argsort(unsorted, kind="stable")  # packets come in decoding order
    times = unsorted[order]
    same = np.flatnonzero(np.diff(times) == 0)
    if len(same):
        raise VideoError(
            f"{source}: frames {same[0]} and {same[0] + 1} have the same presentation time {times[same[0]]}"
        )
    base, context = stream.time_base, stream.codec_context
    if base is None or not context.width or not context.height:
        raise VideoError(f"{source}: its header gives no time base or no picture size")
    _check_duration(stream.metadata.get("DURATION"), times.astype(np.float64) * float(base), source)
    return FrameTable(
        times,
        np.array(key, bool)[order],
        (base.numerator, base.denominator),
        context.width,
        context.height,
        context.codec.canonical_name,
        context.pix_fmt or "",
    )


def _check_boxes(path: Path) -> None:
    """Refuse an MP4 file whose last box goes on beyond the end of the file.

    A cut inside a fragmented MP4, or in what follows the frames, is seen by nothing else. Other formats pass.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        at = 0
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            if at == 0 and head[4:8] not in (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free"):
                return
            length = int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length < 8:
                return  # 0: to the end of the file; others: padding after the last box
            at += length
    if at > size:
        raise VideoError(f"{path}: cut short: {size} bytes where its headers promise at least {at}")


def _check_duration(declared: Any, times: NDArray[np.float64], source: str) -> None:
    """Refuse a Matroska file that ends long before the duration in its header; other formats have no such tag."""
    try:
        hours, minutes, seconds = str(declared).split(":")
        duration = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return
    longest = float(np.diff(times).max()) if len(times) > 1 else duration
    if times[-1] + 2 * longest < duration:
        raise VideoError(f"{source}: cut short: its last frame is at {times[-1]:.3f} s of {duration:.3f} s")
