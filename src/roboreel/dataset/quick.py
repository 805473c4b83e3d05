"""The shortest way to a batch of windows: numbers alone, of regular episodes, as long as nobody writes.

What `reading` settles for each batch is settled beforehand here: which frames the window of each frame takes, and where
they lie. It gives the same batch, or None; then `reading` is the way. It is of one state of the live record, which a
commit changes, and so does the beginning of a write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.dataset.batch import decoded, within
from roboreel.dataset.buffers import Buffers
from roboreel.dataset.places import Places, places_made, places_of
from roboreel.dataset.plan import Plan
from roboreel.store import Store

_LEAST_BATCHES, _PLACES_A_BATCH = 8, 200
"""So many batches, at least, and one for so many places: so that finding these, which each commit undoes, takes a small
part of the time that reading took before it."""

Take = Callable[..., NDArray[Any]]
Ints = NDArray[np.int64]


class Quick:
    """What a plan reads of a store, as it was at one moment."""

    def __init__(self, store: Store, plan: Plan, windows: object, record: bytes, places: Places) -> None:
        self.store, self.windows, self._record = store, windows, record
        take = {part.key: store.memmap(part.key).take for part in plan.parts}
        single = [part for part in plan.single.parts if not part.spec.is_string]
        self._frames, self._windows_of, self._strings = store.state.frames, places.windows, store.strings
        self._as_stored = [(part.key, take[part.key]) for part in single if part.key in plan.single.as_stored]
        self._cast = [(part.key, take[part.key], part.spec.item_dtype) for part in plan.single.cast]
        self._codes = [(key, store.memmap(key).view(np.uint32).take) for key in plan.strings]  # damaged: below 0, too
        self._windowed = [
            ([(key, take[key]) for key in group.as_stored], group.masks[0], group.masks[1:]) for group in plan.windowed
        ]
        self._blank: dict[str, Any] = dict.fromkeys(plan.keys)
        self._most = Buffers.least_bytes // max(1, *(item[3] for item in plan.layout))
        self._from_numpy = require("torch", extra="torch", purpose="reading items as tensors").from_numpy

    @staticmethod
    def is_due(store: Store, batches: int) -> bool:
        """Whether it is worth making, where so many batches were read while nothing was written."""
        return batches == max(_LEAST_BATCHES, places_made(store.state.frames) // _PLACES_A_BATCH)

    @classmethod
    def of(cls, store: Store, plan: Plan, windows: object) -> Self | None:
        """Bind a plan, of these windows, to a store as it is now; None where the other way has to be gone."""
        assert plan.near_ends is not None, "a plan that is_quick has them"
        with store.lock:
            record = store.refresh()
            if not (store.is_quiet and store.table.integer_windows):
                return None
            places = places_of(plan.near_ends, *store.table.live_ranges(), store.state.frames)
            return None if places is None else cls(store, plan, windows, record, places)

    def batch(self, indices: Sequence[int] | Ints) -> dict[str, Any] | None:
        """Return the frames of these indices, as `get_batch` does; None where that cannot be told here."""
        store, from_numpy = self.store, self._from_numpy
        slots = within(indices, self._frames)
        if slots is None or len(slots) > self._most:
            return None
        batch = self._blank.copy()
        try:  # without the store's lock, which others would hardly get: what is bound here stays as it was
            for key, take in self._as_stored:
                batch[key] = from_numpy(take(slots, 0, None, "clip"))
            for key, take, dtype in self._cast:
                batch[key] = from_numpy(take(slots, 0, None, "clip").astype(dtype))
            for key, take in self._codes:
                batch[key] = take(slots, 0, None, "clip")
            for (wanted, is_pad), (keys, mask, masks) in zip(self._windows_of(slots), self._windowed, strict=True):
                for key, take in keys:
                    batch[key] = from_numpy(take(wanted, 0, None, "clip"))
                for key in masks:
                    batch[key] = from_numpy(is_pad.copy())
                batch[mask] = from_numpy(is_pad)
            if store.record() != self._record:  # they never repeat: nothing was written since this was made
                return None
        except (OSError, KeyError):  # closed by another thread
            return None
        return self._with_strings(batch)

    def _with_strings(self, batch: dict[str, Any]) -> dict[str, Any] | None:
        """Put strings in the place of their codes; not before, as what a writer was at may be no codes."""
        strings = self._strings
        try:
            for key, _ in self._codes:
                if len(strings) == 1 and np.count_nonzero(batch[key]):
                    return None  # damaged: the other way says so
                batch[key] = decoded(batch[key], strings)
        except IndexError:  # likewise
            return None
        return batch
