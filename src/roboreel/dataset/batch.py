"""Arrays to tensors, and a batch that the default DataLoader takes whole.

torch's fetcher calls `__getitems__` once a batch and hands the result to `collate_fn`. Ours is a sequence of samples
over one assembled batch: the default collate, asked about the first sample, finds its class registered and takes the
assembled batch as it is; a user's own `collate_fn` sees B samples.
"""

from __future__ import annotations

import functools
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.dataset.plan import Arrays, Plan


def to_tensors(plan: Plan, arrays: Arrays, strings: Sequence[str], *, single: bool = False) -> dict[str, Any]:
    """Return tensors for the arrays of a batch; strings become (nested) lists of str.

    With `single`, those of the first sample, without the batch axis.
    """
    from_numpy = _torch().from_numpy
    if single:
        arrays = {
            key: values[0, ...] for key, values in arrays.items()
        }  # with the dots an array, also without any axis
    batch: dict[str, Any] = {key: from_numpy(arrays[key]) for key in plan.keys}
    for key in plan.strings:
        batch[key] = decoded(arrays[key], strings)
    for key in plan.cameras:
        # A view: the pixels stay where they are, in the order that convolutions call channels_last.
        batch[key] = batch[key].movedim(-1, -3)
    return batch


def decoded(codes: NDArray[Any], strings: Sequence[str]) -> Any:
    """Return the strings of codes, in lists as the codes' array has axes."""
    if codes.ndim == 0:
        return strings[int(codes)]
    if codes.ndim > 1:
        return [decoded(part, strings) for part in codes]
    if len(strings) == 1:
        return [strings[0]] * len(codes)
    return list(map(strings.__getitem__, codes.tolist()))


def is_plain(torch: Any, value: Any) -> bool:
    """Whether numpy could hold it."""
    return (
        type(value) is torch.Tensor
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not value.requires_grad
        and not value.dtype.is_complex
        and _has_numpy(torch, value.dtype)
        and not value.is_quantized
    )


@functools.cache
def _has_numpy(torch: Any, dtype: Any) -> bool:
    """Whether numpy has numbers of this kind: of bfloat16 and the float8s it has not."""
    try:
        torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        return False
    return True


class BlockBatch(list[int]):
    """Indices out of a block of episodes, which are decoded whole and kept until the next ones come."""

    def __init__(self, indices: Sequence[int], episodes: int) -> None:
        super().__init__(indices)
        self.episodes = episodes
        """How many episodes are kept in memory."""


class Sample(dict[str, Any]):
    """One sample of a batch: a dict like any other; its class is what the default collate recognises.

    It is filled by the first of its methods that is called. The default collate calls none, for which twenty slices of
    tensors would cost more than half of what reading the batch has.
    """

    def __init__(self, assembled: dict[str, Any], at: int) -> None:
        self._source: tuple[dict[str, Any], int] | None = (assembled, at)
        self.is_changed = False
        """Whether it was given other keys or values than it came with."""

    def _fill(self) -> None:
        if self._source is not None:
            assembled, at = self._source
            self._source = None
            super().update({key: value[at] for key, value in assembled.items()})

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


def _filled_first(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    @functools.wraps(method)
    def filled_first(sample: Sample, *args: Any, **options: Any) -> Any:
        sample._fill()
        return method(sample, *args, **options)

    return filled_first


def _filled_and_changed(name: str) -> Callable[..., Any]:
    method = _filled_first(name)

    @functools.wraps(method)
    def filled_and_changed(sample: Sample, *args: Any, **options: Any) -> Any:
        sample.is_changed = True
        return method(sample, *args, **options)

    return filled_and_changed


# `__iter__` among them: where it is not dict's own, `dict(sample)` and `{**sample}` go through the methods, too.
for _name in (
    *("__contains__", "__eq__", "__ge__", "__getitem__", "__gt__", "__iter__", "__le__", "__len__", "__lt__"),
    *("__ne__", "__or__", "__repr__", "__reversed__", "__ror__", "copy", "get", "items", "keys", "values"),
):
    setattr(Sample, _name, _filled_first(_name))
for _name in ("__delitem__", "__ior__", "__setitem__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(Sample, _name, _filled_and_changed(_name))


class Batch(Sequence[Sample]):
    """B samples over one assembled batch, `assembled`; each is the same one whenever it is asked for."""

    def __init__(self, assembled: dict[str, Any], size: int) -> None:
        self.assembled = assembled
        self._size = size
        self._samples: dict[int, Sample] = {}

    @property
    def is_changed(self) -> bool:
        """Whether a sample was given other keys or values, so that the assembled batch is not what they are."""
        return any(sample.is_changed for sample in self._samples.values())

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, i: int) -> Sample: ...
    @overload
    def __getitem__(self, i: slice) -> list[Sample]: ...
    def __getitem__(self, i: int | slice) -> Sample | list[Sample]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(self._size))]
        if not -self._size <= i < self._size:
            raise IndexError(f"sample {i} of a batch of {self._size}")
        at = i % self._size
        if at not in self._samples:
            self._samples[at] = Sample(self.assembled, at)
        return self._samples[at]

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(self._size))


