"""The shortest way to a batch of windows: numbers alone, of regular episodes, as long as nobody writes.

What `reading` settles for each batch is settled beforehand here: which frames the window of each frame takes, and where
they lie. It gives the same batch, or None; then `reading` is the way. It is of one state of the live record, which a
commit changes, and so does the beginning of a write.
"""

from __future__ import annotations

from collections.abc import Sequence
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

Ints = NDArray[np.int64]


class Quick:
    """What a plan reads of a store, as it was at one moment."""

    def __init__(self, store: Store, plan: Plan, windows: object, record: bytes, places: Places) -> None:
        self.store, self.windows, self._record = store, windows, record
        column = {part.key: store.memmap(part.key) for part in plan.parts}
        self._frames, self._places, self._strings = store.state.frames, places, store.strings
        numbers = [key for key in plan.single.as_stored if key not in plan.strings]
        self._as_stored = [(key, column[key], column[key].take) for key in numbers]
        self._cast = [(part.key, column[part.key], part.spec.item_dtype) for part in plan.single.cast]
        self._codes = [(key, column[key].view(np.uint32)) for key in plan.strings]  # damaged ones are below 0, too
        self._windowed = [
            ([(key, column[key].take) for key in group.as_stored], group.masks[0], group.masks[1:])
            for group in plan.windowed
        ]
        self._blank: dict[str, Any] = dict.fromkeys(plan.keys)
        self._most = self.most_samples(plan)
        self._from_numpy = require("torch", extra="torch", purpose="reading items as tensors").from_numpy

    @staticmethod
    def most_samples(plan: Plan) -> int:
        """How many samples a batch may have: arrays that are larger than a few pages are worth memory used again."""
        return Buffers.least_bytes // plan.largest_bytes

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
            for key, _, take in self._as_stored:  # "clip": to check bounds numpy gathers through a second buffer
                batch[key] = from_numpy(take(slots, 0, None, "clip"))
            for key, column, dtype in self._cast:
                batch[key] = from_numpy(column.take(slots, 0, None, "clip").astype(dtype))
            for key, codes in self._codes:
                batch[key] = codes.take(slots, 0, None, "clip")
            for (wanted, is_pad), (keys, mask, masks) in zip(self._places.windows(slots), self._windowed, strict=True):
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

    def item(self, slot: Any) -> dict[str, Any] | None:
        """Return one frame, as `dataset[i]` does; None where that cannot be told here."""
        if type(slot) is not int or not 0 <= slot < self._frames:
            return None
        batch, from_numpy = self._blank.copy(), self._from_numpy
        try:
            for key, column, _ in self._as_stored:  # with the dots an array, also without any axis
                batch[key] = from_numpy(column[slot, ...].copy())
            for key, column, dtype in self._cast:
                batch[key] = from_numpy(column[slot, ...].astype(dtype))
            for key, codes in self._codes:
                batch[key] = codes[slot, ...].copy()
            for (wanted, is_pad), (keys, mask, masks) in zip(self._places.window(slot), self._windowed, strict=True):
                for key, take in keys:
                    batch[key] = from_numpy(take(wanted, 0, None, "clip"))
                for key in (mask, *masks):
                    batch[key] = from_numpy(is_pad.copy())
            if self.store.record() != self._record:
                return None
        except (OSError, KeyError):
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
