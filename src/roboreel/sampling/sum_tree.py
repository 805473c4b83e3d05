"""Weights of which one is drawn by its share of their sum, and changed in place, both without a look at the others."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class SumTree:
    """Weights, float64 (n,), each 0 or more, and the sums over groups of them.

    `find` cuts the sum into stretches, one a weight in their order, and says in which stretch a share of it lies:

    >>> tree = SumTree([1, 0, 2, 1])
    >>> tree.find(np.array([0, 0.2, 0.25, 0.7, 0.99])).tolist()
    [0, 0, 2, 2, 3]
    >>> tree.set(np.array([0]), np.array([5]))
    >>> tree.total, tree.find(np.array([0.5])).tolist()
    (8.0, [0])

    Groups are of `FAN`, since numpy takes rows of them at the price of a few; up to `ROOT` sums are searched as one.
    A group's sum is the last of its running sums, to the bit, so that rounding never leads to a weight of 0.
    """

    FAN: ClassVar[int] = 16
    ROOT: ClassVar[int] = 1 << 12

    def __init__(self, weights: Floats | list[float]) -> None:
        level: Floats = np.array(weights, np.float64)
        self._size = len(level)
        self._levels: list[Floats] = []
        """The weights and, level by level, the sums of each group of them; filled up with zeros to whole groups."""
        self._running: list[Floats] = []
        """Of each level but the last the running sums within each group, (groups, FAN)."""
        while len(level) > self.ROOT:
            groups = -(-len(level) // self.FAN)
            level = np.pad(level, (0, groups * self.FAN - len(level)))
            running = level.reshape(groups, self.FAN).cumsum(axis=1)
            self._levels.append(level)
            self._running.append(running)
            level = running[:, -1].copy()
        self._levels.append(level)
        self._root: Floats | None = None

    def __len__(self) -> int:
        return self._size

    @property
    def weights(self) -> Floats:
        """The weights, (n,); to look at, not to change."""
        return self._levels[0][: self._size]

    @property
    def total(self) -> float:
        root = self._running_root()
        return float(root[-1]) if len(root) else 0.0

    def set(self, at: Ints, weights: Floats) -> None:
        """Change the weights at these places, (m,) each; of a place named twice the last weight counts."""
        self._levels[0][at] = weights
        for level, running in enumerate(self._running):
            at = at // self.FAN
            if len(at) > self.ROOT:  # whole episodes: most are in one group with others
                at = np.unique(at)
            sums = self._levels[level].reshape(-1, self.FAN)[at].cumsum(axis=1)
            running[at] = sums
            self._levels[level + 1][at] = sums[:, -1]
        self._root = None

    def find(self, shares: Floats) -> Ints:
        """Return in which weight's stretch each share of the sum, (m,) in [0, 1), lies; there must be one above 0."""
        root = self._running_root()
        rest = np.minimum(shares * root[-1], np.nextafter(root[-1], 0))
        at: Ints = root.searchsorted(rest, side="right")
        rest -= root[at] - self._levels[-1][at]
        for level in range(len(self._running) - 1, -1, -1):
            running = self._running[level].take(at, axis=0)
            # The first running sum beyond it belongs to a weight above 0: a 0 leaves the sum as it was.
            rest = np.clip(rest, 0, np.nextafter(running[:, -1], 0))
            child = (running > rest[:, None]).argmax(axis=1)
            at = at * self.FAN + child
            if level:
                rest -= running[np.arange(len(child)), child] - self._levels[level][at]
        return at

    def _running_root(self) -> Floats:
        if self._root is None:
            self._root = self._levels[-1].cumsum()
        return self._root
