"""`LeRobotDatasetV2`: the store's frames as windows of tensors."""

from roboreel.dataset.dataset import LeRobotDatasetV2
from roboreel.dataset.transforms import takes_batch

__all__ = ["LeRobotDatasetV2", "takes_batch"]
