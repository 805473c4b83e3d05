"""The frames that a sampler may draw: ranges of a dataset's indices, as they were at one moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import EpisodeNotFoundError, InvalidArgumentError

Ints = NDArray[np.int64]


class EpisodeSource(Protocol):
    """What samplers ask of a dataset."""

    @property
    def generation(self) -> int: ...
    @property
    def losses(self) -> int: ...
    @property
    def episode_data_index(self) -> dict[str, Ints]: ...
    def __len__(self) -> int: ...
    def get_data_by_key(self, key: str) -> Any: ...


@dataclass(frozen=True)
class Drawable:
    """One range of indices for each episode of which frames may be drawn, in the order of the episodes; arrays (E,)."""

    generation: int
    starts: Ints
    stops: Ints
    episodes: Ints
    """Their `episode_index`."""
    firsts: Ints
    """The `index` of the frames at `starts`: in a ring, another number than where they stand."""

    @cached_property
    def _ends(self) -> Ints:
        return np.cumsum(self.stops - self.starts, dtype=np.int64)

    @cached_property
    def _by_first(self) -> Ints:
        return np.argsort(self.firsts)

    @property
    def frames(self) -> int:
        """How many frames may be drawn."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def reach(self) -> int:
        """One past the last index."""
        return int(self.stops.max(initial=0))

    def indices(self, positions: Ints) -> Ints:
        """Return the index of each of the frames, counted through all ranges.

        >>> two = Drawable(1, np.array([7, 0]), np.array([9, 3]), np.array([4, 5]), np.array([40, 42]))
        >>> two.indices(np.arange(5)).tolist()
        [7, 8, 0, 1, 2]
        """
        row = np.searchsorted(self._ends, positions, side="right")
        return positions + (self.stops - self._ends)[row]

    def indices_of(self, numbers: Ints) -> Ints:
        """Return where the frames with these numbers, as in the key `index`, stand; -1 where they may not be drawn.

        >>> two = Drawable(1, np.array([7, 0]), np.array([9, 3]), np.array([4, 5]), np.array([40, 42]))
        >>> two.indices_of(np.array([41, 44, 39, 45])).tolist()
        [8, 2, -1, -1]
        """
        if not len(self.firsts):
            return np.full(len(numbers), -1)
        order = self._by_first
        row = order[np.maximum(np.searchsorted(self.firsts, numbers, side="right", sorter=order) - 1, 0)]
        indices = self.starts[row] + numbers - self.firsts[row]
        return np.where((indices >= self.starts[row]) & (indices < self.stops[row]), indices, -1)

    def spread(self, values: NDArray[Any], length: int) -> NDArray[np.float64]:
        """Return for each of `length` indices the value, (E,), of its range; 0 outside of all.

        >>> two = Drawable(1, np.array([3, 0]), np.array([4, 2]), np.array([4, 5]), np.array([40, 42]))
        >>> two.spread(np.array([0.5, 2]), length=5).tolist()
        [2.0, 2.0, 0.0, 0.5, 0.0]
        """
        spread = np.zeros(length)
        spread[self.indices(np.arange(self.frames))] = np.repeat(values, self.stops - self.starts)
        return spread

    @classmethod
    def none(cls) -> Drawable:
        """Nothing at all, as of before there was anything."""
        return cls(-1, *(np.zeros(0, np.int64) for _ in range(4)))

    def to_dict(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name).tolist() for name in ("starts", "stops", "episodes", "firsts")}
        return {"generation": self.generation, **arrays}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Drawable:
        arrays = (np.array(values[name], np.int64) for name in ("starts", "stops", "episodes", "firsts"))
        return cls(values["generation"], *arrays)


_TOLD = 5
"""Episodes that an error names at most."""


@dataclass(frozen=True)
class Choice:
    """What of a dataset is to be drawn from."""

    episodes: Sequence[int] | None = None
    drop_n_first_frames: int = 0
    drop_n_last_frames: int = 0
    max_age: int | None = None

    def __post_init__(self) -> None:
        if self.drop_n_first_frames < 0 or self.drop_n_last_frames < 0:
            raise InvalidArgumentError(
                f"drop_n_first_frames={self.drop_n_first_frames}, drop_n_last_frames={self.drop_n_last_frames}; "
                "both must be 0 or more"
            )
        if self.max_age is not None and self.max_age < 1:
            raise InvalidArgumentError(f"max_age={self.max_age}; the newest 1 frame or more, or None for all, would do")

    def told(self) -> str:
        """What is chosen, as it was typed.

        >>> Choice(episodes=range(8), drop_n_last_frames=7).told()
        'episodes=[0, 1, 2, 3, 4, …], drop_n_last_frames=7'
        """
        given = []
        if self.episodes is not None:
            more = ", …" if len(self.episodes) > _TOLD else ""
            given.append(f"episodes=[{', '.join(map(str, list(self.episodes)[:_TOLD]))}{more}]")
        limits = ("drop_n_first_frames", "drop_n_last_frames", "max_age")
        return ", ".join([*given, *(f"{name}={value}" for name in limits if (value := getattr(self, name)))])

    def look(self, dataset: EpisodeSource) -> Drawable:
        """Return which frames may be drawn now."""
        while True:
            generation = dataset.generation
            found = dataset.episode_data_index
            if dataset.generation == generation:  # else an episode came in between
                break
        return self._restricted(generation, found)

    def _restricted(self, generation: int, found: Mapping[str, Ints]) -> Drawable:
        starts, stops, episodes, firsts = (found[key] for key in ("from", "to", "episode_index", "index"))
        kept = starts + self.drop_n_first_frames
        if self.max_age is not None and len(stops):
            oldest = int((firsts + stops - starts).max()) - self.max_age
            kept = np.maximum(kept, starts + oldest - firsts)
        firsts = firsts + kept - starts
        drawn = kept < stops - self.drop_n_last_frames
        if self.episodes is not None:
            drawn &= np.isin(episodes, self.episodes)
        ends = stops - self.drop_n_last_frames
        return Drawable(generation, kept[drawn], ends[drawn], episodes[drawn], firsts[drawn])


def check_episodes(dataset: EpisodeSource, episodes: Iterable[int]) -> None:
    """Refuse episodes that the dataset does not hold."""
    held = dataset.episode_data_index["episode_index"]
    if missing := sorted(set(episodes) - set(held.tolist())):
        span = f"{held.min()} to {held.max()}" if len(held) else "none"
        raise EpisodeNotFoundError(
            f"episodes {missing[:10]} are not in the dataset, which holds {len(held)} episodes: {span}"
        )
