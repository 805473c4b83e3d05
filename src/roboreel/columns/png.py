"""One PNG file a frame, in a directory an episode."""

from __future__ import annotations

import io
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.columns.base import Column, Frames
from roboreel.columns.frames import CameraFrames, PngFrames, decode_png
from roboreel.format import files, paths
from roboreel.format.records import CHECKSUM_DTYPE
from roboreel.format.threads import Stop, cores, mapped, unless_stopped
from roboreel.schema import KeySpec


class PngColumn(Column):
    def __init__(self, root: Path, spec: KeySpec) -> None:
        self.spec = spec
        self._root = root

    def read(self, frames: Frames, out: NDArray[Any]) -> None:
        decoded: dict[tuple[int, int], int] = {}  # windows that overlap ask for the same frame more than once
        for k, where in enumerate(zip(frames.rows.tolist(), frames.positions.tolist(), strict=True)):
            if where in decoded:
                out[k] = out[decoded[where]]
                continue
            path = paths.image_path(self._root, self.spec.name, *where)
            out[k] = decode_png(files.read_file(path), self.spec.shape, str(path), self.spec.dtype)
            decoded[where] = k


class PngWriter:
    """Writes an episode's files under a temporary name and renames their directory when all are there."""

    def __init__(self, root: Path, spec: KeySpec) -> None:
        self.spec = spec
        self._root = root
        self._unsynced: list[Path] = []

    def stage(self, row: int, frames: CameraFrames, stop: Stop, first: int = 0) -> NDArray[np.uint64]:
        """Store the frames under the number of a row that is not committed yet; return the files' checksums.

        `first` is the position of the first one in its episode: above 0 where a ring has overwritten the beginning.
        `CancelledError` ends it between two frames once `stop` is asked.
        """
        target = paths.image_dir(self._root, self.spec.name, row)
        temporary = target.with_name(target.name + ".tmp")
        files.remove(temporary)
        files.remove(target)  # left by a writer that died before it committed this row
        files.make_dir(temporary)
        checksums = np.zeros(frames.length, CHECKSUM_DTYPE)
        for position, data in enumerate(unless_stopped(self._encoded(frames), stop)):
            name = paths.image_path(self._root, self.spec.name, row, first + position).name
            files.write_new(temporary / name, data)
            checksums[position] = xxhash.xxh3_64_intdigest(data)
        files.rename(temporary, target)
        self._unsynced.append(target)
        return checksums

    def take_for_unsynced(self, rows: Iterable[int]) -> None:
        """Have the next `sync` include the files of these rows."""
        present = (paths.image_dir(self._root, self.spec.name, row) for row in rows)
        self._unsynced += [path for path in present if path.is_dir()]

    def _encoded(self, frames: CameraFrames) -> Any:
        if isinstance(frames, PngFrames):
            for position in range(frames.length):
                data = frames.read(position)
                frames.check_header(position, data)
                yield data
            return
        yield from mapped(encode_png, chain.from_iterable(frames.blocks()), cores())

    def drop(self, row: int) -> None:
        """Remove what is stored for a row, also what is half staged."""
        target = paths.image_dir(self._root, self.spec.name, row)
        self._unsynced = [path for path in self._unsynced if path != target]
        files.remove(target.with_name(target.name + ".tmp"))
        files.remove(target)

    def unsynced(self) -> list[Path]:
        """What must reach the device before a record counts on it, directories after what is in them."""
        inside = [path for directory in self._unsynced for path in sorted(directory.iterdir())]
        return [*inside, *self._unsynced, *{directory.parent: None for directory in self._unsynced}]

    def forget_unsynced(self) -> None:
        self._unsynced.clear()


def encode_png(image: NDArray[Any]) -> bytes:
    """Return the PNG file of one image (H, W, C), uint8, or uint16 of one channel, which PNG keeps bit for bit."""
    image_module = require("PIL.Image", purpose="writing PNG images")
    buffer = io.BytesIO()
    squeezed = image[..., 0] if image.shape[-1] == 1 else image
    image_module.fromarray(np.ascontiguousarray(squeezed)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
