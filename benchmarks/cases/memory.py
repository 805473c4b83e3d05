"""What reading leaves in memory: of one process over thousands of videos, of a worker over many batches."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from benchmarks import recordings
from benchmarks.apart import apart, status_mb
from benchmarks.benchmark import Benchmark, Figures, Scene, Setup, figure
from benchmarks.cases.pusht_windows import states
from benchmarks.recorded import Endless, record
from benchmarks.recordings import FPS, moving_frames
from roboreel import LeRobotDatasetV2, VideoOptions

CAMERA = "observation.images.cam0"
OWN = ("RssAnon", "RssShmem")
"""What a process has of memory that is no file's: private, and shared without a file."""

# Videos


def many_videos(scene: Scene) -> dict[str, Any]:
    """2,000 episodes of 10 frames, 64×48, each in a file of its own."""
    videos = scene.pick(4, 200, 2000)

    def make(place: Path) -> None:
        frames = np.concatenate(list(moving_frames(10, 48, 64)))
        options = VideoOptions(codec="h264", preset="ultrafast")
        dataset = LeRobotDatasetV2(place, fps=FPS, image_mode="video", video_options=options)
        for _ in range(videos):
            dataset.add_episodes({CAMERA: frames}, no_flush=True)
        dataset.close()

    folder = recordings.once(scene.cache / "ours" / f"{videos}_videos", make)
    windows = scene.pick(40, 4_000, 100_000)
    batches = record(scene, 10 * videos, scene.pick(4, 100, 100), windows // scene.pick(4, 100, 100))
    return {"dataset": str(folder), "batch_size": scene.pick(4, 100, 100), "batches": batches, "windows": windows}


def videos_read(setup: Setup) -> Figures:
    return apart(_videos_read, setup)


def _videos_read(setup: Setup) -> Figures:
    dataset = LeRobotDatasetV2(setup["dataset"], delta_timestamps={CAMERA: [-1 / FPS, 0]}, readonly=True)
    early, read = max(setup["windows"] // 100, setup["batch_size"]), 0
    figures: Figures = {}
    for indices in Endless(setup):
        dataset.get_batch(indices)
        read += len(indices)
        if read >= early and "early_mb" not in figures:
            figures["early_mb"] = status_mb("self", *OWN)
        if read >= setup["windows"]:
            break
    figures |= {"windows": float(read), "late_mb": status_mb("self", *OWN)}
    figures["open_files"] = float(len(list(Path("/proc/self/fd").iterdir())))
    return {**figures, "growth_mb": figures["late_mb"] - figures["early_mb"]}


# Workers


NOTHING = range(1 << 40)
"""What an idle worker reads: its process imports no more than torch for it."""


def many_batches(scene: Scene) -> dict[str, Any]:
    """Small batches: the memory that a batch leaves behind does not depend on its size, the time does."""
    setup = states(scene)
    num_frames = len(LeRobotDatasetV2(setup["dataset"], readonly=True))
    batches = record(scene, num_frames, 32, 200)
    batches_read = scene.pick(40, 4_000, 100_000)
    return setup | {"batch_size": 32, "batches": batches, "read": batches_read, "workers": scene.pick(1, 16, 16)}


def workers_reading(setup: Setup) -> Figures:
    return apart(_workers_reading, setup)


def _workers_reading(setup: Setup) -> Figures:
    figures: Figures = {}
    dataset = LeRobotDatasetV2(setup["dataset"], delta_timestamps=setup["deltas"], readonly=True)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores is what is asked here
    for start in ("fork", "spawn"):
        _worker_mb(NOTHING, setup, 1, [20], start)  # what the first ones bring about in this process is not a worker's
        for workers in (1, 4, 16):
            if workers > setup["workers"]:
                break
            idle = _worker_mb(NOTHING, setup, workers, [20 * workers], start)
            reading = _worker_mb(dataset, setup, workers, [100 * workers], start)
            figures[f"{start}_{workers}_mb"] = reading[0] - idle[0]
    figures["worker_mb"] = max(figures.values())
    early, late = _worker_mb(dataset, setup, min(2, setup["workers"]), [setup["read"] // 100, setup["read"]], "fork")
    return {**figures, "batches": float(setup["read"]), "growth_mb": late - early}


def _worker_mb(dataset: Any, setup: Setup, workers: int, after: list[int], start: str) -> list[float]:
    """Return what a worker has for itself, MB, the largest of them, after so many batches."""
    loader: Any = DataLoader(dataset, batch_sampler=Endless(setup), num_workers=workers, multiprocessing_context=start)
    iterator: Iterator[Any] = iter(loader)
    found, read = [], 0
    for wanted in after:
        for _ in itertools.repeat(None, wanted - read):
            next(iterator)
        read = wanted
        found.append(max(status_mb(worker.pid, *OWN) for worker in iterator._workers))  # type: ignore[attr-defined]
    return found


VIDEOS = Benchmark(
    "video_memory",
    "memory over 100,000 windows from 2,000 videos",
    many_videos,
    goals=(
        figure("growth_mb", "beyond that after 1,000 windows", "MB", at_most=100),
        figure("open_files", "open files at the end", "", at_most=200),
    ),
    count=videos_read,
)

WORKERS = Benchmark(
    "worker_memory",
    "memory of 1, 4 and 16 workers reading state windows",
    many_batches,
    goals=(
        figure("worker_mb", "a worker, forked or spawned, beyond an idle one", "MB", at_most=40),
        figure("growth_mb", "growth of a worker over 10⁵ batches", "MB", at_most=5),
    ),
    count=workers_reading,
)
