"""LeRobot v3.0 folders: many episodes to a Parquet or video file, found by meta/episodes and the data's own columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboreel.convert.lerobot_info import Info, fill_template, inside
from roboreel.convert.lerobot_layout import (
    EpisodeEntry,
    VideoSpan,
    Warnings,
    data_files,
    parse_episode_index,
    parse_tasks,
    with_rows_in_videos,
)
from roboreel.convert.parquet import ParquetFile, parse_numbers
from roboreel.errors import SourceError
from roboreel.schema import EPISODE_INDEX_KEY

_LISTED = (EPISODE_INDEX_KEY, "length", "tasks")


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive rows of one episode in a data file."""

    file: ParquetFile
    first_row: int
    length: int


def read_v3_episodes(info: Info, warnings: Warnings) -> list[EpisodeEntry]:
    """Every episode, its rows found by the data's `episode_index`; `SourceError` names what cannot be found.

    The data files are believed before `meta/episodes`: a listed length that contradicts them is a warning.
    """
    listed = _read_listing(info, warnings)
    runs = _find_runs(info, listed)
    _compare(info, listed, runs, warnings)
    template = info.video_template("v3")
    entries = []
    for index, run in runs.items():
        row = listed.get(index, {})
        videos = {feature.name: _video_span(info, template, feature.name, index, row) for feature in info.cameras}
        entries.append(EpisodeEntry(index, run.file, run.first_row, run.length, parse_tasks(row.get("tasks")), videos))
    return with_rows_in_videos(entries)


def _read_listing(info: Info, warnings: Warnings) -> dict[int, dict[str, Any]]:
    """The rows of meta/episodes by episode index, without statistics."""
    root = info.folder / "meta" / "episodes"
    listed: dict[int, dict[str, Any]] = {}
    for path in sorted(root.rglob("*.parquet")):
        file = ParquetFile.open(path)
        if EPISODE_INDEX_KEY not in file.columns:
            raise SourceError(f"{path}: has no column {EPISODE_INDEX_KEY!r}; get the file again")
        names = [name for name in file.columns if name in _LISTED or name.startswith(("data/", "videos/"))]
        for row in file.records(names):
            index = parse_episode_index(row[EPISODE_INDEX_KEY], str(path))
            if index in listed:
                raise SourceError(f"{path}: episode {index} is listed twice; remove one of the rows")
            listed[index] = row
    if not listed:
        warnings.add(f"{root}: lists no episodes; they are taken from the data files' own episode_index")
    return listed


def _find_runs(info: Info, listed: Mapping[int, dict[str, Any]]) -> dict[int, _Run]:
    """Where each episode's rows are, by episode index, in order."""
    wanted = [(index, _listed_data_path(info, row)) for index, row in listed.items()]
    for index, path in wanted:
        if path is not None and not path.is_file():
            raise SourceError(f"{path}: this file is missing, and episode {index} lies in it; complete the download")
    runs: dict[int, _Run] = {}
    last = -1
    for path in data_files(info.folder):
        file = ParquetFile.open(path)
        for index, run in _runs_of(file, wanted, listed):
            if index <= last:
                raise SourceError(
                    f"{path}: rows of episode {index} come after rows of episode {last}: episodes are out of order; "
                    "sort the rows by episode_index and frame_index"
                )
            runs[index], last = run, index
    return runs


def _listed_data_path(info: Info, row: Mapping[str, Any]) -> Path | None:
    chunk, file = row.get("data/chunk_index"), row.get("data/file_index")
    if type(chunk) is not int or type(file) is not int:
        return None
    return fill_template(info.folder, info.data_template("v3"), {"chunk_index": chunk, "file_index": file})


