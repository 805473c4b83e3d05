"""LeRobot v2.0 and v2.1 folders: one Parquet file and one video a camera for each episode, listed in episodes.jsonl."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from roboreel.convert.lerobot_info import Info, read_json_lines, shown
from roboreel.convert.lerobot_layout import (
    EpisodeEntry,
    VideoSpan,
    Warnings,
    check_skipped,
    data_files,
    parse_episode_index,
    parse_tasks,
    with_rows_in_videos,
)
from roboreel.convert.parquet import ParquetFile
from roboreel.errors import SourceError


def read_v2_episodes(info: Info, warnings: Warnings, skipped: Collection[int] = ()) -> list[EpisodeEntry]:
    """Every episode that `meta/episodes.jsonl` lists, its Parquet footer read; `SourceError` names what is missing.

    Of those that are skipped no file is opened.
    """
    listing = info.folder / "meta" / "episodes.jsonl"
    entries: list[EpisodeEntry] = []
    used: set[Path] = set()
    listed: list[int] = []
    for number, content in read_json_lines(listing):
        where = f"{listing}, line {number}"
        index = parse_episode_index(content.get("episode_index"), where)
        if listed and index <= listed[-1]:
            raise SourceError(
                f"{where}: episode {index} comes after episode {listed[-1]}; sort the lines by episode_index"
            )
        listed.append(index)
        if index in skipped:
            used.add(_data_path(info, index))
            continue
        file = ParquetFile.open(_data_path(info, index))
        if file.path in used:
            raise SourceError(f"{file.path}: is the file of episode {index} and of another one; correct data_path")
        used.add(file.path)
        _check_length(where, content.get("length"), file)
        if file.num_rows == 0:
            warnings.leave_out(f"{file.path}: episode {index} has no rows and is left out", like="no rows")
            continue
        tasks = parse_tasks(content.get("tasks"), where)
        entry = EpisodeEntry(index, file, 0, file.num_rows, tasks, _videos(info, index))
        entries.append(entry)
    check_skipped(skipped, listed, listing)
    unlisted = [path for path in data_files(info.folder) if path not in used]
    if unlisted:
        more = f" and {len(unlisted) - 1} more files" if len(unlisted) > 1 else ""
        raise SourceError(
            f"{listing}: does not list the episode in {unlisted[0]}{more}; download the list again, "
            "or take the file away"
        )
    return with_rows_in_videos(entries)


def list_v2(info: Info) -> dict[int, Path | None]:
    """The episodes that are listed, and the file of each one's rows, by the metadata alone."""
    listing = info.folder / "meta" / "episodes.jsonl"
    found: dict[int, Path | None] = {}
    for number, content in read_json_lines(listing):
        index = parse_episode_index(content.get("episode_index"), f"{listing}, line {number}")
        found[index] = _data_path(info, index)
    return found


def _check_length(where: str, listed: object, file: ParquetFile) -> None:
    if listed is not None and listed != file.num_rows:
        raise SourceError(
            f"{where}: says length {shown(listed)}, and {file.path} has {file.num_rows} rows; "
            "download both again, or correct the length"
        )


def _data_path(info: Info, index: int) -> Path:
    chunk = index // info.chunks_size
    fields: dict[str, int | str] = {"episode_chunk": chunk, "episode_index": index}
    return info.data_file("v2", fields)


def _videos(info: Info, index: int) -> dict[str, VideoSpan]:
    chunk = index // info.chunks_size
    videos = {}
    for feature in info.cameras:
        fields: dict[str, int | str] = {"episode_chunk": chunk, "episode_index": index, "video_key": feature.name}
        videos[feature.name] = VideoSpan(info.video_file("v2", fields))
    return videos
