"""The side of a dataset that changes: episodes come in, values are edited, what is stored is made durable."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from numpy.typing import NDArray

from roboreel.dataset.batch import loader_workers
from roboreel.dataset.by_index import ByIndex
from roboreel.dataset.opening import Opening
from roboreel.errors import FrameIndexError, RoboreelError
from roboreel.store import (
    AskedMode,
    AskedOptions,
    CacheReport,
    ConversionForecast,
    ConversionReport,
    Decoding,
    Episode,
    SnapshotReport,
    Store,
    check_cameras,
    check_editable,
    split_episodes,
)
from roboreel.windows import tolerance_s

Self = TypeVar("Self", bound="Recording")


class Recording(ByIndex):
    """A dataset directory that episodes are added to; `LeRobotDatasetV2` reads windows from it."""

    _opening: Opening
    _decoding: Decoding

    @property
    def storage_dir(self) -> Path:
        return self._opening.root

    @property
    def uuid(self) -> str | None:
        """Tells this dataset from every other, also from another import of the same folder; None before it is made."""
        store = self._opening.store()
        return None if store is None else store.manifest.uuid

    @property
    def generation(self) -> int:
        """Counts the commits: while it stays the same, so do all frames that are left; 0 before the dataset is made."""
        store = self._opening.store()
        if store is None:
            return 0
        store.refresh()
        return store.state.generation

    @property
    def losses(self) -> int:
        """Counts how often frames were found lost with a writer that died, by this process.

        That moves no generation: while both stay the same, so do all frames and where they stand.
        """
        store = self._opening.store()
        if store is None:
            return 0
        store.settle()
        return store.losses

    @property
    def buffer_capacity(self) -> int | None:
        """Frames for which there is room, also where it was given in bytes; None where storage grows, or is not yet."""
        store = self._opening.store()
        if store is None:
            return None
        store.refresh()
        return store.state.capacity if store.manifest.fixed_capacity else None

    @property
    def fps(self) -> float | None:
        """Frames a second (Hz); None for a new dataset that was given none yet."""
        store = self._opening.store()
        return store.manifest.fps if store else self._opening.fps

    @property
    def tolerance_s(self) -> float | None:
        """How far (s) a requested time may lie from a frame, and outside the episode before it is padding."""
        fps = self.fps
        return None if fps is None else tolerance_s(fps)

    @property
    def decoded_cache(self) -> CacheReport | None:
        """How full the cache of decoded frames is, and how often it was hit; None where none was asked for."""
        store = self._opening.store()
        return None if store is None or store.frame_cache is None else store.frame_cache.report()

    @property
    def data_keys(self) -> list[str]:
        store = self._opening.store()
        return list(store.manifest.keys) if store else []

    @property
    def camera_keys(self) -> list[str]:
        store = self._opening.store()
        return [key for key, spec in store.manifest.keys.items() if spec.is_camera] if store else []

    def add_episodes(self, data: Mapping[str, Any], no_flush: bool = False) -> None:
        """Add one or more episodes; each is committed on its own, in order.

        Args:
            data: {key: array (frames, *shape)}; strings as a list of str or one str. Keys that begin with
                `observation.image` are cameras: uint8 (frames, height, width, channels), or depth (frames, height,
                width, 1), uint16 in millimetres or float32 in metres, 0 where nothing was measured.
                `episode_index` tells episodes apart (left out: one episode), `timestamp` (s) may be left out.
            no_flush: Do not wait until the data would survive a power cut; it survives a kill all the same.

        Raises:
            InvalidEpisodeError: the data cannot be stored as it is; nothing of that episode was.
            CapacityError: it does not fit. DiskSpaceError: the disk is full. DatasetLockedError: another writer.
        """
        self._check_no_view("add_episodes")
        for added, episode in enumerate(split_episodes(data, self.storage_dir)):
            try:
                check_cameras(episode, self._opening.cameras.mode)
                if self._opening.store() is None:
                    self._check_first(episode)
                self._opening.add(episode)
            except Exception as error:
                if added:
                    error.add_note(f"{added} episodes before it were added and stay")
                    self._flush_before(error, no_flush=no_flush)
                raise
        if no_flush:
            return
        try:
            self.flush()
        except RoboreelError as error:
            error.add_note("the episodes were added and stay; that they survive a power cut is what failed")
            raise

    def _flush_before(self, error: Exception, *, no_flush: bool) -> None:
        """Have the episodes before the one that failed survive a power cut, as those of any other call do."""
        if not no_flush:
            try:
                self.flush()
            except RoboreelError as second:
                error.add_note(f"that they survive a power cut failed, too: {second}")

    def _check_first(self, episode: Episode) -> None:
        """Refuse an episode that the dataset could not begin with."""

    def _check_no_view(self, what: str) -> None:
        """Refuse what changes or copies all episodes where only some are shown."""

    def column(self, key: str) -> NDArray[Any]:
        """Return a key's values as they lie on disk, (frames, *shape), without a copy; read-only.

        Row i is slot i, so `dataset[i]` unless `episodes=` was given. Strings come as int32 codes, `timestamp` as
        float64. What a writer changes meanwhile shows in it, half-written frames too: `get_data_by_key` does not.

        Raises:
            UnknownKeyError: the dataset has no such key.
            InvalidArgumentError: the key is a camera stored as PNG or video.
        """
        store = self._need_store()
        store.refresh()
        return store.memmap_of(key)[: store.state.frames]

    @contextlib.contextmanager
    def edit(self, key: str) -> Iterator[NDArray[Any]]:
        """Give an array (frames, *shape) to change like any of numpy's; leaving the block applies the changes.

        They are written down whole, committed, and then applied in place: a kill leaves all of them or none. An
        exception inside the block leaves the dataset as it was. Memory is taken for the pages that are changed. Slots
        of which the frame was lost with a writer that died stay as they are. Other threads that change the dataset
        wait until the block is left.

            with dataset.edit("next.reward") as rewards:
                rewards[rewards < 0] = 0

        Raises:
            UnknownKeyError: the dataset has no such key.
            InvalidArgumentError: an index, strings, or a camera stored as files: these are not edited in place.
            ReadOnlyError: opened with readonly=True. DatasetLockedError: another process is writing.
            EditOpenError: `add_episodes`, another edit, `close` or `reload` inside the block; nothing of it was done.
        """
        self._check_no_view("edit")
        check_editable(self._need_store(), key)
        with self._opening.edit(key) as draft:
            yield draft

    def snapshot(self, dest: str | Path, *, timeout_s: float = 60.0) -> SnapshotReport:
        """Copy everything that is committed to `dest`, a dataset of its own, while readers go on reading.

        PNG and video files, which never change, become hard links; the rest shares its blocks with the original where
        the file system can (Btrfs, XFS, APFS), and is copied where not (ext4, tmpfs). When this returns, the copy has
        reached the device. Another one in the same place is built beside it and exchanged: killed anywhere, the old or
        the new one is there. It writes nothing where nothing was committed since; else new images only, and the
        columns, all of them again where blocks cannot be shared. Who has the old one open reads on if there are no
        image files in it, and gets a `DatasetReplacedError` otherwise.

        Where another process is writing the dataset, it is asked, and does it at its next episode or flush.

            report = dataset.snapshot("checkpoints/buffer")
            print(f"{report.bytes_written / 1e6:.1f} MB written in {report.seconds:.1f} s")

        Args:
            dest: A new or an empty directory, or an unchanged earlier snapshot of this dataset. Outside the dataset;
                on the same file system it costs least.
            timeout_s: How long (s) to wait for another process that writes.

        Raises:
            InvalidArgumentError: `dest` holds anything else, or lies in the dataset.
            DatasetLockedError: `dest` is being written. DatasetBusyError: the writer has not answered in time.
            DiskSpaceError: no room; what was in `dest` is there as before.
        """
        self._check_no_view("snapshot")
        self._need_store()
        return self._opening.snapshot(Path(dest), timeout_s)

    def convert(
        self,
        image_mode: AskedMode,
        *,
        to: str | Path | None = None,
        video_options: AskedOptions = None,
        force: bool = False,
        progress: bool = False,
    ) -> ConversionReport:
        """Store cameras in another image mode, here or in a copy; frames keep their indices, and everything else stays.

        Lossless where the new mode is (memmap, PNG). The new dataset is built beside the old one and exchanged with it:
        killed anywhere, the old or the new one is there, and the same call goes on where it was. Readers in other
        processes follow by themselves. `uuid` stays, `generation` grows by one.

            report = dataset.convert({"observation.images.wrist": "memmap"})
            print(report.payoff)

        Args:
            image_mode: "memmap", "png" or "video" for all cameras, or {camera key: mode}: the others stay as they are.
            to: A new or an empty directory for a converted copy, a dataset with a uuid of its own; this one then
                stays as it is.
            video_options: How video is coded, for all or {camera key: VideoOptions}; where given, a camera that is
                video already, and of other options, is coded anew.
            force: Go on where the forecast says that it does not fit, and raise a capacity in bytes that is too small.
            progress: Show a progress bar, on a terminal.

        Raises:
            InvalidArgumentError: no such camera, or it cannot be stored so (depth as video), or not there.
            DiskSpaceError: it does not fit, by the forecast or in the end; the dataset is as it was.
            CapacityError: a capacity in bytes is too small for it. DatasetLockedError: another process is writing.
            StorageDirCorruptError: frames are damaged.
        """
        self._check_no_view("convert")
        self._need_store()
        dest = None if to is None else Path(to)
        return self._opening.convert(image_mode, video_options, dest, force=force, progress=progress)

    def forecast_conversion(
        self, image_mode: AskedMode, *, to: str | Path | None = None, video_options: AskedOptions = None
    ) -> ConversionForecast:
        """Return the bytes that `convert` with the same arguments will take, before and after; nothing is written.

        Memmap is exact; PNG and video are told by encoding up to 64 frames of each camera.
        """
        self._need_store()
        dest = None if to is None else Path(to)
        return self._opening.conversion(image_mode, video_options, dest).forecast()

    def flush(self) -> None:
        """Wait until everything that was added would survive a power cut."""
        self._opening.flush()

    def close(self) -> None:
        """Flush, and let go of the writer's lock and the files; reading on opens them again."""
        self._opening.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _need_store(self) -> Store:
        store = self._opening.store()
        if store is None:
            raise FrameIndexError(f"{self.storage_dir} holds no episode yet; add one with add_episodes")
        if store.has_cameras:
            self._decoding.workers = loader_workers()
            store.decoding.take(self._decoding)
        return store
