"""Statistics as LeRobot keeps them: of each episode, quantiles from histograms, added up by how many values there were.

Mean and spread are computed in float64; the quantiles of a whole dataset are the weighted means of its episodes', as
LeRobot's are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.store import ArrayFrames, CameraFrames, PickedFrames, PngFrames, VideoFrames

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_BINS = 5000
_MIN_IMAGES, _MAX_IMAGES = 100, 10_000
_LARGE, _TARGET = 300, 150
"""Pixels: images of which a side is that long are thinned out until the longer side is about that."""

Stats = dict[str, NDArray[Any]]


def column_stats(values: NDArray[Any]) -> Stats:
    """Statistics of one episode of a key, (frames, *shape): over all but the last dimension, (1,) for scalars.

    >>> stats = column_stats(np.arange(5, dtype=np.float32))
    >>> stats["mean"].tolist(), stats["max"].tolist(), stats["count"].tolist(), stats["q50"].round(3).tolist()
    ([2.0], [4.0], [5], [2.0])
    """
    # a column a component; the quantiles' arithmetic would overflow in small integers
    flat = values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1).astype(np.float64)
    found = [_weighted(*np.unique(column, return_counts=True)) for column in flat.T]
    return {**_stacked(found, (flat.shape[1],)), "count": np.array([len(values)])}


def image_stats(frames: CameraFrames, *, scale: float = 255.0) -> Stats:
    """Statistics per channel, (C, 1, 1), of an episode's pictures; of as many of them as LeRobot looks at."""
    seen = 0
    histograms: list[dict[int, int]] = [{} for _ in range(frames.shape[-1])]
    for image in _sampled(frames):
        step = _thinning(*image.shape[:2])
        for channel, counts in enumerate(histograms):
            levels, times = np.unique(image[::step, ::step, channel], return_counts=True)
            for level, count in zip(levels.tolist(), times.tolist(), strict=True):
                counts[level] = counts.get(level, 0) + count
        seen += 1
    found = [
        _weighted(np.array(sorted(c), np.float64), np.array([c[level] for level in sorted(c)])) for c in histograms
    ]
    stats = _stacked(found, (len(found), 1, 1))
    return {**{name: value / scale for name, value in stats.items()}, "count": np.array([seen])}


def added(total: Stats, more: Stats) -> Stats:
    """The statistics of two parts together, each with its `count`.

    >>> whole = added(column_stats(np.arange(3.0)), column_stats(np.array([7.0])))
    >>> whole["mean"].tolist(), whole["min"].tolist(), whole["count"].tolist(), whole["std"].round(4).tolist()
    ([2.5], [0.0], [4], [2.6926])
    """
    count = total["count"] + more["count"]
    a, b = total["count"] / count, more["count"] / count
    result = {name: total[name] * a + more[name] * b for name in ("mean", *QUANTILES)}
    spread = [part["std"] ** 2 + (part["mean"] - result["mean"]) ** 2 for part in (total, more)]
    result |= {"std": np.sqrt(spread[0] * a + spread[1] * b), "count": count}
    result |= {"min": np.minimum(total["min"], more["min"]), "max": np.maximum(total["max"], more["max"])}
    return result


def _stacked(found: Sequence[Mapping[str, float]], shape: tuple[int, ...]) -> Stats:
    names = ("min", "max", "mean", "std", *QUANTILES)
    return {name: np.array([one[name] for one in found], np.float64).reshape(shape) for name in names}


def _weighted(values: NDArray[Any], counts: NDArray[Any]) -> dict[str, float]:
    """Statistics of different values, ascending, and how often each is there."""
    total = counts.sum()
    low, high = float(values[0]), float(values[-1])
    with np.errstate(invalid="ignore", over="ignore"):
        mean = float(values @ counts / total)
        std = float(np.sqrt(np.square(values - mean) @ counts / total))
    found = {"min": low, "max": high, "mean": mean, "std": std}
    if total < 2 or not np.isfinite([low, high]).all():
        return {**found, **dict.fromkeys(QUANTILES, mean)}
    edges = np.linspace(low - 1e-10, high + 1e-10, _BINS + 1)
    histogram = np.histogram(values, bins=edges, weights=counts)[0]
    below = np.cumsum(histogram)
    return {**found, **{name: _quantile(edges, histogram, below, q * total) for name, q in QUANTILES.items()}}


def _quantile(edges: NDArray[Any], histogram: NDArray[Any], below: NDArray[Any], wanted: float) -> float:
    at = int(np.searchsorted(below, wanted))
    if at == 0:
        return float(edges[0])
    if at >= len(below):
        return float(edges[-1])
    share = (wanted - below[at - 1]) / histogram[at] if histogram[at] else 0.0
    return float(edges[at] + share * (edges[at + 1] - edges[at]))


def _sampled(frames: CameraFrames) -> Iterator[NDArray[Any]]:
    """Pictures spread evenly over an episode: all of a short one, fewer of a long one."""
    count = max(min(_MIN_IMAGES, frames.length), min(int(frames.length**0.75), _MAX_IMAGES))
    wanted = np.round(np.linspace(0, frames.length - 1, count)).astype(np.int64)
    if isinstance(frames, VideoFrames):
        for block in PickedFrames(frames.path, frames.first + wanted, frames.shape).blocks():
            yield from block
    elif isinstance(frames, PngFrames):
        yield from (frames.decoded(i) for i in wanted.tolist())
    elif isinstance(frames, ArrayFrames):
        yield from (frames.array[i] for i in wanted.tolist())
    else:
        numbers, at = set(wanted.tolist()), 0
        for block in frames.blocks():
            yield from (block[i] for i in range(len(block)) if at + i in numbers)
            at += len(block)


def _thinning(height: int, width: int) -> int:
    if max(width, height) < _LARGE:
        return 1
    return int(width / _TARGET) if width > height else int(height / _TARGET)
