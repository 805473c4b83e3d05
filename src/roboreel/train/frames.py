"""The dataset of a run, opened and with its windows set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from roboreel import LeRobotDatasetV2
from roboreel.errors import ConfigError, NotADatasetError, TimestampOutsideToleranceError
from roboreel.store import check_no_lerobot
from roboreel.train.options import RunConfig


def open_dataset(config: RunConfig) -> LeRobotDatasetV2:
    """Open the dataset, without the episodes to be left out."""
    try:
        dataset = LeRobotDatasetV2(config.dataset, readonly=True, image_dtype="uint8")
    except NotADatasetError as error:
        check_no_lerobot(config.dataset)  # the advice for such a folder names it
        raise ConfigError(
            f"--dataset {config.dataset} is no roboreel dataset; make one of a folder in LeRobot format: "
            "roboreel import FOLDER DEST"
        ) from error
    if not config.skip_episodes:
        return dataset
    held, skipped = dataset.get_unique_episode_indices().tolist(), set(config.skip_episodes)
    if unknown := sorted(skipped.difference(held)):
        raise ConfigError(f"--skip-episodes: {config.dataset} has no episodes {unknown[:10]}; it holds {len(held)}")
    kept = [number for number in held if number not in skipped]
    return LeRobotDatasetV2(config.dataset, readonly=True, image_dtype="uint8", episodes=kept)


def set_windows(dataset: LeRobotDatasetV2, windows: Mapping[str, Sequence[float]], config: RunConfig) -> None:
    """Choose the windows (key -> seconds from a frame) that the policy learns from."""
    try:
        dataset.set_delta_timestamps(windows, on_hole=config.on_hole)
    except TimestampOutsideToleranceError as error:
        found = str(error).partition("; type ")[0]  # what follows is advice for those who write Python
        raise ConfigError(f"{found}; add --on-hole nearest or --on-hole pad to take them all the same") from error


def data_identity(dataset: LeRobotDatasetV2) -> dict[str, Any]:
    """Return what a run's data are; taken once, as an open dataset may grow while the run lasts."""
    return {"uuid": dataset.uuid, "generation": dataset.generation, "frames": len(dataset)}
