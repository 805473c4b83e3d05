"""Datasets of a few frames for the tests of training."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

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


def write_pusht_folder(folder: Path, length: int = 6) -> Path:
    """Write one episode of what looks like PushT, in LeRobot's format v2.1, and return the folder."""
    rng = np.random.default_rng(0)
    rows = np.arange(length)
    columns: dict[str, Any] = dict.fromkeys(("index", "frame_index"), rows)
    columns |= {name: np.zeros(length, np.int64) for name in ("episode_index", "task_index")}
    columns["timestamp"] = (rows / FPS).astype(np.float32)
    pairs = pa.list_(pa.float32(), 2)
    columns |= {
        name: pa.array(rng.uniform(0, 512, (length, 2)).tolist(), pairs) for name in ("observation.state", "action")
    }
    columns["observation.image"] = [{"bytes": _png(rng), "path": f"{row}.png"} for row in rows]
    features: dict[str, dict[str, Any]] = {name: {"dtype": "int64", "shape": [1], "names": None} for name in columns}
    features["timestamp"]["dtype"] = "float32"
    for name in ("observation.state", "action"):
        features[name] = {"dtype": "float32", "shape": [2], "names": None}
    features["observation.image"] = {"dtype": "image", "shape": [96, 96, 3], "names": ["height", "width", "channels"]}
    info = {"codebase_version": "v2.1", "total_episodes": 1, "total_frames": length, "total_tasks": 1, "fps": FPS}
    for name, content in {
        "info.json": {**info, "chunks_size": 1000, "features": features},
        "tasks.jsonl": {"task_index": 0, "task": "push"},
        "episodes.jsonl": {"episode_index": 0, "tasks": ["push"], "length": length},
    }.items():
        (folder / "meta").mkdir(exist_ok=True)
        (folder / "meta" / name).write_text(json.dumps(content) + "\n")
    (folder / "data" / "chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "data" / "chunk-000" / "episode_000000.parquet")
    return folder


def _png(rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (96, 96, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
