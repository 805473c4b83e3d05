"""Frame-exact decoding: one open video file, frames asked for by number, RGB given.

Which frame came out of the decoder is told by its presentation time against the frame table; where a jump went,
by the packets that follow. Nothing is trusted to land where it was asked to: containers, key-frame flags and
B-frames all bend that.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.columns.ffmpeg_files import open_video
from roboreel.columns.frame_table import FrameTable
from roboreel.columns.silence import silence
from roboreel.errors import VideoError

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.video.stream import VideoStream

_SEEK_COST = 1
"""A jump costs about as much as decoding this many frames (measured with AV1 and H.264 at GOP 2)."""


class VideoDecoder:
    """One open video file; not safe for use by two threads at once.

    `threads="AUTO"` is for long runs in order: with one thread a single frame comes sooner, and nothing runs in the
    background that a fork could lose. A decoder that was inherited through a fork opens its file anew: the old one
    shares its file position with the parent, and its threads are not there.
    """

    def __init__(self, path: Path | str, table: FrameTable, *, threads: Literal["NONE", "AUTO"] = "NONE") -> None:
        self._av = require("av", purpose="reading video")
        self.path = Path(path)
        self.table = table
        self._threads = threads
        # a swscale with threads of its own could not be freed after a fork; before PyAV 17 it has none
        self._one_thread: dict[str, Any] = {"threads": 1} if int(self._av.__version__.split(".")[0]) >= 17 else {}
        self._intra = self._av.video.frame.PictureType.I
        self._keys = table.keys
        """Where decoding can begin: those of the table, less the ones that turned out otherwise."""
        self._reformatter = self._av.video.reformatter.VideoReformatter()
        self._container: Any = None
        self._packets: Generator[Packet[VideoStream], None, None] | None = None
        self._frames: Generator[VideoFrame, None, None] | None = None
        self._current: VideoFrame | None = None
        self._at: int | None = None
        """The frame that came out last, as an index; None where the decoder's position says nothing."""
        self._open()

    def read(self, indices: NDArray[np.int64], rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Decode frame `indices[j]` into `out[rows[j]]`.

        Args:
            indices: (k,) int64 frame numbers, increasing for speed.
            rows: (k,) int64.
            out: (n, height, width, 3) uint8.

        Raises:
            VideoError: a frame is not in the file, or cannot be decoded.
        """
        if self._pid != os.getpid():
            self._abandon()
            self._open()
        count = len(self.table)
        if len(indices) and not 0 <= indices.min() <= indices.max() < count:
            wrong = next(index for index in indices.tolist() if not 0 <= index < count)
            raise VideoError(f"{self.path}: frame {wrong} asked for, but the file has {count} frames", wrong)
        places = np.searchsorted(self._keys, indices, side="right")
        keys = np.append(-1, self._keys)[places]
        for index, row, key in zip(indices.tolist(), rows.tolist(), keys.tolist(), strict=True):
            try:
                self._to_rgb(self._frame(index, key), index, out[row])
            except self._av.FFmpegError as error:
                self._at = None  # whatever state it is in: the next read seeks
                raise VideoError(f"{self.path}: frame {index} cannot be decoded ({error.strerror})", index) from error

    def close(self) -> None:
        if self._container is None:
            return
        if self._pid != os.getpid():
            self._abandon()
        else:
            self._stop()
            self._container.close()
            self._container = self._current = None
            with contextlib.suppress(AttributeError):  # where opening failed
                del self._stream  # which ends the decoder's threads

    def __del__(self) -> None:
        if getattr(self, "_container", None) is not None:
            self.close()

    def _open(self) -> None:
        self._pid = os.getpid()
        try:
            self._container = open_video(self.path)
        except (OSError, self._av.FFmpegError) as error:
            raise VideoError(f"{self.path}: cannot be opened ({error.strerror})") from error
        if not self._container.streams.video:
            raise VideoError(f"{self.path}: has no video stream: it is not the file that its frame table was made from")
        self._stream: VideoStream = self._container.streams.video[0]
        self._stream.thread_type = self._threads
        self._stream.codec_context.thread_count = 1 if self._threads == "NONE" else 0
        self._current = None
        self._at = None
        first = self._restart()
        # before frame 0 where an edit list hides the beginning
        self._origin = int(self.table.pts[0]) if first is None or first.pts is None else first.pts

    def _abandon(self) -> None:
        """Let go of what a parent process opened, without freeing it: that would wait for threads left behind."""
        held = (self._container, self._stream, self._packets, self._frames, self._current)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
        self._container = self._current = self._packets = self._frames = None

    def _stop(self) -> None:
        """Read no further; PyAV's generators lose some 300 bytes each where they are merely let go."""
        for generator in (self._frames, self._packets):
            if generator is not None:
                generator.close()
        self._frames = self._packets = None

    def _restart(self) -> Packet[VideoStream] | None:
        """Read on from where the container stands; returns the packet that comes first."""
        self._stop()
        self._packets = self._container.demux(self._stream)
        first = next(self._packets, None)
        self._frames = _decoded(first, self._packets)
        return first if first is not None and first.size else None

    def _frame(self, index: int, key: int) -> VideoFrame:
        """Decode up to frame `index`, from here or from the key frame before it, `key`, whichever is nearer."""
        at = self._at
        if at is not None:
            if at == index and self._current is not None:
                return self._current
            if at < index and key <= at + _SEEK_COST:
                frame = self._advance(index)
                if frame is not None:
                    return frame
        for start in self._starts(index):
            if self._seek(start):
                frame = self._advance(index, start)
                if frame is not None:
                    return frame
        # of an edit list with several parts a container may not find the first one again
        self.close()
        self._open()
        frame = self._advance(index)
        if frame is not None:
            return frame
        second = float(self.table.times[index])
        raise VideoError(
            f"{self.path}: frame {index} of {len(self.table)} (at {second:.3f} s) does not come out of the decoder: "
            f"the file is damaged, or is not the one that its frame table was made from",
            index,
        )

    def _starts(self, index: int) -> Iterator[int | None]:
        """Key frames to begin from, the last before `index` first, then ever longer steps back; None: the file's start.

        Key frames 0, 10, 20, …, 90 and index 95: 90, 80, 60, 20, None.
        """
        keys = self._keys
        place = int(np.searchsorted(keys, index, side="right")) - 1
        step = 1
        while place >= 0:
            yield int(keys[place])
            place -= step
            step *= 2
        yield None

    def _seek(self, key: int | None) -> bool:
        """Jump to the key frame with index `key`; False where the container went past it."""
        wanted = self._origin if key is None else int(self.table.pts[key])
        self._at = self._current = None
        try:
            self._container.seek(wanted, stream=self._stream, backward=True)
            first = self._restart()
        except self._av.FFmpegError:
            first = None
        if first is not None and first.pts is not None and first.pts <= wanted:
            return True
        if key is None:  # the container cannot go back to its start: open it anew
            self.close()
            self._open()
            return True
        return False

    def _advance(self, index: int, key: int | None = None) -> VideoFrame | None:
        """Decode until frame `index` comes out; None where a later one comes first, or the end.

        After a jump to the key frame `key`, that must come out first, and coded by itself. With periodic intra
        refresh it does not: decoding can begin there, but the frames after it are only nearly right.
        """
        target = int(self.table.pts[index])
        awaited = None if key is None else int(self.table.pts[key])
        self._at = None
        self._current = None
        for frame in self._frames or ():
            if frame.pts is None:
                continue
            if awaited is not None and frame.pts >= awaited:
                if frame.pts != awaited or frame.pict_type != self._intra:
                    self._keys = self._keys[self._keys != key]
                    return None
                awaited = None
            if frame.pts == target:
                self._at, self._current = index, frame
                return frame
            if frame.pts > target:
                return None
        return None

    def _to_rgb(self, frame: VideoFrame, index: int, out: NDArray[np.uint8]) -> None:
        rgb = self._reformatter.reformat(frame, format="rgb24", **self._one_thread)
        if (rgb.height, rgb.width, 3) != out.shape:
            wanted = f"{out.shape[1]}x{out.shape[0]}"
            raise VideoError(
                f"{self.path}: frame {index} is {rgb.width}x{rgb.height} pixels, where {wanted} was expected", index
            )
        plane: Any = rgb.planes[0]
        out[...] = np.ndarray(out.shape, np.uint8, plane, 0, (plane.line_size, 3, 1))


def _decoded(
    first: Packet[VideoStream] | None, rest: Iterator[Packet[VideoStream]]
) -> Generator[VideoFrame, None, None]:
    """Frames in order of presentation, from packets in order of decoding; at the end the decoder is drained."""
    if first is not None:
        yield from first.decode()
    for packet in rest:
        yield from packet.decode()


def decode_range(
    path: Path | str, first: int, length: int, *, block: int, table: FrameTable | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Yield frames `first` to `first + length` of a video, in order of presentation, `block` at a time.

    Yields (k, height, width, 3) uint8 RGB, 1 <= k <= block, a new array each. `VideoError` where the file holds fewer
    frames or one of them cannot be decoded. Where a frame table is stored, that says what a frame is; else one is read
    from the file's packets.

        for frames in decode_range("episode_000000.mp4", 0, 300, block=64): ...   # 64, 64, 64, 64, 44 frames
    """
    return decode_frames(path, np.arange(first, first + length), block=block, table=table)


def decode_frames(
    path: Path | str, numbers: NDArray[np.int64], *, block: int, table: FrameTable | None = None
) -> Iterator[NDArray[np.uint8]]:
    """As `decode_range`, for frame numbers (n,) that increase or repeat."""
    path = Path(path)
    table = table or _table_of(path)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(table):
        span = f"frames {numbers.min()} to {numbers.max()}"
        raise VideoError(f"{path}: holds {len(table)} frames, but {span} are wanted")
    with silence(), contextlib.closing(VideoDecoder(path, table, threads="AUTO")) as decoder:
        for start in range(0, len(numbers), block):
            distinct, inverse = np.unique(numbers[start : start + block], return_inverse=True)
            frames = np.empty((len(distinct), *table.shape), np.uint8)
            decoder.read(distinct, np.arange(len(distinct)), frames)
            yield frames if len(distinct) == len(inverse) else frames[inverse]


def _table_of(path: Path) -> FrameTable:
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoError(f"{path}: cannot be opened ({error.strerror})") from error
    return _recent_table(path, (status.st_ino, status.st_size, status.st_mtime_ns))


@functools.lru_cache(maxsize=4)
def _recent_table(path: Path, identity: tuple[int, ...]) -> FrameTable:  # noqa: ARG001 - it is for the cache
    """The table of a file that is asked for episode by episode, one camera after the other."""
    return FrameTable.from_video(path)
