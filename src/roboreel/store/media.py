"""The image files of episodes: staged before the commit that counts them, removed when no frame needs them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roboreel.columns.png import PngWriter
from roboreel.columns.video import VideoWriter
from roboreel.format import files, paths
from roboreel.format.threads import Stop, cores, in_threads
from roboreel.schema import LeRobotDatasetV2ImageMode
from roboreel.store.episode import Episode
from roboreel.store.store import Store

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]


class MediaFiles:
    """PNG directories (one an episode row) and video files of a dataset, for writing."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tidy = False
        """Whether nothing is on disk that no row refers to; a writer that was killed may have left something."""
        self._pngs: dict[str, PngWriter] = {}
        self._videos: dict[str, VideoWriter] = {}
        for key, spec in store.manifest.keys.items():
            for path_of in (paths.image_dir, paths.video_path):
                files.check_dir(path_of(store.root, key, 0).parent)  # what is swept there must be ours
            if spec.image_mode is LeRobotDatasetV2ImageMode.VIDEO:
                self._videos[key] = VideoWriter(store.root, spec, store.manifest.fps, self._next_video(key))
            elif spec.image_mode is LeRobotDatasetV2ImageMode.PNG:
                self._pngs[key] = PngWriter(store.root, spec)

    def _next_video(self, key: str) -> int:
        return int(np.max(self._clip_files(key, slice(None)), initial=-1)) + 1

    def _clip_files(self, key: str, rows: Ints | slice) -> Ints:
        """The numbers of the video files in which the given rows have their frames."""
        files: Ints = self._store.table.rows["clips"]["file"][rows, self._store.manifest.video_keys.index(key)]
        return files

    def stage(self, episode: Episode) -> tuple[list[tuple[int, int]], dict[str, Words]]:
        """Store an episode's images under the number of the row that comes next, several cameras at once.

        Returns (video file, first frame) of each video camera, and the checksums of the PNG files of the others.
        """
        row, stop, frames = self._store.state.rows, Stop(), episode.cameras
        clips: dict[str, tuple[int, int]] = {}
        checksums: dict[str, Words] = {}

        def stage_png(key: str) -> None:
            checksums[key] = self._pngs[key].stage(row, frames[key], stop)

        def stage_video(key: str) -> None:
            clips[key] = self._videos[key].stage(frames[key], stop)

        jobs = [*(partial(stage_video, key) for key in self._videos), *(partial(stage_png, key) for key in self._pngs)]
        in_threads(jobs, max(2, cores()), stop)
        return [clips[key] for key in self._store.manifest.video_keys], checksums

    def held(self, episode: Episode) -> set[str]:
        """The cameras of an episode whose frames lie in a video file that came in with another one."""
        return {key for key, video in self._videos.items() if video.has_taken(episode.cameras[key])}

    def drop_staged(self) -> None:
        """After a failure: remove what was staged; where that fails too, the next `evict` sweeps."""
        self._tidy = False
        for png in self._pngs.values():
            png.drop(self._store.state.rows)
        for key, video in self._videos.items():
            video.drop_staged(self._clip_files(key, self._store.table.live).tolist())

    def evict(self, hit: Ints) -> None:
        """Remove the files of those of the rows that no frame is left of; after a failure, all without a row."""
        table = self._store.table
        gone = hit[table.live_starts[hit] >= table.stops_of(hit)] if self._tidy else None
        if gone is not None and not len(gone):
            return  # as with every episode that overwrites nothing: no look at all the others
        self._tidy = False
        for key, video in self._videos.items():
            held = self._on_disk(key) if gone is None else self._clip_files(key, gone)
            for file in np.setdiff1d(held, self._clip_files(key, table.live)).tolist():
                video.drop(file)
        for key, png in self._pngs.items():
            held = self._on_disk(key) if gone is None else gone
            for row in np.setdiff1d(held, table.live).tolist():
                png.drop(row)
        self._tidy = True

    def _on_disk(self, key: str) -> Ints:
        root = self._store.root
        named = (
            (paths.image_dir(root, key, 0).parent, paths.image_dir_number),
            (paths.video_path(root, key, 0).parent, paths.video_number),
        )
        numbers = [number_in(path.name) for folder, number_in in named if folder.is_dir() for path in folder.iterdir()]
        return np.array([number for number in numbers if number is not None], np.int64)

    def take_for_unsynced(self, first_row: int) -> None:
        """Have the next `sync` include the files of rows that another writer has committed and not flushed."""
        rows = np.arange(first_row, len(self._store.table))
        for png in self._pngs.values():
            png.take_for_unsynced(rows.tolist())
        for key, video in self._videos.items():
            video.take_for_unsynced(np.unique(self._clip_files(key, rows)).tolist())

    def unsynced(self) -> list[Path]:
        """What must reach the device before a record counts on it; `forget_unsynced` once it has."""
        return [path for writer in self._writers for path in writer.unsynced()]

    def forget_unsynced(self) -> None:
        for writer in self._writers:
            writer.forget_unsynced()

    @property
    def _writers(self) -> list[PngWriter | VideoWriter]:
        return [*self._pngs.values(), *self._videos.values()]
