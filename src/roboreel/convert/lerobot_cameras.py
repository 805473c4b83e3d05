"""The cameras of a LeRobot folder: video files, or images inside the Parquet rows."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.convert.lerobot_columns import ROW_KEYS, read_timestamps
from roboreel.convert.lerobot_info import Feature, Info, inside
from roboreel.convert.lerobot_layout import EpisodeEntry, VideoSpan, Warnings
from roboreel.convert.lerobot_rate import rates_differ
from roboreel.convert.lfs import how_to_get
from roboreel.convert.parquet import ParquetFile, RowReader
from roboreel.errors import InvalidArgumentError, SourceError, VideoError
from roboreel.schema import TASK_KEY, KeySpec, LeRobotDatasetV2ImageMode, is_depth_dtype, natural_depth_unit
from roboreel.store import CameraFrames, FrameTable, PickedFrames, PngFrames, VideoFrames

_UINT8 = np.dtype(np.uint8)

_CLOCK_NOISE_S = 1e-3
"""What float32 timestamps of an hour are off by; far less than a frame lasts."""
_BLOCK_IMAGES = 64
"""Rows of images held at a time at most: equal images are stored once, and are small until they are decoded."""


@dataclass(frozen=True)
class _SourceVideo(VideoFrames):
    def blocks(self) -> Iterator[NDArray[Any]]:
        return _advised(super().blocks(), "download the video again, or leave the episode out")


@dataclass(frozen=True, eq=False)
class _SourcePicked(PickedFrames):
    def blocks(self) -> Iterator[NDArray[Any]]:
        return _advised(super().blocks(), "download the video again, or leave the episode out")


@dataclass(frozen=True)
class _SourceImages(PngFrames):
    def blocks(self) -> Iterator[NDArray[Any]]:
        return _advised(super().blocks(), "download the file again, or leave the episode out")


def _advised(blocks: Iterator[NDArray[Any]], advice: str) -> Iterator[NDArray[Any]]:
    try:
        yield from blocks
    except SourceError as error:
        raise _with_advice(error, advice) from None


def _with_advice(error: SourceError, advice: str) -> SourceError:
    """An error of the decoders, which cannot know that their file was downloaded; most do not say what would do."""
    return error if "; " in str(error) else type(error)(f"{error}; {advice}")


@dataclass(frozen=True)
class DecodedImages(CameraFrames):
    """Images that are not PNG: they are decoded for every image mode."""

    files: PngFrames

    @property
    def length(self) -> int:  # type: ignore[override]
        return self.files.length

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.files.shape

    def blocks(self) -> Iterator[NDArray[Any]]:
        return self.files.blocks()


class VideoCamera:
    """A camera whose frames are in video files; row k of an episode is frame k of its part, whatever the timestamps.

    Only where a video goes at another rate than the dataset, and does not hold one frame for each row, do timestamps
    say which frame is whose.
    """

    def __init__(self, feature: Feature, entries: Sequence[EpisodeEntry], fps: float, warnings: Warnings) -> None:
        self._name = feature.name
        self._fps = fps
        self._warnings = warnings
        self._table: tuple[Path, FrameTable] | None = None
        self._last: tuple[int, Path, int] | None = None  # the episode before: its index, file, end
        first = self._table_of(entries[0])
        self.spec = _camera_spec(feature, first.shape, LeRobotDatasetV2ImageMode.VIDEO, warnings)
        self.rate = _rate(first)
        """Frames a second on average in the first file; None where that has only one frame."""

    def frames(self, entry: EpisodeEntry) -> CameraFrames:
        """The episode's frames; `SourceError` where the file does not hold one for each row."""
        name = self.spec.name
        span = entry.videos[name]
        table = self._table_of(entry)
        if table.shape != self.spec.shape:
            raise SourceError(
                f"{span.path}: camera {name!r} has {table.width}x{table.height} pixels in episode {entry.index}, and "
                f"{self.spec.shape[1]}x{self.spec.shape[0]} before; one camera keeps one size: "
                "record or convert it again"
            )
        first, available = _located(span, entry, table)
        where = f"{span.path}: episode {entry.index}, camera {name!r}"
        rate = _rate(table)
        if available != entry.length and rate is not None and rates_differ(rate, self._fps):
            return self._picked(entry, table, where)
        if available < entry.length:
            raise SourceError(
                f"{where}: {available} frames for {entry.length} rows; get the video again, or leave the episode out"
            )
        if available > entry.length:
            said = f"{where}: {available} frames for {entry.length} rows; the later ones are not used"
            self._warnings.add(said, like=f"long {name}")
        self._check_follows(entry, first, first + entry.length, where)
        return _SourceVideo(span.path, first, entry.length, self.spec.shape)

    def _picked(self, entry: EpisodeEntry, table: FrameTable, where: str) -> CameraFrames:
        """For each row the frame that is nearest to its timestamp, counted from the episode's start in the video."""
        span = entry.videos[self._name]
        wanted = self._row_times(entry) + (float(table.times[0]) if span.start_s is None else span.start_s)
        end = _end_of_file_s(table) if span.end_s is None else min(span.end_s, _end_of_file_s(table))
        if wanted[-1] > end + _CLOCK_NOISE_S:
            raise SourceError(
                f"{where}: the rows go on until {wanted[-1]:.3f} s, and their part of the video ends at {end:.3f} s; "
                "get the video again, or leave the episode out"
            )
        numbers = table.nearest_all(wanted)
        # two episodes may share a frame of a slow video
        self._check_follows(entry, int(numbers[0]), int(numbers[-1]), where)
        self._warnings.add(
            f"{where}: the video has {_rate(table):.4g} frames a second, and fps is {self._fps:g}: for each row the "
            "frame nearest to its timestamp is taken, decoded and stored anew",
            like=f"rate {self._name}",
        )
        return _SourcePicked(span.path, numbers, self.spec.shape)

    def _row_times(self, entry: EpisodeEntry) -> NDArray[np.float64]:
        """Seconds since the episode's start; k / fps where rows are at that but rounded, so that no tie is random."""
        regular: NDArray[np.float64] = np.arange(entry.length) / self._fps
        recorded = read_timestamps(entry)
        if recorded is None or not np.isfinite(recorded).all() or (np.diff(recorded) <= 0).any():
            return regular
        return regular if np.abs(recorded - regular).max() < _CLOCK_NOISE_S else recorded.astype(np.float64)

    def _check_follows(self, entry: EpisodeEntry, first: int, stop: int, where: str) -> None:
        """Refuse frames that are those of the episode before: a start that a writer got wrong shows in nothing else."""
        path = entry.videos[self._name].path
        if self._last is not None and self._last[0] < entry.index and self._last[1] == path and first < self._last[2]:
            raise SourceError(
                f"{where}: starts at frame {first}, and the frames of episode {self._last[0]} go on until "
                f"{self._last[2]}; correct from_timestamp in meta/episodes"
            )
        self._last = (entry.index, path, stop)

    def _table_of(self, entry: EpisodeEntry) -> FrameTable:
        path = entry.videos[self._name].path
        if self._table is None or self._table[0] != path:
            try:
                self._table = (path, FrameTable.from_video(path))
            except VideoError as error:
                said = f"episode {entry.index}, camera {self._name!r}: {error}"
                raise _with_advice(VideoError(said), how_to_get(path)) from None
        return self._table[1]


