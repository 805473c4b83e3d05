"""`roboreel repair DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from roboreel.store import repair


@dataclass(frozen=True)
class RepairConfig:
    """Make a damaged dataset whole again: drop the episodes that cannot be saved, and leave the others as they are.

    Takes the writer's lock. Of each small file that is written anew, a copy named *.bak stays beside it. Prints one
    line for each thing done; exit code 1 where the dataset could not be made whole.
    """

    dir: tyro.conf.Positional[Path]
    """The directory of the dataset."""


def run(arguments: Sequence[str]) -> None:
    config = tyro.cli(RepairConfig, prog="roboreel repair", args=arguments)
    repaired = repair(config.dir)
    for line in repaired.done:
        print(line)
    for problem in repaired.remaining:
        print(f"not repaired: {problem}", file=sys.stderr)
    if repaired.remaining:
        sys.exit(1)
    print(f"{config.dir}: {'repaired' if repaired.done else 'nothing was wrong'}")
