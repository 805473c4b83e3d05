"""Windows of PushT with two worker processes, beside the same without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.benchmark import Benchmark, Contender, Goal, Run, Scene, Setup, milliseconds, rate_of
from benchmarks.cases.pusht_windows import images, ours, states
from benchmarks.recorded import Endless, drain, drain_workers, record
from roboreel import LeRobotDatasetV2

TWO: Setup = {"workers": 2}


def transforming(setup: Setup) -> Iterator[Run]:
    """With an `image_transform`, in each process as many threads as torch takes by itself: in workers one."""
    dataset = LeRobotDatasetV2(
        setup["dataset"],
        image_transform=TRANSFORMS[setup["by"]],
        delta_timestamps=setup["deltas"],
        image_dtype="uint8",
        readonly=True,
    )
    workers = setup.get("workers", 0)
    loader: Any = DataLoader(dataset, batch_sampler=Endless(setup), num_workers=workers)
    run = drain_workers(iter(loader), workers) if workers else drain(iter(loader))
    yield run if workers else Unseen(run)


@dataclass(frozen=True)
class Unseen:
    """A run whose batches are not compared: no two contenders draw the same shifts."""

    run: Run

    def __call__(self, count: int) -> int:
        return len(self.run(count))


# The augmentation that image-based control began with: shifted by up to 4 pixels, then normalised.


def by_numpy(frames: torch.Tensor) -> torch.Tensor:
    padded = np.pad(frames.numpy(), ((0, 0),) * (frames.ndim - 2) + ((4, 4), (4, 4)), mode="edge")
    down, right = torch.randint(0, 9, (2,)).tolist()
    height, width = frames.shape[-2:]
    floats = padded[..., down : down + height, right : right + width].astype(np.float32)
    floats -= 127.5
    floats /= 63.75
    return torch.from_numpy(floats)


def by_torch(frames: torch.Tensor) -> torch.Tensor:
    padded = torch.nn.functional.pad(frames.to(torch.float32).div_(255), (4, 4, 4, 4), mode="replicate")
    down, right = torch.randint(0, 9, (2,)).tolist()
    height, width = frames.shape[-2:]
    return padded[..., down : down + height, right : right + width].sub(0.5).div(0.25)


TRANSFORMS = {"numpy": by_numpy, "torch": by_torch}


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

NUMPY, TORCH = {"by": "numpy"}, {"by": "torch"}

TRANSFORM = Benchmark(
    "transform_workers",
    "PushT, image windows with a transform, 2 workers",
    fewer_images,
    (
        Contender("roboreel", transforming, options={**TWO, **NUMPY}, least=8),
        Contender("no workers", transforming, options=NUMPY),
        Contender("by torch, 2 workers", transforming, options={**TWO, **TORCH}, least=8),
        Contender("by torch, no workers", transforming, options=TORCH),
    ),
    (
        rate_of("no workers", 1.6),
        Goal(
            "the same by torch, which has threads without workers, too: rate, in times of none",
            lambda measured: measured.ratio("by torch, no workers", "by torch, 2 workers"),
        ),
    ),
)
