"""The side of a dataset that is read by index: samples, and batches of them as one dict of tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from roboreel.dataset import slabs
from roboreel.dataset.batch import Batch, BlockBatch, is_worker, register_collate, to_tensors
from roboreel.dataset.buffers import Buffers
from roboreel.dataset.plan import Arrays, Forms, Plan
from roboreel.dataset.reading import Batching, Windows, check_window_keys, gather_samples
from roboreel.dataset.transforms import transform_images
from roboreel.dataset.views import EpisodeViews
from roboreel.store import Store

if TYPE_CHECKING:
    import torch

Ints = NDArray[np.int64]


class Samples(EpisodeViews):
    """What is shown of a dataset, as samples; `LeRobotDatasetV2` says how they are asked for."""

    image_transform: Callable[[torch.Tensor], torch.Tensor] | None
    _forms: Forms

    def _begin_samples(self) -> None:
        self._windows = Windows({})
        self._planned: tuple[object, Windows, Plan] | None = None
        self._buffers = Buffers()

    @property
    def image_dtype(self) -> str:
        """How images are given: "float32" in [0, 1], or "uint8"."""
        return self._forms.image_dtype

    def images_as(self, image_dtype: str) -> Self:
        """Return the same dataset, sharing what is open, that gives images as "uint8" or "float32".

        Windows and the transform are as they are here, and may be set to others.

        Raises:
            InvalidArgumentError: there is no such form.
        """
        other = copy.copy(self)
        other._forms = replace(self._forms, image_dtype=image_dtype)
        other._planned, other._buffers = None, Buffers()
        return other

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

    def _assembled(
        self, indices: Sequence[int] | Ints, *, single: bool = False, to_send: bool = False
    ) -> dict[str, Any]:
        """Return a batch; with `single` its one sample; with `to_send` one that goes to another process."""
        held = indices.episodes if isinstance(indices, BlockBatch) else 0
        self._buffers.next_round()
        at_once = to_send and self.image_transform is None  # else what is sent is there only after it

        def gathered(store: Store, slots: Ints) -> tuple[Store, Plan, Arrays]:
            plan = self._plan(store)
            room = slabs.room_to_send(plan.nbytes(len(slots))) if at_once else None
            arrays = plan.arrays(len(slots), room or self._buffers)
            gather_samples(Batching(store, plan, self._windows.on_hole, held, self._buffers), slots, arrays)
            return store, plan, arrays

        store, plan, arrays = self._read(indices, gathered)
        batch = to_tensors(plan, arrays, store.strings, single=single)
        if self.image_transform is not None:
            transform_images(batch, store.manifest.keys, self.image_transform)
        return slabs.to_send(batch) if to_send else batch

    def _plan(self, store: Store) -> Plan:
        if self._planned is None or self._planned[0] is not store.manifest or self._planned[1] is not self._windows:
            keys = store.manifest.keys
            check_window_keys(self._windows, keys)  # another process may have made the dataset since
            plan = Plan.make(keys, keys, self._windows.deltas, self._forms)
            self._planned = (store.manifest, self._windows, plan)
        return self._planned[2]
