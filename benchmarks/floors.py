"""What the machine can do at the least: the same bytes, with nothing around."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.benchmark import Setup
from benchmarks.recorded import batches
from roboreel import LeRobotDatasetV2
from roboreel.store import Store

Ints = NDArray[np.int64]


class Columns:
    """The mapped columns of one of our datasets as plain arrays, and where its episodes lie."""

    def __init__(self, folder: Path) -> None:
        store = Store.open(folder)
        specs = store.manifest.keys
        self.arrays = {key: store.memmap(key) for key, spec in specs.items() if not spec.needs_decoding}
        bounds = LeRobotDatasetV2(folder, readonly=True).episode_data_index
        self.starts, self.stops = bounds["from"], bounds["to"]

    def window(self, indices: Ints, offsets: Sequence[int]) -> Ints:
        """Return the rows (B * T,) of windows around `indices` (B,), held at the ends of their episodes."""
        episodes = np.searchsorted(self.starts, indices, side="right") - 1
        rows = indices[:, None] + np.asarray(offsets)
        clipped = np.clip(rows, self.starts[episodes][:, None], self.stops[episodes][:, None] - 1)
        return np.asarray(clipped.reshape(-1))


class Gather:
    """`numpy.take` of a batch's rows, key by key, into arrays that are there already; the rows are known beforehand."""

    def __init__(self, setup: Setup, keys: Sequence[str] = ()) -> None:
        columns = Columns(Path(setup["dataset"]))
        deltas: Mapping[str, Sequence[float]] = setup.get("deltas", {})
        arrays = {key: array for key, array in columns.arrays.items() if not keys or key in keys}
        offsets = {key: [round(delta * setup["fps"]) for delta in deltas.get(key, [0])] for key in arrays}
        made: dict[tuple[int, ...], list[Ints]] = {}  # as in ours, keys with one window share its rows
        for wanted in map(tuple, offsets.values()):
            if wanted not in made:
                made[wanted] = [columns.window(batch, wanted) for batch in batches(setup)]
        self.out: dict[str, NDArray[Any]] = {}
        self._work = []
        for key, array in arrays.items():
            rows = made[tuple(offsets[key])]
            self.out[key] = np.zeros((len(rows[0]), *array.shape[1:]), array.dtype)
            self._work.append((array, rows, self.out[key]))
        self._next = 0
        self.batches = len(batches(setup))

    def step(self) -> None:
        at = self._next
        self._next = (at + 1) % self.batches
        for array, rows, out in self._work:
            np.take(array, rows[at], axis=0, out=out, mode="clip")

    def run(self, count: int) -> dict[str, NDArray[Any]]:
        for _ in range(count):
            self.step()
        return self.out
