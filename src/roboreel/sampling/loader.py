"""Batches that are ready when they are wanted: read ahead, and where a device is named, there already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

from roboreel._optional import require
from roboreel.dataset import LeRobotDatasetV2, MultiLeRobotDatasetV2
from roboreel.device import torch_device
from roboreel.errors import InvalidArgumentError
from roboreel.sampling.episode_aware import EpisodeAwareSampler
from roboreel.sampling.feed import Ahead, Drawn, Feed
from roboreel.sampling.sampler import FrameSampler

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader, Dataset

_END = object()

Ours = LeRobotDatasetV2 | MultiLeRobotDatasetV2


def make_loader(
    dataset: Dataset[Any] | LeRobotDatasetV2 | MultiLeRobotDatasetV2,
    batch_size: int | None = None,
    *,
    sampler: Any = None,
    shuffle: bool = True,
    seed: int = 0,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    prefetch: int = 2,
) -> Loader:
    """Return a loader of batches, read ahead of who takes them.

    A thread has `prefetch` batches ready, also without workers, so that reading goes on beside training. On another
    device than the CPU images travel as bytes and become float32 in [0, 1] there, a quarter of what would have to be
    copied; to CUDA through pinned memory, on a stream of their own. Values are those that the dataset gives.

    >>> import numpy as np, tempfile
    >>> from roboreel import LeRobotDatasetV2, make_loader
    >>> dataset = LeRobotDatasetV2(tempfile.mkdtemp(), fps=10)
    >>> dataset.add_episodes({"action": np.arange(10.0), "episode_index": np.repeat([0, 1], 5)})
    >>> loader = make_loader(dataset, 4, shuffle=False)
    >>> [batch["action"].tolist() for batch in loader]
    [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0], [8.0, 9.0]]

    Each iteration is an epoch; `loader.set_epoch` and `loader.state_dict` are those of the sampler, and count only what
    was taken out of the loader. What the dataset has as windows, and as transform, is settled here.

    Args:
        dataset: One of roboreel's, several of them joined, or any other of torch's, `EpisodeBlocks` among them.
        batch_size: Samples a batch; leave it out where `sampler` or the dataset makes the batches.
        sampler: In which order; default is an `EpisodeAwareSampler`, each frame once an epoch.
        shuffle: Of the default sampler: another order in each epoch.
        seed: Of the default sampler.
        num_workers: Processes that read, kept from epoch to epoch; 0 reads in a thread of this one.
        device: Where the tensors are to be; None: they stay as they come.
        prefetch: Batches that are ready beyond those that workers have; 0 reads each one when it is asked for.

    Raises:
        InvalidArgumentError: arguments that cannot be, or contradict each other; the device is not there.
    """
    _check_count("num_workers", num_workers)
    _check_count("prefetch", prefetch)
    chosen = None if device is None else torch_device(device)
    order = _order(dataset, batch_size, sampler, shuffle=shuffle, seed=seed)
    as_bytes: tuple[str, ...] = ()
    shown: Any = dataset
    if isinstance(dataset, LeRobotDatasetV2 | MultiLeRobotDatasetV2):
        shown, as_bytes = _shown(dataset, chosen)
    loader: DataLoader[Any] = _torch_data().DataLoader(
        shown,
        **({"batch_size": batch_size} if order.feed is None else {"batch_sampler": order.feed}),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=chosen is not None and chosen.type == "cuda",
    )
    return Loader(loader, order, _Mover(chosen, as_bytes), prefetch)


@dataclass
class _Order:
    """What is in which batch."""

    sampler: Any
    """What has the epochs: a sampler, or a dataset with an order of its own."""
    size: int | None = None
    """Of batches of a sampler that gives indices one by one."""
    feed: Feed | None = None
    """None: the dataset itself makes the batches."""


def _order(dataset: Any, batch_size: Any, sampler: Any, *, shuffle: bool, seed: int) -> _Order:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or _is_blocks(dataset):
        if sampler is not None:
            raise InvalidArgumentError("sampler= for a dataset that has an order of its own; leave it out")
        if _is_blocks(dataset) and batch_size is not None:
            raise InvalidArgumentError(f"batch_size={batch_size}, but EpisodeBlocks makes batches; leave it out")
        return _Order(dataset)
    makes_batches = sampler is not None and not _gives_indices(sampler)
    if makes_batches and batch_size is None:
        return _Order(sampler, None, Feed(sampler, None))
    if makes_batches and getattr(sampler, "batch_size", None) is not None:
        raise InvalidArgumentError(f"batch_size={batch_size}, but the sampler makes batches; leave one of them out")
    if batch_size is None or isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
        told = "" if sampler is None else f" for {type(sampler).__name__}, which gives indices one by one"
        raise InvalidArgumentError(f"batch_size={batch_size!r}{told}; a number of samples, 1 or more, would do")
    size = int(batch_size)
    if sampler is not None:
        return _Order(sampler, size, Feed(sampler, size))
    if hasattr(dataset, "episode_data_index"):
        order = EpisodeAwareSampler(dataset, batch_size=size, shuffle=shuffle, seed=seed)
        return _Order(order, None, Feed(order, None))
    torch_data = _torch_data()
    indices = torch_data.RandomSampler(dataset) if shuffle else torch_data.SequentialSampler(dataset)
    return _Order(indices, size, Feed(indices, size))


def _is_blocks(dataset: Any) -> bool:
    """Whether it is of `EpisodeBlocks`, whose module cannot be imported without torch."""
    return hasattr(dataset, "num_batches")


def _gives_indices(sampler: Any) -> bool:
    """Whether it is known to give no batches; of others who made them must know."""
    if isinstance(sampler, FrameSampler):
        return sampler.batch_size is None
    torch_data = _torch_data()
    names = ("RandomSampler", "SequentialSampler", "SubsetRandomSampler", "WeightedRandomSampler", "DistributedSampler")
    return isinstance(sampler, (range, *(getattr(torch_data, name) for name in names)))


def _shown(dataset: Ours, device: torch.device | None) -> tuple[Ours, tuple[str, ...]]:
    """Return the dataset as it is read, and the cameras whose bytes become floats on the device."""
    is_far = device is not None and device.type != "cpu"
    if is_far and dataset.image_dtype == "float32" and dataset.image_transform is None:
        return dataset.images_as("uint8"), tuple(dataset.camera_keys)
    return dataset.images_as(dataset.image_dtype), ()


class _Run:
    """One iteration."""

    def __init__(self, sampler: Any, size: int | None, drawn: Drawn | None) -> None:
        self.drawn, self._size = drawn, size
        self.ahead: Ahead | None = None
        self.used = getattr(sampler, "start", 0)
        """How far it was taken, in batches of its epoch, or in indices where the sampler gives these."""
        self._end = None if drawn is None or drawn.left is None else self.used + drawn.left
        self.is_over = False

    def take(self) -> None:
        """One more batch is taken."""
        self.used += self._size or 1
        if self._end is not None:
            self.used = min(self.used, self._end)

    @property
    def has_all(self) -> bool:
        """Whether it is known to have given all that there was."""
        return bool(self.used == self._end)

    def stop(self) -> None:
        """Nothing is read any more."""
        self.is_over = True
        if self.drawn is not None:
            self.drawn.close()
        if self.ahead is not None:
            self.ahead.close()


class Loader:
    """Batches of a dataset in the order of a sampler; see `make_loader`, which makes it.

    Indices are drawn by whoever takes the batches, so many batches ahead as are read ahead, and at the same moments in
    every run: between two batches. What a sampler makes of priorities that are updated in a loop, or of a ring, does
    not depend on how fast anything is. Where a loop is left early the next one begins that epoch again.
    """

    def __init__(self, loader: DataLoader[Any], order: _Order, mover: _Mover, prefetch: int) -> None:
        self.loader = loader
        self.sampler = order.sampler
        """What has the epochs: a sampler, or a dataset with an order of its own."""
        self._order, self._mover, self._prefetch = order, mover, prefetch
        self._run: _Run | None = None

    @property
    def dataset(self) -> Any:
        """The dataset as it is read: images that become floats on the device are bytes here."""
        return self.loader.dataset

    def __len__(self) -> int:
        """Return how many batches the next iteration gives."""
        if _is_blocks(self.sampler):
            count: int = self.sampler.num_batches(self.loader.num_workers) - self.sampler.start
            return max(0, count)
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._run is not None and self.loader.num_workers:
            self._run.stop()  # the workers are one iteration's at a time
        drawn = None if self._order.feed is None else self._order.feed.begin()
        run = self._run = _Run(self.sampler, self._order.size, drawn)
        try:
            batches = self._read(run)
            while (moved := self._next(batches, run)) is not _END:
                run.take()
                yield self._mover.arrived(moved)
                del moved  # else its memory is taken until the next one is there
                if drawn is not None:
                    drawn.draw()
            if drawn is not None and drawn.error is not None:
                raise drawn.error
            self._finish(run)
        except GeneratorExit:
            if run.has_all:
                self._finish(run)
            raise
        finally:
            run.stop()

    def _read(self, run: _Run) -> Iterator[Any]:
        """Begin to read."""
        if run.drawn is not None:  # what lies ready, what waits for room there, and two for each worker
            run.drawn.draw(self._prefetch + 1 + 2 * self.loader.num_workers)
        fetched = iter(self.loader)  # here: the workers are forked by the caller's thread
        moved = (self._mover.moved(batch) for batch in fetched)
        if not self._prefetch:
            return moved
        run.ahead = Ahead(moved, self._prefetch)
        return iter(run.ahead)

    def _next(self, batches: Iterator[Any], run: _Run) -> Any:
        if run.is_over:
            raise InvalidArgumentError(
                "a later iteration of this loader has begun, and its workers read for that one; make_loader(…) another "
                "one to have two at a time"
            )
        return next(batches, _END)

    def _finish(self, run: _Run) -> None:
        """All was taken: the next iteration gives the next epoch, unless another one was set meanwhile."""
        if run.drawn is not None:
            run.drawn.finish()
        if self._run is run:
            self._run = None
            if _is_blocks(self.sampler):
                self.sampler.set_epoch(self.sampler.epoch + 1)

    def set_epoch(self, epoch: int, start: int | None = None) -> None:
        """Have the next iteration give this epoch, from batch `start` on; see the sampler's."""
        self._need("set_epoch")
        self._run = None
        if start is None:
            self.sampler.set_epoch(epoch)
        else:
            self.sampler.set_epoch(epoch, start)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on with the batch after the last one that was taken."""
        self._need("state_dict")
        used = None if self._run is None else self._run.used
        state: dict[str, Any] = self.sampler.state_dict(used, **self._workers())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next iteration go on where another loader, made with the same arguments, was."""
        self._need("load_state_dict")
        self._run = None
        self.sampler.load_state_dict(state, **self._workers())

    def _workers(self) -> dict[str, int]:
        """How many there are, where the order depends on it."""
        return {"num_workers": self.loader.num_workers} if _is_blocks(self.sampler) else {}

    def _need(self, name: str) -> None:
        if not hasattr(self.sampler, name):
            raise InvalidArgumentError(
                f"{name}: {type(self.sampler).__name__} has no such method; give make_loader a sampler that has, as "
                "sampler=EpisodeAwareSampler(dataset, batch_size=64)"
            )


