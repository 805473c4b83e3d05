"""One camera on its way from one image mode to another: its frames, checked, and the files that they go into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from roboreel.columns.frame_table import FrameTable, video_digest
from roboreel.columns.frames import ArrayFrames, CameraFrames, PngFrames, VideoFrames
from roboreel.columns.kept_tables import kept_table
from roboreel.columns.memmap import MemmapWriter
from roboreel.columns.png import PngWriter
from roboreel.columns.video import VideoWriter
from roboreel.errors import StorageDirCorruptError, VideoError
from roboreel.format import files, paths
from roboreel.format.files import DataFile
from roboreel.format.records import CHECKSUM_DTYPE
from roboreel.format.threads import Stop, in_threads
from roboreel.schema import KeySpec, LeRobotDatasetV2ImageMode
from roboreel.store.journal import Clip
from roboreel.store.slots import frame_checksums
from roboreel.store.store import Store

# Where frames come from


class CameraSource:
    """A camera's frames, as an import gives them, compared with their checksums: damage must not get a new one."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key, self._spec = store, key, store.manifest.keys[key]
        self._checked: set[int] = set()

    def frames(self, row: int) -> CameraFrames:
        """What survives of an episode, to be coded anew."""
        frames = self.stored(row)
        return frames if isinstance(frames, _Summed) else _Decoded(frames, self._where(row))

    def stored(self, row: int) -> CameraFrames:
        """What survives of an episode, as it is stored: a part of a video file, PNG files, or pixels."""
        table = self._store.table
        start, stop = int(table.live_starts[row]), int(table.stops[row])
        first, shape = start - int(table.starts[row]), self._spec.shape
        if self._spec.image_mode is LeRobotDatasetV2ImageMode.VIDEO:
            clip = table.rows["clips"][row, self._store.manifest.video_keys.index(self._key)]
            path, known = self._video(int(clip["file"]), row)
            return VideoFrames(path, int(clip["first"]) + first, stop - start, shape, known)
        if self._spec.image_mode is LeRobotDatasetV2ImageMode.PNG:
            where = self._where(row)
            return PngFrames(stop - start, shape, self._png_reader(row, start, first), where, self._spec.dtype)
        return _Summed(
            self._store.memmap(self._key)[start:stop], self._sums(start, stop), self._store.root, self._where(row)
        )

    def _where(self, row: int) -> str:
        return f"{self._store.root}: {self._key!r} of episode {int(self._store.table.rows['episode_index'][row])}"

    def _sums(self, start: int, stop: int) -> NDArray[np.uint64]:
        return self._store.checksums[self._key][start:stop]

    def _png_reader(self, row: int, start: int, first: int) -> Callable[[int], bytes]:
        def read(position: int) -> bytes:
            path = paths.image_path(self._store.root, self._key, row, first + position)
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                raise _damaged(self._store.root, f"{path} is missing") from None
            if xxhash.xxh3_64_intdigest(data) != int(self._sums(start + position, start + position + 1)[0]):
                raise _damaged(self._store.root, f"{path} does not match its checksum")
            return data

        return read

    def _video(self, file: int, row: int) -> tuple[Path, FrameTable]:
        path = paths.video_path(self._store.root, self._key, file)
        try:
            known = kept_table(paths.frame_table_path(self._store.root, self._key, file))
            if file not in self._checked and video_digest(path) != (known.file_bytes, known.file_hash):
                raise _damaged(self._store.root, f"{path} does not match its checksum")
        except FileNotFoundError:
            raise _damaged(self._store.root, f"{self._where(row)} lacks {path}") from None
        self._checked.add(file)
        return path, known


def _damaged(root: Path, what: str) -> StorageDirCorruptError:
    return StorageDirCorruptError(f"{what}; type: roboreel repair {root}")


@dataclass(frozen=True)
class _Decoded(CameraFrames):
    """Frames that are decoded and coded anew, though their target may take the files as they are."""

    frames: CameraFrames
    where: str

    @property
    def length(self) -> int:  # type: ignore[override]
        return self.frames.length

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.frames.shape

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        return self.frames.dtype

    def blocks(self) -> Iterator[NDArray[Any]]:
        try:
            yield from self.frames.blocks()
        except VideoError as error:  # that of a PNG says where it is
            raise VideoError(f"{self.where}: {error}") from error


