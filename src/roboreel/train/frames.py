"""The dataset of a run, opened and with its windows set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roboreel import LeRobotDatasetV2
from roboreel.errors import ConfigError, NotADatasetError, TimestampOutsideToleranceError
from roboreel.lerobot.source import place_of
from roboreel.store import is_dataset
from roboreel.train.options import RunConfig


def open_dataset(config: RunConfig) -> LeRobotDatasetV2:
    """Open the dataset, without the episodes to be left out; a folder in LeRobot's format is taken in once."""
    place = config.dataset
    if not is_dataset(place) and _is_lerobot(place):
        place = place_of(place, decoded=config.decode_images)
        LeRobotDatasetV2.from_lerobot(config.dataset, place, config.decode_images, progress=True).close()
    elif config.loader == "lerobot":
        raise ConfigError(
            f"--loader lerobot reads a folder in LeRobot's format, and --dataset {place} is none; make one: "
            f"roboreel export {place} DEST"
        )
    elif config.decode_images:
        raise ConfigError(
            f"--decode-images is for a folder in LeRobot's format, and --dataset {place} is none; for raw pixels: "
            f"roboreel convert {place} --image-mode memmap"
        )
    try:
        dataset = LeRobotDatasetV2(place, readonly=True, image_dtype="uint8")
    except NotADatasetError as error:
        raise ConfigError(
            f"--dataset {place} is no roboreel dataset; make one of a folder in LeRobot format: "
            "roboreel import FOLDER DEST"
        ) from error
    if not config.skip_episodes:
        return dataset
    held, skipped = dataset.get_unique_episode_indices().tolist(), set(config.skip_episodes)
    if unknown := sorted(skipped.difference(held)):
        raise ConfigError(f"--skip-episodes: {config.dataset} has no episodes {unknown[:10]}; it holds {len(held)}")
    kept = [number for number in held if number not in skipped]
    return LeRobotDatasetV2(place, readonly=True, image_dtype="uint8", episodes=kept)


def _is_lerobot(folder: Path) -> bool:
    return (folder / "meta" / "info.json").exists() or (folder / "meta_data").exists()


def read_by(config: RunConfig, dataset: LeRobotDatasetV2, windows: Mapping[str, Sequence[float]]) -> Any:
    """Return what a `DataLoader` takes: the dataset, or LeRobot's, which has the same frames under the same indices."""
    if config.loader == "roboreel":
        return dataset
    from roboreel.train.lerobot.reader import open_theirs

    return open_theirs(config, windows, len(dataset))


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
