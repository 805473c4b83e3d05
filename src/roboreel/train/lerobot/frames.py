"""The frames that one of LeRobot's policies learns from, read by roboreel or by LeRobot itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roboreel import LeRobotDatasetV2
from roboreel._optional import require
from roboreel.convert.ingest import fingerprint
from roboreel.errors import ConfigError
from roboreel.policies.bc import not_finite
from roboreel.store import is_dataset
from roboreel.train.frames import data_identity, open_dataset, set_windows
from roboreel.train.learner import TrainingFrames
from roboreel.train.lerobot.policy import lerobot, set_features, windows
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
    dataset = open_ours(options)
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
    reader = dataset if options.loader == "roboreel" else open_theirs(options, wanted, len(dataset))
    frames = TrainingFrames(reader, data_identity(dataset), _drawn(config, dataset))
    return Learned(frames, stats, dataset.fps)


def open_ours(options: LeRobotTrainConfig) -> LeRobotDatasetV2:
    """Open a roboreel dataset, or take a LeRobot folder in; once, and it is opened ever after."""
    folder = options.dataset
    if is_dataset(folder) or not is_lerobot_folder(folder):
        if options.loader == "lerobot":
            raise ConfigError(
                f"--loader lerobot reads a folder in LeRobot's format, and --dataset {folder} is none; make one: "
                f"roboreel export {folder} DEST"
            )
        if options.decode_images:
            raise ConfigError(
                f"--decode-images is for a folder in LeRobot's format, and --dataset {folder} is none; for raw pixels: "
                f"roboreel convert {folder} --image-mode memmap"
            )
        return open_dataset(options)
    place = place_of(folder, decoded=options.decode_images)
    LeRobotDatasetV2.from_lerobot(folder, place, options.decode_images, progress=True).close()
    return open_dataset(replace(options, dataset=place))


def is_lerobot_folder(folder: Path) -> bool:
    return (folder / "meta" / "info.json").exists() or (folder / "meta_data").exists()


def place_of(folder: Path, *, decoded: bool) -> Path:
    """Return where a folder is taken in, for all runs on it: another place once its content changes."""
    constants = require("huggingface_hub.constants", extra="lerobot", purpose="LeRobot's policies")
    home = Path(os.environ.get("HF_HOME") or constants.HF_HOME).expanduser()
    return home / "roboreel" / "folders" / f"{folder.resolve().name}-{fingerprint(folder)}{'-decoded' * decoded}"


def open_theirs(options: LeRobotTrainConfig, wanted: Mapping[str, Sequence[float]], frames: int) -> Any:
    """Return LeRobot's own dataset, which has the same frames under the same indices.

    Raises:
        ConfigError: LeRobot does not read the folder, or finds others.
    """
    if options.skip_episodes:
        raise ConfigError("--loader lerobot reads all episodes: leave --skip-episodes out, or give --loader roboreel")
    try:
        dataset = lerobot("datasets.lerobot_dataset").LeRobotDataset(
            f"local/{options.dataset.name}", root=options.dataset, delta_timestamps=wanted, video_backend=_decoder()
        )
    except Exception as error:  # it raises what it likes, and looks on the Hub for what it misses
        raise ConfigError(f"--loader lerobot: LeRobot does not read {options.dataset} ({error})") from error
    if len(dataset) != frames:
        raise ConfigError(f"--loader lerobot: LeRobot finds {len(dataset)} frames in {options.dataset}, not {frames}")
    return dataset


def _decoder() -> str:
    """LeRobot's choice, where it works; it raises what it likes where it finds no FFmpeg."""
    try:
        require("torchcodec.decoders", purpose="decoding")
    except Exception:  # noqa: BLE001 - see above
        return "pyav"
    return "torchcodec"


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
