"""What a batch consists of: its keys, how many frames of each a sample has, and the form in which they are given."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.dataset.buffers import Room
from roboreel.errors import InvalidArgumentError
from roboreel.schema import IS_PAD_POSTFIX, KeySpec
from roboreel.windows import Deltas, NearEnds, joined

Arrays = dict[str, NDArray[Any]]
Item = tuple[str, tuple[int, ...], np.dtype[Any], int]
"""Key, shape, dtype and bytes of what one sample has."""
Ints = NDArray[np.int64]

ALIGNMENT = 64
"""Of each array in a slab, in bytes: a cache line."""
_MOST_TABLE_BYTES = 1 << 18
"""Of windows made beforehand: what stays in the processor's cache."""


class Form(enum.Enum):
    """How the values of a key are given."""

    STORED = "as they are stored"
    CAST = "in another dtype"
    UNIT = "pixels as float32 in [0, 1]"
    METRES = "depth as float32 metres"


@dataclass(frozen=True)
class Forms:
    """In which forms images and depth are given.

    Raises:
        InvalidArgumentError: there is no such form.
    """

    image_dtype: str = "float32"
    depth_unit: str = "m"

    def __post_init__(self) -> None:
        if self.image_dtype not in ("float32", "uint8"):
            raise InvalidArgumentError(f"image_dtype={self.image_dtype!r}; 'float32' and 'uint8' would do")
        if self.depth_unit not in ("m", "raw"):
            raise InvalidArgumentError(f"depth_unit={self.depth_unit!r}; 'm' (metres) and 'raw' (as stored) would do")

    def of(self, spec: KeySpec) -> Form:
        if spec.is_depth:
            as_it_is = self.depth_unit == "raw" or (spec.unit == "m" and spec.dtype == np.float32)
            return Form.STORED if as_it_is else Form.METRES
        if spec.is_camera:
            return Form.UNIT if self.image_dtype == "float32" else Form.STORED
        return Form.STORED if spec.item_dtype == spec.dtype else Form.CAST


