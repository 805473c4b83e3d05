"""LeRobot v1.x, v2.0, v2.1 and v3.0 folders as a `ForeignDataset`: opened and checked at once, read one by one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from roboreel.convert.array_rows import check_unfolded
from roboreel.convert.foreign import SourceEpisode
from roboreel.convert.lerobot_cameras import ImageCamera, open_cameras
from roboreel.convert.lerobot_columns import ROW_KEYS, plan_columns, read_time_and_order, read_values
from roboreel.convert.lerobot_given_stats import GivenStats
from roboreel.convert.lerobot_info import Info, read_info, shown
from roboreel.convert.lerobot_layout import EpisodeEntry, Warnings, data_files
from roboreel.convert.lerobot_rate import check_rate
from roboreel.convert.lerobot_tasks import Tasks, read_tasks
from roboreel.convert.lerobot_v1 import is_v1, open_v1, read_v1_episodes
from roboreel.convert.lerobot_v2 import read_v2_episodes
from roboreel.convert.lerobot_v3 import read_v3_episodes
from roboreel.convert.lerobot_videos import VideoCamera
from roboreel.convert.parquet import parse_strings
from roboreel.convert.remote import Remote
from roboreel.convert.rows import RowFile, Rows, shards_of
from roboreel.errors import SourceError
from roboreel.schema import FRAME_INDEX_KEY, INDEX_KEY, STRING_CODE_DTYPE, TASK_KEY, TIMESTAMP_KEY, KeySpec

_SPLIT = re.compile(r"(\d{1,18}):(\d{1,18})")


def open_lerobot(
    folder: Path | str, skip_episodes: Collection[int] = (), *, strict: bool = False, remote: Remote | None = None
) -> LeRobotSource:
    """Open a LeRobot folder of version 1.x, 2.0, 2.1 or 3.0 and check what can be checked without reading the frames.

    What `meta/info.json` claims is compared with what is on disk, and what is on disk wins. A declared camera without
    any file, and a column that is no array, are left out with a warning, or refused if `strict`. Of the episodes
    `skip_episodes` no frame is looked at. With a `remote`, video files are fetched from there when they are needed.

    Raises:
        InvalidArgumentError: an episode to be skipped is not there.
        NotADatasetError: the folder has no meta/info.json, and no meta_data/ as before v2.0.
        SourceError: another version; a file missing or cut off; columns that are not what they are declared as.

    For the PushT recording of 206 episodes, its video left out:

        source = open_lerobot("v3.0_pusht_full_novideo")
        source.format, source.fps, source.num_episodes, source.num_frames
        -> ("LeRobot v3.0", 10.0, 206, 25650)
        next(source.episodes()).columns["action"].shape
        -> (161, 2)
    """
    warnings, skipped = Warnings(strict=strict), frozenset(skip_episodes)
    if is_v1(Path(folder)):
        layout, (info, file) = "v1", open_v1(Path(folder))
        info = replace(info, remote=remote)
        entries = read_v1_episodes(info, file, warnings, skipped)
    else:
        info = replace(read_info(Path(folder)), remote=remote)
        layout = _find_layout(info, warnings)
        read = read_v2_episodes if layout == "v2" else read_v3_episodes
        entries = read(info, warnings, skipped)
    if not entries:
        raise SourceError(
            f"{info.folder}: holds no episodes{' but those skipped' * bool(skipped)}; complete the download"
        )
    cameras = open_cameras(info, entries, warnings)
    specs = plan_columns(info, entries, warnings)
    longest = max(entries, key=lambda entry: entry.length)
    sizes = {spec.name: longest.length * spec.frame_bytes for spec in specs}
    check_unfolded({**sizes, **dict.fromkeys(ROW_KEYS, 8 * longest.length)}, longest.length, longest.where)
    tasks = None if any(spec.name == TASK_KEY for spec in specs) else read_tasks(info, entries, specs, warnings)
    rates = {camera.spec.name: camera.rate for camera in cameras if isinstance(camera, VideoCamera)}
    check_rate(info, entries, {key: rate for key, rate in rates.items() if rate is not None}, warnings)
    if not skipped:  # totals are those of all episodes
        _compare_claims(info, entries, cameras, layout, warnings)
    return LeRobotSource(info, entries, cameras, specs, tasks, warnings, is_whole=not skipped)


class LeRobotSource:
    """An opened LeRobot folder; a `ForeignDataset`."""

    def __init__(
        self,
        info: Info,
        entries: Sequence[EpisodeEntry],
        cameras: Sequence[VideoCamera | ImageCamera],
        specs: Sequence[KeySpec],
        tasks: Tasks | None,
        warnings: Warnings,
        *,
        is_whole: bool = True,
    ) -> None:
        """`is_whole`: no episode is left out, so that `index` should count on."""
        self._info = info
        self._entries = entries
        self._cameras = cameras
        self._specs = specs
        self._tasks = tasks
        self._warnings = warnings
        self._is_whole = is_whole

    @property
    def format(self) -> str:
        return f"LeRobot {self._info.version}"

    @property
    def fps(self) -> float:
        return self._info.fps

    @property
    def keys(self) -> Sequence[KeySpec]:
        task = [KeySpec(TASK_KEY, STRING_CODE_DTYPE, (), "string")] if self._tasks is not None else []
        return [*self._specs, *(camera.spec for camera in self._cameras), *task]

    @property
    def num_episodes(self) -> int:
        return len(self._entries)

    @property
    def num_frames(self) -> int:
        return sum(entry.length for entry in self._entries)

    @property
    def provenance(self) -> Mapping[str, Any]:
        found = {"format": self.format, "folder": self._info.folder.resolve().name, "robot_type": self._info.robot_type}
        return {key: value for key, value in found.items() if value is not None}

    @property
    def warnings(self) -> Sequence[str]:
        if self._info.remote is None:
            return tuple(self._warnings)
        # where it was downloaded to is gone by then
        return tuple(warning.replace(f"{self._info.folder}/", "") for warning in self._warnings)

    def camera_files(self, key: str) -> Mapping[Path, int]:
        is_video = any(camera.spec.name == key and isinstance(camera, VideoCamera) for camera in self._cameras)
        paths = dict.fromkeys(entry.videos[key].path for entry in self._entries if is_video)
        return {path: self._info.file_size(path) for path in paths}

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of the files that hold the rows."""
        shards = {path for entry in self._entries for path in shards_of(entry.file)}
        return sum(path.stat().st_size for path in shards if path.is_file())

    @property
    def is_remote(self) -> bool:
        return self._info.remote is not None

    def release(self, number: int) -> None:
        """Let go of the video files, and of rows that hold images, that no episode after this one needs.

        Other rows stay until the end: they are small, and an import that goes on looks at all of them.
        """
        if self._info.remote is not None:
            for path in self._last_needed.get(number, ()):
                self._info.remote.release(path)

    @cached_property
    def _last_needed(self) -> Mapping[int, Sequence[Path]]:
        """The files that can be let go, by the number of the last episode that needs each."""
        videos = [camera.spec.name for camera in self._cameras if isinstance(camera, VideoCamera)]
        last: dict[Path, int] = {}
        for number, entry in enumerate(self._entries):
            last |= {entry.videos[name].path: number for name in videos}
            if self._has_image_rows:
                last[entry.file.path] = number
        found: dict[int, list[Path]] = defaultdict(list)
        for path, number in last.items():
            found[number].append(path)
        return found

    @property
    def released_bytes(self) -> int:
        """Of what is here already, that goes while episodes are taken in, but for the largest file."""
        if self._info.remote is None or not self._has_image_rows:
            return 0
        paths = {entry.file.path for entry in self._entries}
        sizes = [path.stat().st_size for path in paths if path.is_file() and not path.is_symlink()]
        return sum(sizes) - max(sizes, default=0)

    @property
    def _has_image_rows(self) -> bool:
        return any(isinstance(camera, ImageCamera) for camera in self._cameras)

    def episodes(self) -> Iterator[SourceEpisode]:
        """Every episode in order; `columns` also has `frame_index` and `timestamp` (float64 seconds, as recorded)."""
        return self.episodes_from(0)

    def episodes_from(self, first: int) -> Iterator[SourceEpisode]:
        """The episodes from number `first` on, counted from 0."""
        names = [spec.name for spec in self._specs]
        reader: tuple[RowFile, Rows] | None = None
        rows_before = sum(entry.length for entry in self._entries[:first])
        given = GivenStats(self._info, self._warnings) if self._is_whole and not first else None
        for entry in self._entries[first:]:
            if reader is None or reader[0].path != entry.file.path:
                if reader is not None:
                    reader[1].close()
                here = [name for name in (*ROW_KEYS, *names) if name in entry.file.columns]
                reader = (entry.file, entry.file.rows(here))
            table = reader[1].read(entry.first_row, entry.length)
            self._compare_index(table, entry, rows_before)
            episode = self._episode(entry, table)
            if given is not None:
                given.add(entry.index, episode.columns)
            yield episode
            rows_before += entry.length
        if reader is not None:
            reader[1].close()
        if given is not None:
            given.end()

    def _episode(self, entry: EpisodeEntry, table: Any) -> SourceEpisode:
        frame_index, timestamp = read_time_and_order(table, entry, self._info.fps)
        columns = {FRAME_INDEX_KEY: frame_index, TIMESTAMP_KEY: timestamp}
        strings: dict[str, Sequence[str]] = {}
        for spec in self._specs:
            column = table.column(spec.name)
            if spec.is_string:
                strings[spec.name] = parse_strings(column, f"{entry.where}, key {spec.name!r}")
            else:
                columns[spec.name] = read_values(spec, column, entry.where)
        if self._tasks is not None:
            strings[TASK_KEY] = self._tasks.of_episode(entry, columns, strings)
        cameras = {camera.spec.name: camera.frames(entry) for camera in self._cameras}
        return SourceEpisode(entry.index, entry.length, columns, strings, cameras)

    def _compare_index(self, table: Any, entry: EpisodeEntry, rows_before: int) -> None:
        if self._is_whole and INDEX_KEY in table.column_names and table.column(INDEX_KEY)[0].as_py() != rows_before:
            said = (
                f"{entry.where}: {INDEX_KEY!r} does not count on from the episode before; the frames are numbered anew"
            )
            self._warnings.add(said, like=INDEX_KEY)


