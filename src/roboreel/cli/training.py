"""`roboreel train`: the options are those of `roboreel.train.TrainConfig`."""

from __future__ import annotations

from collections.abc import Sequence

import tyro

from roboreel.train import TrainConfig, train


def run(arguments: Sequence[str]) -> None:
    train(tyro.cli(TrainConfig, prog="roboreel train", args=arguments))