@dataclass(frozen=True)
class Part:
    """One key of a batch."""

    key: str
    spec: KeySpec
    form: Form = Form.STORED
    steps: int | None = None
    """Frames in the window; None: no window."""

    @cached_property
    def item(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of what a sample has of it."""
        shape = self.spec.shape if self.steps is None else (self.steps, *self.spec.shape)
        if self.form in (Form.UNIT, Form.METRES):
            return shape, np.dtype(np.float32)
        return shape, self.spec.dtype if self.form is Form.STORED else self.spec.item_dtype

    @cached_property
    def mask_key(self) -> str:
        return self.key + IS_PAD_POSTFIX


@dataclass(frozen=True)
class Group:
    """Keys of which the same frames are taken."""

    parts: tuple[Part, ...]
    deltas: Deltas | None = None
    columns: slice = field(default_factory=lambda: slice(0, 0))
    """Where its offsets stand in those of all windows."""

    @cached_property
    def as_stored(self) -> tuple[str, ...]:
        """Those, cameras apart, of which a gather gives what a batch has."""
        return tuple(part.key for part in self.parts if not part.spec.is_camera and part.form is Form.STORED)

    @cached_property
    def cast(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if not part.spec.is_camera and part.form is Form.CAST)

    @cached_property
    def cameras(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.spec.is_camera)

    @cached_property
    def masks(self) -> tuple[str, ...]:
        return tuple(part.mask_key for part in self.parts)

    @cached_property
    def needs_decoding(self) -> bool:
        return any(part.spec.needs_decoding for part in self.parts)


@dataclass(frozen=True)
class Plan:
    """The parts of a batch, grouped by the frames that they take."""

    parts: tuple[Part, ...]
    single: Group
    windowed: tuple[Group, ...]
    deltas: Deltas | None
    """The offsets of all windows, one group after the other; None without windows."""

    @classmethod
    def make(
        cls, keys: Mapping[str, KeySpec], names: Iterable[str], deltas: Mapping[str, Deltas], forms: Forms | None
    ) -> Plan:
        """Plan for the keys of these names; without `forms`, all of them as they are stored."""
        parts = []
        for key in names:
            form = Form.STORED if forms is None else forms.of(keys[key])
            parts.append(Part(key, keys[key], form, len(deltas[key]) if key in deltas else None))
        grouped: dict[bytes, list[Part]] = {}
        for part in parts:
            if part.steps is not None:
                grouped.setdefault(deltas[part.key].signature, []).append(part)
        groups, at = [], 0
        for same in grouped.values():
            of_group = deltas[same[0].key]
            groups.append(Group(tuple(same), of_group, slice(at, at + len(of_group))))
            at += len(of_group)
        all_deltas = joined([group.deltas for group in groups if group.deltas is not None])
        single = Group(tuple(part for part in parts if part.steps is None))
        return cls(tuple(parts), single, tuple(groups), all_deltas)

    @cached_property
    def strings(self) -> tuple[str, ...]:
        return tuple(part.key for part in self.parts if part.spec.is_string)

    @cached_property
    def cameras(self) -> tuple[str, ...]:
        return tuple(part.key for part in self.parts if part.spec.is_camera)

    @cached_property
    def items(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and dtype of what a sample has, by key; the masks come last."""
        found = {part.key: part.item for part in self.parts}
        return found | {part.mask_key: ((part.steps,), np.dtype(bool)) for part in self.parts if part.steps is not None}

    @cached_property
    def near_ends(self) -> NearEnds | None:
        """The windows of the groups, made beforehand; None where that would take too much memory."""
        return NearEnds.of([group.deltas for group in self.windowed if group.deltas is not None], _MOST_TABLE_BYTES)

    @cached_property
    def is_quick(self) -> bool:
        """Whether it is of numbers alone, with windows that are made beforehand, and these as they are stored."""
        in_windows = [part for group in self.windowed for part in group.parts]
        return (
            bool(in_windows)
            and not self.cameras
            and not any(part.spec.is_string or part.form is not Form.STORED for part in in_windows)
            and self.near_ends is not None
        )

    @cached_property
    def largest_bytes(self) -> int:
        """Of the arrays of a sample."""
        return max(1, *(nbytes for _, _, _, nbytes in self.layout))

    def nbytes(self, samples: int) -> int:
        """Bytes that the arrays of a batch take in a slab."""
        return sum(aligned(samples * nbytes) for _, _, _, nbytes in self.layout)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Of a batch, in their order."""
        return tuple(self.items)

    def arrays(self, samples: int, room: Room) -> Arrays:
        """Return arrays, (samples, …) each, to be filled; those that a gather may as well make itself are left out."""
        largest, others = self._gathered
        layout = others if samples * largest < room.least_bytes else self.layout
        return {key: room.empty((samples, *shape), dtype, samples * nbytes) for key, shape, dtype, nbytes in layout}

    def complete(self, arrays: Arrays, samples: int) -> None:
        """Add the arrays that were left out, for those who fill them in parts."""
        for key, shape, dtype, _ in self.layout:
            if key not in arrays:
                arrays[key] = np.empty((samples, *shape), dtype)

    @cached_property
    def _gathered(self) -> tuple[int, tuple[Item, ...]]:
        """Of the keys of which a gather gives what a batch has, the most bytes of a sample; and all other keys."""
        masks = [part.mask_key for part in self.parts if part.steps is not None]
        gathered = {*masks, *(key for group in (self.single, *self.windowed) for key in group.as_stored)}
        largest = max((nbytes for key, _, _, nbytes in self.layout if key in gathered), default=0)
        return largest, tuple(item for item in self.layout if item[0] not in gathered)

    @cached_property
    def layout(self) -> tuple[Item, ...]:
        """Key, shape, dtype and bytes of what one sample has."""
        return tuple(
            (key, shape, dtype, dtype.itemsize * math.prod(shape)) for key, (shape, dtype) in self.items.items()
        )


@dataclass(slots=True)  # not frozen, which takes three times as long to make
class Rows:
    """The rows of a batch's arrays, (B, …), that samples go to: all of them in turn, or those that `at` names."""

    arrays: Arrays
    at: Ints | None = None
    """Different ones, ascending; other datasets fill the rest."""

    @classmethod
    def of(cls, arrays: Arrays, at: Ints) -> Rows:
        """The rows `at`, at least one; where one follows the other they are a batch of their own."""
        first, stop = int(at[0]), int(at[-1]) + 1
        return cls(arrays, at) if stop - first > len(at) else cls(arrays)[first:stop]

    def __getitem__(self, part: slice) -> Rows:
        if self.at is None:
            return Rows({key: array[part] for key, array in self.arrays.items()})
        return Rows(self.arrays, self.at[part])

    def frames(self, part: Part) -> tuple[NDArray[Any], Ints | None]:
        """Return all frames of a key, (N, *shape), and the numbers of those that are ours; None: all of them."""
        array, at = self.arrays[part.key], self.at
        if part.steps is None:
            return array, at
        frames = array.reshape(len(array) * part.steps, *part.spec.shape)
        return frames, None if at is None else (at[:, None] * part.steps + np.arange(part.steps)).reshape(-1)

    def values(self, key: str) -> NDArray[Any]:
        """What a key's array has in these rows."""
        return self.arrays[key] if self.at is None else self.arrays[key][self.at]

    def put(self, key: str, values: NDArray[Any] | int) -> None:
        """Copy values into these rows."""
        if self.at is None and key not in self.arrays:
            self.arrays[key] = np.array(values, order="C")
        else:
            self.arrays[key][... if self.at is None else self.at] = values


def aligned(nbytes: int) -> int:
    """Return the bytes that an array takes in a slab.

    >>> aligned(1), aligned(64)
    (64, 64)
    """
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
