"""`roboreel snapshot DIR DEST`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from roboreel.dataset import LeRobotDatasetV2


@dataclass(frozen=True)
class SnapshotConfig:
    """Copy a dataset as it stands, also while another process writes it: that one is asked, and does it.

    Images are hard-linked, the rest shares its blocks where the file system can and is copied where not. Where nothing
    was committed since the earlier snapshot in the same place, nothing is written.
    """

    dir: tyro.conf.Positional[Path]
    """The directory of the dataset."""
    dest: tyro.conf.Positional[Path]
    """A new or an empty directory, or an earlier snapshot of the same dataset, which is replaced."""
    timeout_s: float = 60.0
    """How long (s) to wait for the process that writes: it answers when it adds an episode or flushes."""


def run(arguments: Sequence[str]) -> None:
    config = tyro.cli(SnapshotConfig, prog="roboreel snapshot", args=arguments)
    with LeRobotDatasetV2(config.dir) as dataset:
        report = dataset.snapshot(config.dest, timeout_s=config.timeout_s)
    print(
        f"{config.dest}: generation {report.generation} of {config.dir} in {report.seconds:.2f} s: "
        f"{report.bytes_written / 1e6:,.1f} MB written, {report.bytes_linked / 1e6:,.1f} MB hard-linked, "
        f"{report.bytes_cloned / 1e6:,.1f} MB sharing blocks"
    )
