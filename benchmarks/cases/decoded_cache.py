"""Video through a cache that holds every frame already, beside raw pixels: the second epoch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from benchmarks import recordings
from benchmarks.benchmark import Benchmark, Contender, Run, Scene, Setup, rate_of
from benchmarks.cases import video
from benchmarks.cases.pusht_windows import ours as through_a_loader
from benchmarks.recorded import Endless, drain
from roboreel import LeRobotDatasetV2

SIZE = "2GB"
"""All of PushT decoded takes 0.7 GB."""


def pusht(scene: Scene) -> dict[str, Any]:
    """TD-MPC's windows of 6 frames, as they are stored, from one AV1 file; and the same decoded."""
    decoded = recordings.imported(scene, recordings.pusht_av1(scene), decode=True)
    return video.pusht(scene) | {"image_dtype": "uint8", "decoded": str(decoded)}


def cached(setup: Setup) -> Iterator[Run]:
    place = Path(setup["cache"]) / "decoded_cache"
    dataset = LeRobotDatasetV2(
        setup["dataset"],
        delta_timestamps=setup["deltas"],
        image_dtype="uint8",
        decoded_cache=(SIZE, place),
        readonly=True,
    )
    first_epoch = LeRobotDatasetV2(setup["dataset"], decoded_cache=(SIZE, place), image_dtype="uint8", readonly=True)
    for start in range(0, len(first_epoch), 256):
        first_epoch.get_batch(range(start, min(start + 256, len(first_epoch))))
    loader: Any = DataLoader(dataset, batch_sampler=Endless(setup))
    yield drain(iter(loader))


def raw_pixels(setup: Setup) -> Iterator[Run]:
    yield from through_a_loader({**setup, "dataset": setup["decoded"]})


CACHE = Benchmark(
    "decoded_cache",
    "video with every frame in `decoded_cache`, 6 frames of 96×96, uint8",
    pusht,
    (Contender("roboreel", cached), Contender("raw pixels", raw_pixels)),
    (rate_of("raw pixels", 0.7),),
)
