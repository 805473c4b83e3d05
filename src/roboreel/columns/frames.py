"""The frames of one camera over one episode, in the form in which they come: arrays, PNG bytes, a video clip.

A column takes what it stores as it is (a video column copies the file, a PNG column the bytes) and asks
everything else for decoded `blocks()`, so that any source goes into any image mode with memory bounded by a block.
"""

from __future__ import annotations

import io
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.columns.frame_table import FrameTable
from roboreel.errors import SourceError

_UINT8 = np.dtype(np.uint8)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's names, by channels."""

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "JPEG2000")
"""What images may be coded as. Pillow knows more; some of its decoders run other programs (EPS: Ghostscript)."""

BLOCK_BYTES = 32 << 20
"""About how many bytes of decoded frames are held at a time."""


class CameraFrames(ABC):
    """`length` frames of shape `shape` = (height, width, channels); uint8, or the dtypes that depth has."""

    length: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any] = _UINT8

    @abstractmethod
    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield the decoded frames in order, as arrays (k, *shape) with k >= 1."""

    def in_memory(self) -> CameraFrames:
        """The same frames, and no file that is written meanwhile changes them; see `in_memory`."""
        return self

    @property
    def frames_per_block(self) -> int:
        return max(1, BLOCK_BYTES // max(1, int(np.prod(self.shape)) * self.dtype.itemsize))


@dataclass(frozen=True)
class ArrayFrames(CameraFrames):
    """Frames already in memory, or a memmap."""

    array: NDArray[Any]

    @property
    def length(self) -> int:  # type: ignore[override]
        return len(self.array)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.array.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        return self.array.dtype

    def in_memory(self) -> ArrayFrames:
        return ArrayFrames(in_memory(self.array))

    def blocks(self) -> Iterator[NDArray[Any]]:
        step = self.frames_per_block
        for start in range(0, self.length, step):
            yield self.array[start : start + step]


def in_memory(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array, or a copy where its memory may be that of a mapped file, which changes with the file.

    >>> array = np.arange(6)
    >>> in_memory(array[2:]).base is array, in_memory(np.frombuffer(memoryview(bytearray(8)), np.int64)).base
    (True, None)
    """
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return array if owner is None or isinstance(owner, bytes) else array.copy()


def is_mapped_in(array: NDArray[Any], folder: Path) -> bool:
    """Whether the array is a view of a `numpy.memmap` of a file in the folder."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if isinstance(owner, np.memmap) and owner.filename is not None:
            return Path(owner.filename).resolve().is_relative_to(folder.resolve())
        owner = owner.base
    return False


@dataclass(frozen=True)
class PngFrames(CameraFrames):
    """One PNG file's bytes a frame; `read(i)` gives those of frame i."""

    length: int
    shape: tuple[int, ...]
    read: Callable[[int], bytes]
    source: str
    """Where they come from, for errors."""
    dtype: np.dtype[Any] = _UINT8

    def blocks(self) -> Iterator[NDArray[Any]]:
        step = self.frames_per_block
        for start in range(0, self.length, step):
            yield np.stack([self.decoded(i) for i in range(start, min(start + step, self.length))])

    def check_header(self, i: int, data: bytes) -> None:
        """Refuse, without decoding it, a file that is not a whole PNG of the right size: each chunk has a checksum."""
        flaw = png_flaw(data)
        if flaw:
            raise SourceError(f"{self.source}, frame {i}: not a whole PNG file: {flaw}; get it again, or leave it out")
        height, width = (int.from_bytes(data[at : at + 4], "big") for at in (20, 16))
        if (height, width) != tuple(self.shape[:2]):
            raise SourceError(
                f"{self.source}, frame {i}: {width}x{height} pixels, where the first is {self.shape}; "
                "one camera keeps one size: record or convert it again"
            )
        check_png_depth(data, self.dtype, f"{self.source}, frame {i}")

    def decoded(self, i: int) -> NDArray[Any]:
        """Frame i, (H, W, C)."""
        return decode_png(self.read(i), self.shape, f"{self.source}, frame {i}", self.dtype)


