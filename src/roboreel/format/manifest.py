"""`metadata.json`: what the dataset is. Parsed and checked once, then trusted."""

from __future__ import annotations

import json
import math
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from roboreel.errors import InvalidArgumentError, NotADatasetError, StorageDirCorruptError
from roboreel.format import files, paths
from roboreel.format.records import MAX_CAPACITY
from roboreel.schema import STRING_CODE_DTYPE, KeySpec, index_keys

FORMAT = "roboreel"
VERSION = (0, 1)
"""Another major number means: do not read. Another minor one: read, knowing all that changes how to read is listed
under `incompatible`."""

UNFINISHED = "unfinished"
"""The incompatible feature of an import that has not come to its end."""

DEPTH = "depth"
"""The incompatible feature of a dataset with depth cameras: who takes all images for uint8 must not read it."""

_MAX_BYTES = 64 << 20
_MIN_FPS, _MAX_FPS = 1e-6, 1e9
"""Beyond these, times of long episodes are no longer numbers."""
_MAX_COLUMN_BYTES = 1 << 62
"""What a 64-bit system can count, with room for a sum; sides of 0 count as 1, as numpy counts them."""
_MAX_DIMENSIONS = 16
"""numpy 1.26 has 32, and a slot, a batch and a window are to be added."""
_MAX_ITEMSIZE = 8

_TEMPLATES = {
    "column": paths.COLUMN_TEMPLATE,
    "checksum": paths.CHECKSUM_TEMPLATE,
    "png": paths.IMAGE_TEMPLATE,
    "video": paths.VIDEO_TEMPLATE,
    "frame_table": paths.FRAME_TABLE_TEMPLATE,
}


@dataclass(frozen=True)
class ByteCapacity:
    """A capacity that was given in bytes."""

    total: int
    """Bytes that all columns and all image files together may take."""
    a_frame: int
    """Bytes that one frame counted for when `capacity` was made: its columns, and its images as far as foreseen."""

    def __post_init__(self) -> None:
        if not all(type(value) is int and 0 < value <= _MAX_COLUMN_BYTES for value in (self.total, self.a_frame)):
            raise InvalidArgumentError(f"byte_capacity of {self.total!r} bytes, {self.a_frame!r} a frame, cannot be")