def _rate(table: FrameTable) -> float | None:
    """Frames a second on average; None where there is only one frame."""
    return (len(table) - 1) / float(table.times[-1] - table.times[0]) if len(table) > 1 else None


def _end_of_file_s(table: FrameTable) -> float:
    """Beyond it, the nearest frame is not the one that is meant."""
    times = table.times
    return float(times[-1] + (times[-1] - times[0]) / (2 * max(1, len(table) - 1)))


def _located(span: VideoSpan, entry: EpisodeEntry, table: FrameTable) -> tuple[int, int]:
    """Return (first frame, frames available from there) of an episode in its video file."""
    count = len(table)
    if span.start_s is None:
        if span.rows_in_file != entry.length:
            raise SourceError(
                f"{span.path}: is the video of episode {entry.index} and of others, and nothing says which part is "
                "whose; correct video_path in info.json"
            )
        return 0, count
    first = table.nearest(span.start_s)
    end_of_file_s = _end_of_file_s(table)
    if span.start_s > end_of_file_s:
        return first, 0
    end = count if span.end_s is None or span.end_s > end_of_file_s else table.nearest(span.end_s)
    return first, end - first


class ImageCamera:
    """A camera whose images are in a Parquet column, as bytes or as paths beside it."""

    def __init__(self, feature: Feature, entries: Sequence[EpisodeEntry], info: Info, warnings: Warnings) -> None:
        self._folder = info.folder
        self._name = feature.name
        self._reader: tuple[ParquetFile, RowReader] | None = None
        data = self._read(entries[0], 0)
        shape, dtype = _image_form(data, f"{entries[0].where}, camera {feature.name!r}, frame 0")
        self.spec = _camera_spec(feature, shape, LeRobotDatasetV2ImageMode.PNG, warnings, dtype)
        self._is_png = _is_png(data)
        if not self._is_png:
            warnings.add(f"camera {feature.name!r} holds images that are not PNG: they are decoded")
        if self.spec.is_depth:
            warnings.add(f"camera {feature.name!r} holds grey images of 16 bits: taken as depth in millimetres")

    def frames(self, entry: EpisodeEntry) -> CameraFrames:
        """The episode's images, read one by one when they are asked for, cheapest in order."""
        source = f"{entry.where}, camera {self._name!r}"

        def read(i: int) -> bytes:
            data = self._read(entry, i)
            shape, dtype = _image_form(data, f"{source}, frame {i}")
            if (shape, dtype) != (self.spec.shape, self.spec.dtype) or _is_png(data) != self._is_png:
                kind = "a PNG image" if _is_png(data) else "an image that is not PNG,"
                raise SourceError(
                    f"{source}, frame {i}: {kind} of {dtype} {shape}, where the first is of {self.spec.dtype} "
                    f"{self.spec.shape}; "
                    "record or convert it again, or leave the episode out"
                )
            return data

        files = _SourceImages(entry.length, self.spec.shape, read, source, self.spec.dtype)
        return files if self._is_png else DecodedImages(files)

    def _read(self, entry: EpisodeEntry, i: int) -> bytes:
        if not 0 <= i < entry.length:
            raise IndexError(i)
        if self._reader is None or self._reader[0].path != entry.file.path:
            if self._reader is not None:
                self._reader[1].close()
            self._reader = (entry.file, entry.file.rows([self._name], max_rows=_BLOCK_IMAGES))
        value = self._reader[1].read(entry.first_row + i, 1).column(0)[0].as_py()
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        where = f"{entry.where}, camera {self._name!r}, frame {i}"
        if data is None and path:
            data = _read_file(inside(self._folder, path, where), where)
        if not data:
            raise SourceError(f"{where}: neither the image's bytes nor its path are there; download the file again")
        return bytes(data)


