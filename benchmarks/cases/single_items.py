"""`dataset[i]`, one sample at a time, beside the same numpy and torch calls with nothing around."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.benchmark import Benchmark, Contender, Run, Scene, Setup, times_of
from benchmarks.cases.pusht_windows import states
from benchmarks.floors import Columns
from benchmarks.recorded import batches, record
from roboreel import LeRobotDatasetV2


def one_at_a_time(scene: Scene) -> dict[str, Any]:
    setup = states(scene)
    num_frames = len(LeRobotDatasetV2(setup["dataset"], readonly=True))
    return setup | {"batch_size": 1, "batches": record(scene, num_frames, 1, scene.pick(8, 10_000, 10_000))}


def ours(setup: Setup) -> Iterator[Run]:
    dataset = LeRobotDatasetV2(setup["dataset"], delta_timestamps=setup["deltas"], readonly=True)
    indices = endless(setup)

    def run(count: int) -> Any:
        for _ in range(count):
            item = dataset[next(indices)]
        return item

    yield run


def by_hand(setup: Setup) -> Iterator[Run]:
    """Rows held at the episode's ends, a mask a key, one indexing and one tensor a key."""
    columns = Columns(Path(setup["dataset"]))
    offsets = {key: np.rint(np.asarray(deltas) * setup["fps"]).astype(int) for key, deltas in setup["deltas"].items()}
    singles = {key: array for key, array in columns.arrays.items() if key not in offsets}
    starts, stops = columns.starts, columns.stops
    indices = endless(setup)

    def item(index: int) -> dict[str, Any]:
        episode = starts.searchsorted(index, side="right") - 1
        first, last = starts[episode], stops[episode] - 1
        found = {key: torch.as_tensor(array[index]) for key, array in singles.items()}
        for key, steps in offsets.items():
            rows = index + steps
            found[key + "_is_pad"] = torch.from_numpy((rows < first) | (rows > last))
            found[key] = torch.from_numpy(columns.arrays[key][np.minimum(np.maximum(rows, first), last)])
        return found

    def run(count: int) -> Any:
        for _ in range(count):
            found = item(next(indices))
        return found

    yield run


def endless(setup: Setup) -> Iterator[int]:
    """Each recorded index, again and again."""
    indices = batches(setup)[:, 0].tolist()
    while True:
        yield from indices


ITEMS = Benchmark(
    "single_items",
    "PushT, state windows, `dataset[i]`",
    one_at_a_time,
    (Contender("roboreel", ours), Contender("by hand", by_hand)),
    (times_of("by hand", 2),),
)
