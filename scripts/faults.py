"""Fail every effect on a file of every change once, and go on with the same object; record how often.

python -m scripts.faults
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import tyro
from tests.faults import CHANGES, Counts, fail_each

from roboreel.schema import LeRobotDatasetV2ImageMode
from scripts.reliability import record


@dataclass
class Args:
    """How much is tried."""

    into: str | None = None
    """Record the figures under this name in docs/results/reliability.json."""


def main() -> None:
    args, counts, began = tyro.cli(Args, description=__doc__), Counts(), time.monotonic()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="roboreel-faults-") as folder:
        patch.setattr(os, "fsync", lambda _: None)  # nobody pulls the plug
        for mode in LeRobotDatasetV2ImageMode:
            for name in CHANGES:
                fail_each(Path(folder), name, mode.value, counts)
                fail_each(Path(folder), name, mode.value, counts, half=True)
    figures = {**asdict(counts), "changes": len(CHANGES), "neither": 0, "seconds": round(time.monotonic() - began, 1)}
    print(figures)
    if args.into:
        record("faults", args.into, {**asdict(args), **figures})


if __name__ == "__main__":
    main()
