"""The episodes of an evaluation, kept as a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from roboreel import LeRobotDatasetV2
from roboreel.envs import Episode, VectorEnvs
from roboreel.errors import ConfigError


class Kept:
    """A dataset that episodes are added to as they end; without a folder, nothing."""

    def __init__(self, folder: Path | None, envs: VectorEnvs, image_mode: str | None) -> None:
        """Begin a dataset in a folder that is not there yet, or empty.

        Raises:
            ConfigError: there is something.
        """
        self._folder, self._seeds = folder, list[int]()
        self._dataset: LeRobotDatasetV2 | None = None
        if folder is None:
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"--save-dataset {folder} is there already: remove it, or give another folder")
        mode = image_mode if envs.camera_keys else None
        self._dataset = LeRobotDatasetV2(folder, fps=envs.fps, image_mode=mode)

    def add(self, episode: Episode) -> None:
        if self._dataset is not None:
            self._dataset.add_episodes(episode.data, no_flush=True)
            self._seeds.append(episode.seed)

    @property
    def told(self) -> dict[str, Any] | None:
        """Where it is, and of which seed each of its episodes is."""
        return None if self._folder is None else {"folder": str(self._folder.resolve()), "seeds": self._seeds}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._dataset is not None:
            self._dataset.close()
