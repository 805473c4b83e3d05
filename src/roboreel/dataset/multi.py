"""`MultiLeRobotDatasetV2`: several datasets, a live ring among them, read as one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from roboreel.dataset import slabs
from roboreel.dataset.batch import BlockBatch, as_indices, to_tensors
from roboreel.dataset.buffers import Buffers
from roboreel.dataset.by_index import ByIndex
from roboreel.dataset.dataset import DeltaTimestamps, LeRobotDatasetV2
from roboreel.dataset.episodes import episode_not_found
from roboreel.dataset.joint import DATASET_INDEX_KEY, Joint, joined_stats, same
from roboreel.dataset.members import Placed, placed
from roboreel.dataset.plan import Rows
from roboreel.dataset.reading import OnHole
from roboreel.dataset.transforms import transform_images
from roboreel.errors import FrameIndexError, InvalidArgumentError, RoboreelWarning, UnknownKeyError
from roboreel.schema import EPISODE_INDEX_KEY
from roboreel.stats import KeyStats
from roboreel.windows import tolerance_s

Ints = NDArray[np.int64]


class MultiLeRobotDatasetV2(ByIndex):
    """Datasets, views, and at most one that grows, read as one: `dataset[i]`, batches, samplers, loaders.

    An item has the keys that all of them have alike (shape, dtype, window), and `dataset_index`, the place of its
    dataset in the list. A warning names the other keys, and why. A batch reads each dataset once, straight into the
    rows of the batch that are its own.

    >>> import numpy as np, tempfile
    >>> from roboreel import LeRobotDatasetV2
    >>> arms = []
    >>> for length in (3, 2):
    ...     arms.append(LeRobotDatasetV2(tempfile.mkdtemp(), fps=10))
    ...     arms[-1].add_episodes({"action": np.arange(length, dtype=np.float32)})
    >>> both = MultiLeRobotDatasetV2(arms)
    >>> batch = both.get_batch([4, 0, 3])
    >>> batch["action"].tolist(), batch["dataset_index"].tolist()
    ([1.0, 0.0, 0.0], [1, 0, 1])
    >>> batch["episode_index"].tolist(), batch["index"].tolist()
    ([1, 0, 1], [4, 0, 3])

    Indices stay what they are while a ring is written: its frames come last, wherever it stands in the list. Of the
    others what they held when they were joined is shown; where none is a ring, the last one of the list, if it is no
    view, may grow as well. `episode_index` and `index` tell episodes and frames of all datasets apart: those of each
    dataset go on where the ones of the dataset before it, in the order of the indices, end. Other numbers, such as
    LeRobot's `task_index`, stay what they are in their dataset; `task` says the same in all.

    Windows are those of the datasets when they were joined, or what `set_delta_timestamps` says to all of them. They
    are in seconds, and so may mix datasets of several frame rates, which is warned of. What is open stays shared.
    """

    def __init__(self, datasets: Sequence[LeRobotDatasetV2]) -> None:
        """Join the datasets.

        Args:
            datasets: Datasets and views of them: what is divided, or left out, is so before it is joined.

        Raises:
            InvalidArgumentError: none, or something else than datasets; several of them that grow; cameras that are
                given as float32 by some and as uint8 by others, or transformed in several ways.
        """
        if isinstance(datasets, ByIndex | str | Path):  # which are sequences, too
            raise InvalidArgumentError(f"{datasets!r} is no list of datasets; type MultiLeRobotDatasetV2([one, other])")
        self.datasets = tuple(datasets)
        """As they were given."""
        _check(self.datasets)
        self._members = placed(self.datasets)
        """In the order of the indices."""
        self.image_transform = _agreed(
            self.datasets,
            lambda dataset: dataset.image_transform,
            "the image_transform",
            "type dataset.image_transform = …, the same function, for each",
        )
        dtype = _agreed(
            self.datasets,
            lambda dataset: dataset.image_dtype,
            "the image_dtype",
            'give dataset.images_as("uint8"), or "float32", of each',
        )
        self._members = tuple(member.showing(member.dataset.images_as(dtype)) for member in self._members)
        self._buffers = Buffers()
        self._compared: _Compared | None = None
        self._left_out: frozenset[str] = frozenset()
        """The keys that were warned of."""
        self._strings: tuple[list[list[str]], list[str], list[int]] | None = None
        self._now()
        self._warn_of_rates()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compared": None, "_strings": None}

    def __repr__(self) -> str:
        return f"MultiLeRobotDatasetV2({list(self.datasets)}: {self.num_episodes} episodes, {len(self)} frames)"

    # What there is

    def __len__(self) -> int:
        return self._members[-1].stop

    @property
    def num_episodes(self) -> int:
        return len(self.episode_data_index["from"])

    @property
    def generation(self) -> int:
        """Counts the commits of all: while it stays the same, so do all frames that are left."""
        return sum(member.dataset.generation for member in self._members)

    @property
    def losses(self) -> int:
        """Counts how often frames of any of them were found lost with a writer that died."""
        return sum(member.dataset.losses for member in self._members)

    @property
    def fps(self) -> float | None:
        """Frames a second (Hz); None where the datasets have several frame rates."""
        return same([member.dataset.fps for member in self._members])

    @property
    def tolerance_s(self) -> float | None:
        """As that of the datasets; None where they have several frame rates."""
        return None if self.fps is None else tolerance_s(self.fps)

    @property
    def data_keys(self) -> list[str]:
        """The keys that all have alike, and `dataset_index`."""
        return [*self._now().joint.names, DATASET_INDEX_KEY]

    @property
    def camera_keys(self) -> list[str]:
        return list(self._now().joint.plan.cameras)

    @property
    def episode_data_index(self) -> dict[str, Ints]:
        """Where each episode stands, as that of one dataset, and its `dataset_index`."""
        parts = [member.episode_data_index() for member in self._members]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def get_unique_episode_indices(self) -> Ints:
        """Return the numbers of the episodes of which at least one frame is readable, ascending."""
        return np.sort(self.episode_data_index[EPISODE_INDEX_KEY])

    @property
    def stats(self) -> dict[str, KeyStats]:
        """Those of one dataset over all frames of all, for each numeric key that they have alike.

        A camera's, which come from sampled frames, and depth weigh each dataset by its number of frames.
        """
        joint = self._now().joint
        parts = [(member.frames, member.stats()) for member in self._members if member.frames]
        return {
            key: joined_stats([(frames, stats[key]) for frames, stats in parts])
            for key in (*joint.names, DATASET_INDEX_KEY)
            if all(key in stats for _, stats in parts) and parts
        }

    # Reading

    def get_episode(self, episode_index: int) -> dict[str, Any]:
        """Return one episode, by its number here, as that of one dataset; of the keys that all have alike.

        Raises:
            EpisodeNotFoundError: no dataset holds it (any more).
        """
        for member in self._members:
            if episode_index in member.episode_data_index()[EPISODE_INDEX_KEY]:
                return member.get_episode(episode_index, self._now().joint.names)
        raise episode_not_found(episode_index, self.get_unique_episode_indices())

    def get_data_by_key(self, key: str) -> Any:
        """Return all frames of a key as an array (frames, *shape), row i belonging to `dataset[i]`.

        Raises:
            UnknownKeyError: not all datasets have the key alike.
            InvalidArgumentError: the key is a camera whose frames would all have to be decoded.
        """
        if key not in self.data_keys:
            raise UnknownKeyError(f"no key {key!r}; what the datasets have alike is {self.data_keys}")
        parts = [member.get_data_by_key(key) for member in self._members if member.is_made]
        if parts and isinstance(parts[0], list):
            return [text for part in parts for text in part]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _assembled(
        self, indices: Sequence[int] | Ints, *, single: bool = False, to_send: bool = False
    ) -> dict[str, Any]:
        found = as_indices(indices, len(self))
        if isinstance(found, int):
            raise FrameIndexError(f"index {found} is beyond the ends: the joined datasets have {len(self)} frames")
        held = indices.episodes if isinstance(indices, BlockBatch) else 0
        self._buffers.next_round()
        now = self._now()
        plan = now.joint.plan
        at_once = to_send and self.image_transform is None  # else what is sent is there only after it
        room = slabs.room_to_send(plan.nbytes(len(found))) if at_once else None
        arrays = plan.arrays(len(found), room or self._buffers)
        plan.complete(arrays, len(found))
        tables = [member.strings for member in now.members]
        shares = list(self._shares(found))
        for number, at in shares:
            tables[number] = now.members[number].fill(found[at], Rows.of(arrays, at), held, self._buffers)
        strings = self._told([arrays[key] for key in plan.strings], shares, tables)
        batch = to_tensors(plan, arrays, strings, single=single)
        if self.image_transform is not None:
            room = slabs.room_as_before() if to_send else None
            keys = {part.key: part.spec for part in plan.parts}
            transform_images(batch, keys, self.image_transform, room or self._buffers)
        return slabs.to_send(batch, room) if to_send else batch

    def _shares(self, indices: Ints) -> Iterator[tuple[int, Ints]]:
        """Yield the members that a batch has frames of, and which of its rows these are."""
        firsts = [member.first for member in self._members[1:]]
        number = np.searchsorted(firsts, indices, side="right") if firsts else np.zeros(len(indices), np.int64)
        for k in np.flatnonzero(np.bincount(number, minlength=1)).tolist():
            yield k, np.flatnonzero(number == k)

    def _told(self, codes: Sequence[Ints], shares: Sequence[tuple[int, Ints]], tables: list[list[str]]) -> list[str]:
        """Have codes of strings, (B, …) each, be those of one table of all members' strings, and return it."""
        if not codes:
            return []
        known = self._strings
        if known is None or not all(one is other for one, other in zip(known[0], tables, strict=True)):
            before = np.cumsum([0, *(len(table) for table in tables)]).tolist()
            known = self._strings = (tables, [text for table in tables for text in table], before)
        for array in codes:
            for number, at in shares:
                array[at] += known[2][number]
        return known[1]

    # What samples have

    def _now(self) -> _Compared:
        """What the datasets have alike now: one that is yet to be made, or is made anew, may change it."""
        seen: list[object] = [look for member in self._members for look in member.seen]
        known = self._compared
        if known is None or not all(one is other for one, other in zip(known.seen, seen, strict=True)):
            joint = Joint.of({member.place: member.described() for member in self._members if member.is_made})
            members = [member.showing(member.dataset._giving(joint.names)) for member in self._members]
            known = self._compared = _Compared(seen, joint, members)
            if set(joint.left_out) - self._left_out:
                warnings.warn(joint.text(), RoboreelWarning, stacklevel=3)
            self._left_out = self._left_out | set(joint.left_out)
        return known

    def _warn_of_rates(self) -> None:
        if self.fps is None and len(self._members) > 1:
            rates = {member.place: member.dataset.fps for member in self._members}
            shown = ", ".join(f"{rates[place]:g} Hz in {place}" for place in sorted(rates))
            warnings.warn(
                f"the datasets have several frame rates ({shown}): windows are in seconds, and so take in more frames "
                "of one than of another",
                RoboreelWarning,
                stacklevel=3,
            )

    @property
    def delta_timestamps(self) -> dict[str, NDArray[np.float64]] | None:
        names = self._now().joint.names
        given = next((member.dataset.delta_timestamps for member in self._members if member.is_made), None) or {}
        return {key: seconds for key, seconds in given.items() if key in names} or None

    def set_delta_timestamps(self, delta_timestamps: DeltaTimestamps | None, *, on_hole: OnHole = "raise") -> None:
        """Choose the frames (offsets in s) that each key gives around a frame, for all datasets at once.

        See `LeRobotDatasetV2.set_delta_timestamps`. The datasets that were joined keep theirs.
        """
        before = self._members
        changed = tuple(member.showing(copy.copy(member.dataset)) for member in before)
        for member in changed:
            member.dataset.set_delta_timestamps(delta_timestamps, on_hole=on_hole)
        self._members = changed
        names = self._now().joint.names
        if left_out := [key for key in delta_timestamps or {} if key not in names]:
            self._members = before
            raise UnknownKeyError(
                f"delta_timestamps has the keys {left_out}; what the datasets have alike is {list(names)}"
            )

    @property
    def image_dtype(self) -> str:
        """How images are given: "float32" in [0, 1], or "uint8"."""
        return self._members[0].dataset.image_dtype

    def images_as(self, image_dtype: str) -> Self:
        """Return the same datasets joined, sharing what is open, that give images as "uint8" or "float32"."""
        other = copy.copy(self)
        other._members = tuple(member.showing(member.dataset.images_as(image_dtype)) for member in self._members)
        other._buffers, other._compared = Buffers(), None
        return other

    # Opening anew

    def reload(self) -> None:
        """Open all directories anew, taking what other processes changed."""
        for dataset in self.datasets:
            dataset.reload()

    def close(self) -> None:
        """Close all datasets; reading on opens them again."""
        for dataset in self.datasets:
            dataset.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Compared:
    """What the datasets have alike, as they were at one moment."""

    seen: list[object]
    joint: Joint
    members: list[Placed]
    """Giving these keys alone."""


def _check(datasets: Sequence[object]) -> None:
    if not datasets:
        raise InvalidArgumentError("no dataset to join; type MultiLeRobotDatasetV2([one, other])")
    for place, dataset in enumerate(datasets):
        if isinstance(dataset, MultiLeRobotDatasetV2):
            raise InvalidArgumentError(f"dataset {place} is joined datasets itself; give those: [*joined.datasets, …]")
        if not isinstance(dataset, LeRobotDatasetV2):
            raise InvalidArgumentError(
                f"dataset {place} is {dataset!r}; a LeRobotDatasetV2 would do: type LeRobotDatasetV2(storage_dir)"
            )


def _agreed(datasets: Sequence[LeRobotDatasetV2], told: Callable[[LeRobotDatasetV2], Any], of: str, advice: str) -> Any:
    """Return what is the same for all datasets that have cameras, or may have some."""
    having = [dataset for dataset in datasets if dataset.camera_keys or not dataset.data_keys] or datasets[:1]
    first, *others = map(told, having)
    for other in others:
        if other is not first and other != first:
            raise InvalidArgumentError(f"{of} of one dataset is {first!r}, that of another {other!r}; {advice}")
    return first