class _Mover:
    """Takes batches to a device; bytes of the cameras named become floats there."""

    def __init__(self, device: torch.device | None, as_bytes: tuple[str, ...]) -> None:
        self._device = device
        self._as_bytes = as_bytes
        self._stream: Any = None
        self._most: torch.Tensor | None = None

    def moved(self, batch: Any) -> tuple[Any, Any]:
        """Return the batch on the device, and what tells when it has arrived; called by whoever fetches."""
        if self._device is None:
            return batch, None
        if self._device.type != "cuda":
            return self._floats(_to(batch, self._device)), None
        cuda = _torch().cuda
        if self._stream is None:
            self._stream = cuda.Stream(self._device)
        with cuda.stream(self._stream):
            there = self._floats(_to(batch, self._device))
        return there, self._stream.record_event()

    def arrived(self, moved: tuple[Any, Any]) -> Any:
        """Have the device wait for the batch, not us; called by who takes it."""
        batch, event = moved
        if event is not None:
            current = _torch().cuda.current_stream(self._device)
            current.wait_event(event)
            _used_on(batch, current)  # else its memory could be taken for the next one while it is read
        return batch

    def _floats(self, batch: Any) -> Any:
        if not self._as_bytes:
            return batch
        torch = _torch()
        if self._most is None:  # a tensor, for by a number CUDA multiplies with what 1/255 rounds to
            self._most = torch.tensor(255.0, device=self._device)
        for key in self._as_bytes:
            if batch[key].dtype == torch.uint8:
                batch[key] = batch[key].to(torch.float32).div_(self._most)
        return batch


def _to(value: Any, device: torch.device) -> Any:
    if hasattr(value, "to"):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: _to(each, device) for key, each in value.items()}
    if type(value) in (list, tuple) and any(hasattr(each, "to") for each in value):
        return type(value)(_to(each, device) for each in value)
    return value


def _used_on(value: Any, stream: Any) -> None:
    if hasattr(value, "record_stream"):
        value.record_stream(stream)
    elif isinstance(value, dict):
        for each in value.values():
            _used_on(each, stream)
    elif type(value) in (list, tuple):
        for each in value:
            _used_on(each, stream)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise InvalidArgumentError(f"{name}={value!r}; 0 or more would do")


def _torch_data() -> Any:
    return require("torch.utils.data", extra="torch", purpose="loading batches")


def _torch() -> Any:
    return require("torch", extra="torch", purpose="loading batches")
