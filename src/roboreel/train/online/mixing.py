"""Batches of offline and online frames in a given ratio, which follow the buffer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel import LeRobotDatasetV2, compute_sampler_weights
from roboreel.train.seeds import step_seed

_KEPT = 64
"""Batches of which the indices are remembered: more than workers read ahead."""


@dataclass
class MixedOrder:
    """The batches of some steps, for `DataLoader([offline; online], batch_sampler=order)`.

    What a step draws is a function of the seed, the step and what there is to draw from when its batch is asked for.
    """

    offline: LeRobotDatasetV2 | None
    online: LeRobotDatasetV2
    ratio: float
    drop_n_last: tuple[int, int]
    """Of offline and online episodes."""
    batch_size: int
    seed: int
    start: int = 0
    stop: int = 0
    """Steps `start` + 1 to `stop` are drawn next."""
    _edges: tuple[int, NDArray[np.float64]] | None = None
    _drawn: dict[int, list[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.start, self.stop):
            shares = np.random.default_rng(step_seed(self.seed, number)).random(self.batch_size)
            edges = self._cumulated()
            drawn = np.searchsorted(edges, shares * edges[-1], side="right").tolist()  # below the last, always
            self._drawn[number] = drawn
            self._drawn.pop(number - _KEPT, None)
            yield drawn

    def batch(self, number: int) -> list[int]:
        """Return the indices of a batch that was drawn lately; the first is number 0."""
        return self._drawn[number]

    def _cumulated(self) -> NDArray[np.float64]:
        generation = self.online.generation
        if self._edges is None or self._edges[0] != generation:
            self._edges = generation, np.cumsum(self._weights())
        return self._edges[1]

    def _weights(self) -> NDArray[np.float64]:
        before, after = self.drop_n_last
        if self.offline is None:
            made: Any = compute_sampler_weights(self.online, after)
        else:
            made = compute_sampler_weights(self.offline, before, self.online, self.ratio, after)
        weights: NDArray[np.float64] = made.numpy()
        return weights
