"""What a data key is: its dtype, shape, role and how it is stored. Parsed once, trusted after."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral
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

DEPTH_UNITS = {"mm": 1000, "m": 1}
"""Of a depth camera: unit → how many of it are a metre."""

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


VideoCodec = Literal["av1", "h264", "hevc"]

_PIX_FMTS = {"av1": ("yuv420p",), "h264": ("yuv420p", "yuv444p"), "hevc": ("yuv420p", "yuv444p")}
_WORDS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")
_PRESETS = {"av1": tuple(map(str, range(14))), "h264": _WORDS, "hevc": _WORDS}
_HIGHEST_CRF = {"av1": 63, "h264": 51, "hevc": 51}
_MAX_GOP = 1 << 16
_LEAST_SIDE = {"av1": 4, "h264": 1, "hevc": 16}
"""In pixels, as are found by trying the encoders."""
_MOST_AV1_FPS = 240


@dataclass(frozen=True)
class VideoOptions:
    """How a camera's frames are coded as video. The defaults are those of LeRobot: AV1, every second frame a key frame.

    >>> VideoOptions(codec="h264", gop=15).to_dict()
    {'codec': 'h264', 'gop': 15, 'crf': 30, 'preset': None, 'pix_fmt': 'yuv420p'}

    Raises:
        InvalidArgumentError: a value that the codec does not have; the message says which it has.
    """

    codec: VideoCodec = "av1"
    """`av1` (SVT-AV1), `h264` (x264) or `hevc` (x265)."""
    gop: int = 2
    """Frames from one key frame to the next, at most: small reads single frames fast, large makes small files."""
    crf: int = 30
    """Quality, 0 (best) to 63 for AV1, 51 for H.264 and H.265."""
    preset: str | None = None
    """The encoder's own speed setting: `"0"` (best) to `"13"` (fastest) for AV1, `"veryfast"` and its like for the
    others; None: the encoder's default."""
    pix_fmt: str = "yuv420p"
    """`yuv420p`, or but for AV1 also `yuv444p`: full colour resolution, and any picture size."""

    def __post_init__(self) -> None:
        if self.codec not in list(_PIX_FMTS):  # a list: what was given may have no hash
            raise InvalidArgumentError(
                f"video codec {self.codec!r} is none of those that can be written: {list(_PIX_FMTS)}"
            )
        if self.pix_fmt not in _PIX_FMTS[self.codec]:
            raise InvalidArgumentError(
                f"pixel format {self.pix_fmt!r} cannot be written as {self.codec}; these can: {_PIX_FMTS[self.codec]}"
            )
        for name, least, most in (("gop", 1, _MAX_GOP), ("crf", 0, _HIGHEST_CRF[self.codec])):
            value = getattr(self, name)
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if not (whole and least <= int(value) <= most):
                raise InvalidArgumentError(
                    f"{name}={value!r} is no whole number from {least} to {most}, which {self.codec} would take"
                )
            object.__setattr__(self, name, int(value))  # of numpy's, which JSON does not know
        if self.preset is not None and self.preset not in _PRESETS[self.codec]:
            raise InvalidArgumentError(
                f"preset {self.preset!r} is none that {self.codec} has: {', '.join(map(repr, _PRESETS[self.codec]))}"
            )

    def check_frames(self, height: int, width: int, fps: float) -> None:
        """Raise `InvalidArgumentError` where frames of this size, or so many a second, cannot be coded so."""
        least = _LEAST_SIDE[self.codec]
        if min(height, width) < least:
            raise InvalidArgumentError(
                f"{self.codec} needs sides of {least} pixels or more, and the frames are {width}x{height}: take "
                "codec='h264' with pix_fmt='yuv444p', or image_mode='png'"
            )
        if self.codec == "av1" and fps > _MOST_AV1_FPS:
            raise InvalidArgumentError(
                f"av1 takes at most {_MOST_AV1_FPS} frames a second, and the dataset has fps={fps:g}: take "
                "codec='h264', or image_mode='png'"
            )
        # SVT-AV1 codes odd sides as they are, x264 and x265 do not
        if self.codec != "av1" and self.pix_fmt == "yuv420p" and (height % 2 or width % 2):
            raise InvalidArgumentError(
                f"{self.codec} in yuv420p needs even sides, and the frames are {width}x{height}: take codec='av1', or "
                f"pix_fmt='yuv444p', or resize the frames"
            )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of a camera's options in `metadata.json`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, found: Any) -> VideoOptions:
        """Parse what `to_dict` wrote; `InvalidArgumentError` for anything else."""
        names = {field.name for field in fields(cls)}
        if not isinstance(found, dict) or not names <= set(found):
            raise InvalidArgumentError(f"encoding is {found!r}, not an object of {', '.join(sorted(names))}")
        known = {name: found[name] for name in names}
        if not all(isinstance(known[name], str) for name in ("codec", "pix_fmt")):
            raise InvalidArgumentError(f"encoding is {found!r}: codec and pix_fmt must be text")
        return cls(**known)


