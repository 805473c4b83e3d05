"""Taking a foreign dataset in: episode by episode, beside the place where it will be, and there whole or not at all."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash

from roboreel.convert.foreign import ForeignDataset, SourceEpisode, StreamedSource
from roboreel.convert.import_forecast import ImportForecast, forecast_source
from roboreel.errors import InvalidArgumentError, RoboreelError, RoboreelWarning, SourceError
from roboreel.schema import index_keys
from roboreel.store import (
    CameraStorage,
    Episode,
    Manifest,
    Pace,
    Store,
    Writer,
    check_empty,
    discard,
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
    force: bool = False
    """Go on where the forecast says that it does not fit."""
    skip_episodes: Collection[int] = ()
    """Episodes of the source, by its own numbers, that are left out."""
    strict: bool = False
    """Refuse what would be left out with a warning: a declared camera without frames, a column that is no array."""

    def __post_init__(self) -> None:
        if self.ring and self.buffer_capacity is None:
            raise InvalidArgumentError("use_as_fifo_buffer=True needs buffer_capacity, in frames or as '20GB'")
        parse_capacity(self.buffer_capacity)


@dataclass(frozen=True)
class IngestReport:
    """What an import did."""

    episodes: int
    """That this call took in."""
    episodes_resumed: int
    """That an earlier try, which was killed or interrupted, had taken in."""
    frames: int
    frames_resumed: int
    seconds: float
    """Of this call."""


Told = Callable[[ImportForecast], object]
"""Who is told the forecast before anything is written."""


def ingest(
    source: ForeignDataset,
    storage_dir: Path,
    options: IngestOptions,
    provenance: Mapping[str, Any],
    told: Told | None = None,
) -> IngestReport:
    """Store every episode of `source` in `storage_dir`, which holds either all of it or what was there before.

    Killed or interrupted (Ctrl-C), it leaves what it has done, as no dataset yet: the same import goes on with it.

    Raises:
        SourceError: an episode cannot be read. InvalidArgumentError: `storage_dir` holds other things.
        DiskSpaceError: there is no room for it.
    """
    check_free(storage_dir)
    began, was_there = time.perf_counter(), storage_dir.exists()
    manifest = planned(source, options, provenance)
    forecast = forecast_source(source, manifest, storage_dir)
    if told is not None:
        told(forecast)
    if not options.force:
        forecast.check()
    writer = _begun(manifest, storage_dir)
    resumed, frames_resumed = (0, 0) if writer is None else _done(writer)
    try:
        pace = Pace()
        for number, episode in _with_progress(source, storage_dir, options.progress, resumed):
            if number < resumed:
                continue  # gone through all the same: what was found wrong in it is told once more
            with _named(episode, source):
                if writer is None:
                    discard(storage_dir, keep_dir=was_there)
                    writer = Writer.create(storage_dir, manifest, _stored(episode))
                else:
                    writer.add(_stored(episode))
                if pace.is_due():
                    with pace.timed():
                        writer.flush()
            if isinstance(source, StreamedSource):
                source.release(number)
        if writer is None:
            raise SourceError(f"{source.format}: there is no episode to take in")
        writer.flush()  # a power cut must not leave a finished import without its episodes
        writer.finish({**writer.store.manifest.provenance, "warnings": list(source.warnings)})
        writer.close()
    except BaseException as error:
        if writer is not None:
            _give_up(writer, error, kept=resumed > 0 or not isinstance(error, Exception), was_there=was_there)
        raise
    for warning in source.warnings:
        warnings.warn(f"{source.format}: {warning}", RoboreelWarning, stacklevel=3)
    return IngestReport(
        source.num_episodes - resumed,
        resumed,
        source.num_frames - frames_resumed,
        frames_resumed,
        time.perf_counter() - began,
    )


def _give_up(writer: Writer, error: BaseException, *, kept: bool, was_there: bool) -> None:
    root = writer.store.root
    if kept:
        error.add_note(f"what is done is kept in {root}: the same import goes on with it")
    with contextlib.suppress(RoboreelError):
        writer.close()
    if kept:
        return
    with contextlib.suppress(RoboreelError):
        discard(root, keep_dir=was_there)


@contextlib.contextmanager
def _named(episode: SourceEpisode, source: ForeignDataset) -> Iterator[None]:
    """Have an error say which episode it met; those of the source do."""
    try:
        yield
    except SourceError:
        raise
    except RoboreelError as error:
        error.add_note(f"while taking in episode {episode.index} of {source.format}")
        raise


def check_free(storage_dir: Path) -> None:
    """Refuse a place that holds anything but what an earlier try has left."""
    if is_unfinished(storage_dir):
        return
    if is_dataset(storage_dir):
        raise InvalidArgumentError(
            f"{storage_dir} holds another dataset, or another state of this one; open it with "
            f"LeRobotDatasetV2({str(storage_dir)!r}), or import into another directory"
        )
    check_empty(storage_dir)


def planned(source: ForeignDataset, options: IngestOptions, provenance: Mapping[str, Any]) -> Manifest:
    """The metadata of the dataset to be."""
    manifest = Manifest(
        fps=source.fps,
        keys=options.cameras.applied({spec.name: spec for spec in (*index_keys(), *source.keys)}),
        capacity=max(1, source.num_frames),
        fixed_capacity=False,
        ring=options.ring,
        provenance=provenance,
        unfinished=True,
    )
    return with_capacity(manifest, parse_capacity(options.buffer_capacity))


def _begun(manifest: Manifest, storage_dir: Path) -> Writer | None:
    """The writer of what an earlier try has left of the same import; None where there is nothing to go on with."""
    if not is_unfinished(storage_dir):
        return None
    writer = Writer.open(storage_dir, unfinished=True)  # one that runs is refused by its lock
    if _done(writer)[0] and _is_same(writer.store.manifest, manifest):
        return writer
    try:
        if _done(writer)[0]:  # else a power cut has taken all of it
            warnings.warn(
                f"the import that was begun in {storage_dir} was of another source, or with other options; this one "
                "begins anew",
                RoboreelWarning,
                stacklevel=4,
            )
    finally:
        writer.let_go()
    return None


def _done(writer: Writer) -> tuple[int, int]:
    """Episodes and frames that are committed."""
    state = writer.store.state
    return state.next_episode_index, state.next_index


def _is_same(known: Manifest, wanted: Manifest) -> bool:
    """Whether two imports are of the same source and with the same options."""
    limits = [manifest.byte_capacity and manifest.byte_capacity.total for manifest in (known, wanted)]
    if limits[0] != limits[1]:
        return False
    capacity = wanted.capacity if limits[0] is None else known.capacity  # bytes became frames by the first episode
    wanted = replace(wanted, uuid=known.uuid, capacity=capacity, byte_capacity=known.byte_capacity)
    return known.to_bytes() == wanted.to_bytes()


def _stored(episode: SourceEpisode) -> Episode:
    return Episode(
        length=episode.length,
        columns=episode.columns,
        strings=episode.strings,
        cameras=episode.cameras,
        integer_windows=episode.integer_windows,
        source_episode=episode.index,
    )


def _with_progress(
    source: ForeignDataset, storage_dir: Path, progress: bool, resumed: int
) -> Iterator[tuple[int, SourceEpisode]]:
    """The episodes with their numbers; of a source that is fetched, not those that an earlier try has taken in."""
    numbered: Iterable[Any] = enumerate(source.episodes())
    if isinstance(source, StreamedSource) and source.is_remote:
        numbered = enumerate(source.episodes_from(resumed), resumed)
    if not progress:
        yield from numbered
        return
    from tqdm import tqdm

    # disable=None: no bar where nobody looks, as in a log
    with tqdm(total=source.num_frames, unit="frame", desc=f"import {storage_dir.name}", disable=None) as bar:
        for number, episode in numbered:
            yield number, episode
            bar.update(episode.length)


def fingerprint(*places: Path) -> str:
    """Return 16 hexadecimal digits that change with names, sizes and contents of files, or of a folder's.

    Times of change are left out: a fresh copy of the same data is the same data. Of large files (video, mostly) so
    many blocks are read that a look costs milliseconds; a change that keeps the size and misses them is not seen.
    """
    digest = xxhash.xxh3_64()
    for name, path in (named for place in places for named in _files_of(place)):
        size = path.stat().st_size
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
        with path.open("rb") as file:
            for start in range(0, size, max(_BLOCK, size // _BLOCKS)):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _files_of(place: Path) -> Iterator[tuple[str, Path]]:
    if place.is_file():
        yield place.name, place
        return
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        yield path.relative_to(place).as_posix(), path


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
