"""One of LeRobot's policies in training, with LeRobot's own optimiser, scheduler and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roboreel.train.learner import Gradient, TrainingFrames
from roboreel.train.lerobot.checkpoints import Parts, load_checkpoint, read_told, write_checkpoint
from roboreel.train.lerobot.frames import Learned, open_frames
from roboreel.train.lerobot.policy import as_floats, make_config, make_policy, make_processors
from roboreel.train.lerobot.randomness import seed_all
from roboreel.train.options import LeRobotTrainConfig
from roboreel.train.processes import current
from roboreel.train.seeds import step_seed


class LeRobotLearner:
    """The weights, with what LeRobot has for changing them."""

    def __init__(self, options: LeRobotTrainConfig, config: Any, learned: Learned, device: torch.device) -> None:
        self.options, self._device, self.fps = options, device, learned.fps
        self._processes = current()
        self._features = {**config.input_features, **config.output_features}
        self.policy = policy = make_policy(config)
        before, after = make_processors(config, learned.stats)
        preset, schedule = config.get_optimizer_preset(), config.get_scheduler_preset()
        optimizer = preset.build(policy.get_optim_params())
        scheduler = None if schedule is None else schedule.build(optimizer, options.steps)
        self.parts = Parts(config, policy, before, after, optimizer, scheduler)
        clip = preset.grad_clip_norm if options.grad_clip is None else options.grad_clip
        self._clip = clip if clip > 0 else float("inf")

    @classmethod
    def begin(cls, options: LeRobotTrainConfig, device: torch.device) -> tuple[LeRobotLearner, TrainingFrames]:
        """Open the data, and make a policy for them with fresh weights."""
        config = make_config(options.policy, options.policy_options, device, amp=options.amp)
        learned = open_frames(options, config)
        torch.manual_seed(options.seed)
        return cls(options, config, learned, device), learned.frames

    def learn(self, batch: Mapping[str, Tensor], step: int) -> Gradient:
        seed_all(step_seed(self.options.seed, step, self._processes.rank))  # others' frames have draws of their own
        policy = self.parts.policy.train()
        ready = dict(self.parts.before(as_floats(batch, self._features)))
        self.parts.optimizer.zero_grad()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.options.amp):
            loss, _ = policy.forward(ready)
        loss.backward()
        self._processes.average(policy.parameters())
        self._processes.share_buffers(policy)
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), self._clip)
        return Gradient(self._processes.mean(loss.item()), norm.item())

    def apply(self) -> float:
        rate = float(self.parts.optimizer.param_groups[0]["lr"])
        self.parts.optimizer.step()
        if self.parts.scheduler is not None:
            self.parts.scheduler.step()
        if hasattr(self.parts.policy, "update"):  # TD-MPC's target network follows
            self.parts.policy.update()
        return rate

    def write(self, folder: Path, step: int, told: Mapping[str, Any]) -> None:
        write_checkpoint(folder, step, self.parts, self.options, told, self.fps)

    def read(self, folder: Path) -> dict[str, Any]:
        return {**read_told(folder, self.options.policy), "folder": folder}

    def load(self, state: Mapping[str, Any]) -> None:
        load_checkpoint(state["folder"], self.parts, state["counters"])
