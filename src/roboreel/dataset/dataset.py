"""`LeRobotDatasetV2`: a training dataset, a recording and a replay buffer over one directory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from roboreel import schema
from roboreel.dataset.choice import parse_episodes
from roboreel.dataset.episodes import as_given, episode_not_found, episode_slots
from roboreel.dataset.opening import Opening, check_storage
from roboreel.dataset.plan import Arrays, Forms
from roboreel.dataset.reading import (
    OnHole,
    check_window_keys,
    check_windows,
    gather,
    parse_windows,
)
from roboreel.dataset.samples import Samples
from roboreel.errors import InvalidArgumentError, StorageDirCorruptError, UnknownKeyError
from roboreel.store import (
    AskedMode,
    AskedOptions,
    AskedSize,
    CameraStorage,
    Decoding,
    Episode,
    Store,
    VideoDecoderName,
)

if TYPE_CHECKING:
    import torch

    from roboreel.convert import Source

Ints = NDArray[np.int64]
DeltaTimestamps = Mapping[str, Sequence[float] | NDArray[np.float64]]


class LeRobotDatasetV2(Samples):
    """Robot episodes in memory-mapped files, indexed by frame.

    `dataset[i]` is a dict of tensors: each key's value at frame i, or, for keys in `delta_timestamps`, the frames
    at those offsets (seconds) within the episode, with a mask `<key>_is_pad` where the episode does not reach so far.
    Images come channel-first, float32 in [0, 1] or raw uint8, depth as float32 metres or as it is stored. Any
    number of processes read while one writes.

    >>> import numpy as np, tempfile
    >>> dataset = LeRobotDatasetV2(tempfile.mkdtemp(), fps=10)
    >>> dataset.add_episodes({"action": np.arange(5, dtype=np.float32)})
    >>> dataset.set_delta_timestamps({"action": [-0.1, 0, 0.1]})
    >>> item = dataset[4]
    >>> item["action"].tolist(), item["action_is_pad"].tolist()
    ([3.0, 4.0, 4.0], [False, False, True])

    The semantics are those of https://github.com/huggingface/lerobot/pull/445.
    """

    INDEX_KEY: ClassVar[str] = schema.INDEX_KEY
    EPISODE_INDEX_KEY: ClassVar[str] = schema.EPISODE_INDEX_KEY
    FRAME_INDEX_KEY: ClassVar[str] = schema.FRAME_INDEX_KEY
    TIMESTAMP_KEY: ClassVar[str] = schema.TIMESTAMP_KEY
    IS_PAD_POSTFIX: ClassVar[str] = schema.IS_PAD_POSTFIX
    IMAGE_KEY_PREFIX: ClassVar[str] = schema.IMAGE_KEY_PREFIX

    def __init__(  # noqa: PLR0913 - the parameters are those of #445
        self,
        storage_dir: str | Path,
        fps: float | None = None,
        buffer_capacity: int | str | None = None,
        use_as_fifo_buffer: bool | None = None,
        image_mode: AskedMode = None,
        image_transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
        delta_timestamps: DeltaTimestamps | None = None,
        *,
        image_dtype: str = "float32",
        video_options: AskedOptions = None,
        depth_unit: str = "m",
        image_size: AskedSize = None,
        episodes: Sequence[int] | None = None,
        decoded_cache: str | tuple[str, str | Path] | None = None,
        readonly: bool = False,
        video_decoder: VideoDecoderName = "pyav",
        decode_threads: int | None = None,
    ) -> None:
        """Open the dataset in `storage_dir`; where there is none, the first `add_episodes` makes it.

        Args:
            storage_dir: The directory that holds, or will hold, the dataset.
            fps: Frames a second (Hz). Needed for a new dataset; must agree with a stored one.
            buffer_capacity: Room in frames, or in bytes, as "20GB", "1.5TB" or "20GiB": columns count whole, encoded
                cameras at 1.25 times what the first episode takes. None: what is stored; a new dataset grows as needed.
            use_as_fifo_buffer: Overwrite the oldest episodes when full (in frames, or in bytes). None: what is stored.
            image_mode: How cameras are stored: "memmap", "png" or "video", or some cameras' own, as
                {"observation.images.wrist": "memmap"}. None, and cameras not named: what is stored; when new, "video"
                for colour, and without loss "png" for grey and uint16 depth, "memmap" for float32 depth.
            image_transform: Called with each sample's images, a tensor (C, H, W) or (T, C, H, W); or once a camera with
                those of the whole batch where it is marked by `roboreel.takes_batch`. Not called with depth.
            delta_timestamps: For each key the offsets (s) to read around a frame, e.g. {"action": [0, 0.1]}.
            image_dtype: "float32" for [0, 1], "uint8" for raw pixels. Says nothing of depth, which 8 bits do not hold.
            video_options: How frames are coded as video: `VideoOptions`, or a dict of them, a camera each. None: what
                is stored; AV1 as LeRobot writes it when new.
            depth_unit: "m" gives depth as float32 metres, "raw" as it is stored (uint16 or float32); both (1, H, W).
            image_size: Of a new dataset: bring frames to (height, width) pixels as they come in, those of every camera
                or {camera: (height, width)}. Colours by Pillow's bilinear filter (antialiased), depth by the nearest
                pixel, so that no distance is invented. None: what is stored; when new, as they come. For a dataset that
                is there, the size that is stored would do.
            episodes: Show only these, in this order, by the numbers that `get_unique_episode_indices` gives; see `view`
                for what becomes of them in a ring. None: all, also those that come.
            decoded_cache: Keep frames that were decoded, up to "8GB" of them, for all processes and later runs, in the
                dataset's directory or, as ("8GB", "/scratch"), elsewhere. What does not fit is decoded each time.
            readonly: Refuse changes; needs neither the lock nor permission to write.
            video_decoder: "pyav", or "torchcodec", which is not installed with roboreel. Both give the same frames;
                their colours may differ by rounding.
            decode_threads: Images decoded at once in each process. None: the cores that there are, divided by the
                DataLoader's workers.

        Raises:
            InvalidArgumentError: an argument cannot be, or contradicts what is stored.
            StorageDirCorruptError: the directory cannot be read as what it must be.
        """
        self._forms = Forms(image_dtype, depth_unit)
        numbers = None if episodes is None else parse_episodes(episodes)
        cameras = CameraStorage.parse(image_mode, video_options, image_size)
        self._opening = Opening(
            Path(storage_dir),
            fps,
            buffer_capacity,
            use_as_fifo_buffer,
            cameras,
            readonly=readonly,
            decoded_cache=decoded_cache,
        )
        self._decoding = Decoding(video_decoder, decode_threads)
        self.image_transform = image_transform
        self._begin_samples()
        self._choice = None
        self._stats = None
        if numbers is not None:
            self._choice = self._chosen(numbers)
        self.set_delta_timestamps(delta_timestamps)

    @classmethod
    def from_lerobot(  # noqa: PLR0913 - the choices of the constructor, and those of taking in
        cls,
        folder: str | Path,
        storage_dir: str | Path,
        decode_images: bool = False,
        *,
        image_mode: AskedMode = None,
        video_options: AskedOptions = None,
        buffer_capacity: int | str | None = None,
        use_as_fifo_buffer: bool = False,
        image_size: AskedSize = None,
        skip_episodes: Collection[int] = (),
        strict: bool = False,
        force: bool = False,
        progress: bool = True,
        **options: Any,
    ) -> LeRobotDatasetV2:
        """Import a folder in LeRobot format (v1.1 to v1.6, v2.0, v2.1 or v3.0) into `storage_dir` and open it.

        Killed or interrupted, it leaves what it has done, as no dataset yet: the same call goes on with it.

        Args:
            folder: The folder that holds `meta/info.json` (before v2.0 `meta_data/info.json`); it is only read.
            storage_dir: Where the dataset goes. If it holds the import of the same folder already, that is opened.
            decode_images: Decode video and PNG into memmaps once: `image_mode="memmap"`.
            image_mode: As for the constructor, of all cameras or of some; the others are kept as the files that they
                are. None: all of them are.
            video_options: How frames are coded that do not come as video, and those of later episodes.
            buffer_capacity: Room in frames, or as "20GB"; the import is then the first content of a fixed storage.
            use_as_fifo_buffer: Make it a ring; later episodes overwrite the imported ones.
            image_size: Bring frames to (height, width) pixels, or {camera: (height, width)}; see the constructor. Video
                and PNG of another size are then decoded and encoded again.
            skip_episodes: Episodes of the folder, by their `episode_index`, that are left out: damaged ones, say.
            strict: Refuse what would be left out with a warning: a declared camera without frames, a column that is no
                array.
            force: Begin also where the forecast says that it does not fit.
            progress: Show a progress bar, on a terminal.
            options: `image_transform`, `delta_timestamps`, `image_dtype`, `depth_unit`, `episodes`, `decoded_cache`,
                `readonly`, `video_decoder`, `decode_threads` of the constructor.

        Raises:
            SourceError: the folder cannot be read as what it says it is; `storage_dir` is as it was before.
            DiskSpaceError: there is no room for it; where that can be told, before anything is written.
        """
        from roboreel.convert import IngestOptions, import_lerobot  # brings Parquet in: a robot records without it

        cameras = CameraStorage.parse(image_mode, video_options, image_size, decode_images=decode_images)
        import_lerobot(
            Path(folder),
            Path(storage_dir),
            IngestOptions(cameras, buffer_capacity, use_as_fifo_buffer, progress, force, skip_episodes, strict),
        )
        # stored already, so that this only refuses what contradicts an earlier import
        return cls(storage_dir, None, buffer_capacity, use_as_fifo_buffer or None, image_size=image_size, **options)

    @classmethod
    def from_huggingface_hub(  # noqa: PLR0913 - the choices of `from_lerobot`, and those of downloading
        cls,
        repo_id: str,
        decode_images: bool = False,
        *,
        revision: str | None = None,
        episodes: Sequence[int] | None = None,
        storage_dir: str | Path | None = None,
        keep_source: bool = False,
        token: str | bool | None = None,
        image_mode: AskedMode = None,
        video_options: AskedOptions = None,
        buffer_capacity: int | str | None = None,
        use_as_fifo_buffer: bool = False,
        image_size: AskedSize = None,
        strict: bool = False,
        force: bool = False,
        progress: bool = True,
        **options: Any,
    ) -> LeRobotDatasetV2:
        """Take a dataset in from the Hugging Face Hub (LeRobot v1.1 to v3.0), and open it.

        Rows are downloaded first, video files one by one as they are taken in: the dataset then has the only copy, and
        nothing that was downloaded stays beside it. Interrupted, the same call goes on. Called again, it opens what is
        there, also without a network; a newer revision is told by a warning, and used only in another `storage_dir`.

        Args:
            repo_id: As "lerobot/pusht".
            decode_images: Decode video and PNG into memmaps once: `image_mode="memmap"`.
            revision: A branch, a tag or a commit. None: the default branch. The commit is kept in the metadata.
            episodes: Only these, by their `episode_index`; only the files that hold them are downloaded.
            storage_dir: Where the dataset goes. None: `$HF_HOME/roboreel/` and the names of repository, revision and
                choices, by default beneath `~/.cache/huggingface`.
            keep_source: Leave what is downloaded in the Hub's cache, where other programs find it.
            token: For private and restricted repositories. None: HF_TOKEN, or who is logged in.
            image_mode, video_options, buffer_capacity, use_as_fifo_buffer, image_size, strict, force, progress: As for
                `from_lerobot`.
            options: Those of the constructor, as for `from_lerobot`.

        Raises:
            HubError: the Hub has it not, or will not give it, or cannot be reached.
            SourceError: it cannot be read as what it says it is. DiskSpaceError: there is no room for it.
        """
        from roboreel.convert import IngestOptions
        from roboreel.hub import PullOptions, default_place, pull

        asked = PullOptions(revision, episodes, token, keep_source)
        cameras = CameraStorage.parse(image_mode, video_options, image_size, decode_images=decode_images)
        place = default_place(repo_id, asked, decoded=decode_images) if storage_dir is None else Path(storage_dir)
        ingested = IngestOptions(cameras, buffer_capacity, use_as_fifo_buffer, progress, force, strict=strict)
        pull(repo_id, place, asked, ingested)
        return cls(place, None, buffer_capacity, use_as_fifo_buffer or None, image_size=image_size, **options)

    @classmethod
    def from_source(  # noqa: PLR0913 - the choices of `from_lerobot`
        cls,
        source: Source,
        storage_dir: str | Path,
        decode_images: bool = False,
        *,
        image_mode: AskedMode = None,
        video_options: AskedOptions = None,
        buffer_capacity: int | str | None = None,
        use_as_fifo_buffer: bool = False,
        image_size: AskedSize = None,
        skip_episodes: Collection[int] = (),
        force: bool = False,
        progress: bool = True,
        **options: Any,
    ) -> LeRobotDatasetV2:
        """Import a recording in another format: `roboreel.open_source(path)`, or a `Source` of your own.

        As `from_lerobot`, whose arguments and errors these are. Cameras are kept without loss, as PNG (floats: as raw
        numbers), unless an `image_mode` is asked for.
        """
        from roboreel.convert import IngestOptions, import_source

        cameras = CameraStorage.parse(image_mode, video_options, image_size, decode_images=decode_images)
        ingested = IngestOptions(cameras, buffer_capacity, use_as_fifo_buffer, progress, force, skip_episodes)
        import_source(source, Path(storage_dir), ingested)
        return cls(storage_dir, None, buffer_capacity, use_as_fifo_buffer or None, image_size=image_size, **options)

    @staticmethod
    def check_storage_dir_integrity(path: str | Path, image_mode: AskedMode = None) -> None:
        """Raise `StorageDirCorruptError` where files contradict each other; `image_mode` must be what is stored."""
        check_storage(Path(path), image_mode)

    def __repr__(self) -> str:
        fps = "?" if self.fps is None else f"{self.fps:g}"
        return (
            f"LeRobotDatasetV2({str(self.storage_dir)!r}: {self.num_episodes} episodes, {len(self)} frames, {fps} Hz)"
        )

    # Reading

    def get_episode(self, episode_index: int) -> dict[str, Any]:
        """Return one episode as arrays (frames, *shape), strings as lists of str.

        Images are channel-last as they are stored: uint8, or for depth uint16 or float32 in the unit of its key.

        Of an episode that a ring has begun to overwrite, what survives.

        Raises:
            EpisodeNotFoundError: the dataset does not hold it (any more).
        """
        store = self._need_store()
        before: tuple[int, bytes] | None = None
        while True:
            slots = episode_slots(store, episode_index)
            if slots is None or (self._choice is not None and episode_index not in self._choice.numbers):
                raise episode_not_found(episode_index, self.get_unique_episode_indices())
            used, arrays = self._opening.read(partial(_columns, slots=slots, keys=self.data_keys))
            steps = np.diff(arrays[schema.FRAME_INDEX_KEY])  # a frame that was lost meanwhile is given as its neighbour
            if np.all(arrays[schema.EPISODE_INDEX_KEY] == episode_index) and np.all(steps == 1):
                break
            looked = (store.state.generation, slots.tobytes())
            if looked == before:  # else a ring went over it in between
                raise StorageDirCorruptError(
                    f"{store.root}: the columns of {schema.EPISODE_INDEX_KEY!r} and {schema.FRAME_INDEX_KEY!r} do not "
                    f"agree with the episode table about episode {episode_index}; type roboreel verify {store.root}"
                )
            before = looked
        return {key: as_given(used, key, array) for key, array in arrays.items()}

    def get_data_by_key(self, key: str) -> Any:
        """Return all frames of a key as an array (frames, *shape), row i belonging to `dataset[i]`.

        Raises:
            UnknownKeyError: the dataset has no such key.
            InvalidArgumentError: the key is a camera whose frames would all have to be decoded.
        """
        store = self._need_store()
        if key not in store.manifest.keys:
            raise UnknownKeyError(f"no key {key!r}; the dataset has {self.data_keys}")
        if store.manifest.keys[key].needs_decoding:
            raise InvalidArgumentError(
                f"{key!r} is stored as {store.manifest.keys[key].to_dict()['stored']}: this would decode the whole "
                "dataset; read frames by index, or import with decode_images=True"
            )
        used, arrays = self._read(range(len(self)), partial(_columns, keys=[key]))
        return as_given(used, key, arrays[key])

    # Windows

    @property
    def delta_timestamps(self) -> dict[str, NDArray[np.float64]] | None:
        return {key: deltas.seconds for key, deltas in self._windows.deltas.items()} or None

    def set_delta_timestamps(self, delta_timestamps: DeltaTimestamps | None, *, on_hole: OnHole = "raise") -> None:
        """Choose which frames each key gives around a frame: those nearest to its time plus offsets (s).

        An episode whose frame k never lies half a step or more from k / fps counts as one that was recorded without
        jitter: there an offset is so many frames. In others time decides, as it was recorded.

        Args:
            delta_timestamps: {key: [seconds, …]}; None: single frames.
            on_hole: What to do where an irregular episode has no frame near a wanted time: "raise", at once if
                the dataset holds such an episode; take the "nearest" frame; or take it and mark it as "pad".

        Raises:
            UnknownKeyError: a key that the dataset does not have.
            InvalidArgumentError: offsets that are not finite numbers, or that no frame matches.
            TimestampOutsideToleranceError: an episode has a hole in time.
        """
        assert self.fps is not None  # a new dataset must be given one
        windows = parse_windows(delta_timestamps, self.fps, on_hole)
        store = self._opening.store()
        if store is not None:
            store.refresh()
            check_windows(windows, store, None if self._choice is None else self._choice.numbers.tolist())
        self._windows = windows

    # Opening anew

    def reload(self) -> None:
        """Open the directory anew, taking what another process changed."""
        self._opening.reopen()
        self._quick = None
        if self._choice is not None:
            self._choice_in(self._need_store())

    def _check_first(self, episode: Episode) -> None:
        check_window_keys(self._windows, episode.data_keys)  # later it would be too late to leave nothing behind


def _columns(store: Store, slots: Ints, keys: Sequence[str]) -> tuple[Store, Arrays]:
    return store, gather(store, slots, keys)
