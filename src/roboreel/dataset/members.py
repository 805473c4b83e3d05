"""Datasets that are read as one: where the frames, and the numbers, of each of them stand among those of all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.dataset.buffers import Room
from roboreel.dataset.dataset import LeRobotDatasetV2
from roboreel.dataset.joint import DATASET_INDEX_KEY, Member
from roboreel.dataset.plan import Plan, Rows
from roboreel.errors import InvalidArgumentError
from roboreel.schema import EPISODE_INDEX_KEY, INDEX_KEY
from roboreel.stats import KeyStats

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Placed:
    """One of the datasets."""

    place: int
    """In the list that was given."""
    dataset: LeRobotDatasetV2
    """For us alone: with the windows, and the keys, that are asked for."""
    first: int
    """The index of its first frame."""
    length: int | None
    """The frames that it had when it was joined; None: it may grow."""
    numbers: dict[str, int]
    """What is added to its `index` and `episode_index`, so that those of all datasets are different."""

    def showing(self, dataset: LeRobotDatasetV2) -> Placed:
        return replace(self, dataset=dataset)

    @property
    def frames(self) -> int:
        return len(self.dataset) if self.length is None else self.length

    @property
    def stop(self) -> int:
        """The index after that of its last frame."""
        return self.first + self.frames

    @property
    def is_made(self) -> bool:
        """Whether there is a dataset yet."""
        return self.dataset._opening.store() is not None

    @property
    def seen(self) -> tuple[object, object, object]:
        """What `described` depends on: other objects where it has changed."""
        store = self.dataset._opening.store()
        return None if store is None else store.manifest, self.dataset._windows, self.dataset._forms

    def described(self) -> Member:
        store = self.dataset._need_store()
        keys, windows = store.manifest.keys, self.dataset._windows.deltas
        plan = Plan.make(keys, keys, windows, self.dataset._forms)
        return Member({part.key: part for part in plan.parts}, windows)

    @property
    def strings(self) -> list[str]:
        store = self.dataset._opening.store()
        return [] if store is None else store.strings

    def fill(self, indices: Ints, rows: Rows, held: int, room: Room) -> list[str]:
        """Read the frames of these indices into their rows of a batch; return what the codes of strings mean."""
        store = self.dataset._fill(indices - self.first, rows, held, room)
        rows.put(DATASET_INDEX_KEY, self.place)
        for key, before in self.numbers.items():
            if before and key in rows.arrays:
                rows.put(key, rows.values(key) + before)
        return store.strings

    # As it was when it was joined

    def _as_joined(self) -> LeRobotDatasetV2:
        """The dataset without what it was given since."""
        if self.length is None or len(self.dataset) == self.length:
            return self.dataset
        ranges = self.dataset.episode_data_index
        return self.dataset.view(ranges[EPISODE_INDEX_KEY][ranges["to"] <= self.length].tolist())

    def episode_data_index(self) -> dict[str, Ints]:
        """As that of the dataset, by its indices and numbers among all."""
        ranges = self.dataset.episode_data_index
        shown = slice(None) if self.length is None else ranges["to"] <= self.length
        found = {"from": ranges["from"][shown] + self.first, "to": ranges["to"][shown] + self.first}
        found |= {key: ranges[key][shown] + self.numbers[key] for key in (EPISODE_INDEX_KEY, INDEX_KEY)}
        return found | {DATASET_INDEX_KEY: np.full(len(found["from"]), self.place)}

    def get_episode(self, episode_index: int, names: Collection[str]) -> dict[str, Any]:
        found = self.dataset.get_episode(episode_index - self.numbers[EPISODE_INDEX_KEY])
        given = {key: found[key] + self.numbers.get(key, 0) if key in self.numbers else found[key] for key in names}
        return given | {DATASET_INDEX_KEY: np.full(len(found[INDEX_KEY]), self.place)}

    def get_data_by_key(self, key: str) -> Any:
        if key == DATASET_INDEX_KEY:
            return np.full(self.frames, self.place)
        values = self.dataset.get_data_by_key(key)[: self.length]
        return values + self.numbers[key] if key in self.numbers else values

    def stats(self) -> dict[str, KeyStats]:
        stats = dict(self._as_joined().stats)
        for key, before in self.numbers.items():
            stats[key] = {
                name: value + before if name in ("mean", "min", "max") else value for name, value in stats[key].items()
            }
        place = np.array(float(self.place))
        count = stats[INDEX_KEY]["count"]
        return stats | {
            DATASET_INDEX_KEY: {"mean": place, "std": np.zeros(()), "min": place, "max": place, "count": count}
        }


def placed(datasets: Sequence[LeRobotDatasetV2]) -> tuple[Placed, ...]:
    """Return the datasets in the order of their indices, one that may grow last.

    Raises:
        InvalidArgumentError: several of them may grow.
    """
    growing = _growing(datasets)
    order = [place for place in range(len(datasets)) if place != growing]
    first, numbers = 0, {INDEX_KEY: 0, EPISODE_INDEX_KEY: 0}
    found = []
    for place in order:
        member = Placed(place, datasets[place], first, len(datasets[place]), dict(numbers))
        found.append(member)
        first = member.stop
        ranges = member.episode_data_index()
        if len(ranges["from"]):
            numbers[INDEX_KEY] = int((ranges[INDEX_KEY] + ranges["to"] - ranges["from"]).max())
            numbers[EPISODE_INDEX_KEY] = int(ranges[EPISODE_INDEX_KEY].max()) + 1
    if growing is not None:
        found.append(Placed(growing, datasets[growing], first, None, numbers))
    return tuple(found)


def _growing(datasets: Sequence[LeRobotDatasetV2]) -> int | None:
    """Return the place of the dataset that may grow; None where none may."""
    whole = [place for place, dataset in enumerate(datasets) if dataset._choice is None]
    rings = [place for place in whole if _may_grow(datasets[place])]
    if len(rings) > 1:
        shown = "\n".join(f"  {place}: {datasets[place].storage_dir}" for place in rings)
        raise InvalidArgumentError(
            f"{len(rings)} of the datasets grow (rings, and such as hold nothing yet), and only the last frames of all "
            "can become more without another index for those of others; give a view of all but one, as "
            f"ring.view(ring.get_unique_episode_indices()):\n{shown}"
        )
    if rings:
        return rings[0]
    last = len(datasets) - 1
    return last if last in whole else None


def _may_grow(dataset: LeRobotDatasetV2) -> bool:
    store = dataset._opening.store()
    return store is None or store.manifest.ring
