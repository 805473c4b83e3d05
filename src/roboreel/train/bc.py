"""The built-in policy in training."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roboreel import checkpoint
from roboreel.policies import BCPolicy
from roboreel.train.frames import data_identity, open_dataset, read_by, set_windows
from roboreel.train.learner import Gradient, TrainingFrames
from roboreel.train.options import TrainConfig
from roboreel.train.processes import current


class BCLearner:
    """The weights in training, and their running average, which is what gets evaluated."""

    def __init__(self, policy: BCPolicy, config: TrainConfig, device: torch.device) -> None:
        self.config, self._device, self._processes = config, device, current()
        self.fps = policy.fps
        self.policy, self.average = policy.train(), copy.deepcopy(policy).eval()
        betas = (0.9, 0.99)  # the usual 0.999 looks back over a thousand steps: too long for runs of a few thousand
        self.optimizer = torch.optim.AdamW(
            policy.parameters(), lr=config.lr, betas=betas, weight_decay=config.weight_decay
        )
        self._parts: dict[str, Any] = {"policy": policy, "average": self.average, "optimizer": self.optimizer}

    @classmethod
    def begin(cls, config: TrainConfig, device: torch.device) -> tuple[BCLearner, TrainingFrames]:
        """Open the data, and make a policy for them with fresh weights."""
        dataset = open_dataset(config)
        torch.manual_seed(config.seed)
        policy = BCPolicy.for_dataset(config.policy, dataset).to(device)
        windows = policy.delta_timestamps()
        set_windows(dataset, windows, config)
        identity = data_identity(dataset)
        return cls(policy, config, device), TrainingFrames(
            read_by(config, dataset, windows), identity, np.arange(identity["frames"])
        )

    def learn(self, batch: Mapping[str, Tensor], step: int) -> Gradient:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        loss = self.policy(batch, self._processes.part)
        self.optimizer.zero_grad()
        loss.backward()
        self._processes.average(self.policy.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.grad_clip)
        return Gradient(self._processes.mean(loss.item()), norm.item())

    def apply(self) -> float:
        self.optimizer.step()
        follow(self.average, self.policy, self.config.ema_decay)
        return float(self.optimizer.param_groups[0]["lr"])

    def write(self, folder: Path, step: int, told: Mapping[str, Any]) -> None:
        training = {name: part.state_dict() for name, part in self._parts.items()}
        torch.save({**self.average.to_dict(), "step": step}, folder / checkpoint.POLICY)
        torch.save({**training, **told, "step": step}, folder / checkpoint.TRAINING)

    def read(self, folder: Path) -> dict[str, Any]:
        checkpoint.check_policy(folder, "bc")
        return checkpoint.load(folder / checkpoint.TRAINING, self._device)

    def load(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(state[name])


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of step 1 … `config.steps`: up in a line, down along half a cosine."""
    warm = min(1.0, step / max(1, config.warmup_steps))
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * (step - 1) / config.steps))


@torch.no_grad()
def follow(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Move the running average of the weights a little towards those of the model."""
    for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)
