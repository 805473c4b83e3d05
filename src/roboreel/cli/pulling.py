"""`roboreel pull REPO_ID`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from roboreel.cli.info import collect, describe
from roboreel.cli.modes import parse_modes
from roboreel.dataset import LeRobotDatasetV2


@dataclass(frozen=True)
class PullConfig:
    """Take a dataset in from the Hugging Face Hub (LeRobot v1.1 to v3.0).

    Interrupted, the same command goes on where it was. A token is taken from HF_TOKEN, or from `hf auth login`.
    """

    repo_id: tyro.conf.Positional[str]
    """As lerobot/pusht."""
    storage_dir: tyro.conf.Positional[Path | None] = None
    """Where the dataset goes: a new or an empty directory. Not given: $HF_HOME/roboreel/REPO_ID."""
    revision: str | None = None
    """A branch, a tag or a commit. Not given: the default branch."""
    episodes: tuple[int, ...] = ()
    """Only these; only the files that hold them are downloaded."""
    decode_images: bool = False
    """Decode video and PNG into raw pixels once: fastest to read, largest on disk. Otherwise kept as they are."""
    image_mode: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """How cameras are stored: memmap, png or video; or CAMERA=MODE for each of some cameras."""
    buffer_capacity: str | None = None
    """Room in frames, or as 20GB. Not given: grows as needed."""
    use_as_fifo_buffer: bool = False
    """Make it a ring: when the capacity is reached, the oldest episodes are overwritten."""
    keep_source: bool = False
    """Leave what is downloaded in the Hub's cache, for other programs."""
    strict: bool = False
    """Refuse what would be left out with a warning: a declared camera without frames, a column that is no array."""
    force: bool = False
    """Begin also where the forecast says that it does not fit."""
    quiet: bool = False
    """No progress bar, no summary."""


def run(arguments: Sequence[str]) -> None:
    config = tyro.cli(PullConfig, prog="roboreel pull", args=arguments)
    typed = config.buffer_capacity
    with LeRobotDatasetV2.from_huggingface_hub(
        config.repo_id,
        config.decode_images,
        revision=config.revision,
        episodes=config.episodes or None,
        storage_dir=config.storage_dir,
        keep_source=config.keep_source,
        image_mode=parse_modes(config.image_mode),
        buffer_capacity=int(typed) if typed is not None and typed.isdecimal() else typed,
        use_as_fifo_buffer=config.use_as_fifo_buffer,
        strict=config.strict,
        force=config.force,
        progress=not config.quiet,
    ) as dataset:
        place = dataset.storage_dir
    if not config.quiet:
        print(describe(collect(place)))
