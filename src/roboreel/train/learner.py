"""What the loop trains: a policy with all that changes its weights, and the data that it learns from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Gradient:
    """What one batch has to say; the weights are as they were."""

    loss: float
    norm: float
    """Of the gradient, before it was clipped."""


@dataclass(frozen=True)
class TrainingFrames:
    """The frames of a run."""

    dataset: Any
    """What a `DataLoader` takes; its windows are set."""
    identity: dict[str, Any]
    """What a run's data are, for a resumed run to compare. Taken once: an open dataset may grow."""
    indices: NDArray[np.int64]
    """Of the frames to draw."""


class Learner(Protocol):
    """A policy in training. What is drawn comes from torch's global generator, which the loop seeds for each step."""

    policy: Any
    fps: float
    """Frames a second (Hz) of the data."""

    def learn(self, batch: Mapping[str, Tensor], step: int) -> Gradient:
        """Compute the loss of a batch on the device, and the gradient, clipped; the first step is 1."""

    def apply(self) -> float:
        """Change the weights by the gradient that was computed last; return the learning rate."""

    def write(self, folder: Path, step: int, told: Mapping[str, Any]) -> None:
        """Write a checkpoint's files into an empty folder: `told`, and all that `load` needs."""

    def read(self, folder: Path) -> dict[str, Any]:
        """Return what was `told` to `write`, and what `load` takes; nothing is changed yet.

        Raises:
            ConfigError: the checkpoint is of another policy.
            SourceError: it is damaged.
        """

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `read` returned."""


class Trials(Protocol):
    """What tries a run's checkpoints out."""

    def check(self, policy: Any, fps: float) -> None:
        """Raise `ConfigError` where a policy, of data of `fps` frames a second, cannot be tried."""

    def run(self, folder: Path) -> dict[str, float]:
        """Try a checkpoint; return what came of it, by name."""
