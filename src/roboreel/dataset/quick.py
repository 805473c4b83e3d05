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
from roboreel.dataset.plan import Plan
from roboreel.store import Store

_MOST_BYTES = 1 << 24
"""That the places of all frames may take: 8 bytes each, made anew after every commit."""
_MOST_BATCH_BYTES = 1 << 17
"""Of a key; larger arrays are worth memory that is used again."""

Take = Callable[..., NDArray[Any]]


class Quick:
    """What a plan reads of a store, as it was at one moment."""

    def __init__(self, store: Store, plan: Plan, windows: object, record: bytes, cells: NDArray[np.int64]) -> None:
        self.store, self.windows, self._record = store, windows, record
        take = {part.key: store.memmap(part.key).take for part in plan.parts}
        single = [part for part in plan.single.parts if not part.spec.is_string]
        self._frames, self._cells, self._strings = len(cells), cells.take, store.strings
        self._as_stored = [(part.key, take[part.key]) for part in single if part.key in plan.single.as_stored]
        self._cast = [(part.key, take[part.key], part.spec.item_dtype) for part in plan.single.cast]
        self._codes = [(key, take[key]) for key in plan.strings]
        assert plan.near_ends is not None
        self._windowed = [
            (taken.take, is_pad.take, [(key, take[key]) for key in group.as_stored], group.masks)
            for group, (taken, is_pad) in zip(plan.windowed, plan.near_ends.tables, strict=True)
        ]
        self._blank: dict[str, Any] = dict.fromkeys(plan.keys)
        self._most = _MOST_BATCH_BYTES // max(1, *(item[3] for item in plan.layout))
        self._from_numpy = require("torch", extra="torch", purpose="reading items as tensors").from_numpy

    @classmethod
    def of(cls, store: Store, plan: Plan, windows: object) -> Self | None:
        """Bind a plan, of these windows, to a store as it is now; None where the other way has to be gone."""
        with store.lock:
            record = store.refresh()
            frames, table = store.state.frames, store.table
            windows_of_strings = any(part.spec.is_string for group in plan.windowed for part in group.parts)
            if (
                plan.cameras
                or not plan.windowed
                or plan.near_ends is None
                or windows_of_strings
                or any(group.cast for group in plan.windowed)
                or not (store.is_quiet and table.integer_windows)
                or not 0 < frames * np.dtype(np.int64).itemsize <= _MOST_BYTES
            ):
                return None
            for key in plan.strings:  # here, once: while nothing is written they stay what they are
                if np.maximum.reduce(store.memmap(key)[:frames].view(np.uint32)) >= len(store.strings):
                    return None  # damaged somewhere: the other way says so where it is read
            starts, stops = table.live_ranges()
            lengths = stops - starts
            slots = np.arange(int(lengths.sum())) + np.repeat(stops - np.cumsum(lengths), lengths)
            cells = np.zeros(frames, np.int64)
            cells[slots] = plan.near_ends.cells(slots, np.repeat(starts, lengths), np.repeat(stops, lengths))
            if not cells.all():  # there are slots that nobody owns
                return None
            return cls(store, plan, windows, record, cells)

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> dict[str, Any] | None:
        """Return the frames of these indices, as `get_batch` does; None where that cannot be told here."""
        store, from_numpy = self.store, self._from_numpy
        slots = within(indices, self._frames)
        if slots is None or len(slots) > self._most:
            return None
        batch = self._blank.copy()
        try:  # without the store's lock, which others would hardly get: what is bound here stays as it was
            if store.record() != self._record:
                return None
            # "clip" because numpy gathers through a second buffer when it has to check the bounds.
            cells = self._cells(slots, 0, None, "clip")
            for key, take in self._as_stored:
                batch[key] = from_numpy(take(slots, 0, None, "clip"))
            for key, take, dtype in self._cast:
                batch[key] = from_numpy(take(slots, 0, None, "clip").astype(dtype))
            for key, take in self._codes:
                batch[key] = take(slots, 0, None, "clip")
            column = slots[:, None]
            for taken, is_pad, keys, masks in self._windowed:
                wanted = taken(cells, 0, None, "clip")
                wanted += column
                for key, take in keys:
                    batch[key] = from_numpy(take(wanted, 0, None, "clip"))
                for key in masks:
                    batch[key] = from_numpy(is_pad(cells, 0, None, "clip"))
            if store.record() != self._record:
                return None
        except (OSError, KeyError):  # closed by another thread
            return None
        for key, _ in self._codes:  # not before: what a writer was at may be no codes
            batch[key] = decoded(batch[key], self._strings)
        return batch
