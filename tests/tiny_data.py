"""Datasets of a few frames for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel import LeRobotDatasetV2

FPS = 10


def episode(length: int, side: int = 16, cameras: int = 1, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return frames whose action is twice their state: something to learn."""
    rng = np.random.default_rng(seed)
    state = rng.uniform(0, 100, (length, 2)).astype(np.float32)
    images = {
        f"observation.images.cam{k}": rng.integers(0, 256, (length, side, side, 3), np.uint8) for k in range(cameras)
    }
    return {"observation.state": state, "action": 2 * state, **images}


def make_dataset(folder: Path, lengths: tuple[int, ...] = (9, 5, 12), **options: int) -> Path:
    """Make a dataset of small episodes in `folder` and return it."""
    with LeRobotDatasetV2(folder, fps=FPS, image_mode="memmap" if options.get("cameras", 1) else None) as dataset:
        for number, length in enumerate(lengths):
            dataset.add_episodes(episode(length, seed=number, **options), no_flush=True)
    return folder
