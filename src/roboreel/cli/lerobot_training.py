"""`roboreel lerobot-train`: LeRobot's own `lerobot-train`, with its own options, on our dataset."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from roboreel._optional import require


@dataclass(frozen=True)
class DropInConfig:
    """How the dataset that LeRobot's options name is taken in."""

    storage_dir: Path | None = None
    """Where the dataset goes. Not given: a place of its own beneath $HF_HOME/roboreel, found again by later runs."""
    decode_images: bool = False
    """Decode cameras into raw pixels once: fastest to read, largest on disk. Otherwise kept as they are."""
    decoded_cache: str | None = None
    """Keep frames that were decoded, up to this size, as 8GB."""
    force: bool = False
    """Also with a version of lerobot that this was not tried with."""


@dataclass(frozen=True)
class LeRobotTrainConfig:
    """Run LeRobot's own lerobot-train on a roboreel dataset; all other options are LeRobot's, and shown below.

    What --dataset.repo_id, or --dataset.root, names is taken in the first time and opened ever after; the root may be a
    roboreel dataset, too.
    """

    roboreel: DropInConfig = field(default_factory=DropInConfig)


PROGRAM = "roboreel lerobot-train"


def run(arguments: Sequence[str]) -> None:
    require("lerobot", extra="lerobot", purpose="LeRobot's training")
    if {"-h", "--help"} & set(arguments):
        parser: Any = tyro.extras.get_parser(LeRobotTrainConfig, prog=PROGRAM)
        print(parser.format_help(), flush=True)
    ours = [argument for argument in arguments if argument not in ("-h", "--help")]
    config, theirs = tyro.cli(LeRobotTrainConfig, prog=PROGRAM, args=ours, return_unknown_args=True)
    from roboreel.lerobot import install

    options = config.roboreel
    install(
        storage_dir=options.storage_dir,
        decode_images=options.decode_images,
        decoded_cache=options.decoded_cache,
        force=options.force,
    )
    # LeRobot reads its options, some of them twice, where a program of its own would find them
    sys.argv = ["lerobot-train", *theirs, *(["--help"] if len(ours) < len(arguments) else [])]
    require("lerobot.scripts.lerobot_train", extra="lerobot", purpose="LeRobot's training").main()
