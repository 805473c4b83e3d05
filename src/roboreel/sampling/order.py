"""The order in which training sees frames: a function of (seed, position), with nothing to carry or to save."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

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


def uniforms(count: int, seed: int, epoch: int, start: int = 0) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1) of the stream of an epoch, from number `start` on, a float64 array.

    >>> bool((uniforms(5, seed=0, epoch=3)[2:] == uniforms(3, seed=0, epoch=3, start=2)).all())
    True
    """
    # Philox makes four at a time. The third word of the counter keeps them apart from what `shuffled` uses up.
    blocks, skipped = divmod(start, 4)
    bits = np.random.Philox(key=[seed, epoch], counter=[blocks, 0, 1, 0])
    return np.random.Generator(bits).random(skipped + count)[skipped:]


def integer(name: str, value: Any) -> int:
    """Return an integer, also one of numpy's, as Python's; refuse what is none.

    Raises:
        InvalidArgumentError: it is no integer.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise InvalidArgumentError(f"{name}={value!r}; an integer would do")
    return int(value)


def check_seed(seed: int) -> None:
    """Refuse what is no key of a random stream."""
    if not 0 <= seed < 1 << 63:
        raise InvalidArgumentError(f"seed={seed}; give one from 0 to 2**63 - 1")


def check_rank(rank: int, world_size: int) -> None:
    """Refuse a process that is not one of `world_size`."""
    if not 0 <= rank < world_size:
        raise InvalidArgumentError(f"rank={rank} of world_size={world_size}; give 0 <= rank < world_size")


def check_epoch(epoch: int, start: int) -> None:
    """Refuse a place in the order that cannot be."""
    if epoch < 0 or start < 0:
        raise InvalidArgumentError(f"epoch={epoch}, start={start}; both must be 0 or more")


@dataclass(frozen=True)
class Share:
    """What one of `world_size` processes gets of the positions 0 … `frames` - 1: every `world_size`-th, in batches.

    Together the processes get each position once, or with `drop_last` as many as make whole batches for all. They get
    the same number of batches, or they would wait for each other for ever; only batches of 1 may not come out even.

    >>> for rank in range(2):  # the third batch of the second process would be empty
    ...     share = Share(frames=9, batch_size=2, rank=rank, world_size=2)
    ...     [list(range(rank, 9, 2)[slice(*share.bounds(k))]) for k in range(share.batches)]
    [[0, 2], [4, 6], [8]]
    [[1, 3], [5], [7]]
    """

    frames: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False

    @property
    def own(self) -> int:
        """Positions of this process; position k of them is `rank` + k `world_size` of all."""
        return len(range(self.rank, self.frames, self.world_size))

    @property
    def batches(self) -> int:
        if self.drop_last:
            return self.frames // (self.world_size * self.batch_size)
        longest = -(-self.frames // self.world_size)
        return min(-(-longest // self.batch_size), self.own)

    def used(self, number: int) -> int:
        """Return how many positions, from the first on, all processes together have had before their batch `number`.

        >>> [Share(frames=9, batch_size=2, world_size=2).used(k) for k in range(3)]
        [0, 4, 7]
        """
        longest = -(-self.frames // self.world_size)
        last = -(-longest // self.batch_size) - 1
        used = number * self.batch_size * self.world_size
        gives_up = not self.drop_last and self.frames // self.world_size == last * self.batch_size < longest
        if gives_up and self.batch_size > 1 and number == last > 0:
            return used - (-self.frames % self.world_size)  # a position of each process that is one short: see `bounds`
        return used

    def bounds(self, number: int) -> tuple[int, int]:
        """Return where a batch begins and ends among this process's own positions."""
        first = number * self.batch_size
        stop = first + self.batch_size
        if not self.drop_last:
            # The last batch of a process that is one short is its last position, which the batch before gives up.
            short = self.own == (self.batches - 1) * self.batch_size
            first -= short and number == self.batches - 1
            stop -= short and number == self.batches - 2
        return first, min(stop, self.own)


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
        check_seed(self.seed)
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
