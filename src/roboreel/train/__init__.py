"""Train a policy on a dataset: `roboreel train`."""

from roboreel.train.bc import learning_rate
from roboreel.train.loop import pick_device
from roboreel.train.metrics import TrainResult, bar_interval_s
from roboreel.train.options import LeRobotTrainConfig, TrainConfig
from roboreel.train.training import train

__all__ = [
    "LeRobotTrainConfig",
    "TrainConfig",
    "TrainResult",
    "bar_interval_s",
    "learning_rate",
    "pick_device",
    "train",
]