@dataclass(frozen=True)
class Manifest:
    fps: float
    """Frames a second (Hz)."""
    keys: Mapping[str, KeySpec]
    capacity: int
    """Slots in every column file. Written before the record in `state.bin`, which says as much or, until then, less."""
    fixed_capacity: bool
    """Whether the capacity was asked for; otherwise storage grows as episodes come."""
    ring: bool
    byte_capacity: ByteCapacity | None = None
    """What `capacity` was made from, where that was asked for in bytes."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    unfinished: bool = False
    """Half an import: not to be opened."""
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))

    def __post_init__(self) -> None:
        if not _MIN_FPS <= self.fps <= _MAX_FPS:
            raise InvalidArgumentError(f"fps is {self.fps}, not between {_MIN_FPS:g} and {_MAX_FPS:g}")
        for spec in self.keys.values():
            _check_key(spec, self.capacity)

    @property
    def video_keys(self) -> list[str]:
        """The cameras stored as video, in the order of their clips in an episode row."""
        return [
            key for key, spec in self.keys.items() if spec.image_mode is not None and spec.image_mode.value == "video"
        ]

    def to_bytes(self) -> bytes:
        depth = any(spec.is_depth for spec in self.keys.values())
        document: dict[str, Any] = {
            "format": FORMAT,
            "version": ".".join(map(str, VERSION)),
            "incompatible": [UNFINISHED] * self.unfinished + [DEPTH] * depth,
            "compatible": [],
            "uuid": self.uuid,
            "fps": self.fps,
            "capacity": self.capacity,
            "fixed_capacity": self.fixed_capacity,
            "ring": self.ring,
            "paths": _TEMPLATES,
            "keys": {key: spec.to_dict() for key, spec in self.keys.items()},
            "provenance": dict(self.provenance),
        }
        if self.byte_capacity is not None:
            limit = self.byte_capacity
            document["byte_capacity"] = {"bytes": limit.total, "frame_bytes": limit.a_frame}
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode()


def _check_key(spec: KeySpec, capacity: int) -> None:
    """Refuse what could not be mapped again, and what its role does not allow; also before it is ever written."""
    paths.encode_key(spec.name)
    if len(spec.shape) > _MAX_DIMENSIONS:
        raise InvalidArgumentError(
            f"key {spec.name!r}: {len(spec.shape)} dimensions; at most {_MAX_DIMENSIONS} can be stored"
        )
    if capacity * spec.dtype.itemsize * math.prod(max(side, 1) for side in spec.shape) > _MAX_COLUMN_BYTES:
        raise InvalidArgumentError(f"key {spec.name!r}: {capacity} frames of shape {spec.shape} are too large a file")
    if spec.dtype.itemsize > _MAX_ITEMSIZE:
        raise InvalidArgumentError(f"key {spec.name!r}: dtype {spec.dtype} differs between machines; type float64")
    if spec.role == "string" and (spec.dtype, spec.shape) != (STRING_CODE_DTYPE, ()):
        raise InvalidArgumentError(f"key {spec.name!r}: a string is one {STRING_CODE_DTYPE.str} code a frame")


def metadata_hash(raw: bytes) -> int:
    return xxhash.xxh3_64_intdigest(raw)


def read_manifest(root: Path, *, unfinished: bool = False) -> tuple[Manifest, int]:
    """Read `metadata.json`; return what it says and its hash. Half an import is read only where that is allowed.

    Raises:
        NotADatasetError: there is none.
        StorageDirCorruptError: it cannot be read as what it must be; the message names the field.
    """
    path = root / paths.METADATA
    try:
        if not root.is_dir():
            raise FileNotFoundError
        with os.fdopen(files.open_to_read(path), "rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise StorageDirCorruptError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: not written by roboreel")
    except FileNotFoundError:
        check_no_lerobot(root)
        what = f"holds no {paths.METADATA}" if root.is_dir() else "does not exist" if not root.exists() else "is a file"
        raise NotADatasetError(f"{root} is not a roboreel dataset: it {what}") from None
    except OSError as error:
        raise StorageDirCorruptError(f"{path} cannot be read: {error}") from error
    try:
        return _parse(json.loads(raw, object_pairs_hook=_unique), path, unfinished=unfinished), metadata_hash(raw)
    except StorageDirCorruptError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = f"the field {error} is missing" if type(error) is KeyError else error
        raise StorageDirCorruptError(f"{path} cannot be read as roboreel metadata: {reason}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the JSON object; readers differ in which of two equal names they take, so there must be one."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidArgumentError(f"a name stands twice in one object, which has {[name for name, _ in pairs][:20]}")
    return found


def check_no_lerobot(root: Path) -> None:
    """Refuse a folder in LeRobot format with `NotADatasetError`, and say what to type."""
    if (root / "meta" / "info.json").exists() or (root / "meta_data").exists():
        raise NotADatasetError(
            f"{root} is a LeRobot folder, not a roboreel dataset; type: roboreel import {root} DEST"
        ) from None


def _parse(document: Any, path: Path, *, unfinished: bool) -> Manifest:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise StorageDirCorruptError(f"{path}: its field 'format' is not {FORMAT!r}; this is not roboreel's")
    _check_version(document, path, unfinished=unfinished)
    keys = {name: KeySpec.from_dict(name, fields) for name, fields in document["keys"].items()}
    for wanted in index_keys():
        found = keys.get(wanted.name)
        if found is None or (found.dtype, found.shape, found.role) != (wanted.dtype, wanted.shape, wanted.role):
            raise InvalidArgumentError(
                f"key {wanted.name!r} must be there, with dtype {wanted.dtype.str!r}, shape [] and role {wanted.role!r}"
            )
    index_names = {spec.name for spec in index_keys()}
    if wrong := sorted(name for name, spec in keys.items() if spec.role == "index" and name not in index_names):
        raise InvalidArgumentError(f"key {wrong[0]!r} has role 'index', which only {sorted(index_names)} have")
    fps, capacity = document["fps"], document["capacity"]
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not (math.isfinite(fps) and fps > 0):
        raise InvalidArgumentError(f"fps is {fps!r}, not a positive number")
    if type(capacity) is not int or not 0 < capacity <= MAX_CAPACITY:
        raise InvalidArgumentError(f"capacity is {capacity!r}, not a positive number of frames")
    for flag in ("fixed_capacity", "ring"):
        if not isinstance(document[flag], bool):
            raise InvalidArgumentError(f"{flag} is {document[flag]!r}, not true or false")
    if document["ring"] and not document["fixed_capacity"]:
        raise InvalidArgumentError("ring is true and fixed_capacity is false; a ring does not grow by itself")
    if not isinstance(document["provenance"], dict):
        raise InvalidArgumentError(f"provenance is {document['provenance']!r}, not an object")
    if document["paths"] != _TEMPLATES:
        raise InvalidArgumentError(f"paths are {document['paths']!r}; this version has {_TEMPLATES!r}")
    limit = document.get("byte_capacity")
    return Manifest(
        fps=fps,
        keys=keys,
        capacity=capacity,
        fixed_capacity=document["fixed_capacity"],
        ring=document["ring"],
        byte_capacity=None if limit is None else ByteCapacity(limit["bytes"], limit["frame_bytes"]),
        provenance=document["provenance"],
        unfinished=UNFINISHED in document["incompatible"],
        uuid=str(uuid.UUID(str(document["uuid"]))),
    )


def is_unfinished(root: Path) -> bool:
    """Whether the directory holds half an import."""
    try:
        document = json.loads(files.read_file(root / paths.METADATA))
        return document["format"] == FORMAT and UNFINISHED in document["incompatible"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _check_version(document: Mapping[str, Any], path: Path, *, unfinished: bool) -> None:
    version, unknown = document["version"], document["incompatible"]
    if not (isinstance(version, str) and re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}", version)):
        raise InvalidArgumentError(f"version is {version!r}, not 'major.minor'")
    major, minor = version.split(".")
    if int(major) != VERSION[0]:
        raise StorageDirCorruptError(
            f"{path} has format version {major}.{minor}; this roboreel reads {VERSION[0]}.x: "
            "type pip install --upgrade roboreel"
        )
    if not isinstance(unknown, list):
        raise InvalidArgumentError(f"incompatible is {unknown!r}, not a list of features")
    if UNFINISHED in unknown and not unfinished:
        raise StorageDirCorruptError(
            f"{path.parent} is half an import, running or interrupted: wait for it, "
            "or type the same import again, which goes on with it"
        )
    if unknown := [feature for feature in unknown if feature not in (DEPTH, UNFINISHED)]:
        raise StorageDirCorruptError(
            f"{path} needs the features {unknown}, which this roboreel does not have: "
            "type pip install --upgrade roboreel"
        )
