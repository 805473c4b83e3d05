"""Mean, standard deviation and range, gathered block by block: pure arithmetic.

Blocks are merged as in Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances" (1979), which does not lose digits where the mean is large against the spread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

KeyStats = dict[str, NDArray[Any]]
"""`mean`, `std`, `min`, `max` of the key's shape and `count`, shape (1,). Of a camera's: (C, 1, 1), in [0, 1] for
images, in metres for depth, where no pixel was measured left out; and its `count` is that of frames."""


class RunningStats:
    """Statistics over the first axis of blocks that come one after the other.

    >>> running = RunningStats()
    >>> for block in ([[1.0], [2.0]], [[6.0]]):
    ...     running.add(np.array(block))
    >>> {key: value.tolist() for key, value in running.result().items()}
    {'mean': [3.0], 'std': [2.160246899469287], 'min': [1.0], 'max': [6.0], 'count': [3]}
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: NDArray[np.float64] = np.zeros(0)
        self._squares: NDArray[np.float64] = np.zeros(0)
        self._min: NDArray[np.float64] = np.zeros(0)
        self._max: NDArray[np.float64] = np.zeros(0)

    def add(self, block: NDArray[Any]) -> None:
        """Take in an array (N, *shape)."""
        if not len(block):
            return
        values = block.astype(np.float64)
        count = len(values)
        with np.errstate(invalid="ignore", over="ignore"):  # of values that are not finite, neither is the result
            mean = values.mean(axis=0)
            squares = np.square(values - mean).sum(axis=0)
        if not self._count:
            self._count, self._mean, self._squares = count, mean, squares
            self._min, self._max = values.min(axis=0), values.max(axis=0)
            return
        total = self._count + count
        with np.errstate(invalid="ignore", over="ignore"):
            apart = mean - self._mean
            self._mean = self._mean + apart * (count / total)
            self._squares = self._squares + squares + apart**2 * (self._count * count / total)
        self._min, self._max = np.minimum(self._min, values.min(axis=0)), np.maximum(self._max, values.max(axis=0))
        self._count = total

    def result(self) -> KeyStats:
        """Return the statistics so far; the standard deviation is that of the population, as in LeRobot."""
        count = np.array([self._count])
        if not self._count:
            return {"count": count}
        std = np.sqrt(self._squares / self._count)
        return {"mean": self._mean, "std": std, "min": self._min, "max": self._max, "count": count}


class RunningImageStats:
    """Statistics per channel over all pixels of uint8 images, from a histogram; exact, and scaled to [0, 1].

    >>> running = RunningImageStats(channels=1)
    >>> running.add(np.array([[[[0], [255]]]], np.uint8))
    >>> running.result()["mean"].tolist(), running.result()["count"].tolist()
    ([[[0.5]]], [1])
    """

    def __init__(self, channels: int) -> None:
        self._histogram = np.zeros((channels, 256), np.int64)
        self._images = 0

    def add(self, images: NDArray[np.uint8]) -> None:
        """Take in images (N, H, W, C)."""
        self._images += len(images)
        for channel, counts in enumerate(self._histogram):
            counts += np.bincount(images[..., channel].reshape(-1), minlength=256)

    def result(self) -> KeyStats:
        """Return arrays (C, 1, 1) and `count`, the number of images."""
        count = np.array([self._images])
        if not self._images:
            return {"count": count}
        levels = np.arange(256) / 255
        share = self._histogram / self._histogram.sum(axis=1, keepdims=True)
        mean = share @ levels
        std = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0))
        seen = self._histogram > 0
        low, high = levels[seen.argmax(axis=1)], levels[255 - seen[:, ::-1].argmax(axis=1)]
        shaped = {"mean": mean, "std": std, "min": low, "max": high}
        return {**{name: value.reshape(-1, 1, 1) for name, value in shaped.items()}, "count": count}


class RunningDepthStats:
    """Statistics in metres over the measured pixels of depth: 0 is no distance, and neither is what is not finite.

    >>> running = RunningDepthStats(per_metre=1000)
    >>> running.add(np.array([[[[0], [1500]]], [[[500], [1000]]]], np.uint16))
    >>> running.result()["mean"].tolist(), running.result()["min"].tolist(), running.result()["count"].tolist()
    ([[[1.0]]], [[[0.5]]], [2])
    """

    def __init__(self, per_metre: int) -> None:
        self._per_metre = per_metre
        self._pixels = RunningStats()
        self._frames = 0

    def add(self, depth: NDArray[Any]) -> None:
        """Take in depth (N, H, W, 1), `per_metre` to the metre."""
        self._frames += len(depth)
        self._pixels.add(depth[(depth != 0) & np.isfinite(depth)][:, None] / np.float64(self._per_metre))

    def result(self) -> KeyStats:
        """Return arrays (1, 1, 1) and `count`, the number of frames; that alone where no pixel was measured."""
        found = {name: value.reshape(1, 1, 1) for name, value in self._pixels.result().items() if name != "count"}
        return {**found, "count": np.array([self._frames])}
