"""Writing a dataset as a LeRobot folder, v3.0 or v2.1, as LeRobot's own writer leaves it."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from roboreel._optional import require
from roboreel.convert.foreign import SourceEpisode
from roboreel.convert.lerobot_features import (
    RECORDED_KEY,
    TASK_INDEX_KEY,
    arrow_column,
    arrow_schema,
    features_of,
)
from roboreel.convert.lerobot_listing import EpisodeLines, EpisodeTable, Listing, write_json, write_task_table
from roboreel.convert.lerobot_stats import Stats, column_stats, image_stats
from roboreel.convert.lerobot_video_out import VideoPlace, VideosOut
from roboreel.convert.store_source import StoreSource
from roboreel.errors import InvalidArgumentError, RoboreelWarning
from roboreel.schema import (
    EPISODE_INDEX_KEY,
    INDEX_KEY,
    TASK_KEY,
    TIMESTAMP_KEY,
    KeySpec,
    LeRobotDatasetV2ImageMode,
)
from roboreel.store import CameraFrames, CameraStorage, GrowingFile, PngFrames, encode_png, write_file

Version = Literal["v3.0", "v2.1"]
VERSIONS: tuple[Version, ...] = get_args(Version)
_MB = 1024**2


@dataclass(frozen=True)
class ExportOptions:
    """How a dataset is written as a LeRobot folder."""

    version: Version = "v3.0"
    cameras: CameraStorage = field(default_factory=CameraStorage)
    """Which cameras become video and which images (`png`); those of which it says nothing stay what they are, raw
    pixels as images."""
    chunks_size: int = 1000
    """Files in a directory, or of v2.1 episodes."""
    data_files_size_in_mb: float = 100
    video_files_size_in_mb: float = 200
    leave_out: Collection[str] = ()
    """Keys that do not go along."""
    force: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise InvalidArgumentError(f"version={self.version!r}; {' or '.join(map(repr, VERSIONS))} would do")
        limits = (self.chunks_size, self.data_files_size_in_mb, self.video_files_size_in_mb)
        if not all(type(limit) in (int, float) and limit > 0 for limit in limits):
            raise InvalidArgumentError(
                f"chunks_size, data_files_size_in_mb and video_files_size_in_mb are {limits}; positive numbers would do"
            )


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote."""

    folder: str
    episodes: int
    frames: int
    episodes_copied: int
    """Of which the video was taken over without decoding it, each camera counted."""
    episodes_encoded: int


def exported_keys(source: StoreSource, options: ExportOptions) -> list[KeySpec]:
    """The keys as they will be written; a camera's `image_mode` is `video`, or `png` for images among the rows."""
    known = [spec.name for spec in source.keys if spec.is_camera]
    options.cameras.check_known(known)
    keys = []
    for spec in source.keys:
        if not spec.is_camera:
            keys.append(spec)
            continue
        if spec.is_depth and spec.dtype.kind == "f":
            raise InvalidArgumentError(
                f"key {spec.name!r} is depth in float32, and LeRobot keeps 16 bits: record it as uint16 in "
                "millimetres, or leave it out (leave_out=)"
            )
        mode = options.cameras.mode_of(spec.name)
        if mode is LeRobotDatasetV2ImageMode.MEMMAP:
            raise InvalidArgumentError(f"camera {spec.name!r}: a LeRobot folder holds 'video' or 'png', no raw pixels")
        if mode is None:
            is_video = spec.image_mode is LeRobotDatasetV2ImageMode.VIDEO
            mode = LeRobotDatasetV2ImageMode.VIDEO if is_video else LeRobotDatasetV2ImageMode.PNG
        keys.append(spec.stored_as(mode, options.cameras.video_options_of(spec.name) or spec.video_options))
    return keys


def write_lerobot(source: StoreSource, folder: Path, options: ExportOptions) -> ExportReport:
    """Write every episode of `source` into the empty directory `folder`."""
    out = _FolderOut(source, folder, options)
    try:
        for episode in _with_progress(source, options.progress):
            out.add(episode)
        return out.finish()
    except BaseException:
        out.abandon()
        raise


