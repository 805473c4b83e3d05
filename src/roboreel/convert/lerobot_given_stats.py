"""The statistics that a folder gives, compared with its frames; those of a dataset are computed from the frames."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.convert.lerobot_info import MAX_JSON_BYTES, Info
from roboreel.convert.lerobot_layout import Warnings

_COMPARED = ("min", "max", "mean")
_MEAN_SHARE, _END_SHARE = 1e-2, 1e-4
"""Of the distance from the least to the greatest value: by how much a mean, or one of those, may be off; writers round,
and add up in float32."""
_SIZE_SHARE = 1e-2
"""Of the greatest size of a value, the least distance that is counted with: the mean in float32 is a little off also of
a component that stays the same."""

Ends = tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]
"""Least, greatest, sum and count, of each component."""


class GivenStats:
    """What `meta/stats.json`, or `meta/episodes_stats.jsonl`, says of the columns of numbers."""

    def __init__(self, info: Info, warnings: Warnings) -> None:
        self._warnings = warnings
        folder = info.folder / "meta"
        self._path = folder / "stats.json"
        self._whole: Mapping[str, Any] = {}
        self._episodes: dict[int, Mapping[str, Any]] = {}
        if self._path.is_file():
            self._whole = next(iter(_objects(self._path, whole=True)), {})
        elif (folder / "episodes_stats.jsonl").is_file():
            self._path = folder / "episodes_stats.jsonl"
            for one in _objects(self._path, whole=False):
                stats = one.get("stats")
                if type(one.get("episode_index")) is int and isinstance(stats, dict):
                    self._episodes[one["episode_index"]] = stats
        self._found: dict[str, Ends] = {}

    def add(self, episode: int, columns: Mapping[str, NDArray[Any]]) -> None:
        """Look at an episode's columns, (frames, *shape)."""
        of_episode = self._episodes.get(episode, {})
        for key, values in columns.items():
            if (key not in of_episode and key not in self._whole) or values.ndim > 2:
                continue  # versions of LeRobot do not agree over which dimensions of a matrix they go
            ends = _ends(values)
            if key in of_episode:
                self._compare(key, of_episode[key], ends, f", episode {episode}")
            else:
                self._found[key] = ends if key not in self._found else _joined(self._found[key], ends)

    def end(self) -> None:
        """Compare what is said of the whole dataset with all that was added."""
        for key, ends in self._found.items():
            self._compare(key, self._whole[key], ends, "")

    def _compare(self, key: str, given: Any, ends: Ends, where: str) -> None:
        least, greatest, total, count = ends
        found = {"min": least, "max": greatest, "mean": total / count}
        size = np.maximum(np.abs(least), np.abs(greatest))
        span = np.maximum(greatest - least, size * _SIZE_SHARE) + 1e-9
        wrong = []
        for name in _COMPARED:
            said = _numbers(given.get(name) if isinstance(given, dict) else None)
            if said is None or said.size != least.size:
                wrong.append(name)
                continue
            off = np.abs(said.reshape(-1) - found[name]) / span
            if not np.all(off <= (_MEAN_SHARE if name == "mean" else _END_SHARE)):
                wrong.append(name)
        if wrong:
            self._warnings.add(
                f"{self._path}{where}: {', '.join(wrong)} of {key!r} are not those of its frames; statistics are "
                "computed from the frames",
                like="statistics",
            )


def _ends(values: NDArray[Any]) -> Ends:
    flat = values.reshape(len(values), -1).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        return flat.min(0), flat.max(0), flat.sum(0), len(flat)


def _joined(one: Ends, other: Ends) -> Ends:
    return np.minimum(one[0], other[0]), np.maximum(one[1], other[1]), one[2] + other[2], one[3] + other[3]


def _numbers(given: Any) -> NDArray[Any] | None:
    try:
        return np.asarray(given, np.float64)
    except (TypeError, ValueError):
        return None


def _objects(path: Path, *, whole: bool) -> list[dict[str, Any]]:
    """The JSON objects of a file; none where it is damaged, which costs nothing: they are only compared."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            return []
        text = path.read_text(encoding="utf-8")
        found = [json.loads(one) for one in ([text] if whole else text.splitlines()) if one.strip()]
    except (OSError, ValueError, RecursionError):
        return []
    return [one for one in found if isinstance(one, dict)]
