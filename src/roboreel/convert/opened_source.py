"""A `Source`, anyone's, as a `ForeignDataset`: what it says is checked, its keys are those of its first episode."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from roboreel.convert.foreign import SourceEpisode
from roboreel.convert.ingest import fingerprint
from roboreel.convert.source import Source
from roboreel.errors import InvalidArgumentError, InvalidEpisodeError, SourceError
from roboreel.schema import (
    EPISODE_INDEX_KEY,
    IMAGE_KEY_PREFIX,
    INDEX_KEY,
    KeySpec,
    LeRobotDatasetV2ImageMode,
)
from roboreel.store import CameraFrames, Episode, encode_key, infer_keys, split_episodes

_COUNTED = (INDEX_KEY, EPISODE_INDEX_KEY)
MIN_FPS, MAX_FPS = 1e-6, 1e6
"""Beyond any sensor, and near enough that times of frames stay apart and finite."""


class OpenedSource:
    """A source of which `fps` and `lengths` have been checked; episodes in `skipped` are left out."""

    def __init__(self, source: Source, skipped: Collection[int] = ()) -> None:
        if not isinstance(source, Source):
            raise InvalidArgumentError(f"{source!r:.80} is no Source; derive its class from roboreel.Source")
        self._source = source
        self.format = source.format
        self.fps = _parse_fps(source)
        self._lengths = _parse_lengths(source)
        self._numbers = _parse_numbers(source, len(self._lengths))
        if unknown := sorted(set(skipped).difference(self._numbers)):
            raise InvalidArgumentError(
                f"skip_episodes names {', '.join(map(repr, unknown[:5]))}, and {self.format} has {len(self._numbers)} "
                f"episodes, from {min(self._numbers, default=0)} to {max(self._numbers, default=0)}; those would do"
            )
        self._skipped = sorted(set(skipped))
        self._positions = [at for at, number in enumerate(self._numbers) if number not in set(skipped)]
        for at in self._positions:
            if self._lengths[at] <= 0:
                number = self._numbers[at]
                raise SourceError(
                    f"{self.format}: episode {number} has {self._lengths[at]} frames; leave it out by "
                    f"skip_episodes=[{number}] (--skip-episodes {number})"
                )
        if not self._positions:
            raise SourceError(f"{self.format}: holds no episodes{' but those skipped' * bool(skipped)}")

    @property
    def num_episodes(self) -> int:
        return len(self._positions)

    @property
    def num_frames(self) -> int:
        return sum(self._lengths[at] for at in self._positions)

    @property
    def warnings(self) -> Sequence[str]:
        return tuple(self._source.warnings)

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """What tells this recording from others, and what the source says of itself."""
        told = {
            **self._source.provenance,
            "format": self.format,
            "source_fps": self.fps,
            "lengths": xxhash.xxh3_64_hexdigest(np.array(self._lengths, "<i8").tobytes()),
            "fingerprint": fingerprint(*map(Path, self._source.files)) if self._source.files else None,
            "skipped_episodes": self._skipped or None,
        }
        try:
            json.dumps(told, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"{self.format}: its provenance is no JSON object ({error})") from None
        return told

    @cached_property
    def keys(self) -> Sequence[KeySpec]:
        """Cameras are kept without loss: as PNG, or where that holds no floats as raw numbers."""
        first = self._parsed(self._positions[0])
        modes = {
            key: LeRobotDatasetV2ImageMode.MEMMAP if frames.dtype.kind == "f" else LeRobotDatasetV2ImageMode.PNG
            for key, frames in first.cameras.items()
        }
        specs = [spec for spec in infer_keys(first, modes).values() if spec.role != "index"]
        for spec in specs:
            encode_key(spec.name)
        return specs

    @cached_property
    def row_bytes(self) -> int:
        paths = [path for place in map(Path, self._source.files) for path in (place, *place.rglob("*"))]
        return sum(path.stat().st_size for path in paths if path.is_file())

    def camera_files(self, key: str) -> Mapping[Path, int]:  # noqa: ARG002 - no source here has videos
        return {}

    def episodes(self) -> Iterator[SourceEpisode]:
        for at in self._positions:
            episode = self._parsed(at)
            yield SourceEpisode(
                self._numbers[at],
                episode.length,
                episode.columns,
                episode.strings,
                episode.cameras,
                integer_windows=False,
            )

    def _parsed(self, at: int) -> Episode:
        try:
            episode = _parse_episode(self._source.read_episode(at), self._lengths[at])
        except Exception as error:
            if not isinstance(error, SourceError):  # those name what is wrong themselves
                error.add_note(f"while reading episode {self._numbers[at]} of {self.format}")
            raise
        if episode.length != self._lengths[at]:
            raise SourceError(
                f"{self.format}: episode {self._numbers[at]} has {episode.length} frames, and lengths says "
                f"{self._lengths[at]}"
            )
        return episode


def _parse_episode(data: Any, length: int) -> Episode:
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise InvalidEpisodeError(
            f"read_episode gave {type(data).__name__}; a dict {{key: array of (frames, *shape)}} would do"
        )
    cameras = {key: value for key, value in data.items() if isinstance(value, CameraFrames)}
    if wrong := sorted(key for key in cameras if not key.startswith(IMAGE_KEY_PREFIX)):
        raise InvalidEpisodeError(f"the keys {wrong} are images, and must begin with {IMAGE_KEY_PREFIX!r}")
    arrays = {key: value for key, value in data.items() if key not in cameras and key not in _COUNTED}
    arrays = {key: [value] * length if isinstance(value, str) else value for key, value in arrays.items()}
    if not arrays and cameras:
        return Episode(next(iter(cameras.values())).length, cameras=cameras)
    (episode,) = split_episodes(arrays)
    return Episode(episode.length, episode.columns, episode.strings, {**episode.cameras, **cameras})


def _parse_fps(source: Source) -> float:
    fps = getattr(source, "fps", None)
    if isinstance(fps, bool) or not isinstance(fps, Real) or not MIN_FPS <= float(fps) <= MAX_FPS:
        raise InvalidArgumentError(
            f"{source.format}: fps is {fps!r:.40}; a positive number of frames a second would do"
        )
    return float(fps)


def _parse_lengths(source: Source) -> list[int]:
    try:
        lengths: list[Any] = list(source.lengths)
    except TypeError:  # what is no sequence
        lengths = [np.nan]
    if not all(isinstance(length, Integral) and not isinstance(length, bool) for length in lengths):
        raise InvalidArgumentError(
            f"{source.format}: lengths is {source.lengths!r:.80}; one whole number of frames for each episode would do"
        )
    return [int(length) for length in lengths]


def _parse_numbers(source: Source, count: int) -> list[int]:
    numbers = [int(number) for number in source.episode_numbers]
    if len(numbers) != count or any(one == other for one, other in pairwise(sorted(numbers))):
        raise InvalidArgumentError(
            f"{source.format}: episode_numbers are {numbers!r:.80}; {count} different numbers would do, as lengths has"
        )
    return numbers
