"""What is read by index: samples, and batches of them as one dict of tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roboreel.dataset.batch import Batch, is_worker, register_collate
from roboreel.dataset.transforms import parse_transform

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset

    Base = Dataset[dict[str, Any]]
else:
    Base = object  # torch asks for nothing but __len__ and __getitem__, and loads only when a tensor is made

Ints = NDArray[np.int64]


class ByIndex(ABC, Base):
    """Samples 0 to `len` - 1, each a dict of tensors; the default DataLoader takes a batch of them whole."""

    _image_transform: Callable[[torch.Tensor], torch.Tensor] | None

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def image_transform(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What images go through; may be set at any time. `InvalidArgumentError` for what cannot be called."""
        return self._image_transform

    @image_transform.setter
    def image_transform(self, transform: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        self._image_transform = parse_transform(transform)

    @abstractmethod
    def _assembled(
        self, indices: Sequence[int] | Ints, *, single: bool = False, to_send: bool = False
    ) -> dict[str, Any]:
        """Return a batch; with `single` its one sample; with `to_send` one that goes to another process."""

    @property
    def num_frames(self) -> int:
        return len(self)

    @property
    def num_samples(self) -> int:
        """The name that #445 gave `num_frames`."""
        return len(self)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one frame, or the windows around it; negative indices count from the end."""
        if self.image_transform is not None:
            return {key: value[0] for key, value in self._assembled([index]).items()}
        return self._assembled([index], single=True)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the samples of a batch, assembled at once; torch's DataLoader calls this."""
        register_collate()
        return Batch(self.get_batch(indices), len(indices))

    def get_batch(self, indices: Sequence[int] | Ints) -> dict[str, Any]:
        """Return the frames as one dict of tensors with a leading batch axis, (B, …) or (B, T, …).

        Raises:
            FrameIndexError: an index is beyond the ends.
            TimestampOutsideToleranceError: a window meets a hole in time.
        """
        return self._assembled(indices, to_send=is_worker())
