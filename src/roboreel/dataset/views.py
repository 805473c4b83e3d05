"""Which episodes a dataset shows, all that are there or some that were chosen; views, which share what is open."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from roboreel.dataset.batch import as_indices, within
from roboreel.dataset.choice import Choice, choose, parse_episodes, split_positions
from roboreel.dataset.episodes import statistics
from roboreel.dataset.recording import Recording
from roboreel.errors import FrameIndexError, ReadOnlyError
from roboreel.schema import EPISODE_INDEX_KEY, INDEX_KEY
from roboreel.stats import KeyStats
from roboreel.store import Store
from roboreel.windows import stretches

Ints = NDArray[np.int64]
Read = TypeVar("Read")


class EpisodeViews(Recording):
    """What is shown of a dataset directory: how many frames, in which episodes."""

    _choice: Choice | None
    """None: all episodes, also those that will be added."""
    _is_view: bool = False
    _stats: tuple[int, dict[str, KeyStats]] | None

    @property
    def num_episodes(self) -> int:
        return len(self.get_unique_episode_indices())

    def __len__(self) -> int:
        store = self._opening.store()
        if store is None:
            return 0
        if self._choice is not None:
            return len(self._choice_in(store))
        store.refresh()
        return store.state.frames

    def get_unique_episode_indices(self) -> Ints:
        """Return the numbers of the episodes of which at least one frame is readable, ascending."""
        store = self._opening.store()
        if store is None:
            return np.zeros(0, np.int64)
        with store.lock:
            store.settle()
            numbers: Ints = np.sort(store.table.rows["episode_index"][self._rows(store)])
        return numbers

    @property
    def episode_data_index(self) -> dict[str, Ints]:
        """Where each episode stands: `dataset[from[k]]` to `dataset[to[k] - 1]`, as in LeRobot; oldest first.

        Of chosen episodes, in the order of the choice. What a ring has overwritten is in none. And what the frame at
        `from` is: its `episode_index` and its `index`.
        """
        keys = ("from", "to", EPISODE_INDEX_KEY, INDEX_KEY)
        store = self._opening.store()
        if store is None:
            return {key: np.zeros(0, np.int64) for key in keys}
        with store.lock:
            store.settle()
            table, rows = store.table, store.table.live
            starts, stops = table.live_starts[rows], table.stops_of(rows)
            if self._choice is not None:
                choice = self._choice_in(store)
                rows = choice.surviving_rows(store)
                starts, stops = choice.ranges(store)
            first = table.rows["first_index"][rows] + table.live_starts[rows] - table.starts[rows]
            return dict(zip(keys, (starts, stops, table.rows["episode_index"][rows], first), strict=True))

    @property
    def stats(self) -> dict[str, KeyStats]:
        """Mean, standard deviation, minimum, maximum and count of each numeric key.

        Of cameras from sampled frames, (C, 1, 1): images in [0, 1], depth in metres over the pixels that were measured.
        """
        store = self._need_store()
        store.refresh()
        if self._stats is None or self._stats[0] != store.state.generation:
            generation = store.state.generation
            self._stats = (generation, self._read(self._held(), statistics))
        return self._stats[1]

    def view(self, episodes: Sequence[int]) -> Self:
        """Return a dataset that shows these episodes only, in this order, and shares what is open with this one.

        Opened files, decoders and caches are the same; `delta_timestamps` and `image_transform` are as they are here,
        and may be set to others. Indices, windows, masks and statistics are those of the chosen episodes, which stay
        the same whatever is added. Where a ring overwrites some of them, the view keeps its length: a lost frame is
        answered by the nearest that survives in the view, `episode_data_index` leaves it out, and when all are gone,
        reading is an `EpisodeNotFoundError`.

        A view is for reading: what changes or copies the directory is asked of the dataset. `close` and `reload` of
        one are those of all.

        >>> import numpy as np, tempfile
        >>> from roboreel import LeRobotDatasetV2
        >>> dataset = LeRobotDatasetV2(tempfile.mkdtemp(), fps=10)
        >>> dataset.add_episodes({"action": np.arange(9), "episode_index": np.repeat([0, 1, 2], [4, 3, 2])})
        >>> view = dataset.view([2, 0])
        >>> view.get_data_by_key("action").tolist()
        [7, 8, 0, 1, 2, 3]

        Args:
            episodes: Their numbers, as `get_unique_episode_indices` gives them.

        Raises:
            EpisodeNotFoundError: one is not here (any more).
            InvalidArgumentError: no list of integers, or one that names an episode twice.
        """
        return self._showing(self._chosen(parse_episodes(episodes)))

    def split(self, *parts: float, shuffle: bool = True, seed: int = 0) -> tuple[Self, ...]:
        """Divide the episodes among views, as `train, rest = dataset.split(0.9)`.

        Each episode is in one of them. `split(0.8, 0.1)` gives three: what the parts leave is the last. Numbers of
        episodes do as well: `split(180)`. Fractions are rounded so that each part is less than one episode off.

        Which episode goes where is a function of `seed` and of the episodes that are there: the same in every process
        and every run, until episodes come or go. Within a part they are in the order in which they are here. The parts
        are as those of `view`: of a ring, they keep the episodes that it holds now.

        >>> import numpy as np, tempfile
        >>> from roboreel import LeRobotDatasetV2
        >>> dataset = LeRobotDatasetV2(tempfile.mkdtemp(), fps=10)
        >>> dataset.add_episodes({"action": np.arange(20), "episode_index": np.repeat(range(10), 2)})
        >>> train, rest = dataset.split(0.8)
        >>> train.num_episodes, rest.num_episodes, len(train), len(rest)
        (8, 2, 16, 4)
        >>> [part.get_unique_episode_indices().tolist() for part in dataset.split(7, 2, shuffle=False)]
        [[0, 1, 2, 3, 4, 5, 6], [7, 8], [9]]

        Args:
            parts: Fractions of the episodes, together at most 1, or numbers of episodes.
            shuffle: Draw the episodes of each part; False: take them in order, the first ones for the first part.
            seed: Another one draws others.

        Raises:
            InvalidArgumentError: a part would be empty, or the parts are more than there is.
        """
        store = self._need_store()
        with store.lock:
            store.settle()
            rows = self._rows(store)
            positions = split_positions(len(rows), parts, shuffle=shuffle, seed=seed)
            return tuple(self._showing(Choice(store, rows[part])) for part in positions)

    def _chosen(self, numbers: Ints) -> Choice:
        """Choose among the episodes that are shown."""
        store = self._need_store()
        with store.lock:
            store.settle()
            return choose(store, numbers, self._rows(store))

    def _showing(self, choice: Choice) -> Self:
        view = copy.copy(self)
        view._choice, view._stats, view._is_view = choice, None, True
        return view

    def _check_no_view(self, what: str) -> None:
        if self._is_view:
            raise ReadOnlyError(
                f"{what} of a view of {self.storage_dir}, which shows {self.num_episodes} episodes of it; call it on "
                "the dataset that the view was made from"
            )

    # What is shown, as the store has it

    def _choice_in(self, store: Store) -> Choice:
        """The choice of a dataset that has one; made anew where another dataset has taken the directory."""
        assert self._choice is not None
        if self._choice.uuid != store.manifest.uuid:
            with store.lock:
                store.settle()
                self._choice = choose(store, self._choice.numbers, store.table.live)
        return self._choice

    def _rows(self, store: Store) -> Ints:
        """The rows of the episodes that are shown and can be read; for who has just settled the store."""
        return store.table.live if self._choice is None else self._choice_in(store).surviving_rows(store)

    def _held(self) -> Ints:
        """The indices of the frames that statistics are over."""
        if self._choice is None:
            return np.arange(len(self))
        ranges = self.episode_data_index
        return stretches(ranges["from"], ranges["to"])

    def _slots(self, store: Store, indices: Sequence[int] | Ints) -> Ints:
        if self._choice is None:
            # Frames never grow fewer: those that there were at the last look are there, and no other look is needed.
            known = within(indices, store.state.frames)
            if known is not None:
                return known
        length = len(self)
        found = as_indices(indices, length)
        if isinstance(found, int):
            raise FrameIndexError(f"index {found} is beyond the ends: the dataset has {length} frames")
        if self._choice is None:
            return found
        with store.lock:
            store.settle()
            return self._choice_in(store).slots(store, found)

    def _read(self, indices: Sequence[int] | Ints, reading: Callable[[Store, Ints], Read]) -> Read:
        """Return what `reading` gives for the slots of the indices."""
        while True:
            store = self._need_store()
            slots = self._slots(store, indices)

            def at(store: Store, slots: Ints = slots) -> Read:
                return reading(store, slots)

            found = self._opening.read(at)
            # A ring may have given them to other episodes in between. It takes each frame once: this ends.
            if self._choice is None or not store.manifest.ring or np.array_equal(self._slots(store, indices), slots):
                return found
