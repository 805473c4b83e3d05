"""`LeRobotDatasetV2`: the store's frames as windows of tensors."""

from roboreel.dataset.dataset import LeRobotDatasetV2

__all__ = ["LeRobotDatasetV2"]
