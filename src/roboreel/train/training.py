"""Who trains what: a learner for each kind of options."""

from __future__ import annotations

from roboreel.errors import ConfigError
from roboreel.train.bc import BCLearner
from roboreel.train.learner import Trials
from roboreel.train.loop import run_training
from roboreel.train.metrics import TrainResult
from roboreel.train.options import NOTHING, LeRobotTrainConfig, TrainConfig


def train(config: TrainConfig | LeRobotTrainConfig, trials: Trials | None = None) -> TrainResult:
    """Train a policy, or go on training it; returns when `config.steps` are done.

    Each checkpoint goes through the `trials`, as those of `roboreel.evaluate.trials`.

    Raises:
        ConfigError: the options contradict each other, the dataset, this machine or what is in `output_dir`.
        LossNotFiniteError: a loss was not a number; `bad_batch.json` names the frames.
        MissingDependencyError: one of LeRobot's policies, and there is no lerobot.
    """
    if config.dataset == NOTHING and not config.dataset.exists():
        raise ConfigError(
            f"--dataset {NOTHING}: all steps are online then, of one of LeRobot's policies: give --policy tdmpc "
            f"--env pusht --online-steps {config.steps}"
        )
    if isinstance(config, TrainConfig):
        return run_training(config, BCLearner.begin, trials)
    from roboreel.train.lerobot import LeRobotLearner

    return run_training(config, LeRobotLearner.begin, trials)
