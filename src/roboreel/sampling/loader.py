"""Batches that are ready when they are wanted: read ahead, and where a device is named, there already."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any

from roboreel._optional import require
from roboreel.dataset import LeRobotDatasetV2, MultiLeRobotDatasetV2
from roboreel.device import torch_device
from roboreel.errors import InvalidArgumentError
from roboreel.sampling.episode_aware import EpisodeAwareSampler

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader, Dataset

_PAUSE_S = 0.05
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
    batches, order = _batches(dataset, batch_size, sampler, shuffle=shuffle, seed=seed)
    as_bytes: tuple[str, ...] = ()
    shown: Any = dataset
    if isinstance(dataset, LeRobotDatasetV2 | MultiLeRobotDatasetV2):
        shown, as_bytes = _shown(dataset, chosen)
    loader: DataLoader[Any] = require("torch.utils.data", extra="torch", purpose="loading batches").DataLoader(
        shown,
        **batches,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=chosen is not None and chosen.type == "cuda",
    )
    return Loader(loader, order, _Mover(chosen, as_bytes), prefetch)


def _batches(dataset: Any, batch_size: Any, sampler: Any, *, shuffle: bool, seed: int) -> tuple[dict[str, Any], Any]:
    """Return the DataLoader's arguments that say what is in which batch, and what has the epochs."""
    if getattr(sampler, "batch_size", None) is not None or (sampler is not None and batch_size is None):
        if batch_size is not None:
            raise InvalidArgumentError(f"batch_size={batch_size}, but the sampler makes batches; leave one of them out")
        return {"batch_sampler": sampler}, sampler
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or hasattr(dataset, "num_batches"):
        if sampler is not None:
            raise InvalidArgumentError("sampler= for a dataset that has an order of its own; leave it out")
        return {"batch_size": batch_size}, dataset
    if batch_size is None or isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
        raise InvalidArgumentError(f"batch_size={batch_size!r}; a number of samples, 1 or more, would do")
    if sampler is not None:
        return {"batch_size": int(batch_size), "sampler": sampler}, sampler
    if not hasattr(dataset, "episode_data_index"):
        return {"batch_size": int(batch_size), "shuffle": shuffle}, None
    order = EpisodeAwareSampler(dataset, batch_size=int(batch_size), shuffle=shuffle, seed=seed)
    return {"batch_sampler": order}, order


def _shown(dataset: Ours, device: torch.device | None) -> tuple[Ours, tuple[str, ...]]:
    """Return the dataset as it is read, and the cameras whose bytes become floats on the device."""
    is_far = device is not None and device.type != "cpu"
    if is_far and dataset.image_dtype == "float32" and dataset.image_transform is None:
        return dataset.images_as("uint8"), tuple(dataset.camera_keys)
    return dataset.images_as(dataset.image_dtype), ()


class Loader:
    """Batches of a dataset in the order of a sampler; see `make_loader`, which makes it."""

    def __init__(self, loader: DataLoader[Any], order: Any, mover: _Mover, prefetch: int) -> None:
        self.loader = loader
        self.sampler = order
        """What has the epochs: a sampler, or a dataset with an order of its own; None where nothing has."""
        self._mover = mover
        self._prefetch = prefetch
        self._used: int | None = None

    @property
    def dataset(self) -> Any:
        """The dataset as it is read: images that become floats on the device are bytes here."""
        return self.loader.dataset

    def __len__(self) -> int:
        """Return how many batches the next iteration gives."""
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._used = getattr(self.sampler, "start", 0)  # before the workers draw ahead, past the epoch's end perhaps
        fetched = iter(self.loader)  # here: the workers are forked by the caller's thread
        moved = (self._mover.moved(batch) for batch in fetched)
        for batch in _ahead(moved, self._prefetch) if self._prefetch else moved:
            self._used += 1
            yield self._mover.arrived(batch)
        self._used = None

    def set_epoch(self, epoch: int, start: int | None = None) -> None:
        """Have the next iteration give this epoch, from batch `start` on; see the sampler's."""
        self._need("set_epoch")
        self._used = None
        if start is None:
            self.sampler.set_epoch(epoch)
        else:
            self.sampler.set_epoch(epoch, start)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on with the batch after the last one that was taken."""
        self._need("state_dict")
        state: dict[str, Any] = self.sampler.state_dict(self._used)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next iteration go on where another loader, made with the same arguments, was."""
        self._need("load_state_dict")
        self._used = None
        self.sampler.load_state_dict(state)

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


def _ahead(items: Iterator[Any], count: int) -> Iterator[Any]:
    """Yield the items; a thread has up to `count` of them ready."""
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(count)
    stop = threading.Event()

    def put(item: Any, error: BaseException | None = None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((item, error), timeout=_PAUSE_S)
                return

    def fetch() -> None:
        try:
            for item in items:
                put(item)
                del item  # else its memory is taken until the next one is there
                if stop.is_set():
                    return
            put(_END)
        except BaseException as error:  # noqa: BLE001 - it is raised where the item would have been
            put(None, error)

    thread = threading.Thread(target=fetch, name="roboreel-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # an error that its own frame holds would keep all frames above, and what they hold
            if item is _END:
                return
            yield item
            del item
    finally:
        stop.set()
        thread.join()


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise InvalidArgumentError(f"{name}={value!r}; 0 or more would do")


def _torch() -> Any:
    return require("torch", extra="torch", purpose="loading batches")
