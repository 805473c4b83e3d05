"""State windows from a ring that another process writes at 100 frames a second, beside the same ring idle."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import recordings
from benchmarks.benchmark import Benchmark, Contender, Run, Scene, Setup, rate_of
from benchmarks.cases.pusht_windows import ours, states
from roboreel import LeRobotDatasetV2

FRAMES_A_SECOND = 100
EPISODE_FRAMES = 50


def ring(scene: Scene) -> dict[str, Any]:
    """PushT as the first content of a ring that it fills."""
    setup = states(scene)
    frames = len(LeRobotDatasetV2(setup["dataset"], readonly=True))

    def make(place: Path) -> None:
        LeRobotDatasetV2.from_lerobot(
            setup["folder"], place, buffer_capacity=frames, use_as_fifo_buffer=True, progress=False
        ).close()

    return setup | {"dataset": str(recordings.once(scene.cache / "ours" / "ring", make))}


def idle(setup: Setup) -> Iterator[Run]:
    yield from ours(setup)


def written(setup: Setup) -> Iterator[Run]:
    place = Path(setup["cache"]) / "ring_written"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(setup["dataset"], place)
    # spawned: what torch runs in threads does not survive a fork
    writer = multiprocessing.get_context("spawn").Process(target=write_for_ever, args=(place,), daemon=True)
    writer.start()
    try:
        yield from ours({**setup, "dataset": str(place)})
    finally:
        writer.kill()
        writer.join()


def write_for_ever(place: Path) -> None:
    """Half a second of recording every half second, as a robot's episodes end."""
    dataset = LeRobotDatasetV2(place)
    last = dataset.get_episode(int(dataset.get_unique_episode_indices()[-1]))
    episode: dict[str, Any] = {}
    for key in set(last) - made_anew(dataset):
        strings = isinstance(last[key], list)
        episode[key] = last[key][:1] * EPISODE_FRAMES if strings else np.repeat(last[key][:1], EPISODE_FRAMES, axis=0)
    wanted = time.monotonic()
    while True:
        dataset.add_episodes(episode, no_flush=True)
        wanted += EPISODE_FRAMES / FRAMES_A_SECOND
        time.sleep(max(0.0, wanted - time.monotonic()))


def made_anew(dataset: LeRobotDatasetV2) -> set[str]:
    return {dataset.INDEX_KEY, dataset.EPISODE_INDEX_KEY, dataset.FRAME_INDEX_KEY, dataset.TIMESTAMP_KEY}


RING = Benchmark(
    "ring_written",
    "state windows from a ring written at 100 frames/s",
    ring,
    (Contender("roboreel", written), Contender("idle", idle)),
    (rate_of("idle", 0.9),),
)
