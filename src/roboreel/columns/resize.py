"""Frames at another size, made once, on their way in: colours by a filter, depth by the nearest pixel.

Colours go through Pillow's bilinear filter, which is antialiased: all pixels that fall into a new one are weighed. The
mean of distances, though, is one where nothing is: half-way between the cup and the wall behind it. Depth therefore
takes the pixel under the centre of the new one. That is Pillow's NEAREST, in integers: where a centre lies exactly
between two pixels, Pillow's answer depends on how its sums are rounded, and differs from one image mode to the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.columns.frames import CameraFrames
from roboreel.errors import InvalidEpisodeError
from roboreel.schema import Resizing

_THREADS = min(4, os.cpu_count() or 1)
"""Pillow lets go of the interpreter while it computes."""


@dataclass(frozen=True)
class ResizedFrames(CameraFrames):
    """The frames of `source` at `size` = (height, width) pixels."""

    source: CameraFrames
    size: tuple[int, int]
    method: str

    def __post_init__(self) -> None:
        if self.method not in [known.value for known in Resizing]:
            raise InvalidEpisodeError(
                f"the dataset's frames are resized by {self.method!r}, which this roboreel does not have; give them "
                f"{self.size[0]} pixels high and {self.size[1]} wide, or type pip install --upgrade roboreel"
            )

    @property
    def length(self) -> int:  # type: ignore[override]
        return self.source.length

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (*self.size, *self.source.shape[2:])

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        return self.source.dtype

    def in_memory(self) -> ResizedFrames:
        return replace(self, source=self.source.in_memory())

    def blocks(self) -> Iterator[NDArray[Any]]:
        step = self.frames_per_block  # larger frames than the source's, so fewer of them
        with ThreadPoolExecutor(_THREADS) as pool:
            for block in self.source.blocks():
                for start in range(0, len(block), step):
                    yield self._resized(block[start : start + step], pool)

    def _resized(self, block: NDArray[Any], pool: ThreadPoolExecutor) -> NDArray[Any]:
        if self.method == Resizing.NEAREST.value:
            return nearest(block, self.size)
        require("PIL.Image", purpose="resizing images")  # in this thread: an error in another is harder to read
        return np.stack(list(pool.map(lambda image: bilinear(image, self.size), block)))


def bilinear(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return an image (H, W, C) at `size` = (height, width), by Pillow's antialiased bilinear filter."""
    image_module = require("PIL.Image", purpose="resizing images")
    squeezed = image[..., 0] if image.shape[-1] == 1 else image
    found = image_module.fromarray(np.ascontiguousarray(squeezed))
    resized: NDArray[np.uint8] = np.asarray(found.resize(size[::-1], image_module.Resampling.BILINEAR))
    return resized.reshape(*size, image.shape[-1])


def nearest(frames: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return frames (N, H, W, C) at `size` = (height, width): each the pixel under the new one's centre.

    >>> nearest(np.arange(6).reshape(1, 1, 6, 1), (1, 3)).ravel().tolist()
    [1, 3, 5]
    """
    # in integers: pixel k of n covers k/n to (k+1)/n, and its centre, (2k+1)/(2n), lies in pixel (2k+1)·N // 2n of N
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(frames.shape[1:3], size, strict=True)
    )
    return frames[:, rows[:, None], columns]
