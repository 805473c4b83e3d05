"""`roboreel verify DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from roboreel.store import verify


@dataclass(frozen=True)
class VerifyConfig:
    """Compare every byte of a dataset with its checksums. Nothing is written; a writer may go on meanwhile.

    Prints one line for each thing that is wrong, and ends with exit code 1 if there is any.
    """

    dir: tyro.conf.Positional[Path]
    """The directory of the dataset."""


def run(arguments: Sequence[str]) -> None:
    config = tyro.cli(VerifyConfig, prog="roboreel verify", args=arguments)
    report = verify(config.dir)
    for problem in report.problems:
        print(problem)
    for note in report.notes:
        print(f"note: {note}")
    if report.problems:
        many = f"{len(report.problems)} problems" if len(report.problems) > 1 else "1 problem"
        print(f"{many}; type: roboreel repair {config.dir}", file=sys.stderr)
        sys.exit(1)
    print(f"{config.dir}: {report.frames:,} frames, all as they were written")
