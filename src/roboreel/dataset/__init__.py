"""`LeRobotDatasetV2`: the store's frames as windows of tensors; `MultiLeRobotDatasetV2`: those of several stores."""

from roboreel.dataset.dataset import LeRobotDatasetV2
from roboreel.dataset.multi import MultiLeRobotDatasetV2
from roboreel.dataset.transforms import takes_batch

__all__ = ["LeRobotDatasetV2", "MultiLeRobotDatasetV2", "takes_batch"]
