"""Arrays (frames, *shape) in files of other formats, some rows at a time: columns, and images made uint8 exactly."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import SourceError
from roboreel.schema import IMAGE_KEY_PREFIX
from roboreel.store import CameraFrames, memory_bytes

_ALWAYS_READ_BYTES, _SHARE_OF_MEMORY = 2 << 30, 4
"""Of an episode's arrays that are no images, what is read on any machine, and otherwise a part of its memory: they are
read at once, and a file of no size may declare any."""
MAX_ROW_BYTES = 256 << 20
"""Of one frame of one array."""

_IMAGE_NAME = re.compile(r"im(g|age)|rgb|colou?r|cam", re.IGNORECASE)
_NO_IMAGE_NAME = re.compile(r"depth|seg|mask|feat|embed|trinsic|pose|point|info", re.IGNORECASE)
_CHANNELS = (1, 3, 4)
_LEAST_SIDE = 8
"""Of images in pixels; smaller ones are matrices."""


class ArrayRows(Protocol):
    """An array in a file, of which rows are read when they are asked for; cheapest forwards."""

    @property
    def where(self) -> str:
        """The file and the array, for errors."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop`, (stop - start, *shape[1:]); `SourceError` where they cannot be read."""


class Scale(Enum):
    """What the numbers of images mean."""

    LEVELS = "0 to 255"
    UNIT = "0 to 1"


@dataclass(frozen=True)
class ImageLayout:
    """Where the channels of images (frames, …) are."""

    shape: tuple[int, int, int]
    """(height, width, channels), as they will be."""
    channels: int | None
    """Their axis; None: one channel, without an axis of its own."""

    def channels_last(self, block: NDArray[Any]) -> NDArray[Any]:
        return block[..., None] if self.channels is None else np.moveaxis(block, self.channels, -1)


