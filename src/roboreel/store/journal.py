"""What a conversion has done so far, a line each, so that a killed one goes on where it was.

A line is appended when an episode of a camera has been converted, or a file copied. What was written since the last
line that says `synced` counts only as long as the machine has not been booted since.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roboreel.format import files
from roboreel.format.files import DataFile
from roboreel.format.lock import boot_id

Clip = tuple[int, int]
"""A video file, and the frame of it at which an episode begins; zeros for other image modes."""


class Journal:
    """Open for appending; `task` says what is converted, and how: another one is another journal."""

    def __init__(self, path: Path, task: Mapping[str, Any]) -> None:
        self.clips: dict[str, dict[int, Clip]] = {}
        """For each camera the episode rows that are done."""
        self.copied: set[str] = set()
        """The files that are copied, by their names in the dataset."""
        self.seconds = 0.0
        """That all of it took."""
        lines = _lines(path)
        self._file = DataFile(path, create=True)
        self._end = 0
        if lines and lines[0] == dict(task):
            kept = _that_count(lines)
            for line in kept[1:]:
                self._take(line)
            self._end = sum(len(_encoded(line)) for line in kept)
            self._file.truncate(self._end)
        else:
            self._file.truncate(0)
            self._append(task)
            self._file.sync()
            files.sync_path(path.parent)

    @property
    def episodes(self) -> int:
        """Episodes of cameras that are done."""
        return sum(map(len, self.clips.values()))

    def converted(self, key: str, row: int, clip: Clip, seconds: float) -> None:
        self._note({"camera": key, "row": row, "clip": list(clip), "seconds": round(seconds, 6)})

    def was_copied(self, name: str, seconds: float) -> None:
        self._note({"copied": name, "seconds": round(seconds, 6)})

    def synced(self) -> None:
        """To be called when all that was noted has reached the device."""
        self._append({"synced": True})

    def close(self) -> None:
        self._file.close()

    def _note(self, line: dict[str, Any]) -> None:
        self._append({**line, "boot": boot_id().hex()})
        self._take(line)

    def _append(self, line: Mapping[str, Any]) -> None:
        raw = _encoded(line)
        self._file.write_at(self._end, raw)
        self._end += len(raw)

    def _take(self, line: Mapping[str, Any]) -> None:
        self.seconds += line.get("seconds", 0.0)
        if "copied" in line:
            self.copied.add(line["copied"])
        elif "camera" in line:
            file, first = line["clip"]
            self.clips.setdefault(line["camera"], {})[line["row"]] = (file, first)


def task_of(path: Path) -> dict[str, Any] | None:
    """Return the task of the journal there; None where there is none that can be read."""
    return next(iter(_lines(path)), None)


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, sort_keys=True).encode() + b"\n"


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines up to the first that is not whole: the end may have been cut in a kill, or by a power cut."""
    found: list[dict[str, Any]] = []
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return found
    for line in raw.splitlines(keepends=True):
        try:
            parsed = json.loads(line)
        except ValueError:
            break
        if not isinstance(parsed, dict) or _encoded(parsed) != line:
            break
        found.append(parsed)
    return found


def _that_count(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what was noted in another boot of the machine and not synced: from there on nothing is certain."""
    here = boot_id().hex()
    last = max((at for at, line in enumerate(lines) if "synced" in line), default=0)
    later = list(itertools.takewhile(lambda line: line.get("boot") == here, lines[last + 1 :]))
    return [*lines[: last + 1], *later]