@dataclass(frozen=True)
class _Summed(ArrayFrames):
    """Frames of a column, with the checksums that they must have."""

    sums: NDArray[np.uint64]
    root: Path
    where: str

    def blocks(self) -> Iterator[NDArray[Any]]:
        at = 0
        for block in super().blocks():
            if not np.array_equal(frame_checksums(block), self.sums[at : at + len(block)]):
                raise _damaged(self.root, f"{self.where} does not match its checksums")
            at += len(block)
            yield block


# Where they go


class CameraTarget(ABC):
    """A camera in the making."""

    @abstractmethod
    def take(self, row: int, slot: int, position: int, frames: CameraFrames) -> Clip:
        """Store what survives of an episode: from `slot` on, and from its frame `position` on."""

    @abstractmethod
    def sync(self) -> None:
        """Have all of it reach the device."""

    def close(self) -> None:
        """Let go of the files."""


class _MemmapTarget(CameraTarget):
    def __init__(self, root: Path, spec: KeySpec, capacity: int) -> None:
        files.make_dir(root / paths.COLUMNS)
        self._sums = _Sums(root, spec, capacity)
        self._column = MemmapWriter(root, spec, create=True)
        self._column.allocate(capacity)

    def take(self, row: int, slot: int, position: int, frames: CameraFrames) -> Clip:  # noqa: ARG002
        for block in frames.blocks():
            self._column.write(slot, block)
            self._sums.write(slot, frame_checksums(block))
            slot += len(block)
        return 0, 0

    def sync(self) -> None:
        files.sync_all([self._column.file, self._sums.file])

    def close(self) -> None:
        self._column.close()
        self._sums.close()


class _PngTarget(CameraTarget):
    def __init__(self, root: Path, spec: KeySpec, capacity: int) -> None:
        self._sums = _Sums(root, spec, capacity)
        self._writer = PngWriter(root, spec)

    def take(self, row: int, slot: int, position: int, frames: CameraFrames) -> Clip:
        stop = Stop()
        (sums,) = in_threads([lambda: self._writer.stage(row, frames, stop, position)], 1, stop)
        self._sums.write(slot, sums)
        return 0, 0

    def sync(self) -> None:
        files.sync_all([self._sums.file], self._writer.unsynced())
        self._writer.forget_unsynced()

    def close(self) -> None:
        self._sums.close()


class _VideoTarget(CameraTarget):
    def __init__(self, root: Path, spec: KeySpec, fps: float, next_file: int) -> None:
        self._writer = VideoWriter(root, spec, fps, next_file)

    def take(self, row: int, slot: int, position: int, frames: CameraFrames) -> Clip:  # noqa: ARG002
        stop = Stop()
        ((file, first),) = in_threads([lambda: self._writer.stage(frames, stop)], 1, stop)
        return file, first - position

    def sync(self) -> None:
        files.sync_all((), self._writer.unsynced())
        self._writer.forget_unsynced()


class _Sums:
    """The checksums of a camera's frames."""

    def __init__(self, root: Path, spec: KeySpec, capacity: int) -> None:
        files.make_dir(root / paths.CHECKSUMS)
        self.file = DataFile(paths.checksum_path(root, spec.name), create=True)
        self.file.allocate(capacity * CHECKSUM_DTYPE.itemsize)

    def write(self, slot: int, sums: NDArray[np.uint64]) -> None:
        self.file.write_at(slot * CHECKSUM_DTYPE.itemsize, sums)

    def close(self) -> None:
        self.file.close()


def open_target(root: Path, spec: KeySpec, capacity: int, fps: float, next_file: int) -> CameraTarget:
    """Open what a camera of a dataset in `root` is stored in; `next_file` is the number of its next video file."""
    if spec.image_mode is LeRobotDatasetV2ImageMode.MEMMAP:
        return _MemmapTarget(root, spec, capacity)
    if spec.image_mode is LeRobotDatasetV2ImageMode.PNG:
        return _PngTarget(root, spec, capacity)
    return _VideoTarget(root, spec, fps, next_file)
