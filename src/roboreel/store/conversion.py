"""Storing the cameras of a dataset in another image mode: old or new, whole, whatever happens in between.

The new dataset is built in `.NAME.conversion` beside the place where it will be, and exchanged with what is there. A
journal in it says what is done: a conversion that was killed goes on where it was, if the dataset is as it was.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from roboreel.columns.cache_file import link_cache
from roboreel.columns.video import VideoColumn
from roboreel.errors import (
    CapacityError,
    DatasetBusyError,
    DiskSpaceError,
    InvalidArgumentError,
    RoboreelError,
    RoboreelWarning,
    StorageError,
)
from roboreel.format import files, paths
from roboreel.format.manifest import ByteCapacity, Manifest
from roboreel.schema import KeySpec, LeRobotDatasetV2ImageMode, VideoOptions
from roboreel.store.cameras import AskedMode, AskedOptions, CameraStorage
from roboreel.store.capacity import ENCODED_MARGIN
from roboreel.store.conversion_forecast import ConversionForecast, forecast_conversion
from roboreel.store.conversion_place import DATASET, JOURNAL, claimed, clear, exchange, parse_dest, place_of, sweep
from roboreel.store.frame_cache import cached_keys
from roboreel.store.journal import Journal, task_of
from roboreel.store.layout import frame_bytes
from roboreel.store.read_cost import break_even_epochs, payoff_text, window_seconds
from roboreel.store.rebuilding import Rebuild, rebuilt_manifest
from roboreel.store.store import Store
from roboreel.store.writer import Writer


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion cost and gave."""

    storage_dir: str
    """Where the converted dataset is."""
    cameras: Mapping[str, tuple[str, str]]
    """Camera → image mode before and after; empty where all were stored so already."""
    bytes_before: int
    """On disk, of the whole dataset."""
    bytes_after: int
    seconds: float
    """Of the whole conversion, earlier tries that this one went on with included."""
    episodes_converted: int
    """By this call, each camera counted."""
    episodes_resumed: int
    """That an earlier try, killed or failed, had converted."""
    epoch_seconds_before: float
    """What reading the converted cameras costs in random windows of 2 frames, one a frame, by one thread: measured on
    a sample, extrapolated to all frames."""
    epoch_seconds_after: float

    @property
    def break_even_epochs(self) -> int | None:
        """After how many epochs the conversion has paid for itself in time; None: never."""
        return break_even_epochs(self.seconds, self.epoch_seconds_before, self.epoch_seconds_after)

    @property
    def payoff(self) -> str:
        """The same in words."""
        return payoff_text(self.seconds, self.epoch_seconds_before, self.epoch_seconds_after)


