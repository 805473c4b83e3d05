"""The cameras of a LeRobot folder that are video files: which frames of which file are an episode's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.convert.lerobot_camera import advised, camera_spec, with_advice
from roboreel.convert.lerobot_columns import read_timestamps
from roboreel.convert.lerobot_info import Feature, Info
from roboreel.convert.lerobot_layout import EpisodeEntry, VideoSpan, Warnings
from roboreel.convert.lerobot_rate import LEAST_DRIFT, average_rate, drift, is_steady, lasts_as_rows, rates_differ
from roboreel.convert.lfs import how_to_get
from roboreel.errors import SourceError, VideoError
from roboreel.schema import LeRobotDatasetV2ImageMode
from roboreel.store import CameraFrames, FrameTable, PickedFrames, VideoFrames, write_file

_CLOCK_NOISE_S = 1e-3
"""What float32 timestamps of an hour are off by; far less than a frame lasts."""
_ADVICE = "download the video again, or leave the episode out"


@dataclass(frozen=True)
class _SourceVideo(VideoFrames):
    whose: str = ""
    """Episode and camera, for errors."""

    def blocks(self) -> Iterator[NDArray[Any]]:
        return advised(super().blocks(), _ADVICE, self.whose)


@dataclass(frozen=True, eq=False)
class _SourcePicked(PickedFrames):
    whose: str = ""

    def blocks(self) -> Iterator[NDArray[Any]]:
        return advised(super().blocks(), _ADVICE, self.whose)


class VideoCamera:
    """A camera whose frames are in video files; row k of an episode is frame k of its part, whatever the timestamps.

    Only where a video goes at another rate than the dataset, and does not hold one frame for each row, do timestamps
    say which frame is whose.
    """

    def __init__(self, feature: Feature, entries: Sequence[EpisodeEntry], info: Info, warnings: Warnings) -> None:
        self._name = feature.name
        self._info = info
        self._fps = info.fps
        self._warnings = warnings
        self._table: tuple[Path, FrameTable] | None = None
        self._last: tuple[int, Path, int] | None = None  # the episode before: its index, file, end
        first = self._table_of(entries[0])
        self.spec = camera_spec(feature, first.shape, LeRobotDatasetV2ImageMode.VIDEO, warnings)
        self.rate = average_rate(first)
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
        span = _on_its_clock(span, table, self._fps)
        first, available = _located(span, entry, table, self._fps)
        where = f"{span.path}: episode {entry.index}, camera {name!r}"
        if self._goes_by_time(entry, span, table, available):
            return self._picked(entry, span, table, where)
        if available < entry.length:
            raise SourceError(
                f"{where}: {available} frames for {entry.length} rows{_late(span, table)}; get the video again, or "
                "leave the episode out"
            )
        if available > entry.length:
            said = f"{where}: {available} frames for {entry.length} rows; the later ones are not used"
            self._warnings.leave_out(said, like=f"long {name}")
        self._check_follows(entry, first, first + entry.length, where)
        self._warn_of_rate(span, table)
        self._info.fetch(span.path)
        whose = f"episode {entry.index}, camera {name!r}"
        movable = self._info.remote is not None
        return _SourceVideo(span.path, first, entry.length, self.spec.shape, table, movable, whose)

    def _goes_by_time(self, entry: EpisodeEntry, span: VideoSpan, table: FrameTable, available: int) -> bool:
        """Whether timestamps say which frame is whose: told by the whole file, as single episodes may be short.

        A recorded clock jitters, and so may its average rate; what comes at one rate all through has exactly that.
        """
        rate = average_rate(table)
        if rate is None or len(table) == span.rows_in_file:
            return False
        if available != entry.length and rates_differ(rate, self._fps):
            return True
        frames = len(table) if span.seconds_in_file is None else span.seconds_in_file * rate
        by_time = lasts_as_rows(frames, span.rows_in_file, rate, self._fps)
        return by_time and is_steady(table) and self._is_regular(entry)

    def _warn_of_rate(self, span: VideoSpan, table: FrameTable) -> None:
        """Of rates that are close to each other: of others `check_rate` has warned."""
        rate = average_rate(table)
        if rate is None or rates_differ(rate, self._fps) or len(table) != span.rows_in_file or not is_steady(table):
            return
        if abs(drift(span.rows_in_file, rate, self._fps)) >= LEAST_DRIFT:
            self._warnings.add(
                f"{span.path}: camera {self._name!r}: fps is {self._fps:g}, and the video has {rate:.4g} frames a "
                "second and one frame for each row: they are taken by number",
                like=f"rate {self._name}",
            )

    def _is_regular(self, entry: EpisodeEntry) -> bool:
        """Whether the rows of an episode were to be at k / fps, as far as their timestamps tell."""
        recorded = read_timestamps(entry)
        if recorded is None:
            return True
        off = recorded - recorded[0] - np.arange(entry.length) / self._fps
        return bool(np.all(np.abs(off) < 0.5 / self._fps))

    def _picked(self, entry: EpisodeEntry, span: VideoSpan, table: FrameTable, where: str) -> CameraFrames:
        """For each row the frame that is nearest to its timestamp, counted from the episode's start in the video."""
        wanted = self._row_times(entry) + (float(table.times[0]) if span.start_s is None else span.start_s)
        end = _end_of_file_s(table) if span.end_s is None else min(span.end_s, _end_of_file_s(table))
        if wanted[-1] > end + _CLOCK_NOISE_S:
            raise SourceError(
                f"{where}: the rows go on until {wanted[-1]:.3f} s, and their part of the video ends at {end:.3f} s"
                f"{_late(span, table)}; get the video again, or leave the episode out"
            )
        numbers = table.nearest_all(wanted)
        # two episodes may share a frame of a slow video
        self._check_follows(entry, int(numbers[0]), int(numbers[-1]), where)
        self._info.fetch(span.path)
        self._warnings.add(
            f"{where}: the video has {average_rate(table):.4g} frames a second, and fps is {self._fps:g}: for each row "
            "the frame nearest to its timestamp is taken, decoded and stored anew",
            like=f"rate {self._name}",
        )
        return _SourcePicked(span.path, numbers, self.spec.shape, f"episode {entry.index}, camera {self._name!r}")

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
                self._table = (path, self._read_table(path))
            except VideoError as error:
                said = f"episode {entry.index}, camera {self._name!r}: {error}"
                raise with_advice(VideoError(said), how_to_get(path)) from None
        return self._table[1]

    def _read_table(self, path: Path) -> FrameTable:
        """The table of a file; of one that is fetched it is kept, so that going on with an import need not fetch it."""
        if self._info.remote is None:
            return FrameTable.from_video(path)
        kept = path.with_suffix(".frames")
        if kept.is_file():
            return FrameTable.from_bytes(kept.read_bytes(), str(kept))
        self._info.fetch(path)
        table = FrameTable.from_video(path)
        write_file(kept, table.to_bytes())
        return table


