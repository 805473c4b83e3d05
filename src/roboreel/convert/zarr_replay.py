"""diffusion-policy's replay buffers in zarr, as a directory or a `.zarr.zip`.

data/img, data/state, data/action, …   rows of all episodes, one after the other
meta/episode_ends                      the row after each episode's last
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.convert.array_rows import (
    OUTCOME_KEYS,
    ArrayImages,
    ArrayRows,
    ImageLayout,
    Scale,
    check_episode_bytes,
    check_row_bytes,
    image_layout,
    judge_scale,
    observation_key,
    outcome,
)
from roboreel.convert.lerobot_layout import Warnings
from roboreel.convert.source import Source
from roboreel.convert.zarr_chunks import check_chunks
from roboreel.convert.zarr_files import ZarrArray, ZarrFiles, open_files
from roboreel.errors import SourceError
from roboreel.schema import TIMESTAMP_KEY

ENDS = "meta/episode_ends"
_MAX_ENDS_BYTES = 1 << 28
_UNIT_BYTES = 8 << 20
"""About how many bytes of small chunks are decoded at a time."""
_MAX_UNIT_BYTES = 1 << 30
_MAX_MISSING_CHUNKS = 200_000
"""That are looked for one by one."""
_DEFAULT_FPS = 10.0
"""PushT's."""

_KEYS = {
    "action": "action",
    "actions": "action",
    "state": "observation.state",
    "agent_pos": "observation.state",
    "reward": "next.reward",
    "rewards": "next.reward",
    "done": "next.done",
    "dones": "next.done",
    "timestamp": TIMESTAMP_KEY,
}
_ONLY_IMAGES = {"img": "observation.image", "image": "observation.image"}


