"""State windows from ever more frames: what a batch costs must not depend on how many are stored."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import recordings, stretched
from benchmarks.benchmark import Benchmark, Contender, Figures, Goal, Make, Measured, Run, Scene, Setup, figure
from benchmarks.cases import pusht_windows
from benchmarks.recorded import record
from benchmarks.recordings import FPS, STATE_WINDOWS
from roboreel import LeRobotDatasetV2

_FIRST_BATCHES = 100


def both_sizes(scene: Scene) -> dict[str, Any]:
    """10⁴ frames, and 10⁸ (of a quick run 10⁷) in sparse files; so many batches of each are read before the clock runs.

    After 2,000 no page is met for the first time: otherwise who is slower, and gets less far in the same seconds, would
    meet more of them a batch. After 10,486 of 10⁸ frames ours has made its tables, some 20 batches' time.
    """
    few, many = scene.pick(250, 10_000, 10_000), scene.pick(1_000, 10_000_000, 100_000_000)
    batch_size = scene.pick(8, 256, 256)
    setup: dict[str, Any] = {"deltas": STATE_WINDOWS, "fps": FPS, "image_dtype": "uint8", "batch_size": batch_size}
    setup["first"] = scene.pick(4, 12_000, 12_000)
    for name, frames in (("few", few), ("many", many)):
        folder = scene.cache / "ours" / f"stretched_{frames}"
        recordings.once(folder, functools.partial(stretched.make, frames=frames))
        batches = record(scene, frames, batch_size, scene.pick(4, 2000, 2000))
        setup[name] = {"dataset": str(folder), "batches": batches}
    return setup


def ours(setup: Setup) -> Iterator[Run]:
    yield from _of(pusht_windows.ours, setup)


def take(setup: Setup) -> Iterator[Run]:
    """What more memory costs by itself, as more misses of the processor's caches, the floor's growth tells."""
    yield from _of(pusht_windows.take, setup)


def _of(make: Make, setup: Setup) -> Iterator[Run]:
    for run in make({**setup, **setup[setup["frames"]]}):
        run(setup["first"])
        yield run if setup["frames"] == "many" else functools.partial(_counted, run)


def _counted(run: Run, count: int) -> int:
    """What is read of a few frames is not what is read of many: do not hand it over to be compared."""
    return len(run(count))


def growth(measured: Measured) -> float | None:
    """The time of a batch, in times of that from few frames and of what numpy needs more from many."""
    times = [measured.median(name) for name in ("roboreel", "roboreel, 10⁴ frames", "numpy", "numpy, 10⁴ frames")]
    if None in times:
        return None
    many, few, floor, least = (time for time in times if time is not None)
    return many / (few + max(0.0, floor - least))


def first_times(setup: Setup) -> Figures:
    """Seconds until the first batch could be asked for, and what meeting pages for the first time makes of batches."""
    return {**seconds_to_open(setup), "first_touch": statistics.median(first_touch(setup) for _ in range(3))}


def first_touch(setup: Setup) -> float:
    """The time of the first batches of a new mapping, almost all of it page faults, in times of numpy's."""
    took = []
    for make in (pusht_windows.ours, pusht_windows.take):
        for run in make({**setup, **setup["many"]}):
            began = time.perf_counter()
            run(_FIRST_BATCHES)
            took.append(time.perf_counter() - began)
    return took[0] / took[1]


def seconds_to_open(setup: Setup) -> Figures:
    """Until the first batch could be asked for; the median of 3."""
    took = []
    for _ in range(3):
        began = time.perf_counter()
        dataset = LeRobotDatasetV2(setup["many"]["dataset"], delta_timestamps=setup["deltas"], readonly=True)
        length = len(dataset)
        took.append(time.perf_counter() - began)
        dataset.close()
    return {"open_s": statistics.median(took), "frames": float(length)}


MANY, FEW = {"frames": "many"}, {"frames": "few"}

SIZE = Benchmark(
    "dataset_size",
    "state windows from 10⁸ frames in sparse files",
    both_sizes,
    (
        Contender("roboreel", ours, options=MANY),
        Contender("roboreel, 10⁴ frames", ours, options=FEW),
        Contender("numpy", take, options=MANY),
        Contender("numpy, 10⁴ frames", take, options=FEW),
    ),
    (
        Goal("time, in times of that from 10⁴ frames and of what numpy needs more", growth, at_most=1.5),
        figure("first_touch", "time of the first batches of a mapping, page faults, in times of numpy's", "×"),
        figure("open_s", "opening", "s", at_most=0.5),
    ),
    first_times,
)
