"""One camera of a LeRobot folder in the making: episodes joined in video files without decoding, where that can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from roboreel.errors import StorageError
from roboreel.schema import KeySpec
from roboreel.store import (
    CameraFrames,
    JoinedVideo,
    PacketReader,
    PacketRun,
    VideoFrames,
    encode_video,
    make_dir,
    remove,
)


@dataclass(frozen=True)
class VideoPlace:
    """Where the files of a camera go."""

    key: str
    chunks_size: int
    most_bytes: float | None
    """Of a file; None: one file an episode, as v2.1 has them."""

    def path(self, number: int) -> str:
        """Return where in the folder a file goes.

        >>> VideoPlace("wrist", 1000, None).path(1002), VideoPlace("wrist", 1000, 2e8).path(1002)
        ('videos/chunk-001/wrist/episode_001002.mp4', 'videos/wrist/chunk-001/file-002.mp4')
        """
        chunk, file = divmod(number, self.chunks_size)
        if self.most_bytes is None:
            return f"videos/chunk-{chunk:03d}/{self.key}/episode_{number:06d}.mp4"
        return f"videos/{self.key}/chunk-{chunk:03d}/file-{file:03d}.mp4"


class VideosOut:
    """Takes episode after episode of one camera."""

    def __init__(
        self, folder: Path, spec: KeySpec, fps: float, place: VideoPlace, clips: Sequence[CameraFrames]
    ) -> None:
        """`clips`: the frames of all episodes, in order."""
        self._folder, self._spec, self._fps, self._place, self._clips = folder, spec, fps, place, clips
        self._reader: PacketReader | None = None
        self._joined: JoinedVideo | None = None
        self._number = -1
        self._next = self._joined_until = 0
        """The episode that comes next; and the one after those whose frames are in a file already."""
        self._first = 0
        """Where its frames begin in the file."""
        self.copied = self.encoded = 0
        self.info: dict[str, Any] = {}
        """Of the first file, as LeRobot describes it."""

    def add_next(self) -> dict[str, Any]:
        """Write the next episode; returns where it is, for the list of episodes."""
        if self._next == self._joined_until:
            self._write()
        assert self._joined is not None
        first, stop = self._first, self._first + self._clips[self._next].length
        self._first, self._next = stop, self._next + 1
        if self._place.most_bytes is None:
            return {}
        chunk, file = divmod(self._number, self._place.chunks_size)
        key = f"videos/{self._spec.name}"
        return {
            f"{key}/chunk_index": chunk,
            f"{key}/file_index": file,
            f"{key}/from_timestamp": first / self._fps,
            f"{key}/to_timestamp": stop / self._fps,
        }

    def _write(self) -> None:
        """Write the next episode, and those after it that cannot be told from it without decoding."""
        clip = self._clips[self._next]
        if isinstance(clip, VideoFrames):
            if self._reader is None or self._reader.path != clip.path:
                self._reader = PacketReader(clip.path)
            whole, count = self._inseparable(self._reader, clip)
            found = self._reader.find(whole)
            if found is not None:
                self._join(self._reader, whole, found)
                self._joined_until += count
                self.copied += count
                return
        self._encode(clip)
        self._joined_until += 1
        self.encoded += 1

    def _inseparable(self, reader: PacketReader, clip: VideoFrames) -> tuple[VideoFrames, int]:
        """The part of a video file up to where decoding can begin anew with an episode, and how many it has."""
        count = 1
        while self._place.most_bytes is not None and self._next + count < len(self._clips):
            more = self._clips[self._next + count]
            if not isinstance(more, VideoFrames) or (more.path, more.first) != (clip.path, clip.first + clip.length):
                break
            if reader.can_begin_at(more.first):
                break
            clip, count = replace(clip, length=clip.length + more.length), count + 1
        return clip, count

    def _encode(self, frames: CameraFrames) -> None:
        temporary = self._folder / f".{self._next}.mp4"
        encode_video(temporary, frames.blocks(), fps=self._fps, options=self._spec.video_options)
        reader = PacketReader(temporary)
        whole = VideoFrames(temporary, 0, frames.length, self._spec.shape)
        found = reader.find(whole)
        assert found is not None  # our encoder begins with a key frame
        try:
            self._join(reader, whole, found)
        finally:
            remove(temporary)

    def _join(self, reader: PacketReader, frames: VideoFrames, run: PacketRun) -> None:
        if self._joined is not None and not self._fits(self._joined, reader, run):
            self._joined.close()
            self._joined = None
        if self._joined is None:
            self._number += 1
            path = self._folder / self._place.path(self._number)
            make_dir(path.parent)
            self._joined = JoinedVideo(path, self._fps, reader, run.delay)
        self._first = self._joined.frames
        self._joined.add(reader.take(run, frames))
        if self._joined.frames != self._first + frames.length:
            raise StorageError(f"{reader.path}: changed while it was read; export a snapshot")
        self.info = self.info or self._described(reader)

    def _fits(self, joined: JoinedVideo, reader: PacketReader, run: PacketRun) -> bool:
        most = self._place.most_bytes
        return most is not None and joined.takes(reader, run.delay) and joined.bytes + run.bytes < most

    def _described(self, reader: PacketReader) -> dict[str, Any]:
        codec, pix_fmt, channels = reader.described
        return {
            "video.height": self._spec.shape[0],
            "video.width": self._spec.shape[1],
            "video.codec": codec,
            "video.pix_fmt": pix_fmt,
            "video.fps": int(self._fps),
            "video.channels": channels,
            "has_audio": False,
            "is_depth_map": False,
        }

    def abandon(self) -> None:
        self.close()

    def close(self) -> None:
        if self._joined is not None:
            joined, self._joined = self._joined, None
            joined.close()
