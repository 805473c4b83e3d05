"""The order in which a run sees those frames of its dataset that it draws from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from roboreel.policies.part import WHOLE, Part
from roboreel.sampling.order import EpochOrder
from roboreel.train.options import RunConfig


class Batches(Protocol):
    """Batches of a run, by their numbers."""

    def batch(self, number: int) -> list[int]:
        """Return the indices of one batch; the first is number 0."""


class DrawnOrder:
    """Batches of `indices`, each once an epoch, for `DataLoader(dataset, batch_sampler=order)`.

    Of processes that train together each gets every `world`-th frame of a batch.
    """

    def __init__(self, indices: NDArray[np.int64], config: RunConfig, start: int, part: Part = WHOLE) -> None:
        self._indices, self._part = indices, part
        self._order = EpochOrder(len(indices), config.batch_size, config.seed, start, config.steps)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[list[int]]:
        for positions in self._order:
            yield self._indices[positions][self._part.rank :: self._part.world].tolist()

    def batch(self, number: int) -> list[int]:
        """Return the indices of one whole batch; the first is number 0."""
        found: list[int] = self._indices[self._order.batch(number)].tolist()
        return found


def without_last(lengths: Any, count: int) -> NDArray[np.int64]:
    """Return the indices of all frames but the last `count` of each episode.

    >>> without_last([3, 1, 4], 2).tolist()
    [0, 4, 5]
    """
    stops = np.cumsum(np.asarray(lengths, np.int64))
    return np.concatenate(
        [np.arange(stop - length, stop - count) for stop, length in zip(stops, lengths, strict=True)] or [np.arange(0)]
    )
