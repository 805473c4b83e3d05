"""One PNG file a frame, in a directory an episode."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.columns.base import Column, Decoding, Frames, Ints
from roboreel.columns.frames import CameraFrames, PngFrames, decode_png
from roboreel.columns.threads import shared
from roboreel.errors import SourceError
from roboreel.format import files, paths
from roboreel.format.records import CHECKSUM_DTYPE
from roboreel.format.threads import Stop, cores, mapped, unless_stopped
from roboreel.schema import KeySpec

_LARGE_BYTES = 1 << 16
"""A smaller image takes so little time to decode that threads would mostly wait for the interpreter."""
_SHARES_A_THREAD = 2
"""More than one even out what each takes."""


class PngColumn(Column):
    def __init__(self, root: Path, spec: KeySpec, decoding: Decoding | None = None) -> None:
        self.spec = spec
        self._path_of = paths.image_paths(root, spec.name)
        self._decoding = decoding or Decoding()

    def read(self, frames: Frames, out: NDArray[Any]) -> None:
        """Fill `out` (N, H, W, C): in order, each file decoded once, in several threads."""
        if not len(out):
            return
        order = np.lexsort((frames.positions, frames.rows))
        rows, positions = frames.rows[order], frames.positions[order]
        first = np.ones(len(order), np.bool_)  # windows that overlap ask for the same frame more than once
        first[1:] = (np.diff(rows) != 0) | (np.diff(positions) != 0)
        distinct = order[first]
        wanted = list(zip(distinct.tolist(), rows[first].tolist(), positions[first].tolist(), strict=True))
        limit = self._decoding.limit if self.spec.frame_bytes >= _LARGE_BYTES else 1
        share = -(-len(wanted) // (_SHARES_A_THREAD * limit))
        jobs = [partial(self._decode, wanted[k : k + share], out, frames.slots) for k in range(0, len(wanted), share)]
        shared.run(jobs, limit)
        sources = distinct[np.cumsum(first) - 1]
        for k, source in zip(order[~first].tolist(), sources[~first].tolist(), strict=True):
            out[k] = out[source]

    def _decode(self, wanted: Sequence[tuple[int, int, int]], out: NDArray[Any], slots: Ints) -> None:
        shape, dtype = self.spec.shape, self.spec.dtype
        for k, row, position in wanted:
            path = self._path_of(row, position)
            try:
                out[k] = decode_png(files.read_file(path), shape, path, dtype)
            except SourceError as error:
                error.slot = int(slots[k])
                raise


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
