"""What LeRobot asks of a dataset's metadata, answered from a storage that no LeRobot v3.0 folder stands behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboreel import LeRobotDatasetV2
from roboreel.convert.lerobot_features import features_of
from roboreel.store import Store


@dataclass
class StoredMetadata:
    """The attributes of `LeRobotDatasetMetadata` that training reads, under the same names."""

    repo_id: str
    root: Path
    fps: float
    features: dict[str, dict[str, Any]]
    """Key → dtype, shape and names, as in `info.json`; images (height, width, channels)."""
    stats: dict[str, dict[str, Any]]
    """Key → mean, std, min, max, count; of scalars (1,), of images (C, 1, 1) in [0, 1]."""
    episodes: Any
    """`dataset_from_index` and `dataset_to_index`, a number an episode."""

    @classmethod
    def of(cls, dataset: LeRobotDatasetV2, repo_id: str) -> StoredMetadata:
        store = Store.open(dataset.storage_dir)
        try:
            keys = [spec for spec in store.manifest.keys.values() if spec.role != "index"]
        finally:
            store.close()
        features = features_of(keys, is_regular=True)
        shaped = {key: {**feature, "shape": tuple(feature["shape"])} for key, feature in features.items()}
        stats = {
            key: {name: np.atleast_1d(value) for name, value in found.items()} for key, found in dataset.stats.items()
        }
        fps = float(dataset.fps or 0)
        bounds = dataset.episode_data_index
        episodes = {"dataset_from_index": bounds["from"].tolist(), "dataset_to_index": bounds["to"].tolist()}
        return cls(repo_id, dataset.storage_dir, int(fps) if fps == int(fps) else fps, shaped, stats, episodes)

    @property
    def camera_keys(self) -> list[str]:
        return [key for key, feature in self.features.items() if feature["dtype"] in ("image", "video")]

    @property
    def has_language_columns(self) -> bool:
        return False

    @property
    def total_episodes(self) -> int:
        return len(self.episodes["dataset_from_index"])
