"""Which frames are drawn, in which order, how often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from roboreel.sampling.episode_aware import EpisodeAwareSampler
from roboreel.sampling.loader import Loader, make_loader
from roboreel.sampling.prioritized import PrioritizedSampler
from roboreel.sampling.weighted import WeightedSampler
from roboreel.sampling.weights import compute_sampler_weights, in_ranges

if TYPE_CHECKING:
    from roboreel.sampling.blocks import EpisodeBlocks

__all__ = [
    "EpisodeAwareSampler",
    "EpisodeBlocks",
    "Loader",
    "PrioritizedSampler",
    "WeightedSampler",
    "compute_sampler_weights",
    "in_ranges",
    "make_loader",
]


def __getattr__(name: str) -> Any:
    if name != "EpisodeBlocks":
        raise AttributeError(f"module 'roboreel.sampling' has no attribute {name!r}")
    from roboreel.sampling.blocks import EpisodeBlocks  # a class of torch's, which the others do not need

    return EpisodeBlocks
