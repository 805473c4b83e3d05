"""LeRobot v3.0 folders: many episodes to a Parquet or video file, found by meta/episodes and the data's own columns."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from roboreel.convert.lerobot_info import Info, inside, shown
from roboreel.convert.lerobot_layout import (
    EpisodeEntry,
    Run,
    VideoSpan,
    Warnings,
    by_number,
    check_skipped,
    data_files,
    parse_episode_index,
    parse_tasks,
    runs_by_column,
    with_rows_in_videos,
)
from roboreel.convert.parquet import ColumnType, ParquetFile
from roboreel.errors import SourceError
from roboreel.schema import EPISODE_INDEX_KEY

_LISTED = (EPISODE_INDEX_KEY, "length", "tasks")
_TIMES = ("from_timestamp", "to_timestamp")
_PLACE = ("chunk_index", "file_index", *_TIMES)


def read_v3_episodes(info: Info, warnings: Warnings, skipped: Collection[int] = ()) -> list[EpisodeEntry]:
    """Every episode, its rows found by the data's `episode_index`; `SourceError` names what cannot be found.

    `meta/episodes` must list just these episodes, with as many rows; where one lies is taken from the data.
    """
    listed = _read_listing(info)
    check_skipped(skipped, listed, _listing(info))
    runs = _find_runs(info, listed, skipped)
    _compare(info, listed, runs, warnings)
    with_video = {feature.name for feature in info.cameras if _videos_of(info, feature.name)}
    entries = []
    for index, run in runs.items():
        row, where = listed[index], f"{_listing(info)}, episode {index}"
        videos = {
            feature.name: _video_span(info, feature.name, row, where, needed=feature.name in with_video)
            for feature in info.cameras
        }
        tasks = parse_tasks(row.get("tasks"), where)
        entries.append(EpisodeEntry(index, run.file, run.first_row, run.length, tasks, videos))
    # what is skipped still has its part of a file that others share
    entries = [entry for entry in with_rows_in_videos(entries) if entry.index not in skipped]
    _check_parts(info, entries, with_video)
    return entries


def list_v3(info: Info) -> dict[int, Path | None]:
    """The episodes that are listed, and the file of each one's rows, by the metadata alone."""
    return {index: _listed_data_path(info, row) for index, row in _read_listing(info).items()}


def _listing(info: Info) -> Path:
    return info.folder / "meta" / "episodes"


def _read_listing(info: Info) -> dict[int, dict[str, Any]]:
    """The rows of meta/episodes by episode index, without statistics."""
    root = _listing(info)
    listed: dict[int, dict[str, Any]] = {}
    for path in sorted(root.rglob("*.parquet"), key=lambda path: by_number(path.as_posix())):
        if path.name.startswith("."):  # a Mac leaves ._file-000.parquet beside what it copies
            continue
        file = ParquetFile.open(path)
        if EPISODE_INDEX_KEY not in file.columns:
            raise SourceError(f"{path}: has no column {EPISODE_INDEX_KEY!r}; download it again")
        names = [name for name, column in file.columns.items() if name in _LISTED or _is_place(name, column)]
        for row in file.records(names):
            index = parse_episode_index(row[EPISODE_INDEX_KEY], str(path))
            if index in listed:
                raise SourceError(f"{path}: episode {index} is listed twice; remove one of the rows")
            listed[index] = row
    if not listed:
        raise SourceError(f"{root}: lists no episodes; complete the download")
    return listed


def _is_place(name: str, column: ColumnType) -> bool:
    """Whether a column says where in a file an episode is, and is one number a row."""
    named = name.startswith(("data/", "videos/")) and name.rpartition("/")[2] in _PLACE
    return named and column.kind == "number" and not column.depth


def _find_runs(info: Info, listed: Mapping[int, dict[str, Any]], skipped: Collection[int]) -> dict[int, Run]:
    """Where each episode's rows are, by episode index, in order."""
    wanted = [(index, _listed_data_path(info, row)) for index, row in listed.items()]
    for index, path in wanted:
        if path is not None and not path.is_file() and not (info.remote is not None and index in skipped):
            raise SourceError(f"{path}: this file is missing, and episode {index} lies in it; complete the download")
    runs: dict[int, Run] = {}
    last = -1
    for path in data_files(info.folder):
        file = ParquetFile.open(path)
        for index, run in _runs_of(file, wanted, listed):
            if index in runs and runs[index].file is not file:
                raise SourceError(
                    f"{path}: holds rows of episode {index}, and so does {runs[index].file.path}; remove the copy"
                )
            if index <= last:
                raise SourceError(
                    f"{path}: rows of episode {index} come after rows of episode {last}: episodes are out of order; "
                    "sort the rows by episode_index and frame_index"
                )
            runs[index], last = run, index
    if info.remote is not None:
        runs |= _unfetched(listed, dict(wanted), runs, skipped)
    return dict(sorted(runs.items()))


