"""Robot episodes in memory-mapped files: a training dataset, a recording and a replay buffer in one."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from roboreel import errors
from roboreel.errors import *  # noqa: F403 - the errors are the public face, all of them

if TYPE_CHECKING:
    from roboreel.convert import Source, image_files, open_source
    from roboreel.dataset import LeRobotDatasetV2, MultiLeRobotDatasetV2, takes_batch
    from roboreel.images import ImagePipeline
    from roboreel.sampling import (
        EpisodeAwareSampler,
        EpisodeBlocks,
        PrioritizedSampler,
        WeightedSampler,
        compute_sampler_weights,
        make_loader,
    )
    from roboreel.schema import LeRobotDatasetV2ImageMode, VideoOptions
    from roboreel.store.forecast import forecast

try:
    __version__ = version("roboreel")
except PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0+unknown"

_LAZY = {
    "EpisodeAwareSampler": "roboreel.sampling",
    "EpisodeBlocks": "roboreel.sampling.blocks",
    "ImagePipeline": "roboreel.images",
    "LeRobotDatasetV2": "roboreel.dataset",
    "LeRobotDatasetV2ImageMode": "roboreel.schema",
    "MultiLeRobotDatasetV2": "roboreel.dataset",
    "PrioritizedSampler": "roboreel.sampling",
    "Source": "roboreel.convert",
    "VideoOptions": "roboreel.schema",
    "WeightedSampler": "roboreel.sampling",
    "compute_sampler_weights": "roboreel.sampling",
    "forecast": "roboreel.store.forecast",
    "image_files": "roboreel.convert",
    "make_loader": "roboreel.sampling",
    "open_source": "roboreel.convert",
    "takes_batch": "roboreel.dataset",
}

__all__ = [
    "EpisodeAwareSampler",
    "EpisodeBlocks",
    "ImagePipeline",
    "LeRobotDatasetV2",
    "LeRobotDatasetV2ImageMode",
    "MultiLeRobotDatasetV2",
    "PrioritizedSampler",
    "Source",
    "VideoOptions",
    "WeightedSampler",
    "__version__",
    "compute_sampler_weights",
    "forecast",
    "image_files",
    "make_loader",
    "open_source",
    "takes_batch",
]
__all__ += errors.__all__


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'roboreel' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value  # ask only once
    return value
