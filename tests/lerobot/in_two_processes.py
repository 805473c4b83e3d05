"""What `test_processes.py` has two processes do: `torchrun … -m tests.lerobot.in_two_processes DATASET FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import distributed

from roboreel.train.learner import TrainingFrames
from roboreel.train.lerobot import LeRobotLearner
from roboreel.train.loop import run_training
from tests.lerobot.test_training import OPTIONS, config_of


def weights_after(policy: str, dataset: Path, out: Path) -> int:
    """Train a policy; return a hash of its weights and of what it keeps beside them."""
    learners: list[LeRobotLearner] = []

    def begin(config: Any, device: torch.device) -> tuple[LeRobotLearner, TrainingFrames]:
        learner, frames = LeRobotLearner.begin(config, device)
        learners.append(learner)
        return learner, frames

    run_training(config_of(policy, dataset, out), begin)
    digest = xxhash.xxh3_64()
    for value in learners[0].policy.state_dict().values():
        digest.update(value.detach().cpu().double().numpy().tobytes())
    return digest.intdigest()


def main(dataset: Path, folder: Path) -> None:
    distributed.init_process_group("gloo")
    found = {policy: weights_after(policy, dataset, folder / policy) for policy in OPTIONS}
    (folder / f"weights of {distributed.get_rank()}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