@dataclass
class ZarrRows:
    """An array of which the chunks are decoded once each, as long as it is read forwards."""

    where: str
    array: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    unit: int
    """Rows that are decoded together: whole chunks."""
    _held: tuple[int, NDArray[Any]] | None = field(default=None, repr=False)

    @classmethod
    def open(cls, files: ZarrFiles, array: ZarrArray) -> ZarrRows:
        rows = array.chunks[0]
        row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
        unit = rows * max(1, _UNIT_BYTES // max(1, rows * row_bytes))
        unit = min(unit, max(1, _MAX_UNIT_BYTES // max(1, row_bytes)))  # a chunk may be long, and hold little of a row
        dtype = array.dtype.newbyteorder("<")
        opened = cls(f"{files.path}, array {array.name!r}", files.open_array(array), array.shape, dtype, unit)
        check_row_bytes(opened)
        return opened

    def read(self, start: int, stop: int) -> NDArray[Any]:
        parts = []
        while start < stop:
            first, block = self._unit_with(start)
            end = min(stop, first + len(block))
            parts.append(block[start - first : end - first])
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def units(self) -> Iterator[NDArray[Any]]:
        """Yield all rows, in blocks."""
        for start in range(0, self.shape[0], self.unit):
            yield self.read(start, min(start + self.unit, self.shape[0]))

    def _unit_with(self, row: int) -> tuple[int, NDArray[Any]]:
        first = row // self.unit * self.unit
        if self._held is None or self._held[0] != first:
            self._held = None  # two of them need not be in memory
            self._held = first, self._decoded(first, min(first + self.unit, self.shape[0]))
        return self._held

    def _decoded(self, start: int, stop: int) -> NDArray[Any]:
        try:
            block = np.asarray(self.array[start:stop])
        except Exception as error:  # what zarr's many codecs raise, for want of memory too
            raise SourceError(
                f"{self.where}: rows {start} to {stop} cannot be read ({error!r:.200}); copy it again"
            ) from error
        if block.shape != (stop - start, *self.shape[1:]):
            raise SourceError(f"{self.where}: rows {start} to {stop} come as {block.shape}; copy it again")
        return block.astype(self.dtype, copy=False)


class ZarrReplay(Source):
    """A replay buffer whose metadata, `episode_ends` and kinds of images have been checked."""

    def __init__(self, path: Path, fps: float | None, warnings: Warnings) -> None:
        self.path = path
        self.files = [path]
        self._warned = warnings
        store = open_files(path)
        arrays = store.arrays()
        check_chunks(store, arrays)
        self._ends = _read_ends(store, arrays)
        self.lengths = np.diff(self._ends, prepend=0).tolist()
        kept = _kept(store, arrays, int(self._ends[-1]) if len(self._ends) else 0, warnings)
        self._columns, self._cameras = _sorted_out(store, kept, warnings)
        if self.lengths:
            longest = int(np.argmax(self.lengths))
            check_episode_bytes(self._columns, self.lengths[longest], f"{path}, episode {longest}")
        if TIMESTAMP_KEY in self._columns and self._step_s() is None:
            warnings.leave_out("array 'timestamp' does not increase in the first episode: left out")
            del self._columns[TIMESTAMP_KEY]
        self.fps = fps or self._found_fps(store)

    @property
    def format(self) -> str:
        return "diffusion-policy zarr"

    @property
    def provenance(self) -> Mapping[str, Any]:  # type: ignore[override]
        return {"folder": self.path.resolve().name}

    @property
    def warnings(self) -> Sequence[str]:  # type: ignore[override]
        return tuple(self._warned)

    def read_episode(self, number: int) -> Mapping[str, Any]:
        stop = int(self._ends[number])
        start = stop - self.lengths[number]
        found: dict[str, Any] = {key: rows.read(start, stop) for key, rows in self._columns.items()}
        found |= {key: outcome(key, found[key], self._columns[key].where) for key in OUTCOME_KEYS if key in found}
        if TIMESTAMP_KEY in found:
            seconds = found[TIMESTAMP_KEY].reshape(-1).astype(np.float64)
            found[TIMESTAMP_KEY] = seconds - seconds[0]
        for key, (rows, layout, scale) in self._cameras.items():
            found[key] = ArrayImages(rows, layout, scale, start, stop - start)
        return found

    def _found_fps(self, store: ZarrFiles) -> float:
        said = store.attributes().get("fps")
        if isinstance(said, int | float) and not isinstance(said, bool) and said > 0:
            return float(said)
        step = self._step_s()
        if step is not None:
            self._warned.add(f"no rate is stored; by its timestamps it is {1 / step:.4g} Hz: else give fps (--fps)")
            return float(f"{1 / step:.4g}")
        self._warned.add(f"no rate is stored: taken as {_DEFAULT_FPS:g} Hz, as PushT's; else give fps (--fps)")
        return _DEFAULT_FPS

    def _step_s(self) -> float | None:
        """Seconds from one frame to the next by the first episode's timestamps; None where they do not tell."""
        rows = self._columns.get(TIMESTAMP_KEY)
        if rows is None or not self.lengths or self.lengths[0] < 2 or math.prod(rows.shape[1:]) != 1:
            return None
        step = float(np.median(np.diff(rows.read(0, self.lengths[0]).reshape(-1).astype(np.float64))))
        return step if np.isfinite(step) and step > 0 else None


def _read_ends(store: ZarrFiles, arrays: Mapping[str, ZarrArray]) -> NDArray[np.int64]:
    """The row after each episode's last, which increase."""
    array = arrays.get(ENDS)
    if array is None:
        raise SourceError(f"{store.path}: has no {ENDS}, so it is no replay buffer, or its copy is not complete")
    where = f"{store.path}, array {ENDS!r}"
    if array.flaw is not None or len(array.shape) != 1 or array.dtype.kind not in "iu":
        raise SourceError(f"{where}: {array.flaw or f'is {array.dtype} of shape {array.shape}'}; it must be integers")
    if array.shape[0] * 8 > _MAX_ENDS_BYTES:
        raise SourceError(f"{where}: declares {array.shape[0]:,} episodes, which is no real recording")
    if array.stored_chunks < array.declared_chunks:
        raise SourceError(f"{where}: {array.declared_chunks - array.stored_chunks} of its chunks are missing; copy it")
    ends = ZarrRows.open(store, array).read(0, array.shape[0]) if array.shape[0] else np.empty(0, np.int64)
    previous = 0
    for number, end in enumerate(ends.tolist()):
        if end < previous or end >= 1 << 62:
            raise SourceError(
                f"{where}: episode {number} ends at row {end}, and the one before at {previous}; they must increase"
            )
        previous = end
    return ends.astype(np.int64)


def _kept(
    store: ZarrFiles, arrays: Mapping[str, ZarrArray], rows: int, warnings: Warnings
) -> Iterator[tuple[str, ZarrArray]]:
    """The arrays of `data/` that can be read, by their names in it; `SourceError` for one that is too short."""
    for path, array in arrays.items():
        if not path.startswith("data/"):
            continue
        name, where = path.removeprefix("data/").replace("/", "."), f"{store.path}, array {path!r}"
        if array.flaw is not None or not array.shape or 0 in array.shape[1:]:
            warnings.leave_out(f"array {name!r} {array.flaw or f'has shape {array.shape}'}: left out")
            continue
        if array.shape[0] < rows:
            raise SourceError(
                f"{where}: has {array.shape[0]:,} rows, and the last episode ends at row {rows:,}; copy it again"
            )
        if array.shape[0] > rows:
            warnings.add(f"array {name!r} has {array.shape[0] - rows} rows after the last episode: left out")
        missing = array.declared_chunks - array.stored_chunks
        if missing > _MAX_MISSING_CHUNKS:
            raise SourceError(
                f"{where}: {missing:,} of its {array.declared_chunks:,} chunks are not there, which is no real "
                "recording"
            )
        if missing > 0:
            warnings.add(
                f"array {name!r}: {missing} of {array.declared_chunks} chunks are not there, and count as its fill "
                "value: so zarr stores what holds nothing else, and so does a copy that was cut off"
            )
        yield name, array


Cameras = dict[str, tuple[ArrayRows, ImageLayout, Scale]]


def _sorted_out(
    store: ZarrFiles, kept: Iterator[tuple[str, ZarrArray]], warnings: Warnings
) -> tuple[dict[str, ArrayRows], Cameras]:
    """Columns and cameras by their data keys."""
    columns: dict[str, ArrayRows] = {}
    cameras: Cameras = {}
    for name, array in kept:
        rows, layout = ZarrRows.open(store, array), image_layout(name, array.shape, array.dtype)
        taken = {*columns, *cameras}
        key = (_KEYS if layout is None else _ONLY_IMAGES).get(name.lower(), "")
        if not key or key in taken:
            key = observation_key(name, image=layout is not None, taken=taken)
        if layout is None:
            columns[key] = rows
            continue
        is_bytes = array.dtype == np.uint8
        cameras[key] = rows, layout, Scale.LEVELS if is_bytes else judge_scale(rows.units(), rows.where)
        if not is_bytes:
            warnings.add(f"images {name!r} are {array.dtype} of {cameras[key][2].value}: made uint8, which is exact")
    return columns, cameras
