"""`metadata.json`: what the dataset is. Parsed and checked once, then trusted."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from roboreel.errors import InvalidArgumentError, NotADatasetError, StorageDirCorruptError
from roboreel.format import paths
from roboreel.schema import EPISODE_INDEX_KEY, FRAME_INDEX_KEY, INDEX_KEY, TIMESTAMP_KEY, KeySpec

FORMAT = "roboreel"
VERSION = (0, 1)
"""Another major number means: do not read. Another minor one: read, knowing all that changes how to read is listed
under `incompatible`."""

_MAX_BYTES = 64 << 20
_REQUIRED_KEYS = (INDEX_KEY, EPISODE_INDEX_KEY, FRAME_INDEX_KEY, TIMESTAMP_KEY)

_TEMPLATES = {
    "column": paths.COLUMN_TEMPLATE,
    "png": paths.IMAGE_TEMPLATE,
    "video": paths.VIDEO_TEMPLATE,
    "frame_table": paths.FRAME_TABLE_TEMPLATE,
}


@dataclass(frozen=True)
class Manifest:
    fps: float
    """Frames a second (Hz)."""
    keys: Mapping[str, KeySpec]
    capacity: int
    """Slots in every column file; the record in `state.bin` may say more after a growth, never less."""
    fixed_capacity: bool
    """Whether the capacity was asked for; otherwise storage grows as episodes come."""
    ring: bool
    provenance: Mapping[str, Any] = field(default_factory=dict)
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def video_keys(self) -> list[str]:
        """The cameras stored as video, in the order of their clips in an episode row."""
        return [
            key for key, spec in self.keys.items() if spec.image_mode is not None and spec.image_mode.value == "video"
        ]

    def to_bytes(self) -> bytes:
        document = {
            "format": FORMAT,
            "version": ".".join(map(str, VERSION)),
            "incompatible": [],
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
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode()


def metadata_hash(raw: bytes) -> int:
    return xxhash.xxh3_64_intdigest(raw)


def read_manifest(root: Path) -> tuple[Manifest, int]:
    """Read `metadata.json`; return what it says and its hash.

    Raises:
        NotADatasetError: there is none.
        StorageDirCorruptError: it cannot be read as what it must be; the message names the field.
    """
    path = root / paths.METADATA
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise StorageDirCorruptError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: not written by roboreel")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise NotADatasetError(_not_a_dataset(root)) from None
    except OSError as error:
        raise StorageDirCorruptError(f"{path} cannot be read: {error}") from error
    try:
        return _parse(json.loads(raw), path), metadata_hash(raw)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, StorageDirCorruptError):
            raise
        raise StorageDirCorruptError(f"{path} cannot be read as roboreel metadata: {error!r}") from error


def _not_a_dataset(root: Path) -> str:
    if (root / "meta" / "info.json").exists() or (root / "meta_data").exists():
        return f"{root} is a LeRobot folder, not a roboreel dataset; type: roboreel import {root} DEST"
    what = f"holds no {paths.METADATA}" if root.is_dir() else "does not exist" if not root.exists() else "is a file"
    return f"{root} is not a roboreel dataset: it {what}"


def _parse(document: Any, path: Path) -> Manifest:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise StorageDirCorruptError(f"{path}: its field 'format' is not {FORMAT!r}; this is not roboreel's")
    _check_version(document, path)
    keys = {name: KeySpec.from_dict(name, fields) for name, fields in document["keys"].items()}
    missing = [key for key in _REQUIRED_KEYS if key not in keys or keys[key].shape or keys[key].is_camera]
    if missing:
        raise InvalidArgumentError(f"keys {missing} must be there, as scalars")
    encoded = {paths.encode_key(key) for key in keys}
    if len(encoded) != len(keys):
        raise InvalidArgumentError("two keys have the same file name")
    fps, capacity = document["fps"], document["capacity"]
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not (math.isfinite(fps) and fps > 0):
        raise InvalidArgumentError(f"fps is {fps!r}, not a positive number")
    if type(capacity) is not int or not 0 < capacity < 1 << 48:
        raise InvalidArgumentError(f"capacity is {capacity!r}, not a positive number of frames")
    for flag in ("fixed_capacity", "ring"):
        if not isinstance(document[flag], bool):
            raise InvalidArgumentError(f"{flag} is {document[flag]!r}, not true or false")
    if document["paths"] != _TEMPLATES:
        raise InvalidArgumentError(f"paths are {document['paths']!r}; this version has {_TEMPLATES!r}")
    return Manifest(
        fps=fps,
        keys=keys,
        capacity=capacity,
        fixed_capacity=document["fixed_capacity"],
        ring=document["ring"],
        provenance=dict(document["provenance"]),
        uuid=str(uuid.UUID(document["uuid"])),
    )


def _check_version(document: Mapping[str, Any], path: Path) -> None:
    major, minor = (int(part) for part in str(document["version"]).split("."))
    if major != VERSION[0]:
        raise StorageDirCorruptError(
            f"{path} has format version {major}.{minor}; this roboreel reads {VERSION[0]}.x: "
            "type pip install --upgrade roboreel"
        )
    if unknown := list(document["incompatible"]):
        raise StorageDirCorruptError(
            f"{path} needs the features {unknown}, which this roboreel does not have: "
            "type pip install --upgrade roboreel"
        )