def _end_of_file_s(table: FrameTable) -> float:
    """Beyond it, the nearest frame is not the one that is meant."""
    times = table.times
    return float(times[-1] + (times[-1] - times[0]) / (2 * max(1, len(table) - 1)))


def _on_its_clock(span: VideoSpan, table: FrameTable, fps: float) -> VideoSpan:
    """Where the file's first frame is not shown when the first episode is said to begin: the span, moved with it.

    That is so after B-frames without an edit list, or where a file was cut out of another one. Only a file that has
    the frames of all its rows begins with the first of them.
    """
    if span.start_s is None or span.file_start_s is None:
        return span
    rate = average_rate(table) or fps
    whole = len(table) == span.rows_in_file or abs(len(table) - span.rows_in_file * rate / fps) <= 1
    shift = float(table.times[0]) - span.file_start_s if whole else 0.0
    end_s = None if span.end_s is None else span.end_s + shift
    return replace(span, start_s=span.start_s + shift, file_start_s=span.file_start_s + shift, end_s=end_s)


def _late(span: VideoSpan, table: FrameTable) -> str:
    """Say by how much the file's first frame is off, where that may be why frames lack."""
    first_s = float(table.times[0])
    if span.file_start_s is None or abs(first_s - span.file_start_s) <= _CLOCK_NOISE_S:
        return ""
    return (
        f" (its first frame is shown at {first_s:.3f} s, and from_timestamp in meta/episodes begins at "
        f"{span.file_start_s:.3f} s)"
    )


def _located(span: VideoSpan, entry: EpisodeEntry, table: FrameTable, fps: float) -> tuple[int, int]:
    """Return (first frame, frames available from there) of an episode in its video file."""
    count = len(table)
    if span.start_s is None:
        if span.rows_in_file != entry.length:
            raise SourceError(
                f"{span.path}: is the video of episode {entry.index} and of others, and nothing says which part is "
                "whose; correct video_path in info.json"
            )
        return 0, count
    if count == span.rows_in_file and _agree(span, entry.length, average_rate(table) or fps, fps):
        return span.rows_before, entry.length
    first = table.nearest(span.start_s)
    end_of_file_s = _end_of_file_s(table)
    if span.start_s > end_of_file_s:
        return first, 0
    end = count if span.end_s is None or span.end_s > end_of_file_s else table.nearest(span.end_s)
    return first, end - first


def _agree(span: VideoSpan, length: int, rate: float, fps: float) -> bool:
    """Whether an episode lies in its file where its rows do, one frame a row, by the clock of either."""
    bounds = ((span.start_s, span.rows_before), (span.end_s, span.rows_before + length))
    began = span.file_start_s or 0.0
    said = [(at - began, row) for at, row in bounds if at is not None]
    return any(all(abs(seconds * each - row) < 0.5 for seconds, row in said) for each in (rate, fps))