def _find_layout(info: Info, warnings: Warnings) -> str:
    """`v2` or `v3`, by how the data files are named; what the version says where they do not tell."""
    names = [path.name for path in data_files(info.folder)]
    if not names:
        raise SourceError(f"{info.folder / 'data'}: holds no Parquet file; complete the download")
    said = "v3" if info.version.startswith("v3") else "v2"
    found = {"v2": False, "v3": False}
    for name in names:
        found["v2"] |= bool(re.fullmatch(r"episode_\d+\.parquet", name))
        found["v3"] |= bool(re.fullmatch(r"file-\d+\.parquet", name))
    other = "v2" if said == "v3" else "v3"
    if found[said] or not found[other]:
        return said
    warnings.add(f"{info.path}: says {info.version}, and the files are laid out as in {other}.x: read as they are")
    return other


def _compare_claims(
    info: Info,
    entries: Sequence[EpisodeEntry],
    cameras: Sequence[VideoCamera | ImageCamera],
    layout: str,
    warnings: Warnings,
) -> None:
    """Warn of totals and splits in info.json that are not those of the data."""
    videos = [camera for camera in cameras if isinstance(camera, VideoCamera)]
    there: dict[str, int] = {
        "total_episodes": len(entries),
        "total_frames": sum(entry.length for entry in entries),
    }
    if layout == "v2":
        there["total_videos"] = len(entries) * len(videos)
        there["total_chunks"] = len({entry.index // info.chunks_size for entry in entries})
    for key, count in there.items():
        if key in info.claims and info.claims[key] != count:
            warnings.add(f"{info.path}: {key} is {shown(info.claims[key])}, and the data has {count}")
    splits = info.claims.get("splits")
    for name, text in splits.items() if isinstance(splits, dict) else ():
        bounds = _SPLIT.fullmatch(text) if isinstance(text, str) else None
        if bounds is None or not int(bounds[1]) <= int(bounds[2]) <= entries[-1].index + 1:
            warnings.add(f"{info.path}: split {shown(name)} is {shown(text)}, and there are {len(entries)} episodes")
