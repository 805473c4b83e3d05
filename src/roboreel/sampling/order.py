"""The order in which training sees frames: a function of (seed, position), with nothing to carry or to save."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import InvalidArgumentError


def shuffled(num_frames: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the indices 0 … `num_frames` - 1 in the order of one epoch, an int64 array.

    >>> sorted(shuffled(5, seed=0, epoch=3).tolist())
    [0, 1, 2, 3, 4]
    >>> bool((shuffled(99, seed=0, epoch=0) == shuffled(99, seed=0, epoch=1)).all())
    False
    """
    # Philox is keyed, not seeded: streams of neighbouring (seed, epoch) have nothing in common.
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_frames)


@dataclass(frozen=True)
class EpochOrder:
    """Batches of shuffled indices, for `DataLoader(dataset, batch_sampler=order)`.

    The epochs follow each other as one stream that is cut into batches: each frame comes once an epoch, no frame is
    dropped at its end, every batch is full, also one larger than the dataset. Batch k is the same whoever asks and
    wherever the iteration began, so a run is resumed with `start` alone, with any number of workers.

    >>> whole = list(EpochOrder(num_frames=5, batch_size=2, seed=0, stop=5))
    >>> sorted(sum(whole, []))  # 5 batches of 2: two epochs of 5 frames
    [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    >>> list(EpochOrder(num_frames=5, batch_size=2, seed=0, start=3, stop=5)) == whole[3:]
    True

    Raises:
        InvalidArgumentError: no frames, no batch size, a negative seed, or `start` after `stop`.
    """

    num_frames: int
    """Frames in the dataset; the indices are 0 … `num_frames` - 1."""
    batch_size: int
    seed: int
    start: int = 0
    """The first batch to give."""
    stop: int = 0
    """One past the last batch to give."""

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.batch_size < 1:
            raise InvalidArgumentError(
                f"num_frames={self.num_frames}, batch_size={self.batch_size}; both must be 1 or more"
            )
        if not 0 <= self.seed < 1 << 63:
            raise InvalidArgumentError(f"seed={self.seed}; give one from 0 to 2**63 - 1")
        if not 0 <= self.start <= self.stop:
            raise InvalidArgumentError(f"batches from {self.start} to {self.stop}; give 0 <= start <= stop")

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, np.zeros(0, np.int64)
        for step in range(self.start, self.stop):
            batch: list[int] = []
            while len(batch) < self.batch_size:  # an epoch's last batch takes its rest from the next one
                wanted, position = divmod(step * self.batch_size + len(batch), self.num_frames)
                if wanted != epoch:
                    epoch, order = wanted, shuffled(self.num_frames, self.seed, wanted)
                batch += order[position : position + self.batch_size - len(batch)].tolist()
            yield batch

    def batch(self, step: int) -> list[int]:
        """Return the indices of one batch.

        >>> EpochOrder(num_frames=1, batch_size=3, seed=0).batch(7)
        [0, 0, 0]
        """
        return next(iter(EpochOrder(self.num_frames, self.batch_size, self.seed, step, step + 1)))
