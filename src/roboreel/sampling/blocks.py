"""Drawing from a few episodes at a time, each decoded once in order: for datasets that no cache can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.dataset import LeRobotDatasetV2, MultiLeRobotDatasetV2
from roboreel.dataset.batch import BlockBatch
from roboreel.errors import InvalidArgumentError
from roboreel.sampling.order import check_epoch, check_rank, check_seed, integer, shuffled

Ints = NDArray[np.int64]

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset

    Base = IterableDataset[dict[str, Any]]
else:
    Base = require("torch.utils.data", extra="torch", purpose="drawing from blocks of episodes").IterableDataset


@dataclass(eq=False)
class EpisodeBlocks(Base):
    """Batches of a dataset, shuffled within blocks of `episodes` episodes, which are drawn at random.

    Each frame comes once an epoch, and is decoded once: a worker takes a block, decodes its episodes from beginning to
    end, keeps them in memory, and draws all their frames (with their windows) before the next. Blocks are shared out
    among workers, and among the processes of a distributed training. For `DataLoader` without a batch size of its own:

        blocks = EpisodeBlocks(dataset, batch_size=64, episodes=8)
        loader = DataLoader(blocks, batch_size=None, num_workers=4)
        for epoch in range(10):
            blocks.set_epoch(epoch)
            for batch in loader: ...

    `batch_size=None` has to be there: the DataLoader's own default makes batches of one of these batches, (1, 64, …).
    A worker that gets no block idles: processes times workers is as many as make sense for the blocks that there are.

    The order is a function of seed, epoch, and the numbers of workers and processes. It mixes less than a shuffle of
    all frames: the more `episodes`, the better, at the price of memory: each worker holds so many, decoded.

    Raises:
        InvalidArgumentError: a number that cannot be, an empty dataset, or fewer blocks than processes.
    """

    dataset: LeRobotDatasetV2 | MultiLeRobotDatasetV2
    batch_size: int
    episodes: int = 8
    """Episodes of a block."""
    seed: int = 0
    epoch: int = 0
    start: int = 0
    """The first batch to give, counted in those of this process: all before it were given by an earlier run."""
    rank: int = 0
    """The number of this process among `world_size`; those may get different numbers of batches, see `num_batches`."""
    world_size: int = 1
    drop_last: bool = False
    """Leave out the last batch of a worker where it is not full."""
    _position: Any = field(init=False, repr=False)
    """Epoch and start, in memory that workers share."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "episodes", "seed", "epoch", "start", "rank", "world_size"):
            setattr(self, name, integer(name, getattr(self, name)))
        if min(self.batch_size, self.episodes) < 1:
            raise InvalidArgumentError(
                f"batch_size={self.batch_size}, episodes={self.episodes}; both must be integers, 1 or more"
            )
        check_rank(self.rank, self.world_size)
        check_seed(self.seed)
        if not len(self.dataset):
            raise InvalidArgumentError(f"{self.dataset!r} holds no episode yet")
        held = len(self.dataset.episode_data_index["from"])
        blocks = -(-held // self.episodes)
        if blocks < self.world_size:
            raise InvalidArgumentError(
                f"{held} episodes in blocks of episodes={self.episodes} are {blocks} blocks, and world_size="
                f"{self.world_size} processes want one each; give episodes={max(1, held // self.world_size)} or less, "
                "or fewer processes"
            )
        import torch

        self._position = torch.zeros(2, dtype=torch.int64)
        self._position.share_memory_()
        self.set_epoch(self.epoch, self.start)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Have the next iteration give this epoch, from batch `start` on, also in persistent workers."""
        check_epoch(epoch, start)
        self.epoch, self.start = epoch, start
        self._position[0], self._position[1] = epoch, start

    def num_batches(self, num_workers: int = 0, rank: int | None = None) -> int:
        """Return how many batches this process, or another one, gets in an epoch from so many workers.

        In distributed training all must take the same number, or they wait for each other for ever: the least over all
        ranks, by `itertools.islice(loader, least)`.
        """
        return int(self._counts(max(1, num_workers), self.rank if rank is None else rank).sum())

    def state_dict(self, done: int | None = None, num_workers: int = 0) -> dict[str, int]:
        """Return what `load_state_dict` needs to go on after `done` batches of this epoch; None: where it would begin.

        Plain numbers. `num_workers` are the DataLoader's: the order depends on how many there are.
        """
        start, epoch = self.start if done is None else done, self.epoch
        if start >= self.num_batches(num_workers):
            start, epoch = 0, epoch + 1
        return {"epoch": epoch, "start": start, **self._made_with(num_workers)}

    def load_state_dict(self, state: Mapping[str, int], num_workers: int = 0) -> None:
        """Have the next iteration go on where others, made with the same arguments, were.

        Raises:
            InvalidArgumentError: they were made with other arguments, and so have another order.
        """
        made = self._made_with(num_workers)
        differs = [f"{name}={state[name]}" for name, value in made.items() if state[name] != value]
        if differs:
            raise InvalidArgumentError(f"the state is of EpisodeBlocks with {', '.join(differs)}; make them with it")
        self.set_epoch(state["epoch"], state["start"])

    def _made_with(self, num_workers: int) -> dict[str, int]:
        names = ("seed", "batch_size", "episodes", "world_size", "drop_last")
        return {name: int(getattr(self, name)) for name in names} | {"num_workers": max(1, num_workers)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        from torch.utils.data import get_worker_info

        info = get_worker_info()
        self.epoch, self.start = self._position.tolist()  # a persistent worker has kept those of its first epoch
        workers, worker = (1, 0) if info is None else (info.num_workers, info.id)
        done, following = _given(self._counts(workers, self.rank), self.start)
        stream = (worker + following) % workers  # so that the order goes on as it would have
        return self._batches(self._stream(stream, workers, self.rank), int(done[stream]))

    def indices(self, workers: int = 1) -> Iterator[list[int]]:
        """Yield the indices of the batches of this process from the first on, as so many workers give them.

        Nothing is read. A worker that has no more is left out of the round.
        """
        streams = [self._cut(self._stream(stream, workers, self.rank), 0) for stream in range(workers)]
        while streams:
            for stream in list(streams):
                batch = next(stream, None)
                if batch is None:
                    streams.remove(stream)
                else:
                    yield batch

    # Which frames

    def _blocks(self) -> list[tuple[Ints, Ints]]:
        """First index and length of each episode of each block of the epoch."""
        ranges = self.dataset.episode_data_index
        starts, lengths = ranges["from"], ranges["to"] - ranges["from"]
        order = shuffled(len(starts), self.seed, self.epoch)
        cuts = [order[at : at + self.episodes] for at in range(0, len(order), self.episodes)]
        return [(starts[cut], lengths[cut]) for cut in cuts]

    def _stream(self, stream: int, workers: int, rank: int) -> list[tuple[int, tuple[Ints, Ints]]]:
        """The blocks, numbered, that one worker of one process draws from in turn."""
        return list(enumerate(self._blocks()))[stream * self.world_size + rank :: workers * self.world_size]

    def _counts(self, workers: int, rank: int) -> Ints:
        """How many batches each worker of a process gives."""
        frames = [
            sum(int(lengths.sum()) for _, (_, lengths) in self._stream(stream, workers, rank))
            for stream in range(workers)
        ]
        up = 0 if self.drop_last else self.batch_size - 1
        return (np.array(frames, np.int64) + up) // self.batch_size

    def _shuffled(self, number: int, starts: Ints, lengths: Ints) -> Ints:
        """The indices of a block in the order in which they are drawn."""
        indices = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
        bits = np.random.Philox(key=[self.seed, self.epoch], counter=[0, 0, 0, number + 1])
        return np.random.Generator(bits).permutation(indices)

    def _cut(self, blocks: list[tuple[int, tuple[Ints, Ints]]], done: int) -> Iterator[list[int]]:
        """Yield the batches of one worker after the first `done`; one may begin in a block and end in the next."""
        skipped = done * self.batch_size
        rest = np.zeros(0, np.int64)
        for number, (starts, lengths) in blocks:
            length = int(lengths.sum())
            if skipped >= length:
                skipped -= length
                continue
            rest = np.concatenate([rest, self._shuffled(number, starts, lengths)[skipped:]])
            skipped = 0
            whole = len(rest) - len(rest) % self.batch_size
            for at in range(0, whole, self.batch_size):
                yield rest[at : at + self.batch_size].tolist()
            rest = rest[whole:]
        if len(rest) and not self.drop_last:
            yield rest.tolist()

    def _batches(self, blocks: list[tuple[int, tuple[Ints, Ints]]], done: int) -> Iterator[dict[str, Any]]:
        for batch in self._cut(blocks, done):
            yield self.dataset.get_batch(BlockBatch(batch, self.episodes))


def _given(counts: Ints, start: int) -> tuple[Ints, int]:
    """Return how many of the first `start` batches came from each worker, and whose turn is next.

    Workers give one batch each in turn; one that has no more is left out:

    >>> done, following = _given(np.array([1, 3, 3]), 5)
    >>> done.tolist(), following
    ([1, 2, 2], 1)
    """
    done, left = np.zeros_like(counts), start
    while True:
        alive = np.flatnonzero(done < counts)
        if not len(alive):
            return done, 0
        rounds = min(int((counts - done)[alive].min()), left // len(alive))
        if not rounds:
            break
        done[alive] += rounds
        left -= rounds * len(alive)
    done[alive[:left]] += 1
    return done, int(alive[left])
