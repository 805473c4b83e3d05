"""Train a policy on a dataset: `roboreel train`."""

from roboreel.train.bc import learning_rate
from roboreel.train.loop import pick_device, train
from roboreel.train.metrics import TrainResult, bar_interval_s
from roboreel.train.options import TrainConfig

__all__ = ["TrainConfig", "TrainResult", "bar_interval_s", "learning_rate", "pick_device", "train"]
