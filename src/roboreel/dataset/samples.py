"""The side of a dataset that is read: its frames and windows as samples, gathered into the arrays of a batch."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import replace
from operator import length_hint
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from roboreel.dataset import slabs
from roboreel.dataset.batch import BlockBatch, to_tensors
from roboreel.dataset.buffers import Buffers, Room
from roboreel.dataset.plan import Arrays, Forms, Plan, Rows
from roboreel.dataset.publishing import Publishing
from roboreel.dataset.quick import Quick
from roboreel.dataset.reading import Batching, Windows, check_window_keys, gather_samples
from roboreel.dataset.slab import SlabRoom
from roboreel.dataset.transforms import transform_images
from roboreel.errors import UnknownKeyError
from roboreel.store import Store

Ints = NDArray[np.int64]


class Samples(Publishing):
    """What is shown of a dataset, as samples; `LeRobotDatasetV2` says how they are asked for."""

    _forms: Forms
    _given: tuple[str, ...] | None = None
    """The keys that samples have; None: all."""

    def _begin_samples(self) -> None:
        self._windows = Windows({})
        self._planned: tuple[object, Windows, Plan] | None = None
        self._buffers = Buffers()
        self._quick: Quick | None = None
        self._settled: tuple[Plan, bytes, int] | None = None
        """How many batches there were with this plan while the live record was this one."""

    def __getstate__(self) -> dict[str, Any]:
        """What another process, or a copy, begins with: what follows from what is open is found anew there."""
        return self.__dict__ | {"_planned": None, "_quick": None, "_settled": None}

    def close(self) -> None:
        """Flush, and let go of the writer's lock and the files; reading on opens them again."""
        self._quick = None
        super().close()

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
        other._forms, other._buffers = replace(self._forms, image_dtype=image_dtype), Buffers()
        return other

    def _giving(self, names: tuple[str, ...]) -> Self:
        """Return the same dataset, sharing what is open, of which samples have these keys alone."""
        other = copy.copy(self)
        other._given = names
        return other

    def _assembled(
        self, indices: Sequence[int] | Ints, *, single: bool = False, to_send: bool = False
    ) -> dict[str, Any]:
        if not to_send and (found := self._quickly(indices, single=single)) is not None:
            return found
        held = indices.episodes if isinstance(indices, BlockBatch) else 0
        self._buffers.next_round()
        at_once = to_send and self.image_transform is None  # else what is sent is there only after it

        def gathered(store: Store, slots: Ints) -> tuple[Store, Plan, Arrays, SlabRoom | None]:
            plan = self._plan(store)
            room = slabs.room_to_send(plan.nbytes(len(slots))) if at_once else None
            arrays = plan.arrays(len(slots), room or self._buffers)
            gather_samples(Batching(store, plan, self._windows.on_hole, held, self._buffers), slots, Rows(arrays))
            return store, plan, arrays, room

        store, plan, arrays, room = self._read(indices, gathered)
        batch = to_tensors(plan, arrays, store.strings, single=single)
        if self.image_transform is not None:
            room = slabs.room_as_before() if to_send else None
            transform_images(batch, store.manifest.keys, self.image_transform, room or self._buffers)
        return slabs.to_send(batch, room) if to_send else batch

    def _quickly(self, indices: Sequence[int] | Ints, *, single: bool) -> dict[str, Any] | None:
        """Return a batch the quick way, which is made where nothing was written for some batches; None: the other."""
        store, quick = self._need_store(), self._quick
        if self._choice is not None:
            return None
        if quick is not None and quick.store is store and quick.windows is self._windows:
            found = quick.item(indices[0]) if single else quick.batch(indices)
            if found is not None:
                return found
        plan = self._plan(store)
        if not plan.is_quick or length_hint(indices) > Quick.most_samples(plan):
            return None
        record = store.record()
        settled = self._settled
        count = 1
        if settled is not None and settled[0] is plan and settled[1] == record:
            count += settled[2]
        else:
            self._quick = None  # of something else, and never right again
        self._settled = plan, record, count
        if Quick.is_due(store, count):
            self._quick = Quick.of(store, plan, self._windows)
        return None

    def _fill(self, indices: Ints, rows: Rows, held: int, room: Room) -> Store:
        """Read samples into rows of a batch that other datasets fill, too; return the store that they came from."""

        def filled(store: Store, slots: Ints) -> Store:
            gather_samples(Batching(store, self._plan(store), self._windows.on_hole, held, room), slots, rows)
            return store

        return self._read(indices, filled)

    def _plan(self, store: Store) -> Plan:
        if self._planned is None or self._planned[0] is not store.manifest or self._planned[1] is not self._windows:
            keys = store.manifest.keys
            check_window_keys(self._windows, keys)  # another process may have made the dataset since
            plan = Plan.make(keys, self._names(keys), self._windows.deltas, self._forms)
            self._planned = (store.manifest, self._windows, plan)
        return self._planned[2]

    def _names(self, keys: Collection[str]) -> Collection[str]:
        """Those of the keys that samples have."""
        if self._given is None:
            return keys
        if gone := [key for key in self._given if key not in keys]:
            raise UnknownKeyError(f"{self.storage_dir} has {gone} no more; join the datasets again")
        return self._given