class _FolderOut:
    """A LeRobot folder in the making."""

    def __init__(self, source: StoreSource, folder: Path, options: ExportOptions) -> None:
        self._folder, self._options, self._source = folder, options, source
        self._keys = exported_keys(source, options)
        self._is_v3 = options.version == "v3.0"
        self._is_regular = source.is_regular or any(spec.name == RECORDED_KEY for spec in self._keys)
        if not source.is_regular:
            warnings.warn(
                "timestamps are not k / fps, as LeRobot's must be: those are written, and the recorded ones as "
                f"{RECORDED_KEY!r}",
                RoboreelWarning,
                stacklevel=5,
            )
        self._features = features_of(self._keys, is_regular=self._is_regular)
        self._schema = arrow_schema(self._features)
        self._videos = {
            spec.name: VideosOut(folder, spec, source.fps, self._video_place(spec.name), source.clips(spec.name))
            for spec in self._keys
            if spec.image_mode is LeRobotDatasetV2ImageMode.VIDEO
        }
        self._data = _DataFiles(folder, self._schema, options, one_each=not self._is_v3)
        self._listing: Listing = (
            EpisodeTable(folder, options.data_files_size_in_mb * _MB, options.chunks_size)
            if self._is_v3
            else EpisodeLines(folder)
        )
        self._tasks: dict[str, int] = {}
        self._episodes = self._frames = 0

    def _video_place(self, key: str) -> VideoPlace:
        options = self._options
        most_bytes = options.video_files_size_in_mb * _MB if self._is_v3 else None
        return VideoPlace(key, options.chunks_size, most_bytes)

    def add(self, episode: SourceEpisode) -> None:
        tasks = episode.strings.get(TASK_KEY) or [""] * episode.length
        for task in tasks:
            self._tasks.setdefault(task, len(self._tasks))
        seconds = np.arange(episode.length) / self._source.fps
        columns = {
            **episode.columns,
            TIMESTAMP_KEY: (episode.columns[TIMESTAMP_KEY] if self._source.is_regular else seconds).astype(np.float32),
            INDEX_KEY: np.arange(self._frames, self._frames + episode.length),
            EPISODE_INDEX_KEY: np.full(episode.length, self._episodes),
            TASK_INDEX_KEY: np.array([self._tasks[task] for task in tasks]),
        }
        if not self._is_regular:
            columns[RECORDED_KEY] = episode.columns[TIMESTAMP_KEY]
        line: dict[str, Any] = {
            EPISODE_INDEX_KEY: self._episodes,
            "tasks": list(dict.fromkeys(tasks)),
            "length": episode.length,
        }
        videos: dict[str, Any] = {}
        for out in self._videos.values():
            videos |= out.add_next()
        line |= self._data.add(self._table(columns, episode), self._frames)
        stats = self._stats(columns, episode)
        self._listing.add({**line, **videos}, stats)
        self._episodes += 1
        self._frames += episode.length

    def _table(self, columns: Any, episode: SourceEpisode) -> Any:
        pyarrow = require("pyarrow", purpose="writing Parquet")
        arrays = []
        for column in self._schema:
            if self._features[column.name]["dtype"] == "image":
                arrays.append(pyarrow.array(list(_images(episode.cameras[column.name])), column.type))
            elif self._features[column.name]["dtype"] == "string":
                arrays.append(pyarrow.array(episode.strings[column.name], column.type))
            else:
                arrays.append(arrow_column(columns[column.name], column.type))
        return pyarrow.Table.from_arrays(arrays, schema=self._schema)

    def _stats(self, columns: Any, episode: SourceEpisode) -> dict[str, Stats]:
        stats = {}
        for key, feature in self._features.items():
            if feature["dtype"] in ("video", "image"):
                scale = 1.0 if feature.get("info", {}).get("is_depth_map") else 255.0
                stats[key] = image_stats(episode.cameras[key], scale=scale)
            elif feature["dtype"] != "string":
                stats[key] = column_stats(columns[key])
        return stats

    def finish(self) -> ExportReport:
        self.close()
        self._listing.write_stats()
        if self._is_v3:
            write_task_table(self._folder / "meta" / "tasks.parquet", list(self._tasks))
        else:
            lines = [json.dumps({TASK_INDEX_KEY: i, "task": task}) + "\n" for task, i in self._tasks.items()]
            write_file(self._folder / "meta" / "tasks.jsonl", "".join(lines).encode())
        for key, out in self._videos.items():
            self._features[key]["info"] = out.info
        write_json(self._folder / "meta" / "info.json", self._info())
        copied = sum(out.copied for out in self._videos.values())
        encoded = sum(out.encoded for out in self._videos.values())
        return ExportReport(str(self._folder), self._episodes, self._frames, copied, encoded)

    def _info(self) -> dict[str, Any]:
        fps, options = self._source.fps, self._options
        robot_type = self._source.provenance.get("robot_type")
        chunks = -(-self._episodes // options.chunks_size)
        video = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        video_v2 = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        totals = {
            "total_episodes": self._episodes,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
        }
        if not self._is_v3:
            totals |= {"total_videos": self._episodes * len(self._videos), "total_chunks": chunks}
        sizes = {
            "data_files_size_in_mb": options.data_files_size_in_mb,
            "video_files_size_in_mb": options.video_files_size_in_mb,
        }
        return {
            "codebase_version": options.version,
            "robot_type": robot_type if isinstance(robot_type, str) else None,
            **totals,
            "chunks_size": options.chunks_size,
            **(sizes if self._is_v3 else {}),
            "fps": int(fps) if fps == int(fps) else fps,
            "splits": {"train": f"0:{self._episodes}"},
            "data_path": self._data.template,
            "video_path": (video if self._is_v3 else video_v2) if self._videos else None,
            "features": self._features,
        }

    def close(self) -> None:
        self._data.close()
        self._listing.close()
        for out in self._videos.values():
            out.close()

    def abandon(self) -> None:
        """Let go of the files, which will be removed."""
        parts: list[_DataFiles | Listing | VideosOut] = [self._data, self._listing, *self._videos.values()]
        for part in parts:
            with contextlib.suppress(Exception):  # the error that has led here is the one to be told
                part.abandon()


class _DataFiles:
    """The Parquet files of the rows: one row group an episode, and for v2.1 one file."""

    def __init__(self, folder: Path, schema: Any, options: ExportOptions, *, one_each: bool) -> None:
        self._folder, self._schema, self._options = folder, schema, options
        self._one_each = one_each
        self._open: tuple[GrowingFile, Any] | None = None
        self._number = -1
        self._rows = 0

    @property
    def template(self) -> str:
        if self._one_each:
            return "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        return "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

    def add(self, table: Any, first: int) -> dict[str, int]:
        """Write an episode; returns where it is, for the list of episodes."""
        if self._open is not None:
            size = self._open[0].tell()
            full = size + size / self._rows * len(table) >= self._options.data_files_size_in_mb * _MB
            if full or self._one_each:
                self.close()
        if self._open is None:
            self._number += 1
            self._open, self._rows = self._begun(), 0
        self._open[1].write_table(table)
        self._rows += len(table)
        if self._one_each:
            return {}
        chunk, file = divmod(self._number, self._options.chunks_size)
        return {
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": first,
            "dataset_to_index": first + len(table),
        }

    def _begun(self) -> tuple[GrowingFile, Any]:
        parquet = require("pyarrow.parquet", purpose="writing Parquet")
        chunk, file = divmod(self._number, self._options.chunks_size)
        name = f"episode_{self._number:06d}" if self._one_each else f"file-{file:03d}"
        sink = GrowingFile(self._folder / "data" / f"chunk-{chunk:03d}" / f"{name}.parquet")
        return sink, parquet.ParquetWriter(sink, self._schema, compression="snappy", use_dictionary=True)

    def close(self) -> None:
        if self._open is not None:
            sink, writer = self._open
            self._open = None
            writer.close()
            sink.close()

    def abandon(self) -> None:
        if self._open is not None:
            self._open[0].abandon()
            self.close()


def _images(frames: CameraFrames) -> Iterator[dict[str, Any]]:
    for i, data in enumerate(_pngs(frames)):
        yield {"bytes": data, "path": f"frame-{i:06d}.png"}


def _pngs(frames: CameraFrames) -> Iterator[bytes]:
    if isinstance(frames, PngFrames):
        yield from (frames.read(i) for i in range(frames.length))
        return
    for block in frames.blocks():
        yield from (encode_png(image) for image in block)


def _with_progress(source: StoreSource, progress: bool) -> Iterator[SourceEpisode]:
    if not progress:
        yield from source.episodes()
        return
    from tqdm import tqdm

    # disable=None: no bar where nobody looks, as in a log
    with tqdm(total=source.num_frames, unit="frame", desc="export", disable=None) as bar:
        advance: Callable[[int], object] = bar.update
        for episode in source.episodes():
            yield episode
            advance(episode.length)
