"""`roboreel train`: the options are those of `roboreel.train.TrainConfig`."""

from __future__ import annotations

from collections.abc import Sequence

import tyro

from roboreel._optional import require


def run(arguments: Sequence[str]) -> None:
    require("torch", extra="torch", purpose="training")
    from roboreel.train import TrainConfig, train

    config = tyro.cli(TrainConfig, prog="roboreel train", args=arguments)
    result = train(config)
    waited = result.data_s / (result.data_s + result.update_s)
    print(f"{result.steps} steps, final loss {result.final_loss:.4f}")
    print(f"waited for data {result.data_s:.1f} s ({waited:.1%}), computed {result.update_s:.1f} s")
    print(f"{result.checkpoint}\n{config.output_dir / 'curves.png'}")
