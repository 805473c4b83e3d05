"""The arrays of one episode in an HDF5 file, by their data keys: columns, images, images in files of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.convert.array_rows import (
    OUTCOME_KEYS,
    ArrayImages,
    ImageLayout,
    Scale,
    check_episode_bytes,
    check_row_bytes,
    image_layout,
    judge_scale,
    outcome,
)
from roboreel.convert.encoded_images import encoded_images
from roboreel.convert.hdf5_files import Hdf5Array
from roboreel.convert.lerobot_layout import Warnings
from roboreel.errors import SourceError
from roboreel.store import CameraFrames

_BLOCK_ROWS = 32
"""Compressed images read at a time."""


@dataclass(frozen=True)
class Hdf5Episode:
    """One episode, none of whose rows is read."""

    where: str
    """The file, and the group where it is in one."""
    length: int
    columns: Mapping[str, Hdf5Array]
    images: Mapping[str, Hdf5Array]
    """(length, height, width, channels) or the like."""
    encoded: Mapping[str, Hdf5Array] = field(default_factory=dict)
    """(length, bytes): image files, filled up with zeros."""
    strings: Mapping[str, str] = field(default_factory=dict)

    def check_sizes(self) -> None:
        """Refuse arrays of other lengths than the episode's, and what memory would not hold."""
        for array in (*self.columns.values(), *self.images.values(), *self.encoded.values()):
            if array.shape[0] != self.length:
                raise SourceError(
                    f"{array.where}: has {array.shape[0]:,} rows, and the actions {self.length:,}; copy the file again"
                )
            check_row_bytes(array)
        check_episode_bytes(self.columns, self.length, self.where)

    def check_same(self, first: Hdf5Episode) -> None:
        """Refuse an episode whose arrays are not those of the first one, but for the number of frames."""
        for mine, others in ((self.columns, first.columns), (self.images, first.images)):
            for key in mine.keys() & others.keys():
                one, other = mine[key], others[key]
                if (one.shape[1:], one.dtype) != (other.shape[1:], other.dtype):
                    raise SourceError(
                        f"{one.where}: holds {one.dtype} {one.shape[1:]} a frame, and {other.where} {other.dtype} "
                        f"{other.shape[1:]}; every episode must have the same"
                    )
        mine_keys = {*self.columns, *self.images, *self.encoded, *self.strings}
        odd = sorted(mine_keys.symmetric_difference({*first.columns, *first.images, *first.encoded, *first.strings}))
        if odd:
            has, lacks = (self.where, first.where) if odd[0] in mine_keys else (first.where, self.where)
            raise SourceError(f"{lacks}: lacks {odd[0]!r}, which {has} has; every episode must have the same arrays")

    def read(self, scales: Mapping[str, tuple[ImageLayout, Scale]]) -> dict[str, Any]:
        """The columns, and what the images are read from when they are needed."""
        found: dict[str, Any] = {key: array.read(0, self.length) for key, array in self.columns.items()}
        found |= {key: outcome(key, found[key], self.columns[key].where) for key in OUTCOME_KEYS if key in found}
        for key, array in self.images.items():
            found[key] = ArrayImages(array, *scales[key], 0, self.length)
        for key, array in self.encoded.items():
            found[key] = _padded_files(array)
        return {**found, **self.strings}


def judge_images(episodes: Sequence[Hdf5Episode], warnings: Warnings) -> dict[str, tuple[ImageLayout, Scale]]:
    """How the images of each camera lie, and what their numbers mean, in all episodes alike."""
    found = {}
    for key, array in episodes[0].images.items():
        layout = image_layout("image", array.shape, array.dtype)
        assert layout is not None  # else it would not be among the images
        scale = Scale.LEVELS
        if array.dtype != np.uint8:
            blocks = (
                one.images[key].read(at, min(at + _BLOCK_ROWS, one.length))
                for one in episodes
                for at in range(0, one.length, _BLOCK_ROWS)
            )
            scale = judge_scale(blocks, array.where)
            warnings.add(f"images {key!r} are {array.dtype} of {scale.value}: made uint8, which is exact")
        found[key] = layout, scale
    return found


def _padded_files(array: Hdf5Array) -> CameraFrames:
    held: tuple[int, NDArray[Any]] | None = None

    def read(i: int) -> bytes:
        nonlocal held
        start = i // _BLOCK_ROWS * _BLOCK_ROWS
        if held is None or held[0] != start:
            held = start, array.read(start, min(start + _BLOCK_ROWS, array.shape[0]))
        data: bytes = held[1][i - start].tobytes()
        return data.rstrip(b"\0")  # neither JPEG nor PNG ends in zeros

    return encoded_images(array.shape[0], read, array.where)
