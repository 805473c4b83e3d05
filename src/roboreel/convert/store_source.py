"""Episodes of a dataset on their way out: what survives of each, numbered anew, compared with its checksums."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.convert.foreign import SourceEpisode
from roboreel.errors import StorageDirCorruptError
from roboreel.schema import FRAME_INDEX_KEY, TIMESTAMP_KEY, KeySpec
from roboreel.store import CameraFrames, CameraSource, Store, frame_checksums

Ints = NDArray[np.int64]

LEROBOT_TOLERANCE_S = 1e-4
"""By which LeRobot lets a timestamp be off k / fps."""


class StoreSource:
    """The episodes in `rows` of the episode table, in that order; `left_out` are keys that do not go along."""

    def __init__(self, store: Store, rows: Ints, left_out: Collection[str] = ()) -> None:
        self._store = store
        self._rows = rows
        self._left_out = frozenset(left_out)
        self._cameras = {key.name: CameraSource(store, key.name) for key in self.keys if key.is_camera}

    @property
    def fps(self) -> float:
        return self._store.manifest.fps

    @property
    def keys(self) -> Sequence[KeySpec]:
        """Every key but those that every dataset has."""
        return [
            spec
            for key, spec in self._store.manifest.keys.items()
            if spec.role != "index" and key not in self._left_out
        ]

    @property
    def provenance(self) -> Mapping[str, Any]:
        return self._store.manifest.provenance

    @property
    def num_episodes(self) -> int:
        return len(self._rows)

    @property
    def num_frames(self) -> int:
        return int(sum(stop - start for start, stop in map(self._slots, self._rows.tolist())))

    @property
    def is_regular(self) -> bool:
        """Whether every frame k of an episode is at k / fps, as far as LeRobot looks."""
        return all(
            np.abs(seconds - np.arange(len(seconds)) / self.fps).max() < LEROBOT_TOLERANCE_S
            for seconds in map(self._seconds, self._rows.tolist())
        )

    def episodes(self) -> Iterator[SourceEpisode]:
        """Every episode; `columns` also has `frame_index` from 0 and `timestamp`, float64 seconds from its start."""
        for number, row in enumerate(self._rows.tolist()):
            start, stop = self._slots(row)
            columns: dict[str, NDArray[Any]] = {
                FRAME_INDEX_KEY: np.arange(stop - start),
                TIMESTAMP_KEY: self._seconds(row),
            }
            strings = {}
            for spec in self.keys:
                if spec.is_camera:
                    continue
                values = self._values(spec.name, start, stop)
                if spec.is_string:
                    strings[spec.name] = [self._store.strings[code] for code in values.tolist()]
                else:
                    columns[spec.name] = values
            cameras = {key: source.stored(row) for key, source in self._cameras.items()}
            yield SourceEpisode(number, stop - start, columns, strings, cameras)

    def camera(self, key: str, number: int) -> CameraFrames:
        """A camera's frames in one of the episodes, counted from 0."""
        return self._cameras[key].stored(int(self._rows[number]))

    def clips(self, key: str) -> list[CameraFrames]:
        """A camera's frames in every episode, none of them read."""
        return [self.camera(key, number) for number in range(self.num_episodes)]

    def _slots(self, row: int) -> tuple[int, int]:
        return int(self._store.table.live_starts[row]), int(self._store.table.stops[row])

    def _seconds(self, row: int) -> NDArray[np.float64]:
        start, stop = self._slots(row)
        seconds = self._values(TIMESTAMP_KEY, start, stop).astype(np.float64)
        # what is left of an episode begins where it is left
        return seconds - seconds[0] if start > int(self._store.table.starts[row]) else seconds

    def _values(self, key: str, start: int, stop: int) -> NDArray[Any]:
        values = np.array(self._store.memmap_of(key)[start:stop])
        if not np.array_equal(frame_checksums(values), self._store.checksums[key][start:stop]):
            root = self._store.root
            raise StorageDirCorruptError(f"{root}: {key!r} does not match its checksums; type: roboreel repair {root}")
        return values
