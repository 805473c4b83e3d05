"""Every name inside a dataset directory. Keys are percent-encoded; image paths come from a template."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from roboreel.errors import InvalidArgumentError

METADATA = "metadata.json"
STATE = "state.bin"
EPISODES = "episodes.bin"
STRINGS = "strings.jsonl"
STRING_SUMS = "strings.bin"
OWNERS = "owners.bin"
LOCK = "writer.lock"
LOCK_OWNER = "writer.json"
COLUMNS = "columns"
CHECKSUMS = "checksums"
REDO = "redo.bin"
REQUESTS = "requests"
IMAGES = "images"
VIDEOS = "videos"
CACHE = "cache"
"""Frames that were decoded once; nothing is lost with it."""
CACHE_LOCK = "lock"

TEMPORARY = ".tmp"
"""Ends the name of what is written before it is renamed."""

BACKUP = ".bak"
"""Ends the name of what `roboreel repair` keeps of a file that it writes anew."""

DIRECTORIES = frozenset({COLUMNS, CHECKSUMS, REQUESTS, IMAGES, VIDEOS, CACHE})
ENTRIES = DIRECTORIES | {
    *(METADATA, METADATA + TEMPORARY, STATE, EPISODES, STRINGS, STRING_SUMS, OWNERS, REDO, REDO + TEMPORARY),
    *(LOCK, LOCK_OWNER, LOCK_OWNER + TEMPORARY),
}
"""Every entry that a dataset directory may have of ours; anything else in it is somebody else's."""

IMAGE_TEMPLATE = "images/{key}/{row:09d}/{frame:06d}.png"
VIDEO_TEMPLATE = "videos/{key}/{file:06d}.mp4"
FRAME_TABLE_TEMPLATE = "videos/{key}/{file:06d}.frames"
COLUMN_TEMPLATE = "columns/{key}.bin"
CHECKSUM_TEMPLATE = "checksums/{key}.bin"

_FEWEST_DIGITS, _MOST_DIGITS = 6, 18
"""Numbers are counted in 64 bits."""
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-.")
_MAX_NAME_BYTES = 240
"""Linux and macOS allow 255 bytes; endings and temporary names need a few."""


@functools.lru_cache(maxsize=1024)
def encode_key(key: str) -> str:
    """Return a file name for a data key: safe on every file system, also on those that ignore case.

    >>> encode_key("observation.images.Top/left"), encode_key("..")
    ('observation.images.%54op%2Fleft', '%2E.')
    """
    try:
        raw = key.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"data key {key!r} is not valid Unicode: {error.reason}") from None
    encoded = "".join(
        chr(byte) if chr(byte) in _PLAIN and not (position == 0 and byte == ord(".")) else f"%{byte:02X}"
        for position, byte in enumerate(raw)
    )
    if len(encoded) > _MAX_NAME_BYTES:
        raise InvalidArgumentError(
            f"data key {key[:40]!r}… is too long for a file name ({len(encoded)} bytes encoded, "
            f"{_MAX_NAME_BYTES} would do)"
        )
    return encoded


def column_path(root: Path, key: str) -> Path:
    return root / COLUMN_TEMPLATE.format(key=encode_key(key))


def checksum_path(root: Path, key: str) -> Path:
    return root / CHECKSUM_TEMPLATE.format(key=encode_key(key))


def image_dir(root: Path, key: str, row: int) -> Path:
    return root / IMAGES / encode_key(key) / f"{row:09d}"


def image_path(root: Path, key: str, row: int, frame: int) -> Path:
    return root / IMAGE_TEMPLATE.format(key=encode_key(key), row=row, frame=frame)


def image_paths(root: Path, key: str) -> Callable[[int, int], str]:
    """Return what gives `image_path` of a row and a frame as a string: a `Path` costs a tenth of decoding one.

    >>> image_paths(Path("pusht"), "observation.image")(0, 2)
    'pusht/images/observation.image/000000000/000002.png'
    """
    before, _, after = IMAGE_TEMPLATE.partition("{key}")
    beginning = str(root / (before + encode_key(key)))
    return lambda row, frame: beginning + after.format(row=row, frame=frame)


def video_path(root: Path, key: str, file: int) -> Path:
    return root / VIDEO_TEMPLATE.format(key=encode_key(key), file=file)


def frame_table_path(root: Path, key: str, file: int) -> Path:
    return root / FRAME_TABLE_TEMPLATE.format(key=encode_key(key), file=file)


def number_in(name: str) -> int | None:
    """Return the number by which an image, the folder of a row's images or a video is called; None for other names.

    >>> (
    ...     number_in("000012.mp4"),
    ...     number_in("000000007"),
    ...     number_in("12.mp4"),
    ...     number_in("00000\u00b2"),
    ...     number_in("9" * 25),
    ... )
    (12, 7, None, None, None)
    """
    stem = name.partition(".")[0]
    if not (stem.isascii() and stem.isdecimal() and _FEWEST_DIGITS <= len(stem) <= _MOST_DIGITS):
        return None
    return int(stem)


def cache_slots_path(folder: Path, key: str) -> Path:
    """In the cache directory `folder`: which decoded frame of a camera lies where."""
    return folder / f"{encode_key(key)}.slots"


def cache_pixels_path(folder: Path, key: str) -> Path:
    """In the cache directory `folder`: the decoded frames of a camera."""
    return folder / f"{encode_key(key)}.pixels"