@dataclass(frozen=True)
class VideoFrames(CameraFrames):
    """Frames `first` to `first + length` of a video file, counted in order of presentation."""

    path: Path
    first: int
    length: int
    shape: tuple[int, ...]
    table: FrameTable | None = None
    """The one that is stored beside the file; None: none is."""
    movable: bool = False
    """Whether the file is nobody else's and never written again: a second name for it does instead of a copy."""

    def blocks(self) -> Iterator[NDArray[Any]]:
        from roboreel.columns.decode import decode_range

        return decode_range(self.path, self.first, self.length, block=self.frames_per_block, table=self.table)


@dataclass(frozen=True, eq=False)
class PickedFrames(CameraFrames):
    """Frames `numbers` (n,) of a video file, which increase or repeat: not all of a part, so that they are decoded."""

    path: Path
    numbers: NDArray[np.int64]
    shape: tuple[int, ...]

    @property
    def length(self) -> int:  # type: ignore[override]
        return len(self.numbers)

    def blocks(self) -> Iterator[NDArray[Any]]:
        from roboreel.columns.decode import decode_frames

        return decode_frames(self.path, self.numbers, block=self.frames_per_block)


def png_flaw(data: bytes) -> str | None:
    r"""What is wrong with the bytes of a PNG file, found without decoding them; None where nothing is.

    >>> png_flaw(b"\x89PNG\r\n\x1a\n")
    'it ends after 8 bytes, within a chunk'
    """
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return f"its {len(data)} bytes do not begin as one"
    at, view = 8, memoryview(data)
    kinds: list[bytes] = []
    while not kinds or kinds[-1] != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if at + 12 > len(data) or end > len(data):
            return f"it ends after {len(data)} bytes, within a chunk"
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return f"the checksum of its chunk at byte {at} does not fit"
        kinds.append(data[at + 4 : at + 8])
        at = end
    if kinds[0] != b"IHDR" or int.from_bytes(data[8:12], "big") != 13 or b"IDAT" not in kinds:
        return "its header or its pixels are missing"
    return f"{len(data) - at} bytes follow its end" if at < len(data) else None


def png_bits(data: bytes) -> tuple[int, bool]:
    """Return the bits a channel of a PNG file, and whether it is grey without alpha: from the header alone."""
    return data[24], data[25] == 0


def check_png_depth(data: bytes, dtype: np.dtype[Any], source: str) -> None:
    """Refuse a PNG whose numbers would not all fit, or would mean something else: Pillow converts without a word."""
    bits, grey = png_bits(data)
    if (bits == 16) != (dtype == np.uint16) or (bits == 16 and not grey):
        wanted = "16 bits, grey, as depth has" if dtype == np.uint16 else "at most 8 bits a channel"
        raise SourceError(
            f"{source}: a PNG of {bits} bits a channel{' (grey)' if grey else ''}, where {wanted} must be; "
            "record or convert it again"
        )


def decode_png(data: bytes, shape: Sequence[int], source: str, dtype: np.dtype[Any] = _UINT8) -> NDArray[Any]:
    """Decode one PNG to (H, W, C), uint8, or uint16 of one channel.

    `SourceError` names `source` where that fails, or the shape differs.
    """
    image_module = require("PIL.Image", purpose="reading PNG images")
    if dtype == np.uint16 and data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 25:
        check_png_depth(data, dtype, source)
    try:
        with image_module.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            if dtype == np.uint16:
                array = np.asarray(image).astype(np.uint16, copy=False)  # older Pillows give 16 bits as int32
            else:
                wanted = _MODES[shape[-1]]
                array = np.asarray(image if image.mode == wanted else image.convert(wanted))
    except Exception as error:
        raise SourceError(f"{source}: not a readable image ({error})") from error
    if array.ndim == 2:
        array = array[..., None]
    if array.shape != tuple(shape):
        raise SourceError(f"{source}: image of shape {array.shape} where the episode's others are {tuple(shape)}")
    return array
