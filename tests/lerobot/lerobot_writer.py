"""Recordings that LeRobot's own writer has made, with keys of every kind; frame number n holds numbers made of n."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roboreel.columns.scheduling import ordinary_threads
from tests.video_files import HEIGHT, WIDTH, painted_frame

FPS = 10
LENGTHS = (5, 4, 6)
TASKS = ("push the block", "pull the block")
CAMERAS = ("observation.images.front", "observation.images.wrist")
TOP = "observation.images.top"
"""Kept as images, without loss."""

FEATURES: dict[str, dict[str, Any]] = {
    "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
    "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
    "next.done": {"dtype": "bool", "shape": (1,), "names": None},
    "contacts": {"dtype": "bool", "shape": (4,), "names": None},
    "pose": {"dtype": "float32", "shape": (2, 3), "names": None},
    "grid": {"dtype": "float32", "shape": (2, 2, 2), "names": None},
    "step": {"dtype": "int64", "shape": (1,), "names": None},
    "steps": {"dtype": "int64", "shape": (2,), "names": None},
    "said": {"dtype": "string", "shape": (1,), "names": None},
    **{
        key: {"dtype": "video", "shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]}
        for key in CAMERAS
    },
    TOP: {"dtype": "image", "shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]},
}


def frame(number: int, features: Sequence[str] = tuple(FEATURES)) -> dict[str, Any]:
    """What `add_frame` takes, but for the task."""
    made = {
        "observation.state": np.array([number, -number, number / 3], np.float32),
        "action": np.array([number / 7, number], np.float32),
        "next.reward": np.array([number / 11], np.float32),
        "next.done": np.array([number % 5 == 4]),
        "contacts": np.array([number >> bit & 1 for bit in range(4)], bool),
        "pose": np.arange(6, dtype=np.float32).reshape(2, 3) / 3 + number,
        "grid": np.arange(8, dtype=np.float32).reshape(2, 2, 2) / 7 - number,
        "step": np.array([number + (1 << 20)]),
        "steps": np.array([number, -number]),
        "said": f"frame {number % 3} ä",
        CAMERAS[0]: painted_frame(number),
        CAMERAS[1]: painted_frame(number + 100),
        TOP: painted_frame(number + 200),
    }
    return {key: made[key] for key in features}


def write(folder: Path, lengths: Sequence[int] = LENGTHS, leave_out: Sequence[str] = ()) -> Path:
    """A v3.0 folder; episodes have one task, and the last one two."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {key: dict(feature) for key, feature in FEATURES.items() if key not in leave_out}
    dataset = LeRobotDataset.create(f"local/{folder.name}", FPS, features, root=folder, robot_type="so100")
    number = 0
    for episode, length in enumerate(lengths):
        for k in range(length):
            is_other = episode % 2 == 1 or (episode == len(lengths) - 1 and k > 2)
            dataset.add_frame({**frame(number, tuple(features)), "task": TASKS[is_other]})
            number += 1
        with ordinary_threads():
            dataset.save_episode()
    dataset.finalize()
    return folder
