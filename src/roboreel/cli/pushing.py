"""`roboreel push DIR REPO_ID`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from roboreel.cli.modes import parse_modes
from roboreel.cli.sizes import shown_size
from roboreel.dataset import LeRobotDatasetV2


@dataclass(frozen=True)
class PushConfig:
    """Put a dataset up on the Hugging Face Hub as a LeRobot dataset, with a card.

    Only what is not there already is uploaded. A token is taken from HF_TOKEN, or from `hf auth login`.
    """

    dir: tyro.conf.Positional[Path]
    """The directory of the dataset; it is only read."""
    repo_id: tyro.conf.Positional[str]
    """As me/my_arm; made where there is none."""
    private: bool = False
    """Refused where the repository is there already, and public."""
    license: str | None = None
    """As the Hub calls it: apache-2.0, mit, cc-by-4.0."""
    version: Literal["v3.0", "v2.1"] = "v3.0"
    image_mode: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """video, or png for images among the rows; or CAMERA=MODE for each of some cameras. Not given: video stays video,
    everything else becomes images."""
    leave_out: tuple[str, ...] = ()
    """Keys that do not go along."""
    quiet: bool = False
    """No progress bar, no summary."""


def run(arguments: Sequence[str]) -> None:
    config = tyro.cli(PushConfig, prog="roboreel push", args=arguments)
    with LeRobotDatasetV2(config.dir, readonly=True) as dataset:
        report = dataset.push_to_hub(
            config.repo_id,
            private=config.private,
            license=config.license,
            version=config.version,
            image_mode=parse_modes(config.image_mode),
            leave_out=config.leave_out,
            progress=not config.quiet,
        )
    if not config.quiet:
        print(
            f"{report.repo_id}: commit {report.commit[:12]}, {report.files_changed:,} files changed, "
            f"{shown_size(report.bytes_changed)}"
        )
