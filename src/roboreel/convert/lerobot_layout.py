"""Where each episode of a LeRobot folder lies: its rows in a Parquet file, its frames in video files."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from roboreel.convert.lerobot_info import check_text
from roboreel.convert.parquet import parse_numbers
from roboreel.convert.rows import RowFile
from roboreel.errors import InvalidArgumentError, SourceError
from roboreel.schema import EPISODE_INDEX_KEY

_MAX_EPISODE_INDEX = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class VideoSpan:
    """The part of a video file that one episode's frames are."""

    path: Path
    start_s: float | None = None
    end_s: float | None = None
    """Presentation times as the metadata has them; None where it has none: then the file holds one episode."""
    rows_in_file: int = 0
    """Rows of all episodes in the file."""
    rows_before: int = 0
    """Of them, those of the episodes that begin earlier in it."""
    file_start_s: float | None = None
    """The earliest `start_s` in the file."""
    seconds_in_file: float | None = None
    """That all its episodes last together, as the metadata have it; None where it has no times."""


@dataclass(frozen=True, slots=True)
class EpisodeEntry:
    """One episode, before any of its rows is read."""

    index: int
    file: RowFile
    first_row: int
    length: int
    tasks: tuple[str, ...] = ()
    """The task strings that the episode's own metadata lists."""
    videos: Mapping[str, VideoSpan] = field(default_factory=dict)
    """Where the frames of each declared camera would be, by key; the file need not exist."""

    @property
    def where(self) -> str:
        return f"{self.file.path}, episode {self.index}"


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive rows of one episode in a data file."""

    file: RowFile
    first_row: int
    length: int


class Warnings:
    """Sentences about what was found wrong and worked around, each once, in the order in which they came up.

    >>> warnings = Warnings()
    >>> warnings.add("episode 3 is short", like="short")
    >>> warnings.add("episode 5 is short", like="short")
    >>> list(warnings)
    ['episode 3 is short (and 1 more of this kind)']
    """

    def __init__(self, *, strict: bool = False) -> None:
        """`strict`: what is there, or declared, and would be left out, is refused."""
        self._kinds: dict[str, dict[str, None]] = {}
        self._strict = strict

    def add(self, sentence: str, *, like: str | None = None) -> None:
        """Note a sentence; of those with one `like`, say one an episode, the first is kept, the others counted."""
        self._kinds.setdefault(like or sentence, {}).setdefault(sentence)

    def leave_out(self, sentence: str, *, like: str | None = None) -> None:
        """Note what does not come along; `SourceError` where nothing may be left out."""
        if self._strict:
            raise SourceError(f"{sentence}, which strict refuses; mend the source, or import it without strict")
        self.add(sentence, like=like)

    def __iter__(self) -> Iterator[str]:
        for sentences in self._kinds.values():
            more = f" (and {len(sentences) - 1} more of this kind)" if len(sentences) > 1 else ""
            yield next(iter(sentences)) + more


def data_files(folder: Path) -> list[Path]:
    """Every Parquet file in `folder/data` in order; hidden ones, which systems leave beside the real ones, are not."""
    root = folder / "data"
    paths = sorted(root.rglob("*.parquet"), key=lambda path: by_number(path.relative_to(root).as_posix()))
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)]


def by_number(name: str) -> list[tuple[str, int]]:
    """What names are to be sorted by so that numbers in them count as such, of however many digits.

    >>> sorted(["file-1000", "file-999", "file-1000b"], key=by_number)
    ['file-999', 'file-1000', 'file-1000b']
    """
    parts = re.split(r"([0-9]+)", name)
    return [(text, int(digits or 0)) for text, digits in itertools.zip_longest(parts[::2], parts[1::2])]


def parse_episode_index(value: object, where: str) -> int:
    """Return an episode's number; `SourceError` for what is none."""
    if type(value) is not int or not 0 <= value <= _MAX_EPISODE_INDEX:
        raise SourceError(f"{where}: episode_index is {value!r:.40}; it must be an integer from 0 on")
    return value


def parse_tasks(listed: object, where: str) -> tuple[str, ...]:
    """The strings of an episode's `tasks`; some writers put task indices there, which say nothing new."""
    tasks = tuple(task for task in listed if isinstance(task, str)) if isinstance(listed, list) else ()
    for task in tasks:
        check_text(task, f"{where}, tasks")
    return tasks


def check_skipped(skipped: Collection[int], known: Collection[int], listing: Path) -> None:
    """Refuse to leave an episode out that is not there: the wrong one would come in."""
    if unknown := sorted(set(skipped).difference(known)):
        raise InvalidArgumentError(
            f"skip_episodes names {', '.join(map(repr, unknown[:5]))}, and {listing} lists {len(known)} episodes, from "
            f"{min(known, default=0)} to {max(known, default=0)}; those would do"
        )


def with_rows_in_videos(entries: Sequence[EpisodeEntry]) -> list[EpisodeEntry]:
    """Fill in what every video span says of its whole file.

    >>> from roboreel.convert.parquet import ParquetFile
    >>> file, path = ParquetFile(Path("d.parquet"), 5, {}), Path("v.mp4")
    >>> spans = [{"observation.image": VideoSpan(path, *times)} for times in ((0.0, 0.3), (0.3, 0.5))]
    >>> entries = [EpisodeEntry(0, file, 0, 3, (), spans[0]), EpisodeEntry(1, file, 3, 2, (), spans[1])]
    >>> span = with_rows_in_videos(entries)[1].videos["observation.image"]
    >>> span.rows_in_file, span.rows_before, span.file_start_s, span.seconds_in_file
    (5, 3, 0.0, 0.5)
    """
    whose: dict[tuple[str, Path], list[EpisodeEntry]] = defaultdict(list)
    for entry in entries:
        for key, span in entry.videos.items():
            whose[key, span.path].append(entry)
    filled: dict[tuple[str, int], VideoSpan] = {}
    for (key, _), sharers in whose.items():
        filled |= {(key, entry.index): span for entry, span in _filled(key, sharers)}
    return [replace(entry, videos={key: filled[key, entry.index] for key in entry.videos}) for entry in entries]


def _filled(key: str, sharers: Sequence[EpisodeEntry]) -> Iterator[tuple[EpisodeEntry, VideoSpan]]:
    """The spans of the episodes that share one file."""
    times = [(span.start_s, span.end_s) for span in (entry.videos[key] for entry in sharers)]
    known = [(start, end) for start, end in times if start is not None and end is not None]
    seconds = math.fsum(end - start for start, end in known) if len(known) == len(sharers) else None
    file_start = min((start for start, _ in times if start is not None), default=None)
    rows, before = sum(entry.length for entry in sharers), 0
    for entry in sorted(sharers, key=lambda entry: entry.videos[key].start_s or 0.0):
        span = entry.videos[key]
        yield (
            entry,
            replace(span, rows_in_file=rows, rows_before=before, file_start_s=file_start, seconds_in_file=seconds),
        )
        before += entry.length


def runs_by_column(file: RowFile) -> Iterator[tuple[int, Run]]:
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
                yield current, Run(file, start, row + bound - start)
                start = row + bound
            current = index
        row += count
    reader.close()
    if current is not None:
        yield current, Run(file, start, file.num_rows - start)