class Resizing(enum.Enum):
    """How frames of another size are made to fit."""

    BILINEAR = "pillow-bilinear"
    """Colours and greys: Pillow's bilinear filter, antialiased."""
    NEAREST = "nearest"
    """Depth: the nearest pixel, so that no distance comes up that was not measured."""

    @staticmethod
    def of(dtype: np.dtype[Any]) -> Resizing:
        return Resizing.NEAREST if is_depth_dtype(dtype) else Resizing.BILINEAR


def is_depth_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether a camera of this dtype sees depth: uint16 or float32, which colours are never stored in.

    >>> is_depth_dtype(np.dtype("u2")), is_depth_dtype(np.dtype("u1"))
    (True, False)
    """
    return dtype in (np.dtype("<u2"), np.dtype("<f4"))


def natural_depth_unit(dtype: np.dtype[Any]) -> str:
    """Return the unit in which depth of this dtype comes: millimetres in integers, metres in floats.

    >>> natural_depth_unit(np.dtype("u2"))
    'mm'
    """
    return "mm" if dtype.kind == "u" else "m"


def natural_image_mode(dtype: np.dtype[Any], channels: int) -> LeRobotDatasetV2ImageMode:
    """Return how a camera is stored where nobody says: video for colour, and without any loss for everything else.

    >>> natural_image_mode(np.dtype("u1"), 3).value, natural_image_mode(np.dtype("u2"), 1).value
    ('video', 'png')
    """
    if dtype.kind == "f":
        return LeRobotDatasetV2ImageMode.MEMMAP  # PNG has no floats
    colour = dtype == np.uint8 and channels == 3
    return LeRobotDatasetV2ImageMode.VIDEO if colour else LeRobotDatasetV2ImageMode.PNG


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
    """Of the numbers as they are stored; a depth camera's is "mm" or "m"."""
    source_dtype: str | None = None
    """What the source declared, where that is not `dtype`."""
    video_options: VideoOptions | None = None
    """How new frames of a camera stored as video are coded; always there for such a camera, and for no other key."""
    resized: str | None = None
    """How a camera's frames of another size are made to fit, a value of `Resizing`; None: they are refused."""

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
        if self.image_mode is LeRobotDatasetV2ImageMode.VIDEO:
            object.__setattr__(self, "video_options", self.video_options or VideoOptions())
        elif self.video_options is not None:
            raise InvalidArgumentError(f"key {self.name!r}: only a camera stored as video has video options")
        if self.is_camera:
            _check_camera(self)
        if self.resized is not None and not (self.is_camera and isinstance(self.resized, str)):
            raise InvalidArgumentError(f"key {self.name!r}: resized {self.resized!r}, which is the method for a camera")

    @property
    def is_camera(self) -> bool:
        return self.role == "camera"

    @property
    def is_depth(self) -> bool:
        """Whether it is a camera of which each pixel says how far away something is; 0: not measured."""
        return self.is_camera and is_depth_dtype(self.dtype)

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

    def stored_as(self, mode: LeRobotDatasetV2ImageMode, video_options: VideoOptions | None = None) -> KeySpec:
        """Return this camera in another image mode; the options are for `video` alone."""
        video = mode is LeRobotDatasetV2ImageMode.VIDEO
        return replace(self, image_mode=mode, video_options=video_options if video else None)

    def with_image_size(self, size: tuple[int, int]) -> KeySpec:
        """Return the camera at (height, width) pixels, to which frames of another size are brought."""
        return replace(self, shape=(*size, *self.shape[2:]), resized=Resizing.of(self.dtype).value)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of this key in `metadata.json`.

        >>> KeySpec("next.reward", np.dtype("<f4"), ()).to_dict()
        {'dtype': '<f4', 'shape': [], 'role': 'value', 'stored': 'column'}
        """
        stored = self.image_mode.value if self.image_mode is not None and self.needs_decoding else "column"
        found: dict[str, Any] = {
            "dtype": self.dtype.str,
            "shape": list(self.shape),
            "role": self.role,
            "stored": stored,
        }
        for key in ("names", "unit", "source_dtype", "resized"):
            value = getattr(self, key)
            if value is not None:
                found[key] = value
        if self.video_options is not None:
            found["encoding"] = self.video_options.to_dict()
        return found

    @classmethod
    def from_dict(cls, name: str, found: Mapping[str, Any]) -> KeySpec:
        """Parse what `to_dict` wrote; `InvalidArgumentError` for anything else."""
        try:
            dtype, shape, role, stored = (found[key] for key in ("dtype", "shape", "role", "stored"))
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
        encoding = None
        if mode is LeRobotDatasetV2ImageMode.VIDEO and "encoding" in found:
            encoding = VideoOptions.from_dict(found["encoding"])
        optional = {key: found.get(key) for key in ("names", "unit", "source_dtype", "resized")}
        return cls(name, parsed_dtype, tuple(shape), role, mode, video_options=encoding, **optional)


def _check_camera(spec: KeySpec) -> None:
    """Refuse frames that are no images, and a way of storing them that would change what they say."""
    depth = is_depth_dtype(spec.dtype)
    if len(spec.shape) != 3 or not (spec.dtype == np.uint8 or (depth and spec.shape[-1] == 1)):
        raise InvalidArgumentError(
            f"key {spec.name!r}: a camera's frames are uint8 (height, width, channels), or depth, which is uint16 or "
            f"float32 (height, width, 1); not {spec.dtype} {spec.shape}"
        )
    if not depth:
        return
    if spec.unit not in DEPTH_UNITS:
        raise InvalidArgumentError(f"key {spec.name!r}: depth in the unit {spec.unit!r}; {list(DEPTH_UNITS)} would do")
    modes = ["memmap"] if spec.dtype.kind == "f" else ["png", "memmap"]
    if spec.image_mode is not None and spec.image_mode.value not in modes:
        why = "video would change every distance" if spec.image_mode.value == "video" else "PNG holds no floats"
        other = "" if len(modes) > 1 else ", or depth as uint16 in millimetres, which goes into 'png' too"
        raise InvalidArgumentError(
            f"key {spec.name!r} is depth, {spec.dtype} in {spec.unit}, and cannot be stored as "
            f"{spec.image_mode.value!r}: {why}; image_mode={' or '.join(map(repr, modes))} would do{other}"
        )


def index_keys() -> tuple[KeySpec, ...]:
    """The keys that every dataset has."""
    integer = np.dtype("<i8")
    return (
        KeySpec(INDEX_KEY, integer, (), "index"),
        KeySpec(EPISODE_INDEX_KEY, integer, (), "index"),
        KeySpec(FRAME_INDEX_KEY, integer, (), "index"),
        KeySpec(TIMESTAMP_KEY, np.dtype("<f8"), (), "index", unit="s"),
    )
