"""`decoded_cache`: what was asked for, shared out among the cameras of a dataset that have to be decoded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.columns.base import Column, Decoding, Frames
from roboreel.columns.cache import CachedColumn, Identify, VideoIdentity, png_identity
from roboreel.columns.cache_file import CacheFile, clear_cache
from roboreel.columns.cache_map import table_bytes
from roboreel.columns.video import VideoColumn
from roboreel.errors import DiskSpaceError, InvalidArgumentError, RoboreelError, RoboreelWarning
from roboreel.format import files, paths
from roboreel.format.manifest import Manifest
from roboreel.schema import KeySpec
from roboreel.store.byte_size import parse_bytes

ChecksumsOf = Callable[[str, NDArray[np.int64]], NDArray[np.uint64]]
"""Key and slots (N,) to the checksums of their PNG files (N,)."""


@dataclass(frozen=True)
class DecodedCache:
    """What was asked for."""

    bytes: int
    place: Path | None = None
    """The directory that holds a directory a dataset; None: inside the dataset's own."""
    given: str = ""
    """As the caller wrote it, for errors."""

    def __str__(self) -> str:
        return f"decoded_cache={self.given}"

    def folder(self, root: Path, manifest: Manifest) -> Path:
        """Where the frames of the dataset in `root` are."""
        return root / paths.CACHE if self.place is None else self.place / manifest.uuid

    def frames(self, manifest: Manifest, capacity: int) -> int:
        """For how many frames, of every camera, there is room: all where that is enough."""
        specs = cached_keys(manifest)
        if not specs:
            return 0
        left = self.bytes - len(specs) * table_bytes(capacity)
        return min(capacity, max(0, left) // sum(spec.frame_bytes for spec in specs))


@dataclass(frozen=True)
class CacheReport:
    """How full a cache of decoded frames is, and what it has done for this process."""

    folder: Path
    capacity: int
    """Frames that have room, the cameras together."""
    frames: int
    """Frames that are in it."""
    bytes: int
    """What it takes on disk."""
    hits: int = 0
    """Frames that this process asked for and found in it; its workers count for themselves."""
    decoded: int = 0
    """Frames that this process had to decode."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values of what all processes share."""
        return {"folder": str(self.folder), "capacity": self.capacity, "frames": self.frames, "bytes": self.bytes}


def parse_decoded_cache(given: Any) -> DecodedCache | None:
    """Return what was asked for by a size, or by a size and a directory; None for None.

    >>> parse_decoded_cache("8GB").bytes, parse_decoded_cache(("500MB", "/scratch")).place.name
    (8000000000, 'scratch')
    """
    if given is None:
        return None
    size, place = given if isinstance(given, (tuple, list)) and len(given) == 2 else (given, None)
    amount = parse_bytes(size) if isinstance(size, str) else None
    if amount is None or not (place is None or isinstance(place, (str, Path))):
        raise InvalidArgumentError(
            f"decoded_cache={given!r}; a size such as '8GB' or '500MB' would do, or a size and a directory, "
            "('8GB', '/scratch/frames')"
        )
    folder = None if place is None else Path(place).expanduser().absolute()  # workers may run elsewhere
    return DecodedCache(amount, folder, repr(given))


def cached_keys(manifest: Manifest) -> list[KeySpec]:
    """The cameras that have to be decoded."""
    return [spec for spec in manifest.keys.values() if spec.needs_decoding and spec.frame_bytes]


def check_room(asked: DecodedCache, root: Path, manifest: Manifest, capacity: int) -> None:
    """Refuse a cache that could not hold a frame, or that the disk could not hold.

    Raises:
        InvalidArgumentError: it has no room for one frame of each camera. DiskSpaceError: the disk is too full.
    """
    specs = cached_keys(manifest)
    frames, a_frame = asked.frames(manifest, capacity), sum(spec.frame_bytes for spec in specs)
    if specs and not frames:
        raise InvalidArgumentError(
            f"{asked} has no room for one frame: {len(specs)} cameras take {a_frame:,} bytes a frame beside "
            f"{len(specs) * table_bytes(capacity):,} for tables; give more, or leave it out"
        )
    folder = asked.folder(root, manifest)
    if asked.place is not None and asked.place.exists() and not asked.place.is_dir():
        raise InvalidArgumentError(f"{asked}: {asked.place} is a file; give a directory")
    taken = cache_report(folder, manifest).bytes
    missing = frames * a_frame + len(specs) * table_bytes(capacity) - taken
    free = files.free_bytes(folder)
    if missing > free:
        raise DiskSpaceError(
            f"{asked} may come to take {missing:,} bytes more in {folder}, and {free:,} are free; give less, or "
            f"another place: decoded_cache=('{max(1, (taken + free) // 2_000_000)}MB', '/a/larger/disk')"
        )


class FrameCache:
    """The decoded frames of one open dataset."""

    def __init__(
        self,
        asked: DecodedCache,
        root: Path,
        manifest: Manifest,
        columns: Mapping[str, Column],
        checksums_of: ChecksumsOf,
        decoding: Decoding,
    ) -> None:
        self.folder = asked.folder(root, manifest)
        self._asked = asked
        self._manifest = manifest
        self.columns: dict[str, CachedColumn] = {}
        """The cameras that are read through the cache."""
        for spec in cached_keys(manifest):
            column = columns[spec.name]
            identify: Identify = _png_identity(spec.name, checksums_of)
            if isinstance(column, VideoColumn):
                identify = VideoIdentity(root, column, manifest.video_keys.index(spec.name))
            file = CacheFile(self.folder, spec.name, spec.frame_bytes)
            self.columns[spec.name] = CachedColumn(column, identify, file, self._give_up, decoding)

    def resize(self, capacity: int) -> None:
        """Take notice of how many slots the dataset has."""
        frames = self._asked.frames(self._manifest, capacity)
        for column in self.columns.values():
            column.resize(capacity, frames)

    def report(self) -> CacheReport:
        shared = cache_report(self.folder, self._manifest)
        hits = sum(column.hits for column in self.columns.values())
        decoded = sum(column.decoded for column in self.columns.values())
        return CacheReport(shared.folder, shared.capacity, shared.frames, shared.bytes, hits, decoded)

    def close(self) -> None:
        for column in self.columns.values():
            column.close()

    def _give_up(self, error: RoboreelError) -> None:
        """Go on without keeping anything more; what is there is still read."""
        if all(column.filling for column in self.columns.values()):
            for column in self.columns.values():
                column.filling = False
            warnings.warn(
                f"{self.folder}: decoded frames are not kept any more ({error}); they are decoded as if {self._asked} "
                "were left out; a directory elsewhere would do: decoded_cache=('8GB', '/scratch/frames')",
                RoboreelWarning,
                stacklevel=2,
            )


def _png_identity(key: str, checksums_of: ChecksumsOf) -> Identify:
    def identify(frames: Frames) -> NDArray[np.uint64]:
        return png_identity(frames, checksums_of(key, frames.slots))

    return identify


def cache_report(folder: Path, manifest: Manifest) -> CacheReport:
    """Return how full the cache in a directory is; all zeros where there is none."""
    counts = [CacheFile(folder, spec.name, spec.frame_bytes).count() for spec in cached_keys(manifest)]
    places, frames, taken = (sum(column) for column in zip((0, 0, 0), *counts, strict=True))
    return CacheReport(folder, places, frames, taken)


__all__ = ["CacheReport", "DecodedCache", "FrameCache", "cache_report", "check_room", "clear_cache"]
__all__ += ["cached_keys", "parse_decoded_cache"]