def _unfetched(
    listed: Mapping[int, dict[str, Any]],
    paths: Mapping[int, Path | None],
    runs: Collection[int],
    skipped: Collection[int],
) -> dict[int, Run]:
    """Episodes that are left out and were not fetched: how long they are says where others begin in a video."""
    unfetched = {}
    for index in sorted(set(skipped) & set(listed) - set(runs)):
        path, length = paths[index], listed[index].get("length")
        if path is not None and type(length) is int and length > 0:
            unfetched[index] = Run(ParquetFile(path, length, {}), 0, length)
    return unfetched


def _listed_data_path(info: Info, row: Mapping[str, Any]) -> Path | None:
    chunk, file = row.get("data/chunk_index"), row.get("data/file_index")
    if type(chunk) is not int or type(file) is not int:
        return None
    return info.data_file("v3", {"chunk_index": chunk, "file_index": file})


def _runs_of(
    file: ParquetFile, wanted: list[tuple[int, Path | None]], listed: Mapping[int, dict[str, Any]]
) -> Iterator[tuple[int, Run]]:
    if EPISODE_INDEX_KEY in file.columns:
        yield from runs_by_column(file)
        return
    first = 0
    for index, path in wanted:
        length = listed[index].get("length")
        if path == file.path and type(length) is int and length > 0:
            yield index, Run(file, first, length)
            first += length
    if first != file.num_rows:
        raise SourceError(
            f"{file.path}: has no column 'episode_index', and meta/episodes gives it {shown(first)} "
            f"of its {file.num_rows} rows; download both again"
        )


def _compare(info: Info, listed: Mapping[int, dict[str, Any]], runs: Mapping[int, Run], warnings: Warnings) -> None:
    listing = _listing(info)
    for index, row in listed.items():
        length, path = row.get("length"), _listed_data_path(info, row)
        if index not in runs:
            if length == 0:
                warnings.leave_out(f"{listing}: episode {index} has no rows and is left out", like="no rows")
                continue
            raise SourceError(
                f"{listing}: episode {index} is listed, and no file in {info.folder / 'data'} holds a row of it; "
                "complete the download, or take it out of meta/episodes"
            )
        run = runs[index]
        if length is not None and length != run.length:
            raise SourceError(
                f"{listing}: says length {shown(length)} for episode {index}, and {run.file.path} has {run.length} "
                "rows of it; download both again, or correct the length"
            )
        if path is not None and path != run.file.path:
            warnings.add(f"{listing}: says that episode {index} is in {path}; it is in {run.file.path}", like="place")
    unlisted = next((index for index in runs if index not in listed), None)
    if unlisted is not None:
        raise SourceError(
            f"{runs[unlisted].file.path}: episode {unlisted} is not listed in {listing}; download meta/episodes again"
        )


def _videos_of(info: Info, key: str) -> list[Path]:
    folder = inside(info.folder, f"videos/{key}", f"{info.path}: camera {key!r}")
    found = folder.rglob("*.mp4") if info.remote is None else info.remote.listed(folder)
    return sorted(path for path in found if path.suffix == ".mp4")


def _video_span(info: Info, key: str, row: Mapping[str, Any], where: str, *, needed: bool) -> VideoSpan:
    """Where an episode's frames are; what the row lacks of it is an error where the camera has videos at all."""
    chunk, file = row.get(f"videos/{key}/chunk_index"), row.get(f"videos/{key}/file_index")
    start_s, end_s = (row.get(f"videos/{key}/{side}_timestamp") for side in ("from", "to"))
    for column in _PLACE:
        name = f"videos/{key}/{column}"
        # what has no times at all may still hold one episode a file, which `_check_parts` sees
        if needed and row.get(name) is None and (name in row or column not in _TIMES):
            lacks = "is null" if name in row else "is missing"
            raise SourceError(f"{where}: {name} {lacks}; download meta/episodes again")
    if type(chunk) is int and type(file) is int:
        path = info.video_file("v3", {"chunk_index": chunk, "file_index": file, "video_key": key})
    elif needed:
        raise SourceError(f"{where}: videos/{key}/ has chunk {shown(chunk)}, file {shown(file)}; they must be integers")
    else:
        path = info.video_file("v3", {"chunk_index": 0, "file_index": 0, "video_key": key})
    return VideoSpan(path, _parse_time(start_s), _parse_time(end_s))


def _check_parts(info: Info, entries: Sequence[EpisodeEntry], with_video: Collection[str]) -> None:
    """Refuse a video of several episodes where the metadata does not say which part of it is whose."""
    for entry in entries:
        for key, span in entry.videos.items():
            if key not in with_video or span.rows_in_file == entry.length:
                continue
            for side, seconds in (("from", span.start_s), ("to", span.end_s)):
                if seconds is None:
                    raise SourceError(
                        f"{_listing(info)}, episode {entry.index}: videos/{key}/{side}_timestamp is missing or no "
                        f"number, and {span.path} holds several episodes; download meta/episodes again"
                    )


def _parse_time(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
