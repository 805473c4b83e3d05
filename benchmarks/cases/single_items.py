"""`dataset[i]`, one sample at a time, beside the same numpy and torch calls with nothing around."""

from __future__ import annotations

import bisect
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
    """Rows held at the episode's ends, made once for keys that share them; one copy and one tensor a key."""
    columns = Columns(Path(setup["dataset"]))
    starts, stops = columns.starts.tolist(), columns.stops.tolist()
    singles = [(key, array) for key, array in columns.arrays.items() if key not in setup["deltas"]]
    windows: dict[tuple[int, ...], list[tuple[str, str, Any]]] = {}
    for key, deltas in setup["deltas"].items():
        steps = tuple(round(delta * setup["fps"]) for delta in deltas)
        windows.setdefault(steps, []).append((key, key + "_is_pad", columns.arrays[key].take))
    windowed = [(np.array(steps), keys) for steps, keys in windows.items()]
    indices = endless(setup)

    def item(index: int) -> dict[str, Any]:
        episode = bisect.bisect_right(starts, index) - 1
        first, last = starts[episode], stops[episode] - 1
        found = {key: torch.from_numpy(array[index, ...].copy()) for key, array in singles}
        for steps, keys in windowed:
            rows = steps + index
            is_pad = (rows < first) | (rows > last)
            rows = np.minimum(np.maximum(rows, first), last)
            for key, mask, gather in keys:
                found[key] = torch.from_numpy(gather(rows, 0, None, "clip"))
                found[mask] = torch.from_numpy(is_pad.copy())
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
