"""Arrays to tensors, and a batch that the default DataLoader takes whole.

torch's fetcher calls `__getitems__` once a batch and hands the result to `collate_fn`. Ours is a sequence of samples
over one assembled batch: the default collate, asked about the first sample, finds its class registered and takes the
assembled batch as it is; a user's own `collate_fn` sees B samples.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.errors import InvalidArgumentError
from roboreel.schema import DEPTH_UNITS, IS_PAD_POSTFIX, KeySpec


def check_forms(image_dtype: str, depth_unit: str) -> None:
    """Refuse forms in which images and depth are not given."""
    if image_dtype not in ("float32", "uint8"):
        raise InvalidArgumentError(f"image_dtype={image_dtype!r}; 'float32' and 'uint8' would do")
    if depth_unit not in ("m", "raw"):
        raise InvalidArgumentError(f"depth_unit={depth_unit!r}; 'm' (metres) and 'raw' (as stored) would do")


def to_tensors(
    arrays: Mapping[str, NDArray[Any]],
    masks: Mapping[str, NDArray[Any]],
    keys: Mapping[str, KeySpec],
    strings: Sequence[str],
    image_dtype: str,
    depth_unit: str,
) -> dict[str, Any]:
    """Return tensors for arrays with a leading batch axis; strings become (nested) lists of str."""
    torch = _torch()
    batch: dict[str, Any] = {}
    for key, array in arrays.items():
        spec = keys[key]
        if spec.is_string:
            batch[key] = _decoded(array, strings)
        elif spec.is_depth:
            depth = array if depth_unit == "raw" else _in_metres(array, spec)
            batch[key] = torch.from_numpy(depth).movedim(-1, -3)  # a view, like the images below
        elif spec.is_camera:
            images = torch.from_numpy(array)
            if image_dtype == "float32":
                images = images.to(torch.float32).div_(255)
            # A view: the pixels stay where they are, in the order that convolutions call channels_last.
            batch[key] = images.movedim(-1, -3)
        else:
            batch[key] = torch.from_numpy(array.astype(spec.item_dtype, copy=False))
    for key, mask in masks.items():  # last: foreign datasets may hold a key of that name, made for other windows
        batch[key + IS_PAD_POSTFIX] = torch.from_numpy(mask)
    return batch


def _in_metres(depth: NDArray[Any], spec: KeySpec) -> NDArray[np.float32]:
    """Return the float32 nearest to what is stored; 0, which is not measured, stays 0."""
    assert spec.unit is not None
    metre = np.float32(DEPTH_UNITS[spec.unit])
    # Divided, not times 0.001, which no float is: 1,001 mm would come out as another number than 1.001.
    return depth.astype(np.float32, copy=False) if metre == 1 else np.divide(depth, metre, dtype=np.float32)


def _decoded(codes: NDArray[Any], strings: Sequence[str]) -> Any:
    if codes.ndim == 1:
        return [strings[code] for code in codes.tolist()]
    return [_decoded(part, strings) for part in codes]


class BlockBatch(list[int]):
    """Indices out of a block of episodes, which are decoded whole and kept until the next ones come."""

    def __init__(self, indices: Sequence[int], episodes: int) -> None:
        super().__init__(indices)
        self.episodes = episodes
        """How many episodes are kept in memory."""


class Sample(dict[str, Any]):
    """One sample of a batch: a dict like any other; its class is what the default collate recognises."""


class Batch(Sequence[Sample]):
    """B samples over one assembled batch, `assembled`."""

    def __init__(self, assembled: dict[str, Any], size: int) -> None:
        self.assembled = assembled
        self._size = size

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
        return Sample({key: value[i] for key, value in self.assembled.items()})

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(self._size))


def register_collate() -> None:
    """Tell torch's default collate to take a `Batch` whole; to be called in each process that makes batches."""
    from torch.utils.data._utils.collate import default_collate_fn_map

    default_collate_fn_map.setdefault(Sample, _collate)


def _collate(batch: Sequence[Sample], *, collate_fn_map: Any = None) -> dict[str, Any]:  # noqa: ARG001 - torch's
    if isinstance(batch, Batch):
        return batch.assembled
    from torch.utils.data import default_collate

    collated: dict[str, Any] = default_collate([dict(sample) for sample in batch])
    return collated


def loader_workers() -> int:
    """How many workers the DataLoader has, seen from one of them; 1 elsewhere."""
    data = sys.modules.get("torch.utils.data")  # a worker has it: torch need not be imported to find out
    info = None if data is None else data.get_worker_info()
    return 1 if info is None else max(1, info.num_workers)


def _torch() -> Any:
    return require("torch", extra="torch", purpose="reading items as tensors")


def as_indices(indices: Any, length: int) -> NDArray[np.int64] | int:
    """Return 0 <= index < length for each given one; the first that is beyond the ends comes back as an int."""
    array = np.asarray(indices)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise TypeError(
            f"indices must be integers; got {indices!r}: type dataset[3] for one frame, or dataset.get_batch([3, 4])"
        )
    array = array.astype(np.int64)
    wrong = (array < -length) | (array >= length)
    if np.any(wrong):
        return int(array[wrong][0])
    return np.where(array < 0, array + length, array)
