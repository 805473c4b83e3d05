"""Opening a dataset and reading its first batches with nothing of it in memory, as on the day it was copied."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.benchmark import Benchmark, Contender, Run, Scene, Setup, times_of
from benchmarks.cases.pusht_windows import images
from benchmarks.recorded import batches
from roboreel import LeRobotDatasetV2

BATCHES = 8


def frames(scene: Scene) -> dict[str, Any]:
    """Single frames of PushT as raw pixels, so many of them that most pages of the file are touched."""
    setup = images(scene) | {"deltas": {}}
    return setup | {"batch_size": BATCHES * setup["batch_size"]}


def ours(setup: Setup) -> Iterator[Run]:
    wanted = batches(setup)[:BATCHES]

    def read() -> None:
        dataset = LeRobotDatasetV2(setup["dataset"], image_dtype="uint8", readonly=True)
        for indices in wanted:
            dataset.get_batch(indices)
        dataset.close()

    yield cold(read, setup)


def take(setup: Setup) -> Iterator[Run]:
    wanted = batches(setup)[:BATCHES]
    path = next(Path(setup["dataset"]).glob("columns/observation.image*.bin"))
    out = np.zeros((len(wanted[0]), 96, 96, 3), np.uint8)

    def read() -> None:
        mapped = np.memmap(path, np.uint8, "r").reshape(-1, 96, 96, 3)
        for indices in wanted:
            np.take(mapped, indices, axis=0, out=out, mode="clip")

    yield cold(read, setup)


def cold(read: Callable[[], None], setup: Setup) -> Run:
    """Return what reads once, timed, after the system has let go of the files; where it cannot be told to, warm."""

    def run(count: int) -> float:
        seconds = 0.0
        for _ in range(count):
            gc.collect()  # a mapping keeps its pages
            if setup["size"] != "tiny":  # syncing what has just been written takes seconds
                forget(Path(setup["dataset"]))
            began = time.perf_counter()
            read()
            seconds += time.perf_counter() - began
        return seconds

    return run


def forget(folder: Path) -> None:
    """Tell the system that nobody needs the pages of these files (Linux; macOS has no such call)."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fdatasync(file.fileno())  # a page that is not written yet stays
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


COLD = Benchmark(
    "frames_cold",
    "PushT, opened and 2,048 single frames read, nothing in memory",
    frames,
    (Contender("roboreel", ours, one_by_one=True), Contender("numpy", take, one_by_one=True)),
    (times_of("numpy"),),
)
