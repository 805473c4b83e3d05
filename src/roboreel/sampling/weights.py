"""Weights for drawing from an offline dataset and a replay buffer in a given ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.errors import InvalidArgumentError
from roboreel.sampling.drawable import EpisodeSource
from roboreel.sampling.order import integer

if TYPE_CHECKING:
    from torch import Tensor


def compute_sampler_weights(
    offline_dataset: EpisodeSource,
    offline_drop_n_last_frames: int = 0,
    online_dataset: EpisodeSource | None = None,
    online_sampling_ratio: float | None = None,
    online_drop_n_last_frames: int = 0,
) -> Tensor:
    """Return a weight for each frame of [offline; online], summing to 1: a float64 tensor (len + len,).

    The frames of the online dataset together weigh `online_sampling_ratio`, the offline ones the rest; the last n of
    each episode weigh nothing, also where there is no online dataset (#445 heeds `offline_drop_n_last_frames` only
    beside one). Where all would weigh nothing, all weigh the same. Slots of which the frame was lost with a writer that
    died weigh nothing in any case. For `torch.utils.data.WeightedRandomSampler` over
    `MultiLeRobotDatasetV2([offline, online])`, in which the online one is that which grows, or over torch's
    `ConcatDataset`.

    Two episodes of 2 frames, and one online of 3 of which the last is dropped:

        compute_sampler_weights(offline, 0, online, 0.5, 1)  ->  [1/8, 1/8, 1/8, 1/8, 1/4, 1/4, 0]

    Raises:
        InvalidArgumentError: both datasets are empty, or no frame of them survives; only one of online dataset and
            ratio is given; the ratio is not in [0, 1].
    """
    torch = require("torch", extra="torch", purpose="sampler weights")
    if (online_dataset is None) != (online_sampling_ratio is None):
        raise InvalidArgumentError("online_dataset and online_sampling_ratio go together; give both or neither")
    if online_sampling_ratio is not None and not 0 <= online_sampling_ratio <= 1:
        raise InvalidArgumentError(f"online_sampling_ratio={online_sampling_ratio}; a number from 0 to 1 would do")
    ratio = online_sampling_ratio or 0.0
    parts = [_weights(offline_dataset, offline_drop_n_last_frames, 1 - ratio)]
    if online_dataset is not None:
        parts.append(_weights(online_dataset, online_drop_n_last_frames, ratio))
    weights, held = (np.concatenate(part) for part in zip(*parts, strict=True))
    if not np.any(held):
        raise InvalidArgumentError("both datasets are empty; at least one must hold an episode")
    if not np.any(weights):
        weights = held.astype(np.float64)
    tensor: Tensor = torch.from_numpy(weights / weights.sum())
    return tensor


def _weights(
    dataset: EpisodeSource, drop_n_last_frames: int, share: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Spread `share` evenly over the frames that may be drawn; return also which indices hold a frame at all."""
    if integer("drop_n_last_frames", drop_n_last_frames) < 0:
        raise InvalidArgumentError(f"cannot drop the last {drop_n_last_frames} frames; 0 or more would do")
    ranges, length = dataset.episode_data_index, len(dataset)
    drawable = in_ranges(length, ranges["from"], ranges["to"] - drop_n_last_frames)
    weights = drawable.astype(np.float64)
    weights *= share / max(1.0, weights.sum())
    return weights, in_ranges(length, ranges["from"], ranges["to"])


def in_ranges(length: int, starts: NDArray[Any], stops: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which of `length` indices lie in one of the disjoint ranges; those that end before they start are empty.

    >>> in_ranges(6, np.array([0, 4]), np.array([2, 3])).tolist()
    [True, True, False, False, False, False]
    """
    full = stops > starts
    steps = np.zeros(length + 1, np.int64)
    np.add.at(steps, starts[full], 1)
    np.add.at(steps, stops[full], -1)
    return np.cumsum(steps[:-1]) > 0