def _runs_of(
    file: ParquetFile, wanted: list[tuple[int, Path | None]], listed: Mapping[int, dict[str, Any]]
) -> Iterator[tuple[int, _Run]]:
    if EPISODE_INDEX_KEY in file.columns:
        yield from _runs_by_column(file)
        return
    first = 0
    for index, path in wanted:
        length = listed[index].get("length")
        if path == file.path and type(length) is int and length > 0:
            yield index, _Run(file, first, length)
            first += length
    if first != file.num_rows:
        raise SourceError(
            f"{file.path}: has no column 'episode_index', and meta/episodes gives it {first} "
            f"of its {file.num_rows} rows; get both again"
        )


def _runs_by_column(file: ParquetFile) -> Iterator[tuple[int, _Run]]:
    """Yield the runs of equal `episode_index`, reading that column alone, block by block."""
    reader = file.rows([EPISODE_INDEX_KEY])
    start, current, row = 0, None, 0
    while row < file.num_rows:
        count = min(1 << 16, file.num_rows - row)
        where = f"{file.path}, key 'episode_index' from row {row} on"
        values = parse_numbers(reader.read(row, count).column(0), where).reshape(count, -1)[:, 0]
        if values.dtype.kind not in "iu":
            raise SourceError(f"{where}: holds {values.dtype}; it must be integers")
        for bound in (values.min(), values.max()):
            parse_episode_index(int(bound), where)
        bounds = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist()]
        for bound in bounds:
            index = int(values[bound])
            if current is not None and index != current:
                yield current, _Run(file, start, row + bound - start)
                start = row + bound
            current = index
        row += count
    reader.close()
    if current is not None:
        yield current, _Run(file, start, file.num_rows - start)


def _compare(info: Info, listed: Mapping[int, dict[str, Any]], runs: Mapping[int, _Run], warnings: Warnings) -> None:
    listing = info.folder / "meta" / "episodes"
    for index, row in listed.items():
        length, path = row.get("length"), _listed_data_path(info, row)
        if index not in runs:
            if length == 0:
                warnings.add(f"{listing}: episode {index} has no rows and is left out", like="no rows")
                continue
            raise SourceError(
                f"{listing}: episode {index} is listed, and no file in {info.folder / 'data'} holds a row of it; "
                "complete the download, or take it out of meta/episodes"
            )
        run = runs[index]
        if length is not None and length != run.length:
            warnings.add(
                f"{listing}: says length {length!r} for episode {index}, and {run.file.path} has {run.length} rows of "
                "it: taken as they are",
                like="length",
            )
        if path is not None and path != run.file.path:
            warnings.add(f"{listing}: says that episode {index} is in {path}; it is in {run.file.path}", like="place")
    unlisted = [index for index in runs if index not in listed] if listed else []
    if unlisted and any((info.folder / "videos").rglob("*.mp4")):
        raise SourceError(
            f"{runs[unlisted[0]].file.path}: episode {unlisted[0]} is not listed in {listing}, so that nothing says "
            "where its videos are; get meta/episodes again"
        )
    if unlisted:
        warnings.add(f"{listing}: does not list episode {unlisted[0]} and {len(unlisted)} in all; they are taken in")


def _video_span(info: Info, template: str, key: str, index: int, row: Mapping[str, Any]) -> VideoSpan:
    chunk, file = row.get(f"videos/{key}/chunk_index"), row.get(f"videos/{key}/file_index")
    start_s = _parse_time(row.get(f"videos/{key}/from_timestamp"))
    end_s = _parse_time(row.get(f"videos/{key}/to_timestamp"))
    if type(chunk) is int and type(file) is int:
        path = fill_template(info.folder, template, {"chunk_index": chunk, "file_index": file, "video_key": key})
        return VideoSpan(path, start_s, end_s)
    found = sorted(inside(info.folder, f"videos/{key}", f"feature {key!r}").rglob("*.mp4"))
    if len(found) > 1:
        raise SourceError(
            f"{info.folder / 'meta' / 'episodes'}: does not say which of the {len(found)} video files of {key!r} holds "
            f"episode {index}; get meta/episodes again"
        )
    nowhere = fill_template(info.folder, template, {"chunk_index": 0, "file_index": 0, "video_key": key})
    return VideoSpan(found[0] if found else nowhere, start_s, end_s)


def _parse_time(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
