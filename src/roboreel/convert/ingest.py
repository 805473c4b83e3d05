"""Taking a foreign dataset in: episode by episode, beside the place where it will be, and there whole or not at all."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from roboreel.convert.source import Source, SourceEpisode
from roboreel.errors import DiskSpaceError, InvalidArgumentError, RoboreelError, RoboreelWarning, SourceError
from roboreel.schema import KeySpec, index_keys
from roboreel.store import (
    CameraStorage,
    Episode,
    Manifest,
    Store,
    Writer,
    check_empty,
    discard,
    frame_bytes,
    free_bytes,
    is_dataset,
    is_unfinished,
    parse_capacity,
    with_capacity,
)

_BLOCK, _BLOCKS = 1 << 16, 64
"""Files up to 4 MiB are read whole, of larger ones 64 blocks, evenly spread."""


@dataclass(frozen=True)
class IngestOptions:
    cameras: CameraStorage = field(default_factory=CameraStorage)
    """How cameras are stored; those of which it says nothing are kept as they are."""
    buffer_capacity: int | str | None = None
    """Room in frames, or in bytes as "20GB"; None: as much as the source has, growing later."""
    ring: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        if self.ring and self.buffer_capacity is None:
            raise InvalidArgumentError("use_as_fifo_buffer=True needs buffer_capacity, in frames or as '20GB'")
        parse_capacity(self.buffer_capacity)


def ingest(source: Source, storage_dir: Path, options: IngestOptions, provenance: Mapping[str, Any]) -> None:
    """Store every episode of `source` in `storage_dir`, which holds either all of it or what was there before.

    Raises:
        SourceError: an episode cannot be read. InvalidArgumentError: `storage_dir` holds other things.
        DiskSpaceError: there is no room for it.
    """
    _check_free(storage_dir)
    keys = options.cameras.applied({spec.name: spec for spec in (*index_keys(), *source.keys)})
    was_there = storage_dir.exists()
    writer: Writer | None = None
    try:
        for episode in _with_progress(source, storage_dir, options.progress):
            try:
                if writer is None:
                    manifest = _manifest(source, keys, episode.length, options, provenance)
                    _check_room(manifest, storage_dir)
                    discard(storage_dir, keep_dir=was_there)  # half an import; one that runs is refused by its lock
                    writer = Writer.create(storage_dir, manifest, _stored(episode))
                else:
                    writer.add(_stored(episode))
            except SourceError:
                raise
            except RoboreelError as error:
                error.add_note(f"while taking in episode {episode.index} of {source.format}")
                raise
        if writer is None:
            raise SourceError(f"{source.format}: there is no episode to take in")
        writer.flush()  # a power cut must not leave a finished import without its episodes
        writer.finish({**writer.store.manifest.provenance, "warnings": list(source.warnings)})
        writer.close()
    except BaseException:
        if writer is not None:
            with contextlib.suppress(RoboreelError):
                writer.close()
            with contextlib.suppress(RoboreelError):
                discard(storage_dir, keep_dir=was_there)
        raise
    for warning in source.warnings:
        warnings.warn(f"{source.format}: {warning}", RoboreelWarning, stacklevel=3)


def _check_free(storage_dir: Path) -> None:
    if is_unfinished(storage_dir):
        return
    if is_dataset(storage_dir):
        raise InvalidArgumentError(
            f"{storage_dir} holds another dataset, or another state of this one; open it with "
            f"LeRobotDatasetV2({str(storage_dir)!r}), or import into another directory"
        )
    check_empty(storage_dir)


def _manifest(
    source: Source, keys: Mapping[str, KeySpec], first: int, options: IngestOptions, provenance: Mapping[str, Any]
) -> Manifest:
    """The metadata of the dataset to be; `first` is the length of the first episode."""
    asked = parse_capacity(options.buffer_capacity)
    manifest = Manifest(
        fps=source.fps,
        keys=keys,
        capacity=first if asked else max(source.num_frames, first),
        fixed_capacity=False,
        ring=options.ring,
        provenance=provenance,
        unfinished=True,
    )
    return with_capacity(manifest, asked)


def _check_room(manifest: Manifest, storage_dir: Path) -> None:
    """Say before the first byte that an import will not fit, not after an hour of decoding."""
    limit = manifest.byte_capacity
    wanted = limit.total if limit else manifest.capacity * frame_bytes(manifest)
    free = free_bytes(storage_dir)
    if wanted > free:
        decoded = any(spec.is_camera and not spec.needs_decoding for spec in manifest.keys.values())
        advice = "keep the cameras as they are (no decode_images), free some space" if decoded else "free some space"
        raise DiskSpaceError(
            f"{manifest.capacity} frames need {wanted:,} bytes in {storage_dir}, {free:,} are free; "
            f"{advice} or choose another storage_dir"
        )


def _stored(episode: SourceEpisode) -> Episode:
    return Episode(
        length=episode.length,
        columns=episode.columns,
        strings=episode.strings,
        cameras=episode.cameras,
        integer_windows=True,  # one row is one video frame, whatever the clock said
        source_episode=episode.index,
    )


def _with_progress(source: Source, storage_dir: Path, progress: bool) -> Iterator[SourceEpisode]:
    episodes: Iterable[Any] = source.episodes()
    if not progress:
        yield from episodes
        return
    from tqdm import tqdm

    # disable=None: no bar where nobody looks, as in a log
    with tqdm(total=source.num_frames, unit="frame", desc=f"import {storage_dir.name}", disable=None) as bar:
        for episode in episodes:
            yield episode
            bar.update(episode.length)


def fingerprint(folder: Path) -> str:
    """Return 16 hexadecimal digits that change with names, sizes and contents of a folder's files.

    Times of change are left out: a fresh copy of the same data is the same data. Of large files (video, mostly) so
    many blocks are read that a look costs milliseconds; a change that keeps the size and misses them is not seen.
    """
    digest = xxhash.xxh3_64()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\n".encode(errors="surrogateescape"))
        with path.open("rb") as file:
            for start in range(0, size, max(_BLOCK, size // _BLOCKS)):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def is_there(storage_dir: Path, provenance: Mapping[str, Any], cameras: CameraStorage) -> bool:
    """Whether `storage_dir` holds an import with this provenance.

    Raises:
        InvalidArgumentError: it does, and its cameras are stored otherwise than asked for.
    """
    if not is_dataset(storage_dir) or is_unfinished(storage_dir):
        return False
    store = Store.open(storage_dir)
    try:
        if any(store.manifest.provenance.get(key) != value for key, value in provenance.items()):
            return False
        cameras.check_stored(store.manifest.keys.values(), storage_dir)
        return True
    finally:
        store.close()
