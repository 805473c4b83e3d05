"""What a data key is: its dtype, shape, role and how it is stored. Parsed once, trusted after."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from roboreel.errors import InvalidArgumentError

INDEX_KEY = "index"
EPISODE_INDEX_KEY = "episode_index"
FRAME_INDEX_KEY = "frame_index"
TIMESTAMP_KEY = "timestamp"
IMAGE_KEY_PREFIX = "observation.image"
IS_PAD_POSTFIX = "_is_pad"
TASK_KEY = "task"

Role = Literal["index", "value", "camera", "string"]
ROLES: tuple[Role, ...] = ("index", "value", "camera", "string")

STRING_CODE_DTYPE = np.dtype("<i4")
"""Strings are stored as codes into the dataset's append-only string table."""

_NUMERIC_KINDS = "biuf"
_MAX_ITEM_BYTES = 1 << 40
"""One frame of one key: far above any camera, and low enough that capacity times it stays within int64."""


class LeRobotDatasetV2ImageMode(enum.Enum):
    """How a camera is stored: raw pixels in a memmap, one PNG file a frame, or video."""

    MEMMAP = "memmap"
    PNG = "png"
    VIDEO = "video"

    @staticmethod
    def needs_decoding(mode: LeRobotDatasetV2ImageMode | str) -> bool:
        """Whether reading a frame in this mode means decoding it.

        >>> LeRobotDatasetV2ImageMode.needs_decoding("memmap")
        False
        """
        return parse_image_mode(mode) is not LeRobotDatasetV2ImageMode.MEMMAP


def parse_image_mode(mode: LeRobotDatasetV2ImageMode | str) -> LeRobotDatasetV2ImageMode:
    """Return the member for a member or its name in any case.

    >>> parse_image_mode("PNG")
    <LeRobotDatasetV2ImageMode.PNG: 'png'>
    """
    if isinstance(mode, LeRobotDatasetV2ImageMode):
        return mode
    if isinstance(mode, str):
        for member in LeRobotDatasetV2ImageMode:
            if member.value == mode.lower():
                return member
    known = ", ".join(repr(member.value) for member in LeRobotDatasetV2ImageMode)
    raise InvalidArgumentError(f"image_mode={mode!r} is none of the image modes: {known}")


@dataclass(frozen=True, slots=True)
class KeySpec:
    """One data key. `shape` is that of one frame: `()` for a scalar, `(H, W, C)` for a camera."""

    name: str
    dtype: np.dtype[Any]
    """The dtype on disk, little-endian; int32 codes for strings."""
    shape: tuple[int, ...]
    role: Role = "value"
    image_mode: LeRobotDatasetV2ImageMode | None = None
    """How a camera is stored; None for every other key."""
    names: Any = None
    """Names of the dimensions, as the source gave them (any JSON value)."""
    unit: str | None = None
    source_dtype: str | None = None
    """What the source declared, where that is not `dtype`."""

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidArgumentError("a data key must have a name; got ''")
        if self.role not in ROLES:
            raise InvalidArgumentError(f"key {self.name!r}: role {self.role!r} is none of {ROLES}")
        if self.dtype.kind not in _NUMERIC_KINDS:
            raise InvalidArgumentError(
                f"key {self.name!r}: dtype {self.dtype} cannot be stored; booleans, integers and floats can"
            )
        if any(side < 0 for side in self.shape):
            raise InvalidArgumentError(f"key {self.name!r}: shape {self.shape} has a negative side")
        if self.frame_bytes > _MAX_ITEM_BYTES:
            raise InvalidArgumentError(f"key {self.name!r}: shape {self.shape} is too large for one frame")
        if (self.role == "camera") != (self.image_mode is not None):
            raise InvalidArgumentError(f"key {self.name!r}: a camera, and only a camera, has an image mode")

    @property
    def is_camera(self) -> bool:
        return self.role == "camera"

    @property
    def is_string(self) -> bool:
        return self.role == "string"

    @property
    def needs_decoding(self) -> bool:
        """Whether the key has no column of its own and its frames are decoded from image files."""
        return self.image_mode is not None and LeRobotDatasetV2ImageMode.needs_decoding(self.image_mode)

    @property
    def has_checksums(self) -> bool:
        """Whether each frame has a checksum of its own; a video file has one for the whole."""
        return self.image_mode is not LeRobotDatasetV2ImageMode.VIDEO

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame, as raw numbers.

        >>> KeySpec("action", np.dtype("<f4"), (2,)).frame_bytes
        8
        """
        size = self.dtype.itemsize
        for side in self.shape:  # Python integers: a lying shape must not wrap around
            size *= side
        return size

    @property
    def item_dtype(self) -> np.dtype[Any]:
        """The dtype that users are given: `timestamp` is kept as float64 and given as float32."""
        return np.dtype("<f4") if self.name == TIMESTAMP_KEY else self.dtype

    def with_image_mode(self, mode: LeRobotDatasetV2ImageMode) -> KeySpec:
        return replace(self, image_mode=mode)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of this key in `metadata.json`.

        >>> KeySpec("next.reward", np.dtype("<f4"), ()).to_dict()
        {'dtype': '<f4', 'shape': [], 'role': 'value', 'stored': 'column'}
        """
        stored = self.image_mode.value if self.image_mode is not None and self.needs_decoding else "column"
        fields: dict[str, Any] = {
            "dtype": self.dtype.str,
            "shape": list(self.shape),
            "role": self.role,
            "stored": stored,
        }
        for key in ("names", "unit", "source_dtype"):
            value = getattr(self, key)
            if value is not None:
                fields[key] = value
        return fields

    @classmethod
    def from_dict(cls, name: str, fields: Mapping[str, Any]) -> KeySpec:
        """Parse what `to_dict` wrote; `InvalidArgumentError` for anything else."""
        try:
            dtype, shape, role, stored = (fields[key] for key in ("dtype", "shape", "role", "stored"))
        except (KeyError, TypeError) as error:
            raise InvalidArgumentError(f"key {name!r}: needs dtype, shape, role and stored; {error}") from None
        if not (isinstance(dtype, str) and dtype[:1] in ("<", "|")):
            raise InvalidArgumentError(f"key {name!r}: dtype {dtype!r} is not a little-endian one such as '<f4'")
        if not (isinstance(shape, list) and all(type(side) is int for side in shape)):
            raise InvalidArgumentError(f"key {name!r}: shape {shape!r} is not a list of integers")
        try:
            parsed_dtype = np.dtype(dtype)
        except TypeError:
            raise InvalidArgumentError(f"key {name!r}: dtype {dtype!r} is not one of numpy's") from None
        mode: LeRobotDatasetV2ImageMode | None = None
        if role == "camera":
            mode = parse_image_mode("memmap" if stored == "column" else stored)
        elif stored != "column":
            raise InvalidArgumentError(f"key {name!r}: stored {stored!r}, but only cameras are stored so")
        optional = {key: fields.get(key) for key in ("names", "unit", "source_dtype")}
        return cls(name, parsed_dtype, tuple(shape), role, mode, **optional)


def index_keys() -> tuple[KeySpec, ...]:
    """The keys that every dataset has."""
    integer = np.dtype("<i8")
    return (
        KeySpec(INDEX_KEY, integer, (), "index"),
        KeySpec(EPISODE_INDEX_KEY, integer, (), "index"),
        KeySpec(FRAME_INDEX_KEY, integer, (), "index"),
        KeySpec(TIMESTAMP_KEY, np.dtype("<f8"), (), "index", unit="s"),
    )
