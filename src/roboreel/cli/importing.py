"""`roboreel import FOLDER DEST`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from roboreel.cli.info import describe
from roboreel.dataset import LeRobotDatasetV2


@dataclass(frozen=True)
class ImportConfig:
    """Take a LeRobot folder (v2.0, v2.1 or v3.0) in as a roboreel dataset. The folder is only read."""

    folder: tyro.conf.Positional[Path]
    """The folder that holds meta/info.json."""
    dest: tyro.conf.Positional[Path]
    """Where the dataset goes: a new or an empty directory."""
    decode_images: bool = False
    """Decode video and PNG into raw pixels once: fastest to read, largest on disk. Otherwise kept as they are."""
    buffer_capacity: str | None = None
    """Room in frames, or as 20GB; more than the folder holds if episodes are to be added. None: grows as needed."""
    use_as_fifo_buffer: bool = False
    """Make it a ring: when the capacity is reached, the oldest episodes are overwritten."""
    quiet: bool = False
    """No progress bar, no summary."""


def run(arguments: Sequence[str]) -> None:
    config = tyro.cli(ImportConfig, prog="roboreel import", args=arguments)
    with LeRobotDatasetV2.from_lerobot(
        config.folder,
        config.dest,
        config.decode_images,
        buffer_capacity=_frames_or_size(config.buffer_capacity),
        use_as_fifo_buffer=config.use_as_fifo_buffer,
        progress=not config.quiet,
    ):
        pass
    if not config.quiet:
        print(describe(config.dest))


def _frames_or_size(typed: str | None) -> int | str | None:
    return int(typed) if typed is not None and typed.isdecimal() else typed