def image_layout(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ImageLayout | None:
    """Return how images lie in an array; None where it holds none.

    Bytes of the shape of images are images; other numbers are so where the name says it too.

    >>> image_layout("img", (161, 96, 96, 3), np.dtype("f4"))
    ImageLayout(shape=(96, 96, 3), channels=3)
    >>> image_layout("wrist", (9, 3, 48, 64), np.dtype("u1"))
    ImageLayout(shape=(48, 64, 3), channels=1)
    >>> image_layout("camera_pose", (9, 4, 4), np.dtype("f4")) is None
    True
    """
    named = bool(_IMAGE_NAME.search(name)) and not _NO_IMAGE_NAME.search(name)
    if dtype.kind not in "iuf" or not (named or dtype == np.uint8):
        return None
    if len(shape) == 3 and named and min(shape[1:]) >= _LEAST_SIDE:
        return ImageLayout((*shape[1:], 1), None)
    if len(shape) != 4:
        return None
    for axis in (3, 1):
        height, width = (side for at, side in enumerate(shape) if at not in (0, axis))
        if shape[axis] in _CHANNELS and min(height, width) >= _LEAST_SIDE:
            return ImageLayout((height, width, shape[axis]), axis)
    return None


def judge_scale(samples: Iterable[NDArray[Any]], where: str) -> Scale:
    """Return what the numbers of images mean, from blocks of them in order, of which no more are read than it takes.

    >>> judge_scale([np.zeros((1, 2)), np.full((1, 2), 0.2)], "img").value
    '0 to 1'

    Raises:
        SourceError: nothing but 0 and 1 in all of them, which could be either.
    """
    has_one = False
    for block in samples:
        if (block > 1).any():
            return Scale.LEVELS
        if ((block != 0) & (block != 1)).any():
            return Scale.UNIT
        has_one = has_one or bool(block.any())
    if has_one:
        raise SourceError(
            f"{where}: the images hold nothing but 0 and 1, which may be of 0 to 1 or of 0 to 255; store them as uint8"
        )
    return Scale.LEVELS  # black is black


@dataclass(frozen=True, eq=False)
class ArrayImages(CameraFrames):
    """Rows `first` to `first + length` of an array of images, made uint8 block by block."""

    rows: ArrayRows
    layout: ImageLayout
    scale: Scale
    first: int
    length: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.layout.shape

    def blocks(self) -> Iterator[NDArray[Any]]:
        step = max(1, self.frames_per_block // self.rows.dtype.itemsize)
        for start in range(self.first, self.first + self.length, step):
            block = self.rows.read(start, min(start + step, self.first + self.length))
            yield self.layout.channels_last(self._exact(block, start))

    def _exact(self, block: NDArray[Any], start: int) -> NDArray[np.uint8]:
        """Make a block uint8; `SourceError` where that would change a number."""
        if block.dtype == np.uint8:
            return block
        with np.errstate(invalid="ignore", over="ignore"):
            if self.scale is Scale.LEVELS:
                cast = block.astype(np.uint8)
                wrong = cast != block
            else:
                levels = block.astype(np.float64) * 255
                cast = np.rint(levels).astype(np.uint8)
                wrong = ~(np.abs(levels - cast) <= 255 * 4 * np.finfo(block.dtype).eps)
        if wrong.any():
            at = tuple(np.argwhere(wrong)[0].tolist())
            raise SourceError(
                f"{self.rows.where}, row {start + at[0]}: holds {block[at].item()!r}, which is none of the 256 levels "
                f"of images from {self.scale.value}; round them, and store them as uint8"
            )
        return cast


OUTCOME_KEYS = (REWARD, DONE) = ("next.reward", "next.done")


def outcome(key: str, values: NDArray[Any], where: str) -> NDArray[Any]:
    """Return rewards or ends of an episode as LeRobot has them: one number a frame, ends as booleans.

    >>> outcome("next.done", np.array([[0], [1]]), "demo_0")
    array([False,  True])
    """
    if values.ndim > 1 and values.size == len(values):
        values = values.reshape(len(values))
    if key != DONE or values.dtype == bool:
        return values
    done: NDArray[np.bool_] = np.not_equal(values, 0)
    if (odd := values[done] != 1).any():
        raise SourceError(f"{where}: holds {values[done][odd][0].item()!r} where 0 or 1 must say whether it was over")
    return done


def check_row_bytes(rows: ArrayRows) -> None:
    """Refuse what is no frame of anything, before any of it is read."""
    if _frame_bytes(rows) > MAX_ROW_BYTES:
        raise SourceError(
            f"{rows.where}: one row of shape {rows.shape[1:]} is {_frame_bytes(rows):,} bytes, which is no real frame "
            f"(at most {MAX_ROW_BYTES:,})"
        )


def check_episode_bytes(columns: Mapping[str, ArrayRows], length: int, where: str) -> None:
    """Refuse an episode that memory would not hold: its columns are read at once."""
    check_unfolded({key: length * _frame_bytes(rows) for key, rows in columns.items()}, length, where)


def check_unfolded(sizes: Mapping[str, int], length: int, where: str) -> None:
    """Refuse an episode of `length` frames whose columns take `sizes`, by their keys, in bytes."""
    most = max(_ALWAYS_READ_BYTES, memory_bytes() // _SHARE_OF_MEMORY)
    if sum(sizes.values()) > most:
        largest = max(sizes, key=lambda key: sizes[key])
        raise SourceError(
            f"{where}: its {length:,} frames would take {sum(sizes.values()):,} bytes besides images, {largest!r} most "
            f"of them; at most {most:,} are read on this machine: divide the episode"
        )


def _frame_bytes(rows: ArrayRows) -> int:
    size = rows.dtype.itemsize
    for side in rows.shape[1:]:  # Python's integers: what a file declares must not wrap around
        size *= side
    return size


def observation_key(name: str, *, image: bool, taken: Collection[str] = ()) -> str:
    """Return the data key of an observation that its format calls `name`, none of those that are `taken`.

    >>> observation_key("wrist_image", image=True), observation_key("joint_pos", image=False)
    ('observation.images.wrist', 'observation.joint_pos')
    >>> observation_key("image_features", image=False)
    'observation.values.image_features'
    """
    if image:
        key = f"{IMAGE_KEY_PREFIX}s.{re.sub('_(image|img|rgb)$', '', name)}"
        return f"{IMAGE_KEY_PREFIX}s.{name}" if key in taken else key
    key = f"observation.{name}"
    return f"observation.values.{name}" if key in taken or key.startswith(IMAGE_KEY_PREFIX) else key
