"""Episodes chosen from a store: which index is which slot, also after a ring has overwritten some of them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import EpisodeNotFoundError, InvalidArgumentError
from roboreel.store import Store

Ints = NDArray[np.int64]

_ROUNDING = 1e-6
"""0.7 + 0.2 + 0.1 is not 1 in binary, and less so in float32."""


class Choice:
    """Episodes one after the other, as much of each as could be read when they were chosen.

    Indices stay what they are, as loaders hold them. A ring takes an episode from its beginning on: of a frame that is
    gone, the nearest index that is not answers.

    Pickles without the store; another process finds the same episodes in its own.
    """

    def __init__(self, store: Store, rows: Ints) -> None:
        """Choose the episodes of these rows of the table, in this order; for who has just settled the store."""
        table = store.table
        self.uuid = store.manifest.uuid
        self.numbers: Ints = table.rows["episode_index"][rows]
        self.starts: Ints = table.live_starts[rows]
        self.stops: Ints = table.stops_of(rows)
        self._bound: tuple[weakref.ref[Store], Ints] | None = (weakref.ref(store), rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bound": None}

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @cached_property
    def ends(self) -> Ints:
        """For each episode the index after that of its last frame."""
        ends: Ints = np.cumsum(self.stops - self.starts, dtype=np.int64)
        return ends

    def _rows(self, store: Store) -> Ints:
        """The rows of the episodes in the table of this store, -1 for those that it holds no more."""
        bound = self._bound
        if bound is None or bound[0]() is not store:
            rows = rows_of_episodes(store, self.numbers, store.table.live)
            moved = (rows >= 0) & (store.table.stops_of(rows) != self.stops)
            bound = self._bound = (weakref.ref(store), np.where(moved, -1, rows))
        return bound[1]

    def _first_surviving(self, store: Store, of: Any = slice(None)) -> Ints:
        """The first slot that survives of all episodes, or of some of them; where none does, the one after the last."""
        rows = self._rows(store)[of]
        first: Ints = np.where(rows < 0, self.stops[of], store.table.live_starts[rows])
        return first

    def slots(self, store: Store, indices: Ints) -> Ints:
        """Return the slots of indices from 0 to length - 1.

        Raises:
            EpisodeNotFoundError: nothing of the episodes survives.
        """
        episode = np.searchsorted(self.ends, indices, side="right")
        slots = indices - self.ends[episode] + self.stops[episode]
        if not np.any(slots < self._first_surviving(store, episode)):
            return slots
        first, ends, alive = self._surviving(store)
        if not len(alive):
            raise EpisodeNotFoundError(
                f"{store.root}: all {len(self.numbers)} episodes that were chosen have been overwritten; choose others "
                "out of dataset.get_unique_episode_indices() of the whole dataset"
            )
        indices = nearest_in_ranges(indices, first, ends)
        alive = alive[np.searchsorted(ends, indices, side="right")]
        return indices - self.ends[alive] + self.stops[alive]

    def _surviving(self, store: Store) -> tuple[Ints, Ints, Ints]:
        """First index, index after the last, and place among the chosen, of those episodes that have a frame left."""
        first = self._first_surviving(store)
        alive = np.flatnonzero(first < self.stops)
        return (self.ends - self.stops + first)[alive], self.ends[alive], alive

    def ranges(self, store: Store) -> tuple[Ints, Ints]:
        """Return the first index that survives of each episode of which one does, and the one after its last."""
        return self._surviving(store)[:2]

    def surviving_rows(self, store: Store) -> Ints:
        """Return the rows of those episodes that have a frame left, in the order of the choice."""
        return self._rows(store)[self._surviving(store)[2]]


def nearest_in_ranges(indices: Ints, starts: Ints, stops: Ints) -> Ints:
    """Return for each index the nearest one that lies in a range; the earlier of two. The ranges are ascending.

    >>> nearest_in_ranges(np.arange(9), np.array([2, 6]), np.array([4, 7])).tolist()
    [2, 2, 2, 3, 3, 6, 6, 6, 6]
    """
    following = np.searchsorted(stops, indices, side="right")
    after = np.maximum(starts[np.minimum(following, len(starts) - 1)], indices)
    before = stops[np.maximum(following - 1, 0)] - 1
    take_before = (following == len(stops)) | ((following > 0) & (indices - before <= after - indices))
    return np.where(take_before, before, after)


def parse_episodes(episodes: Any) -> Ints:
    """Return the numbers of episodes out of any sequence of integers.

    >>> parse_episodes(range(3)).tolist(), parse_episodes([]).tolist()
    ([0, 1, 2], [])
    """
    numbers = np.asarray(episodes)
    if numbers.size == 0 and numbers.ndim == 1:
        return np.zeros(0, np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise InvalidArgumentError(f"episodes={episodes!r}; a list of episode numbers, such as [0, 3, 4], would do")
    seen, counts = np.unique(numbers, return_counts=True)
    if twice := seen[counts > 1].tolist():
        raise InvalidArgumentError(f"episodes= names episode {twice[0]} twice; name each once")
    return numbers.astype(np.int64)


def choose(store: Store, numbers: Ints, among: Ints) -> Choice:
    """Choose the episodes of these numbers, in this order, among rows; for who has just settled the store.

    Raises:
        EpisodeNotFoundError: the dataset does not hold one of them (any more).
    """
    rows = rows_of_episodes(store, numbers, among)
    if np.any(rows < 0):
        held = store.table.rows["episode_index"][among]
        span = f": {held.min()} to {held.max()}" if len(held) else ""
        raise EpisodeNotFoundError(
            f"episodes {numbers[rows < 0][:10].tolist()} are not in the dataset, which holds {len(held)} episodes{span}"
        )
    return Choice(store, rows)


def rows_of_episodes(store: Store, numbers: Ints, among: Ints) -> Ints:
    """Return the row of each episode, out of the rows of some that can be read; -1 where it is not among them."""
    if not len(among):
        return np.full(len(numbers), -1)
    held = store.table.rows["episode_index"][among]
    order = np.argsort(held, kind="stable")
    at = order[np.minimum(np.searchsorted(held, numbers, sorter=order), len(order) - 1)]
    return np.where(held[at] == numbers, among[at], -1)


def split_positions(count: int, parts: Sequence[Any], *, shuffle: bool, seed: Any) -> list[Ints]:
    """Return which of `count` episodes each part has, ascending; see `LeRobotDatasetV2.split`.

    >>> [part.tolist() for part in split_positions(10, [0.75], shuffle=False, seed=0)]
    [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]
    """
    if not (_is_count(seed) and 0 <= seed < 1 << 63):
        raise InvalidArgumentError(f"seed={seed!r}; give an integer from 0 to 2**63 - 1")
    sizes = part_sizes(count, parts)
    # Bits, not numpy's permutation: those are the same in each version of numpy.
    bits = np.random.Philox(key=[int(seed), 0]).random_raw(count)
    order = np.argsort(bits, kind="stable") if shuffle else np.arange(count)
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]


def part_sizes(count: int, parts: Sequence[Any]) -> list[int]:
    """Return of how many of `count` episodes each part is, the rest that they leave being one more.

    >>> part_sizes(206, [0.9]), part_sizes(10, [0.8, 0.1, 0.1]), part_sizes(10, [7])
    ([185, 21], [8, 1, 1], [7, 3])

    Raises:
        InvalidArgumentError: no fractions and no counts, more than there is, or a part without an episode.
    """
    shown = f"split({', '.join(map(str, parts))})"
    whole = [_is_count(part) for part in parts]
    fits = [
        (is_count or isinstance(part, float | np.floating)) and part > 0
        for part, is_count in zip(parts, whole, strict=True)
    ]
    if not parts or not all(fits) or len(set(whole)) != 1:
        raise InvalidArgumentError(
            f"{shown}: the parts are all fractions, as split(0.8, 0.1), or all numbers of episodes, as split(180, 20); "
            "what they leave is one part more"
        )
    total = float(sum(map(float, parts)))
    most = count if whole[0] else 1
    if total > most + _ROUNDING:
        raise InvalidArgumentError(f"{shown}: that is {total:g} together, and there is {most} ({count} episodes)")
    leaves = total < most - _ROUNDING
    if not leaves and len(parts) == 1:
        raise InvalidArgumentError(f"{shown} leaves nothing for another part; type split(0.9)")
    shares = [*map(float, parts), *([most - total] if leaves else [])]
    sizes = [round(share) for share in shares] if whole[0] else _rounded(np.array(shares) * count)
    if 0 in sizes:
        advice = f"type numbers of episodes, as split({count - 1})" if count > 1 else "there are too few to be split"
        raise InvalidArgumentError(f"{shown} of {count} episodes gives {sizes}: a part without an episode; {advice}")
    return sizes


def _rounded(shares: NDArray[np.float64]) -> list[int]:
    """Round to whole numbers of the same sum, each by less than one; the largest fractions up, the earlier of equals.

    >>> _rounded(np.array([2.5, 2.5, 1.0]))
    [3, 2, 1]
    """
    down = np.floor(shares + _ROUNDING)
    missing = round(float(shares.sum() - down.sum()))
    down[np.argsort(np.round(down - shares, 6), kind="stable")[:missing]] += 1
    return [int(size) for size in down]


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
