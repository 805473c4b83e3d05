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

IN_THE_MAKING = frozenset(
    name + end + TEMPORARY for name in (METADATA, STATE, EPISODES, STRINGS, STRING_SUMS, REDO) for end in ("", BACKUP)
)
"""What a kill may leave of a small file, or of a copy of it, that was to be put in its place."""

DIRECTORIES = frozenset({COLUMNS, CHECKSUMS, REQUESTS, IMAGES, VIDEOS, CACHE})
ENTRIES = frozenset(
    {METADATA, STATE, EPISODES, STRINGS, STRING_SUMS, OWNERS, REDO, LOCK, LOCK_OWNER, LOCK_OWNER + TEMPORARY}
    | DIRECTORIES
    | IN_THE_MAKING
)
"""Every entry that a dataset directory may have of ours; anything else in it is somebody else's."""

IMAGE_TEMPLATE = "images/{key}/{row:09d}/{frame:06d}.png"
VIDEO_TEMPLATE = "videos/{key}/{file:06d}.mp4"
FRAME_TABLE_TEMPLATE = "videos/{key}/{file:06d}.frames"
COLUMN_TEMPLATE = "columns/{key}.bin"
CHECKSUM_TEMPLATE = "checksums/{key}.bin"

_MOST_DIGITS = 12
"""There are fewer rows than 2**40."""
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


def image_dir_number(name: str) -> int | None:
    """Return the row by which a folder of images, whole or in the making, is called; None for other names.

    >>> image_dir_number("000000007"), image_dir_number("000000007.tmp"), image_dir_number("20260101")
    (7, 7, None)
    """
    stem, _, end = name.partition(".")
    return _number(stem, 9) if end in ("", "tmp") else None


def image_number(name: str) -> int | None:
    """Return the frame by which an image is called; None for other names."""
    stem, _, end = name.partition(".")
    return _number(stem, 6) if end == "png" else None


def video_number(name: str) -> int | None:
    """Return the number by which a video or its frame table, whole or in the making, is called.

    >>> video_number("000012.mp4"), video_number("000012"), video_number("12.mp4"), video_number("0000012.mp4")
    (12, None, None, None)
    """
    stem, _, end = name.partition(".")
    return _number(stem, 6) if end in ("mp4", "frames", "frames.tmp") else None


def _number(text: str, digits: int) -> int | None:
    """Return the number that is written with `digits` digits at least, and with no more of them than it takes.

    >>> _number("000012", 6), _number("1234567", 6), _number("0000012", 6), _number("00000\u00b2", 6)
    (12, 1234567, None, None)
    """
    if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
        return None
    return int(text) if f"{int(text):0{digits}d}" == text else None


def cache_slots_path(folder: Path, key: str) -> Path:
    """In the cache directory `folder`: which decoded frame of a camera lies where."""
    return folder / f"{encode_key(key)}.slots"


def cache_pixels_path(folder: Path, key: str) -> Path:
    """In the cache directory `folder`: the decoded frames of a camera."""
    return folder / f"{encode_key(key)}.pixels"
