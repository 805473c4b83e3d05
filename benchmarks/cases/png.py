"""Images kept as PNG files, beside Pillow over the same files; in seconds of the processor, so of one thread."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import recordings
from benchmarks.benchmark import Benchmark, Contender, Run, Scene, Setup, rate_of
from benchmarks.cases.pusht_windows import ours
from benchmarks.recorded import batches, record
from benchmarks.recordings import CAMERA, FPS
from roboreel import LeRobotDatasetV2


def pngs(scene: Scene) -> dict[str, Any]:
    dataset = recordings.imported(scene, recordings.pusht_images(scene))
    batch_size = scene.pick(8, 256, 256)
    num_frames = len(LeRobotDatasetV2(dataset, readonly=True))
    return {
        "dataset": str(dataset),
        "deltas": {},
        "fps": FPS,
        "image_dtype": "uint8",
        "batch_size": batch_size,
        "batches": record(scene, num_frames, batch_size, scene.pick(4, 200, 200)),
        "clock": "processor",
    }


def pillow(setup: Setup) -> Iterator[Run]:
    """Read and decode, into a ready array."""
    folder = Path(setup["dataset"]) / "images" / CAMERA
    files = sorted(str(path) for path in folder.rglob("*.png"))
    with Image.open(files[0]) as first:
        out = np.zeros((setup["batch_size"], first.height, first.width, 3), np.uint8)
    wanted = batches(setup)
    at = 0

    def run(count: int) -> dict[str, Any]:
        nonlocal at
        for _ in range(count):
            for row, index in enumerate(wanted[at % len(wanted)].tolist()):
                with open(files[index], "rb") as file:  # noqa: PTH123 - the quickest way there is
                    out[row] = np.asarray(Image.open(io.BytesIO(file.read())))
            at += 1
        return {CAMERA: out}

    yield run


PNG = Benchmark(
    "png_frames",
    "PNG files, single frames of 96×96, processor time",
    pngs,
    (Contender("roboreel", ours), Contender("pillow", pillow)),
    (rate_of("pillow", 0.85),),
)
