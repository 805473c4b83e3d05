"""Options of a training run: those of every policy, those of the built-in one, those of LeRobot's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from roboreel.errors import ConfigError
from roboreel.policies import BCConfig

NOTHING = Path("none")
"""What `dataset` is where there is none, and all steps are online."""


@dataclass(frozen=True)
class RunConfig:
    """Options of a run, whatever it trains."""

    dataset: Path
    """Folder of a roboreel dataset, or one in LeRobot's format, which is taken in once, beneath $HF_HOME/roboreel.

    With nothing but --online-steps: none."""
    output_dir: Path
    """Where the run goes; with --resume, where it is."""
    steps: int = 2500
    """Optimiser steps in all."""
    batch_size: int = 64
    """Frames a step."""
    loader: Literal["roboreel", "lerobot"] = "roboreel"
    """Who reads the frames; "lerobot" is `LeRobotDataset`, for comparison, and --dataset then a folder of LeRobot's."""
    decode_images: bool = False
    """Of a folder in LeRobot's format, keep raw pixels: fastest to read, largest on disk."""
    skip_episodes: tuple[int, ...] = ()
    """Numbers of episodes to leave out."""
    on_hole: Literal["raise", "nearest", "pad"] = "raise"
    """Where an episode has no frame near a wanted time: "raise" before training, take the "nearest", or "pad" there."""
    num_workers: int = 2
    """Processes that read batches ahead; 0: read between the steps."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", "mps"; auto is cuda where there is an NVIDIA or AMD GPU, else cpu."""
    seed: int = 0
    """0 to 2**63 - 1, of the first weights, of the order of frames and of everything else that is drawn."""
    log_every: int = 1
    """Steps a line of metrics: loss and gradient norm are means over them, seconds are sums."""
    save_every: int = 1000
    """Steps between checkpoints; there is one at the end in any case."""
    resume: bool = False
    """Continue the run in `output_dir` from its last checkpoint."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too, into `output_dir`/tensorboard."""
    wandb: str | None = None
    """Send the metrics to this project of Weights & Biases too; with WANDB_MODE=offline they stay in `output_dir`."""

    FREE_TO_CHANGE = (
        *("dataset", "output_dir", "steps", "num_workers", "device", "log_every", "save_every", "resume"),
        *("tensorboard", "wandb"),
    )
    """Options that may differ when a run is resumed; another `steps` bends the rest of the learning rate's curve."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 1 or more")
        if self.num_workers < 0:
            raise ConfigError(f"--num-workers {self.num_workers}: give 0 or more")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"--seed {self.seed}: give a number from 0 to 2**63 - 1")
        if self.loader == "lerobot" and self.decode_images:
            raise ConfigError(
                "--loader lerobot decodes as it reads: leave --decode-images out, or give --loader roboreel"
            )
        if self.loader == "lerobot" and self.skip_episodes:
            raise ConfigError(
                "--loader lerobot reads all episodes: leave --skip-episodes out, or give --loader roboreel"
            )
        if self.save_every % self.log_every:
            raise ConfigError(
                f"--save-every {self.save_every} is no multiple of --log-every {self.log_every}: "
                "a resumed run would begin in the middle of a line"
            )


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Options of a run that trains the built-in policy."""

    lr: float = 3e-3
    """Peak learning rate; rises over `warmup_steps`, then falls along a cosine to 0."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0."""
    weight_decay: float = 1e-4
    """AdamW's decay of the weights."""
    grad_clip: float = 1.0
    """Greatest norm of the gradient; a longer one is scaled down to it."""
    ema_decay: float = 0.995
    """How slowly the averaged weights, which are the ones evaluated, follow those in training."""
    policy: BCConfig = field(default_factory=BCConfig)
    """Options of the policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 0 or more")
        for name in ("lr", "grad_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: give a number above 0")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"--ema-decay {self.ema_decay}: give at least 0 and less than 1")


LeRobotPolicy = Literal["act", "diffusion", "vqbet", "tdmpc"]


@dataclass(frozen=True)
class LeRobotTrainConfig(RunConfig):
    """Options of a run that trains one of LeRobot's policies, whose own options are --policy.NAME=VALUE."""

    grad_clip: float | None = None
    """Greatest norm of the gradient; not given: the policy's preset. 0: as long as it comes."""
    amp: bool = False
    """Compute in bfloat16 where that is accurate enough; the weights stay float32."""
    policy: Annotated[LeRobotPolicy, tyro.conf.Suppress] = "act"
    policy_options: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """As "chunk_size=20", in the words of the policy's own config."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grad_clip is not None and not 0 <= self.grad_clip < math.inf:
            raise ConfigError(f"--grad-clip {self.grad_clip}: give 0 or more")
