"""Video files with a table of their frames beside them; several episodes may share one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.columns.base import Column, Decoding, Frames, Ints
from roboreel.columns.decode_parts import parts
from roboreel.columns.frame_table import FrameTable, video_digest
from roboreel.columns.frames import CameraFrames, VideoFrames
from roboreel.columns.kept_tables import kept_table
from roboreel.columns.threads import Job, shared
from roboreel.errors import InvalidArgumentError, StorageDirCorruptError, VideoError
from roboreel.format import clone, files, paths
from roboreel.format.threads import Stop, unless_stopped
from roboreel.schema import KeySpec

_PARTS_PER_THREAD = 2
"""Of a batch that is in fewer files than there are threads: more even out what each takes."""


class VideoColumn(Column):
    def __init__(self, root: Path, spec: KeySpec, clip: int, decoding: Decoding | None = None) -> None:
        """`clip` is the camera's place among the clips of an episode row."""
        self.spec = spec
        self._root = root
        self._clip = clip
        self._decoding = decoding or Decoding()

    def read(self, frames: Frames, out: NDArray[Any]) -> None:
        """Fill `out` (N, H, W, 3): by file and in order, each frame decoded once, in several threads."""
        assert frames.clips is not None
        if not len(out):
            return
        clips = frames.clips[:, self._clip]
        file_numbers, numbers = clips["file"], clips["first"] + frames.positions
        if numbers.min() < 0:  # `first` is below 0 only where the episode's beginning is overwritten
            raise StorageDirCorruptError(
                f"{paths.EPISODES}: a frame of {self.spec.name!r} would lie {-numbers.min()} before the first of its "
                "video; type roboreel verify"
            )
        order = np.lexsort((numbers, file_numbers))
        first = np.ones(len(order), np.bool_)
        first[1:] = (np.diff(file_numbers[order]) != 0) | (np.diff(numbers[order]) != 0)
        distinct = order[first]
        try:
            shared.run(
                list(self._jobs(file_numbers[distinct], numbers[distinct], distinct, out, frames.slots)),
                self._decoding.limit,
            )
        except VideoError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise error.__cause__ from None  # evicted since its episode was looked up: the store tries again
            raise
        sources = distinct[np.cumsum(first) - 1]
        for row, source in zip(order[~first].tolist(), sources[~first].tolist(), strict=True):
            out[row] = out[source]

    def _jobs(self, file_numbers: Ints, numbers: Ints, rows: Ints, out: NDArray[Any], slots: Ints) -> Iterator[Job]:
        """One a part of a file; the arguments are sorted by file and then by frame."""
        # brings the decoder in: only who reads video pays for it
        from roboreel.columns.decoder_pool import default_pool

        starts = np.flatnonzero(np.diff(file_numbers, prepend=-1))
        stops = [*starts[1:].tolist(), len(rows)]
        limit = self._decoding.limit
        most = 1 if limit == 1 else -(-_PARTS_PER_THREAD * limit // len(stops))
        for start, stop in zip(starts.tolist(), stops, strict=True):
            file = int(file_numbers[start])
            path = paths.video_path(self._root, self.spec.name, file)
            try:
                table = self.table(file)
            except StorageDirCorruptError as error:
                error.slot = int(slots[rows[start]])
                raise
            with files.looking_at(path):
                if path.exists() and not path.is_file():
                    raise files.not_regular(path)  # the decoder would wait for what a pipe never gives
            for part in parts(numbers[start:stop], table.keys, most):
                chosen = slice(start + part.start, start + part.stop)
                read = partial(default_pool().read, path, table, decoder=self._decoding.video_decoder)
                yield partial(_named, read, numbers[chosen], rows[chosen], out, slots)

    def table(self, file: int) -> FrameTable:
        return kept_table(paths.frame_table_path(self._root, self.spec.name, file))


def _named(
    read: Callable[[Ints, Ints, NDArray[Any]], None], numbers: Ints, rows: Ints, out: NDArray[Any], slots: Ints
) -> None:
    """Read frames `numbers` of a file into rows of `out`; have an error say the slot of the frame that it met."""
    try:
        read(numbers, rows, out)
    except VideoError as error:
        at = 0 if error.frame is None else int(np.searchsorted(numbers, error.frame))
        error.slot = int(slots[rows[at]])
        raise


class VideoWriter:
    """Takes video files in as they are, and encodes what comes as anything else."""

    def __init__(self, root: Path, spec: KeySpec, fps: float, next_file: int) -> None:
        self.spec = spec
        self._root = root
        self._fps = fps
        self._next_file = next_file
        self._taken: dict[tuple[Path, int, int], int] = {}
        """Source file (path, size, time of change) → number here, so that a shared file is copied once."""
        self._staged: int | None = None
        """What the last `stage` has made, if it made a file."""
        self._unsynced: list[Path] = []

    def stage(self, frames: CameraFrames, stop: Stop) -> tuple[int, int]:
        """Store an episode's frames; return the number of the video file and the frame of it where they begin.

        `CancelledError` ends it between two blocks of frames once `stop` is asked.
        """
        self._staged = None
        if not isinstance(frames, VideoFrames):
            return self._encode(frames, stop), 0
        source = _identity(frames)
        if source not in self._taken:
            held = self._held(frames.path, source[1])
            self._taken[source] = self._copy(frames) if held is None else held
        file = self._taken[source]
        held = len(kept_table(paths.frame_table_path(self._root, self.spec.name, file)))
        if frames.first + frames.length > held:
            raise VideoError(
                f"{frames.path} holds {held} frames; the episode needs {frames.first} to "
                f"{frames.first + frames.length - 1} of it"
            )
        return file, frames.first

    def has_taken(self, frames: CameraFrames) -> bool:
        """Whether the file that they lie in is here, of an episode before."""
        return isinstance(frames, VideoFrames) and _identity(frames) in self._taken

    def _held(self, path: Path, size: int) -> int | None:
        """The file that was taken in last, if it is this one: an import that was killed goes on within it."""
        last = self._next_file - 1
        if last < 0 or not paths.video_path(self._root, self.spec.name, last).exists():
            return None
        table = kept_table(paths.frame_table_path(self._root, self.spec.name, last))
        is_it = table.file_bytes == size and video_digest(path) == (size, table.file_hash)
        return last if is_it else None

    def _copy(self, frames: VideoFrames) -> int:
        temporary = self._temporary()
        if not (frames.movable and clone.link(frames.path.resolve(), temporary)):
            files.copy_new(frames.path, temporary)
        return self._publish(temporary, FrameTable.from_video(temporary), str(frames.path))

    def _encode(self, frames: CameraFrames, stop: Stop) -> int:
        from roboreel.columns.encode import encode_video

        temporary = self._temporary()
        blocks = unless_stopped(frames.blocks(), stop)
        try:
            table = encode_video(temporary, blocks, fps=self._fps, options=self.spec.video_options)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{self.spec.name!r}: {error}") from error
        return self._publish(temporary, table, "the encoded video")

    def _temporary(self) -> Path:
        target = paths.video_path(self._root, self.spec.name, self._next_file)
        files.make_dir(target.parent)
        temporary = target.with_name("new.mp4")
        if os.path.lexists(temporary):  # left by a writer that died; the encoder would write through a link
            files.remove(temporary)
        return temporary

    def _publish(self, temporary: Path, table: FrameTable, source: str) -> int:
        if (table.height, table.width) != self.spec.shape[:2]:
            raise VideoError(
                f"{source} is {table.width}x{table.height} pixels; {self.spec.name!r} has shape {self.spec.shape}"
            )
        file = self._next_file
        table_path = paths.frame_table_path(self._root, self.spec.name, file)
        files.remove(table_path)  # a leftover may be linked into a snapshot: nothing is written in place
        files.write_new(table_path, table.vouching_for(temporary).to_bytes())
        video_path = paths.video_path(self._root, self.spec.name, file)
        files.rename(temporary, video_path)
        self._next_file += 1
        self._staged = file
        self._unsynced += [table_path, video_path]
        return file

    def drop(self, file: int) -> None:
        """Remove a video file and its table."""
        gone = [
            paths.video_path(self._root, self.spec.name, file),
            paths.frame_table_path(self._root, self.spec.name, file),
        ]
        self._unsynced = [path for path in self._unsynced if path not in gone]
        self._taken = {source: taken for source, taken in self._taken.items() if taken != file}
        for path in gone:
            files.remove(path)

    def drop_staged(self, files_in_use: Sequence[int]) -> None:
        """After a failure: remove what was staged and belongs to no committed episode."""
        made = set(self._taken.values()) if self._staged is None else {*self._taken.values(), self._staged}
        for file in sorted(made - set(files_in_use)):
            self.drop(file)
        files.remove(self._temporary())

    def take_for_unsynced(self, numbers: Iterable[int]) -> None:
        """Have the next `sync` include these video files."""
        for file in numbers:
            for path_of in (paths.frame_table_path, paths.video_path):
                path = path_of(self._root, self.spec.name, file)
                if path.exists():
                    self._unsynced.append(path)

    def unsynced(self) -> list[Path]:
        """What must reach the device before a record counts on it, directories after what is in them."""
        directories = {path.parent: None for path in self._unsynced}
        return [*self._unsynced, *directories, *{directory.parent: None for directory in directories}]

    def forget_unsynced(self) -> None:
        self._unsynced.clear()


def _identity(frames: VideoFrames) -> tuple[Path, int, int]:
    status = frames.path.stat()
    return frames.path.resolve(), status.st_size, status.st_mtime_ns