@dataclass(frozen=True)
class Conversion:
    """What is to be done, checked against the dataset."""

    store: Store
    manifest: Manifest
    """Of the dataset to be; its provenance tells of the conversion."""
    changed: tuple[str, ...]
    dest: Path | None
    """Where the converted copy goes; None: into the place of the dataset itself."""

    @classmethod
    def plan(
        cls, store: Store, image_mode: AskedMode, video_options: AskedOptions = None, dest: Path | None = None
    ) -> Conversion:
        """Check what is asked for; cameras that `image_mode` does not name stay as they are.

        A camera that is video already is coded anew where other options are given for it.

        Raises:
            InvalidArgumentError: no such camera, or it cannot be stored so, or not there.
        """
        dest = None if dest is None else parse_dest(store.root, dest)
        if dest is None and os.path.ismount(os.path.realpath(store.root)):
            raise InvalidArgumentError(
                f"{store.root} is where a disk is mounted, and cannot be exchanged; convert to a new place (--to, to=)"
            )
        specs = _wanted(store, CameraStorage.parse(image_mode, video_options))
        told = {
            "uuid": store.manifest.uuid,
            "generation": store.state.generation,
            "cameras": {key: _told(store.manifest.keys[key], spec) for key, spec in specs.items()},
        }
        fixed = store.manifest.fixed_capacity
        capacity = store.state.capacity if fixed else max(store.state.frames, 1)
        manifest = rebuilt_manifest(store.manifest, specs, told, copy=dest is not None)
        return cls(store, replace(manifest, capacity=capacity), tuple(specs), dest)

    @property
    def target(self) -> Path:
        """Where the converted dataset will be, without links in its path."""
        return self.dest or Path(os.path.realpath(self.store.root))

    @property
    def place(self) -> Path:
        """Where it is built."""
        return place_of(self.target)

    @property
    def task(self) -> dict[str, Any]:
        """What must be the same for one try to go on where another one was."""
        state, manifest = self.store.state, self.store.manifest
        return {
            "uuid": manifest.uuid,
            "state": [state.generation, state.rows, state.frames, state.next_slot, state.metadata_hash],
            "capacity": self.manifest.capacity,
            "cameras": {key: self.manifest.keys[key].to_dict() for key in self.changed},
        }

    def forecast(self) -> ConversionForecast:
        """What it will take and give; nothing is written."""
        return forecast_conversion(self.store, self.manifest, self.changed, self.place)

    def run(self, writer: Writer | None, *, force: bool = False, progress: bool = False) -> ConversionReport:
        """Convert. In place, `writer` is the dataset's and is closed in the end: open the dataset anew.

        Args:
            writer: Who holds the lock of the dataset; None for a copy of one in which nothing can be written.
            force: Go on where the forecast says that it does not fit.
            progress: Show a progress bar, on a terminal.

        Raises:
            DiskSpaceError: it does not fit, or did not: the dataset is as it was, and nothing is left beside it.
            StorageDirCorruptError: what is to be converted is damaged.
        """
        if writer is not None:
            writer.flush()  # images are linked, not copied: they must have reached the device
        else:
            self._check_settled()
        if not self.changed and self.dest is None:
            sweep(self.place)
            return self._report(0, 0, 0.0, 0.0, 0.0, self.store.bytes_on_disk())
        before = self.store.refresh()
        forecast = self.forecast()
        if not force:
            forecast.check()
        manifest = self._with_byte_capacity(forecast, force=force)
        with claimed(self.place):
            try:
                report = self._built(manifest, progress=progress)
                if self.store.refresh() != before:  # nobody could, but for a copy made without the lock
                    raise DatasetBusyError(f"{self.store.root} was written meanwhile; convert a snapshot of it")
                self._put(writer)
            except DiskSpaceError:
                with contextlib.suppress(StorageError):  # a full disk harms others too: give back what it took
                    files.remove(self.place)
                raise
            except (RoboreelError, OSError) as error:
                if (self.place / JOURNAL).exists():
                    error.add_note(f"what is done is kept in {self.place}: the same command goes on with it")
                raise
        return report

    def _has_come_true(self, known: Mapping[str, Any]) -> bool:
        """Whether a journal is of a conversion that was killed when only sweeping was left to do."""
        keys = self.store.manifest.keys
        return all(key in keys and keys[key].to_dict() == spec for key, spec in known.get("cameras", {}).items())

    def _check_settled(self) -> None:
        state = self.store.state
        if state.redo or state.at_risk_length or state.busy_start < state.busy_stop:
            raise DatasetBusyError(
                f"{self.store.root} is being written, or its writer died at it: take a snapshot, and convert that"
            )

    def _built(self, manifest: Manifest, *, progress: bool) -> ConversionReport:
        """Build the new dataset, or what is left to be built of it."""
        build = self.place / DATASET
        known = task_of(self.place / JOURNAL)
        if known != self.task or not build.exists():
            if known is not None and build.exists() and not self._has_come_true(known):
                warnings.warn(_begun_anew(self.place, known, self.task), RoboreelWarning, stacklevel=5)
            clear(self.place)
            files.make_dir(build)
        journal = Journal(self.place / JOURNAL, self.task)
        try:
            resumed, spent, began = journal.episodes, journal.seconds, time.perf_counter()
            rebuild = Rebuild(self.store, manifest, self.changed, build, journal)
            with self._progress(progress) as advance:
                converted = rebuild.cameras(advance)
            rebuild.finish()
            seconds = spent + time.perf_counter() - began
        finally:
            journal.close()
        frames = self.store.state.frames
        epoch_before = frames * window_seconds(self.store, self.changed)
        built = Store.open(build)
        try:
            epoch_after = frames * window_seconds(built, self.changed)
            return self._report(converted, resumed, seconds, epoch_before, epoch_after, built.bytes_on_disk())
        finally:
            built.close()

    def _report(
        self, converted: int, resumed: int, seconds: float, before: float, after: float, bytes_after: int
    ) -> ConversionReport:
        old, new = self.store.manifest.keys, self.manifest.keys
        return ConversionReport(
            storage_dir=str(self.dest or self.store.root),
            cameras={key: (_mode(old[key]), _mode(new[key])) for key in self.changed},
            bytes_before=self.store.bytes_on_disk(),
            bytes_after=bytes_after,
            seconds=seconds,
            episodes_converted=converted,
            episodes_resumed=resumed,
            epoch_seconds_before=before,
            epoch_seconds_after=after,
        )

    def _with_byte_capacity(self, forecast: ConversionForecast, *, force: bool) -> Manifest:
        """The metadata with a capacity in bytes that the new files keep; the frames keep their slots."""
        limit, manifest = self.store.manifest.byte_capacity, self.manifest
        if limit is None:
            return manifest
        columns = manifest.capacity * frame_bytes(manifest)
        encoded = forecast.media_bytes
        needed = columns + round(encoded * ENCODED_MARGIN)
        if needed > limit.total and not force:
            raise CapacityError(
                f"buffer_capacity of {self.store.root} is {limit.total:,} bytes, and so converted its "
                f"{manifest.capacity} frames take {needed:,}; type --force (force=True) to raise it to that"
            )
        a_frame = frame_bytes(manifest) + round(encoded * ENCODED_MARGIN / max(1, self.store.state.frames))
        return replace(manifest, byte_capacity=ByteCapacity(max(needed, limit.total), a_frame))

    @contextlib.contextmanager
    def _progress(self, wanted: bool) -> Iterator[Callable[[int], object]]:
        if not wanted:
            yield lambda _: None
            return
        from tqdm import tqdm

        table = self.store.table
        total = int(np.sum((table.stops - table.live_starts)[table.live])) * len(self.changed)
        # disable=None: no bar where nobody looks, as in a log
        with tqdm(total=total, unit="frame", desc=f"convert {self.store.root.name}", disable=None) as bar:
            yield bar.update

    # Into its place

    def _put(self, writer: Writer | None) -> None:
        target = self.target
        if self.dest is not None:
            files.rename(self.place / DATASET, target)  # also over an empty directory
        else:
            kept = [spec.name for spec in cached_keys(self.store.manifest) if spec.name not in self.changed]
            link_cache(self.store.root / paths.CACHE, self.place / DATASET / paths.CACHE, kept)
            exchange(self.place, target)
        try:
            for directory in (target.parent, self.place):
                files.sync_path(directory)
            with contextlib.suppress(StorageError):  # the next one sweeps
                files.remove(self.place)  # its lock goes while it is held: whoever waits for it sees it unlinked
        except StorageError as error:
            error.add_note("the dataset is converted all the same; that it survives a power cut is what failed")
            raise
        finally:
            if writer is not None and self.dest is None:
                writer.let_go()