def _read_file(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{where}: the image {path} cannot be read ({error.strerror}); download it again") from None


def _is_png(data: bytes) -> bool:
    return data.startswith(b"\x89PNG\r\n\x1a\n")


def _image_form(data: bytes, where: str) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    """(height, width, channels) and dtype from the header alone; `SourceError` for what is cut off or does not fit."""
    if not _is_png(data):
        return _foreign_shape(data, where), _UINT8
    if len(data) < 45 or data[12:16] != b"IHDR" or data[-8:-4] != b"IEND":
        raise SourceError(f"{where}: not a whole PNG file ({len(data)} bytes); download the file again")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    depth, colour = data[24], data[25]
    if depth > 8 and colour != 0:
        raise SourceError(
            f"{where}: a PNG of {depth} bits a channel, and images here have 8 (depth, of one channel, has 16); "
            "take the camera out"
        )
    # palette (3) decodes to RGB; grey with alpha (4) has no form of its own
    return (height, width, {0: 1, 2: 3, 3: 3}.get(colour, 4)), np.dtype("<u2") if depth > 8 else _UINT8


def _foreign_shape(data: bytes, where: str) -> tuple[int, int, int]:
    image_module = require("PIL.Image", purpose="reading images")
    try:
        with image_module.open(io.BytesIO(data)) as image:
            width, height, mode = image.width, image.height, image.mode
    except Exception as error:  # noqa: BLE001 - Pillow raises what its many decoders raise
        raise SourceError(f"{where}: not a readable image ({error}); download the file again") from None
    if mode.startswith(("I", "F")):
        raise SourceError(f"{where}: an image of mode {mode}, and images here have 8 bits a channel; take it out")
    return height, width, {"L": 1, "1": 1, "RGBA": 4}.get(mode, 3)


def _camera_spec(
    feature: Feature,
    shape: tuple[int, int, int],
    mode: LeRobotDatasetV2ImageMode,
    warnings: Warnings,
    dtype: np.dtype[Any] = _UINT8,
) -> KeySpec:
    if feature.shape != shape:
        height, width, channels = shape
        chw = feature.shape == (channels, height, width)
        how = "channels first, which is taken as" if chw else "and its frames are"
        warnings.add(f"camera {feature.name!r} is declared as {feature.shape}, {how} {shape}")
    names = feature.names if feature.shape == shape else None
    try:
        unit = natural_depth_unit(dtype) if is_depth_dtype(dtype) else None
        return KeySpec(feature.name, dtype, shape, "camera", mode, names=names, unit=unit)
    except InvalidArgumentError as error:
        raise SourceError(str(error)) from None


def open_cameras(info: Info, entries: Sequence[EpisodeEntry], warnings: Warnings) -> list[VideoCamera | ImageCamera]:
    """Every declared camera that has frames, by what is really there; `SourceError` where it has only some of them."""
    cameras: list[VideoCamera | ImageCamera] = []
    for feature in info.cameras:
        if feature.name in (*ROW_KEYS, TASK_KEY):
            raise SourceError(f"{info.path}: declares {feature.name!r} as {feature.dtype!r}; correct its dtype there")
        missing = [entry for entry in entries if not entry.videos[feature.name].path.is_file()]
        with_images = [entry for entry in entries if _has_images(entry, feature.name)]
        if not missing:
            cameras.append(VideoCamera(feature, entries, info.fps, warnings))
        elif len(with_images) == len(entries):
            cameras.append(ImageCamera(feature, entries, info, warnings))
        elif len(missing) == len(entries) and not with_images:
            _check_no_images(feature, entries, info)
            what = "video file" if feature.dtype == "video" else "column of images"
            warnings.add(f"camera {feature.name!r} is declared and has no {what}: left out")
        else:
            lacks = missing[0].videos[feature.name].path if not with_images else _without(entries, feature.name)
            raise SourceError(
                f"{lacks}: camera {feature.name!r} has frames for other episodes and not here; complete the download, "
                "or take the camera out of info.json"
            )
    return cameras


def _has_images(entry: EpisodeEntry, key: str) -> bool:
    column = entry.file.columns.get(key)
    return column is not None and column.kind in ("image", "binary") and column.depth == 0


def _check_no_images(feature: Feature, entries: Sequence[EpisodeEntry], info: Info) -> None:
    """Refuse a column of something else where images are declared: that is no missing camera."""
    for entry in entries:
        column = entry.file.columns.get(feature.name)
        # some writers keep a path and a time of the video in a column: that is no image, and nothing else either
        if column is not None and (feature.dtype == "image" or column.kind != "other"):
            raise SourceError(
                f"{entry.file.path}: column {feature.name!r} holds {column.text} where images must be, which "
                f"info.json declares as {feature.dtype!r}; correct its dtype in {info.path}"
            )


def _without(entries: Sequence[EpisodeEntry], key: str) -> Path:
    return next(entry.file.path for entry in entries if not _has_images(entry, key))
