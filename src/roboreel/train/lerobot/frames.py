"""The frames that one of LeRobot's policies learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roboreel import LeRobotDatasetV2
from roboreel.errors import ConfigError
from roboreel.policies.bc import not_finite
from roboreel.train.frames import data_identity, open_dataset, read_by, set_windows
from roboreel.train.learner import TrainingFrames
from roboreel.train.lerobot.policy import set_features, windows
from roboreel.train.options import LeRobotTrainConfig
from roboreel.train.order import without_last


@dataclass(frozen=True)
class Learned:
    """What a policy learns from."""

    frames: TrainingFrames
    stats: dict[str, dict[str, Any]]
    fps: float


def open_frames(options: LeRobotTrainConfig, config: Any) -> Learned:
    """Open the dataset, tell the policy's config what it has, and set the windows that the config wants.

    Whoever reads the frames: which there are, their statistics and their order are those of our dataset.

    Raises:
        ConfigError: the policy cannot learn from it.
    """
    dataset = open_dataset(options)
    if not len(dataset) or dataset.fps is None:
        raise ConfigError(f"{dataset.storage_dir} holds no frames to train on; `roboreel import` makes a dataset")
    values = {key: value for key, value in dataset[0].items() if torch.is_tensor(value)}
    set_features(config, {key: tuple(value.shape) for key, value in values.items()}, dataset.camera_keys)
    stats = dict(dataset.stats)
    features = {**config.input_features, **config.output_features}
    for key in features:
        if not all(np.isfinite(np.asarray(stats[key][name], np.float32)).all() for name in ("mean", "std")):
            raise ConfigError(f"{dataset.storage_dir}: {not_finite(dataset, key)}")
    wanted = windows(config, [key for key in (*features, "next.reward") if key in values], dataset.fps)
    set_windows(dataset, wanted, options)
    frames = TrainingFrames(read_by(options, dataset, wanted), data_identity(dataset), _drawn(config, dataset))
    return Learned(frames, stats, dataset.fps)


def _drawn(config: Any, dataset: LeRobotDatasetV2) -> NDArray[np.int64]:
    bounds = dataset.episode_data_index
    lengths, dropped = np.asarray(bounds["to"] - bounds["from"]), getattr(config, "drop_n_last_frames", 0)
    drawn = without_last(lengths, dropped)
    if not len(drawn):
        raise ConfigError(
            f"--policy.drop_n_last_frames={dropped} leaves nothing of {dataset.storage_dir}: its longest episode has "
            f"{int(max(lengths))} frames; give a smaller number"
        )
    return drawn