@functools.cache
def register_collate() -> None:
    """Tell torch's default collate to take a `Batch` whole; to be called in each process that makes batches."""
    from torch.utils.data._utils.collate import default_collate_fn_map

    default_collate_fn_map.setdefault(Sample, _collate)


def _collate(batch: Sequence[Sample], *, collate_fn_map: Any = None) -> dict[str, Any]:  # noqa: ARG001 - torch's
    if isinstance(batch, Batch) and not batch.is_changed:
        return batch.assembled
    from torch.utils.data import default_collate

    collated: dict[str, Any] = default_collate([dict(sample) for sample in batch])
    return collated


def is_worker() -> bool:
    """Whether this process is a DataLoader's worker."""
    return _worker_info() is not None


def loader_workers() -> int:
    """How many workers the DataLoader has, seen from one of them; 1 elsewhere."""
    info = _worker_info()
    return 1 if info is None else max(1, info.num_workers)


def _worker_info() -> Any:
    data = sys.modules.get("torch.utils.data")  # a worker has it: torch need not be imported to find out
    # while another thread is importing torch, it has no such function yet
    return getattr(data, "get_worker_info", _nothing)()


def _nothing() -> None:
    """What is known of a worker where there is none."""


def _torch() -> Any:
    return require("torch", extra="torch", purpose="reading items as tensors")


_PLAIN = np.dtype(np.uint64), np.dtype(np.int64)


def _as_array(indices: Any) -> NDArray[Any]:
    if type(indices) in (list, BlockBatch) and indices and type(indices[0]) is int:
        try:
            # In a third of the time that numpy takes for a list; signed ones take twice as long.
            return np.frombuffer(array("Q", indices), np.uint64)
        except (TypeError, OverflowError):
            pass  # not all are integers: numpy has a word for what they are
    return np.asarray(indices)


def within(indices: Any, length: int) -> NDArray[np.int64] | None:
    """Return the indices as an array; None where not all are plain ones, 0 <= index < length."""
    given = _as_array(indices)
    if given.dtype not in _PLAIN or given.ndim != 1 or not given.size:
        return None
    if np.maximum.reduce(given.view(np.uint64)) >= length:  # negative ones are above all others
        return None
    return given.view(np.int64)


def as_indices(indices: Any, length: int) -> NDArray[np.int64] | int:
    """Return 0 <= index < length for each given one; the first that is beyond the ends comes back as an int."""
    given = _as_array(indices)
    if given.size == 0:
        return np.zeros(0, np.int64)
    if given.dtype == object:  # where one is beyond what 64 bits hold
        huge = [each for each in given.flat if type(each) is int and not -length <= each < length]
        if huge:
            return huge[0]
    if given.dtype.kind not in "iu" or given.ndim != 1:
        raise TypeError(
            f"indices must be integers; got {indices!r}: type dataset[3] for one frame, or dataset.get_batch([3, 4])"
        )
    if given.dtype == np.uint64:
        return given.view(np.int64) if given.max() < length else int(given[given >= length][0])
    found = given.astype(np.int64, copy=False)
    if found.view(np.uint64).max() < length:  # negative ones are above all others here
        return found
    wrong = (found < -length) | (found >= length)
    if np.any(wrong):
        return int(found[wrong][0])
    return np.where(found < 0, found + length, found)
