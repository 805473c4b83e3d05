"""Small episodes that say what they are: frame number n holds n in every key, so any mix-up shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel import LeRobotDatasetV2

CAMERA = "observation.image"
HEIGHT, WIDTH = 16, 24
VIDEO_ERROR = 5
"""Levels of 255 by which a frame of one colour may be off after lossy coding."""

Data = dict[str, Any]


def recording(length: int, first: int = 0, *, camera: bool = False, task: str | None = None) -> Data:
    """One episode of frames number `first`, `first` + 1, …, as `add_episodes` takes it."""
    numbers = np.arange(first, first + length)
    data: Data = {
        "observation.state": np.stack([numbers, -numbers], axis=1).astype(np.float32),
        "action": (numbers * 0.5).astype(np.float32),
        "next.done": numbers == first + length - 1,
    }
    if camera:
        data[CAMERA] = pictures(numbers)
    if task is not None:
        data["task"] = task
    return data


def pictures(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    """(n, HEIGHT, WIDTH, 3): each of one colour, told apart from its neighbours by more than coding costs."""
    level = np.asarray(numbers) * 37 % 256
    colours = np.stack([level, 255 - level, level // 2], axis=-1).astype(np.uint8)
    return np.broadcast_to(colours[..., None, None, :], (*colours.shape[:-1], HEIGHT, WIDTH, 3)).copy()


def several(lengths: list[int], **options: Any) -> Data:
    """Episodes of these lengths in one mapping, told apart by `episode_index`."""
    firsts = np.cumsum([0, *lengths[:-1]]).tolist()
    parts = [recording(length, first, **options) for length, first in zip(lengths, firsts, strict=True)]
    data = {key: np.concatenate([np.atleast_1d(part[key]) for part in parts]) for key in parts[0] if key != "task"}
    if "task" in parts[0]:
        data["task"] = np.repeat(parts[0]["task"], sum(lengths))
    data["episode_index"] = np.repeat(np.arange(len(lengths)), lengths)
    return data


def made(root: Path, lengths: list[int], *, camera: bool = False, task: str | None = None, **options: Any) -> Any:
    """A dataset at 10 Hz with episodes of these lengths; frame i of them all is number i."""
    options = {"fps": 10, "image_mode": "memmap", **options}
    dataset = LeRobotDatasetV2(root, **options)
    dataset.add_episodes(several(lengths, camera=camera, **({"task": task} if task else {})))
    return dataset


def ring(root: Path, lengths: list[int], capacity: int, **options: Any) -> Any:
    """A ring in which frame number n is the n-th that was recorded."""
    dataset = made(root, lengths[:1], buffer_capacity=capacity, use_as_fifo_buffer=True, **options)
    for k in range(1, len(lengths)):
        dataset.add_episodes(recording(lengths[k], sum(lengths[:k])), no_flush=True)
    return dataset


def numbers_of(items: Any) -> Any:
    """The frame numbers of an item or a batch, after checking that all its keys agree on them."""
    numbers = np.asarray(items["observation.state"])[..., 0]
    assert np.array_equal(np.asarray(items["observation.state"])[..., 1], -numbers)
    return numbers.astype(int).tolist()


def assorted(root: Path) -> dict[str, LeRobotDatasetV2]:
    """Datasets, views, and a ring that has gone round, all with the same keys; each frame says its number."""
    pushed = made(root / "pushed", [3, 1, 4], camera=True, task="push")
    pulled = made(root / "pulled", [2, 5], camera=True, task="pull", image_mode="png")
    turning = ring(root / "ring", [4], 10, camera=True, task="turn")
    for first, length in ((4, 3), (7, 6), (13, 2), (15, 3)):
        turning.add_episodes(recording(length, first, camera=True, task=f"turn {first}"))
    return {
        "pushed": pushed,
        "pulled": pulled,
        "ring": turning,
        "view": pushed.view([2, 0]),
        "ring's view": turning.view(turning.get_unique_episode_indices()[1:].tolist()),
        "nothing": pulled.view([]),
    }
