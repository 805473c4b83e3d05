"""What all samplers have in common: epochs, ranks, and where to go on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from roboreel.dataset.choice import parse_episodes
from roboreel.errors import InvalidArgumentError
from roboreel.sampling.drawable import Choice, Drawable, EpisodeSource, Ints, check_episodes
from roboreel.sampling.order import Share, check_epoch, check_rank, check_seed, integer

Take = Callable[[int, int], Ints]
"""Given where a stretch of an epoch's positions begins, a multiple of `world_size`, and ends: this rank's indices."""

_INTEGERS = ("drop_n_first_frames", "drop_n_last_frames", "seed", "epoch", "start", "rank", "world_size")
_AT_ONCE = 1024
"""So many indices are made at a time where they are given one by one."""


@dataclass(frozen=True)
class Epoch:
    """What is settled when an epoch begins, and is the same for all ranks, also after it was taken up again."""

    number: int
    frames: int
    """How many frames all ranks together draw."""
    drawable: Drawable


@dataclass(eq=False)
class FrameSampler(ABC):
    """Indices of a dataset: lists with `batch_size`, for `DataLoader(batch_sampler=)`; else ints, for `sampler=`.

    An iteration gives what is left of the epoch that is set, and then sets the next one.
    """

    dataset: EpisodeSource
    batch_size: int | None = None
    """How many indices this process gets at a time; None: one by one."""
    _: KW_ONLY
    episodes: Sequence[int] | None = None
    """Draw from these episodes only, by their `episode_index`."""
    drop_n_first_frames: int = 0
    """Leave out so many frames at the beginning of each episode; of a half-overwritten one, where it begins now."""
    drop_n_last_frames: int = 0
    """Leave out so many frames at the end of each episode."""
    max_age: int | None = None
    """Draw from the newest so many frames that were recorded: in a ring, older ones stay until they are overwritten."""
    seed: int = 0
    epoch: int = 0
    start: int = 0
    """The first batch to give, or index where these come one by one, counted in those of this process."""
    rank: int = 0
    """The number of this process among `world_size`, which share each epoch out."""
    world_size: int = 1
    drop_last: bool = False
    """Leave out the frames at the end of an epoch that do not make a whole batch for each rank."""

    def __post_init__(self) -> None:
        for name in _INTEGERS:
            setattr(self, name, integer(name, getattr(self, name)))
        for name in ("batch_size", "max_age"):
            if getattr(self, name) is not None:
                setattr(self, name, integer(name, getattr(self, name)))
        if self.batch_size is not None and self.batch_size < 1:
            raise InvalidArgumentError(f"batch_size={self.batch_size!r}; an integer, 1 or more, or None would do")
        check_rank(self.rank, self.world_size)
        check_seed(self.seed)
        check_epoch(self.epoch, self.start)
        self._choice = Choice(self.episodes, self.drop_n_first_frames, self.drop_n_last_frames, self.max_age)
        if self.episodes is not None:
            check_episodes(self.dataset, parse_episodes(self.episodes).tolist())
        self._set: Epoch | None = None
        """The epoch that the next iteration gives, where that is settled already."""
        self._running: Epoch | None = None
        """The epoch that the last iteration gives."""
        self._given = 0

    # The epoch

    def set_epoch(self, epoch: int, start: int | None = None) -> None:
        """Have the next iteration give this epoch, from batch `start` on (index, where they come one by one).

        Without `start` all of it; but where this epoch is set already, the sampler goes on where it would have, so that
        `set_epoch` in a loop does not undo `load_state_dict`.
        """
        epoch, start = integer("epoch", epoch), None if start is None else integer("start", start)
        check_epoch(epoch, start or 0)
        if epoch != self.epoch:
            self._set = None
            self.start = 0
        self.epoch = epoch
        if start is not None:
            self.start = start
        self._running = None

    def __len__(self) -> int:
        """Return how many batches, or indices, the next iteration gives."""
        return max(0, self._share(self._next()).batches - self.start)

    @property
    def left(self) -> int:
        """How many batches, or indices, the iteration that began last has yet to give."""
        return 0 if self._running is None else self._share(self._running).batches - self._given

    def __iter__(self) -> Iterator[Any]:
        epoch = self._next()
        take = self._taker(epoch)
        epoch = replace(epoch)  # its own: of several that are gone through at a time, the last is what is told of
        self._set, self._running, self._given = None, epoch, self.start
        make = self._indices if self.batch_size is None else self._batches
        return make(epoch, take, self.start)

    def _batches(self, epoch: Epoch, take: Take, start: int) -> Iterator[list[int]]:
        share = self._share(epoch)
        for number in range(start, share.batches):
            batch = self._batch(take, *share.bounds(number), epoch.frames)
            self._tell(epoch, number + 1)
            yield batch
        self._end(epoch)

    def _indices(self, epoch: Epoch, take: Take, start: int) -> Iterator[int]:
        count = self._share(epoch).batches
        for first in range(start, count, _AT_ONCE):
            indices = self._batch(take, first, min(first + _AT_ONCE, count), epoch.frames)
            for given, index in enumerate(indices, first + 1):
                self._tell(epoch, given)
                yield index
        self._end(epoch)

    def _tell(self, epoch: Epoch, given: int) -> None:
        if self._running is epoch:
            self._given = given

    def _batch(self, take: Take, first: int, stop: int, frames: int) -> list[int]:
        indices: list[int] = take(first * self.world_size, min(stop * self.world_size, frames)).tolist()
        return indices

    def _end(self, epoch: Epoch) -> None:
        if self._running is epoch:  # else another one was set meanwhile
            self.epoch, self.start = epoch.number + 1, 0

    def _next(self) -> Epoch:
        """The epoch that the next iteration gives, as far as it was settled before, or as the dataset is now."""
        if self._set is not None:
            return self._set
        drawable = self._choice.look(self.dataset)
        if not drawable.frames:
            raise InvalidArgumentError(f"no frame of {self.dataset!r} may be drawn: {self._why_none()}")
        epoch = Epoch(self.epoch, self._frames(drawable), drawable)
        if not self._share(epoch).batches:
            raise InvalidArgumentError(
                f"{epoch.frames} frames make no batch of {self.batch_size or 1} for each of world_size="
                f"{self.world_size} ranks; give a smaller batch_size, or drop_last=False"
            )
        return epoch

    def _why_none(self) -> str:
        if not len(self.dataset):
            return "it holds no episode yet"
        told = self._choice.told()
        return f"no episode has a frame left with {told}; let more of them in" if told else "all its frames are lost"

    def _share(self, epoch: Epoch) -> Share:
        return self._share_of(epoch.frames)

    def _share_of(self, frames: int) -> Share:
        return Share(frames, self.batch_size or 1, self.rank, self.world_size, self.drop_last)

    @abstractmethod
    def _frames(self, drawable: Drawable) -> int:
        """How many frames all ranks together draw in an epoch."""

    @abstractmethod
    def _taker(self, epoch: Epoch) -> Take:
        """Return what makes the indices of an epoch."""

    # Where to go on

    def state_dict(self, done: int | None = None) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on as this sampler would, on any number of ranks.

        Plain numbers and lists. What a growing dataset, or a ring, held when the epoch began is in it, with the
        generation of that moment: an epoch that goes on does so over the same frames. Called before the first batch of
        an epoch, it settles the epoch: give it to the other ranks, which may see another generation.

        Args:
            done: How many batches of this epoch (indices, where they come one by one) were used. Needed with workers:
                a DataLoader asks for batches ahead, by 2 for each worker. None: all that were given.
        """
        given = self.start if self._running is None else self._given
        done = given if done is None else done
        if not 0 <= done <= given:
            raise InvalidArgumentError(f"done={done}; {given} were given in this epoch")
        epoch = self._running or self._next()
        if self._running is None:
            self._set = epoch
        if done >= self._share(epoch).batches:
            return {"seed": self.seed, "epoch": epoch.number + 1, "position": 0, "frames": 0, "drawable": None}
        return {
            "seed": self.seed,
            "epoch": epoch.number,
            "position": self._share(epoch).used(done),
            "frames": epoch.frames,
            "drawable": epoch.drawable.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next iteration go on where another sampler, made with the same arguments, was when it gave `state`.

        Its `rank`, `world_size` and `batch_size` may have been others, if whole batches come out.

        Raises:
            InvalidArgumentError: the state ends within a batch, or is of another dataset.
        """
        share = self._share_of(state["frames"])
        start = -(-state["position"] // self._step)
        if share.used(start) != state["position"]:
            raise InvalidArgumentError(
                f"the state is {state['position']} frames into its epoch, in the middle of a step of {self._step} "
                f"(batch_size={self.batch_size}, world_size={self.world_size}); give those that it was saved with"
            )
        epoch = None
        if state["drawable"] is not None:
            drawable = Drawable.from_dict(state["drawable"])
            if drawable.reach > len(self.dataset):
                raise InvalidArgumentError(
                    f"the state is of a dataset of {drawable.reach} frames or more, this one has {len(self.dataset)}"
                )
            epoch = Epoch(state["epoch"], state["frames"], drawable)
        self.seed, self.epoch, self.start = state["seed"], state["epoch"], start
        self._set, self._running = epoch, None

    @property
    def _step(self) -> int:
        """Positions that all ranks together take with one batch."""
        return (self.batch_size or 1) * self.world_size
