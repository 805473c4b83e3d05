"""`roboreel export DIR FOLDER`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from roboreel.cli.modes import parse_modes
from roboreel.dataset import LeRobotDatasetV2


@dataclass(frozen=True)
class ExportConfig:
    """Write a dataset as a LeRobot folder, which LeRobotDataset opens. Of a ring, the episodes that it holds.

    Video is taken over without decoding where an episode begins with a key frame. The folder is there whole or not at
    all.
    """

    dir: tyro.conf.Positional[Path]
    """The directory of the dataset; it is only read."""
    folder: tyro.conf.Positional[Path]
    """A new or an empty directory."""
    version: Literal["v3.0", "v2.1"] = "v3.0"
    image_mode: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """video, or png for images among the rows; or CAMERA=MODE for each of some cameras. Not given: video stays video,
    everything else becomes images."""
    leave_out: tuple[str, ...] = ()
    """Keys that do not go along."""
    episodes: tuple[int, ...] = ()
    """Only these, in this order. Not given: all."""
    force: bool = False
    """Begin also where the forecast says that it does not fit."""
    quiet: bool = False
    """No progress bar, no summary."""


def run(arguments: Sequence[str]) -> None:
    config = tyro.cli(ExportConfig, prog="roboreel export", args=arguments)
    with LeRobotDatasetV2(config.dir, readonly=True, episodes=config.episodes or None) as dataset:
        report = dataset.to_lerobot(
            config.folder,
            config.version,
            image_mode=parse_modes(config.image_mode),
            leave_out=config.leave_out,
            force=config.force,
            progress=not config.quiet,
        )
    if not config.quiet:
        videos = f"; video of {report.episodes_copied:,} episodes taken over, of {report.episodes_encoded:,} encoded"
        told = videos if report.episodes_copied or report.episodes_encoded else ""
        print(f"{config.folder}: {report.episodes:,} episodes, {report.frames:,} frames{told}")
