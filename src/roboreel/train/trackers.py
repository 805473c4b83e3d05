"""Where metrics go besides `metrics.jsonl`: TensorBoard and Weights & Biases, for those who have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from roboreel import checkpoint
from roboreel._optional import require
from roboreel.train.options import RunConfig

Write = Callable[[int, Mapping[str, float]], None]


def check_trackers(config: RunConfig) -> None:
    """Raise `MissingDependencyError` for a package that the options ask for and that is not there."""
    if config.tensorboard:
        require("tensorboard", extra="track", purpose="--tensorboard")
    if config.wandb is not None:
        require("wandb", extra="track", purpose="--wandb")


class Trackers:
    """Open for as long as a run lasts."""

    def __init__(self, config: RunConfig, step: int) -> None:
        """Begin with what comes after `step`."""
        self._writers: list[Write] = []
        self._closers: list[Callable[[], Any]] = []
        if config.tensorboard:
            self._open_tensorboard(config.output_dir / "tensorboard", step)
        if config.wandb is not None:
            self._open_wandb(config, config.wandb)

    def _open_tensorboard(self, folder: Path, step: int) -> None:
        # what a killed run wrote beyond its last checkpoint is written again
        writer: Any = require("torch.utils.tensorboard", purpose="--tensorboard").SummaryWriter(
            str(folder), purge_step=step + 1
        )

        def write(at: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, at)

        self._writers.append(write)
        self._closers.append(writer.close)

    def _open_wandb(self, config: RunConfig, project: str) -> None:
        wandb: Any = require("wandb", extra="track", purpose="--wandb")
        run = wandb.init(
            project=project, dir=str(config.output_dir), name=config.output_dir.name, config=checkpoint.plain(config)
        )

        def write(at: int, values: Mapping[str, float]) -> None:
            run.log(dict(values), step=at)

        self._writers.append(write)
        self._closers.append(run.finish)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the metrics of one line on."""
        told = {name: value for name, value in values.items() if name != "step"}
        for write in self._writers:
            write(step, told)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        for close in self._closers:
            close()
