"""Windows of PushT with two worker processes, beside the same without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.benchmark import Benchmark, Contender, Run, Scene, Setup, milliseconds, rate_of
from benchmarks.cases.pusht_windows import images, ours, states
from benchmarks.recorded import Endless, drain, drain_workers, record
from roboreel import LeRobotDatasetV2

TWO: Setup = {"workers": 2}


def transforming(setup: Setup) -> Iterator[Run]:
    """With an `image_transform`, on one thread a process: workers have no more, and this is about processes."""
    torch.set_num_threads(1)
    dataset = LeRobotDatasetV2(
        setup["dataset"],
        image_transform=shifted_and_normalised,
        delta_timestamps=setup["deltas"],
        image_dtype="uint8",
        readonly=True,
    )
    workers = setup.get("workers", 0)
    loader: Any = DataLoader(dataset, batch_sampler=Endless(setup), num_workers=workers)
    run = drain_workers(iter(loader), workers) if workers else drain(iter(loader))
    yield run if workers else lambda count: len(run(count))  # no two contenders draw the same shifts


def shifted_and_normalised(frames: torch.Tensor) -> torch.Tensor:
    """The augmentation that image-based control began with: shifted by up to 4 pixels, then normalised."""
    padded = torch.nn.functional.pad(frames.to(torch.float32).div_(255), (4, 4, 4, 4), mode="replicate")
    down, right = torch.randint(0, 9, (2,)).tolist()
    height, width = frames.shape[-2:]
    return padded[..., down : down + height, right : right + width].sub(0.5).div(0.25)


def fewer_images(scene: Scene) -> dict[str, Any]:
    """Batches of 64: a transform takes its time."""
    setup = images(scene)
    batch_size = scene.pick(8, 64, 64)
    num_frames = len(LeRobotDatasetV2(setup["dataset"], readonly=True))
    return setup | {"batch_size": batch_size, "batches": record(scene, num_frames, batch_size)}


STATE = Benchmark(
    "state_workers",
    "PushT, state windows, 2 workers",
    states,
    (Contender("roboreel", ours, options=TWO, least=8),),
    (milliseconds(0.6),),
)

IMAGE = Benchmark(
    "image_workers",
    "PushT, image windows, uint8, 2 workers",
    images,
    (Contender("roboreel", ours, options=TWO, least=8), Contender("no workers", ours)),
    (rate_of("no workers", 0.9),),
)

TRANSFORM = Benchmark(
    "transform_workers",
    "PushT, image windows with a transform, 2 workers",
    fewer_images,
    (Contender("roboreel", transforming, options=TWO, least=8), Contender("no workers", transforming)),
    (rate_of("no workers", 1.6),),
)