# What is asked for


def _wanted(store: Store, asked: CameraStorage) -> dict[str, KeySpec]:
    """Return the new specs of the cameras that change."""
    cameras = {key: spec for key, spec in store.manifest.keys.items() if spec.is_camera}
    if not cameras:
        raise InvalidArgumentError("the dataset has no camera, so there is nothing to convert")
    asked.check_known(cameras)
    if asked.mode is None and not asked.modes:
        raise InvalidArgumentError(
            "image_mode says nothing; 'memmap', 'png' or 'video' would do, or {camera key: mode} for some cameras"
        )
    specs, videos = {}, 0
    for key, old in cameras.items():
        mode = asked.mode_of(key)
        options = asked.video_options_of(key) if mode is LeRobotDatasetV2ImageMode.VIDEO else None
        videos += mode is LeRobotDatasetV2ImageMode.VIDEO
        if mode is None or (mode is old.image_mode and (options is None or _is_coded_so(store, key, options))):
            continue
        specs[key] = old.stored_as(mode, options)
        _check_storable(specs[key], store.manifest.fps)
    if asked.options is not None and not videos:
        raise InvalidArgumentError("video_options were given, and no camera is to be video; leave them out")
    return specs


def _is_coded_so(store: Store, key: str, options: VideoOptions) -> bool:
    """Whether a camera is video of these options, as far as its files tell: coding it anew would cost quality."""
    column, table = store.columns[key], store.table
    if options != store.manifest.keys[key].video_options or not isinstance(column, VideoColumn):
        return False
    clips = table.rows["clips"]["file"][table.live, store.manifest.video_keys.index(key)]
    tables = (column.table(file) for file in np.unique(clips).tolist())
    return all((file.codec, file.pix_fmt) == (options.codec, options.pix_fmt) for file in tables)


def _check_storable(spec: KeySpec, fps: float) -> None:
    mode, dtype, channels = spec.image_mode, spec.dtype, spec.shape[-1]
    if mode is LeRobotDatasetV2ImageMode.VIDEO:
        if dtype != np.uint8 or channels != 3:
            raise InvalidArgumentError(
                f"{spec.name!r} has {dtype} frames of {channels} channels, and video holds uint8 RGB: 'png' or "
                "'memmap' would do"
            )
        assert spec.video_options is not None
        spec.video_options.check_frames(spec.shape[0], spec.shape[1], fps)
    if mode is LeRobotDatasetV2ImageMode.PNG and dtype.kind != "u":
        raise InvalidArgumentError(f"{spec.name!r} has {dtype} frames, which no PNG holds: 'memmap' would do")


def _told(old: KeySpec, new: KeySpec) -> dict[str, Any]:
    told: dict[str, Any] = {"from": _mode(old), "to": _mode(new)}
    if new.video_options is not None:
        told["video_options"] = new.video_options.to_dict()
    return told


def _mode(spec: KeySpec) -> str:
    assert spec.image_mode is not None
    return spec.image_mode.value


def _begun_anew(place: Path, known: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    if known.get("cameras") != task["cameras"]:
        why = "was to other image modes or video options"
    else:
        why = "was of the dataset as it was before it changed"
    return f"the conversion that was begun in {place} {why}; this one begins anew"
