"""LeRobot v1.x folders: all rows in Arrow files (`train/`) or Parquet files (`data/`), one video a camera and episode.

    meta_data/info.json                        {"fps": 10}, since v1.3 with "codebase_version"
    meta_data/episode_data_index.safetensors   "from" and "to": the rows of each episode
    train/data-00000-of-00001.arrow            or data/train-00000-of-00001.parquet
    videos/observation.image_episode_000000.mp4

Which keys there are is said by the columns alone. Files that are pickled (`*.pth`) are never opened.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from roboreel.convert.arrow_file import ArrowFile
from roboreel.convert.lerobot_info import Feature, Info, inside, parse_fps, read_json, shown
from roboreel.convert.lerobot_layout import (
    EpisodeEntry,
    Run,
    VideoSpan,
    Warnings,
    check_skipped,
    runs_by_column,
    with_rows_in_videos,
)
from roboreel.convert.parquet import ParquetFile
from roboreel.convert.rows import RowFile, ShardedFile
from roboreel.convert.safetensors import read_safetensors
from roboreel.errors import SourceError
from roboreel.schema import EPISODE_INDEX_KEY

VERSIONS = ("v1.0", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6")
UNTOLD = "v1.x"
"""Before v1.3 no file says the version."""

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.\w+")


def is_v1(folder: Path) -> bool:
    """Whether a folder has the metadata of v1.x and of no later version."""
    return (folder / "meta_data").is_dir() and not (folder / "meta" / "info.json").is_file()


def open_v1(folder: Path) -> tuple[Info, RowFile]:
    """Read `meta_data/info.json` and what the columns are, of all files of rows as one."""
    path = folder / "meta_data" / "info.json"
    content = read_json(path)
    if not isinstance(content, dict):
        raise SourceError(f"{path}: holds a {type(content).__name__} where a JSON object must be; download it again")
    file = _open_rows(folder)
    features = {
        name: Feature(name, column.kind, ())
        for name, column in file.columns.items()
        if column.kind in ("image", "video") and column.depth == 0
    }
    robot_type = content.get("robot_type")
    return (
        Info(
            path,
            _version(path, content),
            parse_fps(path, content),
            features,
            robot_type=robot_type if isinstance(robot_type, str) else None,
        ),
        file,
    )


def _version(path: Path, content: Mapping[str, Any]) -> str:
    said = content.get("codebase_version")
    if said is None:
        return UNTOLD
    version = said if isinstance(said, str) and said.startswith("v") else f"v{said}"
    if version not in VERSIONS:
        raise SourceError(
            f"{path}: codebase_version {shown(said)}, and meta_data/ is of v1.x ({', '.join(VERSIONS)}); correct it "
            "there, or download meta/ too"
        )
    return version


def _open_rows(folder: Path) -> RowFile:
    arrow, parquet = sorted((folder / "train").glob("*.arrow")), sorted((folder / "data").rglob("*.parquet"))
    paths = [path for path in arrow or parquet if not path.name.startswith(".")]
    paths = [path for path in paths if path.name.startswith(("train", "data", "dataset"))] or paths
    if not paths:
        raise SourceError(
            f"{folder}: has meta_data/, and rows neither as train/*.arrow nor as data/*.parquet; complete the download"
        )
    _check_shards(paths)
    shards = tuple(ArrowFile.open(path) if arrow else ParquetFile.open(path) for path in paths)
    return ShardedFile(paths[0].parent, shards)


def _check_shards(paths: list[Path]) -> None:
    """Refuse rows of which some files are missing: nothing else would show it."""
    for path in paths:
        numbered = _SHARD.fullmatch(path.name)
        if numbered is None:
            continue
        missing = [
            name
            for number in range(min(int(numbered[3]), len(paths) + 1))
            if not (path.parent / (name := f"{numbered[1]}-{number:05d}-of-{numbered[3]}{path.suffix}")).is_file()
        ]
        if missing:
            raise SourceError(f"{path.parent / missing[0]}: this file is missing; complete the download")


def read_v1_episodes(
    info: Info, file: RowFile, warnings: Warnings, skipped: Collection[int] = ()
) -> list[EpisodeEntry]:
    """Every episode of which there are rows; `SourceError` where they are not those that the index lists."""
    bounds = _read_bounds(info)
    runs = _runs(info, file, bounds)
    check_skipped(skipped, runs, info.path)
    _compare(info, runs, bounds, warnings)
    entries = [
        EpisodeEntry(index, file, run.first_row, run.length, (), _videos(info, index, run))
        for index, run in runs.items()
    ]
    return [entry for entry in with_rows_in_videos(_with_times(info, entries)) if entry.index not in skipped]


def _index_path(info: Info) -> Path:
    return info.path.parent / "episode_data_index.safetensors"


def _read_bounds(info: Info) -> list[tuple[int, int]] | None:
    """The first row of each episode and the one after its last, as the metadata have them; None without."""
    path = _index_path(info)
    if not path.is_file():
        return None
    found = read_safetensors(path)
    if not {"from", "to"} <= set(found) or found["from"].shape != found["to"].shape or found["from"].ndim != 1:
        raise SourceError(
            f"{path}: holds {sorted(found)[:4]}; it needs 'from' and 'to' of one length; download it again"
        )
    return list(zip(found["from"].tolist(), found["to"].tolist(), strict=True))


def _runs(info: Info, file: RowFile, bounds: list[tuple[int, int]] | None) -> dict[int, Run]:
    if EPISODE_INDEX_KEY not in file.columns:
        if bounds is None:
            raise SourceError(
                f"{file.path}: has no column {EPISODE_INDEX_KEY!r}, and {_index_path(info)} is not there: nothing says "
                "which rows are whose; complete the download"
            )
        found = [(index, Run(file, first, stop - first)) for index, (first, stop) in enumerate(bounds)]
    else:
        found = list(runs_by_column(file))
    runs: dict[int, Run] = {}
    last = -1
    for index, run in found:
        if index <= last:
            raise SourceError(
                f"{file.path}: rows of episode {index} come after rows of episode {last}: episodes are out of order; "
                "sort the rows by episode_index and frame_index"
            )
        runs[index], last = run, index
    return runs


def _compare(info: Info, runs: Mapping[int, Run], bounds: list[tuple[int, int]] | None, warnings: Warnings) -> None:
    """Compare the rows with what the metadata list of them; episodes of which there is no row at all may be missing."""
    path, rows = _index_path(info), sum(run.length for run in runs.values())
    if bounds is None:
        warnings.add(f"{path}: is not there; which rows are whose is taken from {EPISODE_INDEX_KEY!r}")
        return
    for number, (index, run) in enumerate(runs.items()):
        if number >= len(bounds):
            raise SourceError(
                f"{path}: lists {len(bounds)} episodes, and episode {index} is another; download it again"
            )
        first, stop = bounds[number]
        if stop - first != run.length or not 0 <= run.first_row <= run.first_row + run.length <= run.file.num_rows:
            raise SourceError(
                f"{path}: says that episode {index} has rows {first} to {stop - 1}, and {run.file.path} has "
                f"{run.length} rows of it, of {run.file.num_rows}; download both again"
            )
        if first != run.first_row:
            warnings.add(
                f"{path}: says that episode {index} begins in row {first}; it begins in row {run.first_row}", like="row"
            )
    if len(bounds) > len(runs):
        warnings.leave_out(
            f"{path}: lists {len(bounds)} episodes, and {rows} rows are there, of {len(runs)}: the others are left out"
        )


def _videos(info: Info, index: int, run: Run) -> dict[str, VideoSpan]:
    """Where the rows say that the frames are, for each camera; or where the writer puts them."""
    videos = {}
    for feature in info.cameras:
        where = f"{info.path}: camera {feature.name!r}, episode {index}"
        usual = inside(info.folder, f"videos/{feature.name}_episode_{index:06d}.mp4", where)
        if feature.dtype != "video":
            videos[feature.name] = VideoSpan(usual)  # images lie among the rows
            continue
        reader = run.file.rows([feature.name])
        ends = [reader.read(run.first_row + k, 1).column(0)[0].as_py() for k in (0, run.length - 1)]
        reader.close()
        told = [(frame or {}).get("path") for frame in ends]
        if told[0] != told[1]:
            raise SourceError(
                f"{where}: begins in the video {shown(told[0])} and ends in {shown(told[1])}; an episode must be in "
                "one file: convert it again"
            )
        path = inside(info.folder, told[0], f"{where}, path") if told[0] else usual
        start_s = ends[0].get("timestamp") if ends[0] else None
        is_time = isinstance(start_s, float) and np.isfinite(start_s)
        videos[feature.name] = VideoSpan(path, start_s if is_time else None)
    return videos


def _with_times(info: Info, entries: list[EpisodeEntry]) -> list[EpisodeEntry]:
    """Keep the times of frames only where a file is shared or begins earlier: alone, an episode is the whole file."""
    sharers: dict[tuple[str, Path], int] = {}
    for entry in entries:
        for key, span in entry.videos.items():
            sharers[key, span.path] = sharers.get((key, span.path), 0) + 1

    def timed(key: str, span: VideoSpan, length: int) -> VideoSpan:
        alone = sharers[key, span.path] == 1 and (span.start_s is None or span.start_s < 1.5 / info.fps)
        if alone or span.start_s is None:
            return replace(span, start_s=None)
        return replace(span, end_s=span.start_s + length / info.fps)

    return [
        replace(entry, videos={key: timed(key, span, entry.length) for key, span in entry.videos.items()})
        for entry in entries
    ]
