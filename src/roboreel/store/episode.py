"""An episode on its way in: what it must be, checked whole before a byte of it is written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.columns.frames import CameraFrames, in_memory
from roboreel.columns.resize import ResizedFrames
from roboreel.errors import InvalidEpisodeError
from roboreel.format.records import State
from roboreel.schema import (
    EPISODE_INDEX_KEY,
    FRAME_INDEX_KEY,
    INDEX_KEY,
    STRING_CODE_DTYPE,
    TIMESTAMP_KEY,
    KeySpec,
    LeRobotDatasetV2ImageMode,
    index_keys,
    is_depth_dtype,
    natural_depth_unit,
    natural_image_mode,
)

_ALWAYS = frozenset({INDEX_KEY, EPISODE_INDEX_KEY, FRAME_INDEX_KEY, TIMESTAMP_KEY})


@dataclass(frozen=True)
class Episode:
    """`length` frames: arrays (length, *shape), strings, and the frames of each camera."""

    length: int
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """May hold `timestamp` (s) and `frame_index`; `index` and `episode_index` in it are not looked at."""
    strings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    cameras: Mapping[str, CameraFrames] = field(default_factory=dict)
    integer_windows: bool = False
    """Take the episode as regular in time whatever its timestamps say."""
    source: str | None = None
    """Where it was taken from."""
    source_episode: int = -1
    wall_start: float = 0.0
    """Time of recording, seconds since 1970; 0: not known."""

    @property
    def data_keys(self) -> set[str]:
        """The keys of a dataset that begins with this episode."""
        return {*_ALWAYS, *self.columns, *self.strings, *self.cameras}


def infer_keys(episode: Episode, modes: Mapping[str, LeRobotDatasetV2ImageMode] | None = None) -> dict[str, KeySpec]:
    """Return the keys of a new dataset that begins with this episode.

    `modes` says how each camera is stored; one that it leaves out as is natural for it: see `natural_image_mode`.

    Raises:
        InvalidArgumentError: a camera cannot be stored so.
    """
    keys = {spec.name: spec for spec in index_keys()}
    for key, array in episode.columns.items():
        if key not in keys:
            keys[key] = KeySpec(key, array.dtype.newbyteorder("<"), array.shape[1:])
    for key in episode.strings:
        keys[key] = KeySpec(key, STRING_CODE_DTYPE, (), "string")
    for key, frames in episode.cameras.items():
        dtype = frames.dtype.newbyteorder("<")
        mode = (modes or {}).get(key) or natural_image_mode(dtype, frames.shape[-1])
        unit = natural_depth_unit(dtype) if is_depth_dtype(dtype) else None
        keys[key] = KeySpec(key, dtype, frames.shape, "camera", mode, ["height", "width", "channels"], unit)
    return keys


def parse_episode(episode: Episode, keys: Mapping[str, KeySpec], fps: float) -> Episode:
    """Return the episode with every column in its stored dtype and `timestamp` always there.

    Raises:
        InvalidEpisodeError: it cannot be stored as it is; the message names the key and says what would do.
    """
    if episode.length <= 0:
        raise InvalidEpisodeError("the episode has 0 frames; give at least one")
    _check_keys(episode, keys)
    _check_frame_index(episode)
    columns = {
        key: _parse_column(array, keys[key], episode.length)
        for key, array in episode.columns.items()
        if keys[key].role == "value"
    }
    columns[TIMESTAMP_KEY] = _parse_timestamps(episode, fps)
    for key, strings in episode.strings.items():
        _check_length(key, len(strings), episode.length)
        _check_strings(key, strings)
    cameras = {key: at_size(frames, keys[key]) for key, frames in episode.cameras.items()}
    for key, frames in cameras.items():
        _check_length(key, frames.length, episode.length)
        if tuple(frames.shape) != keys[key].shape:
            raise InvalidEpisodeError(
                f"{key!r}: frames of shape {tuple(frames.shape)}, where the dataset has {keys[key].shape}; "
                "resize them, or begin a new dataset"
            )
        if frames.dtype != keys[key].dtype:
            raise InvalidEpisodeError(
                f"{key!r}: frames of {frames.dtype}, where the dataset has {keys[key].dtype}"
                + (f" in {keys[key].unit}; convert them" if keys[key].is_depth else "; give those")
            )
        check_channels(keys[key])
    return replace(episode, columns=columns, cameras=cameras)


def check_channels(spec: KeySpec) -> None:
    """Refuse a camera that cannot be video, before anything is encoded."""
    if spec.image_mode is LeRobotDatasetV2ImageMode.VIDEO and spec.shape[-1] != 3:
        raise InvalidEpisodeError(
            f"{spec.name!r}: frames of shape {spec.shape}, and video has 3 channels (RGB); give those, or begin the "
            "dataset with image_mode='png' or 'memmap' for this camera"
        )


def in_memory_for(episode: Episode, keys: Collection[str]) -> Episode:
    """Return the episode, no column or camera of `keys` in a mapped file: that may be the one that is overwritten."""
    columns = {key: in_memory(array) for key, array in episode.columns.items()}
    cameras = {key: frames.in_memory() if key in keys else frames for key, frames in episode.cameras.items()}
    return replace(episode, columns=columns, cameras=cameras)


def blocks_of(episode: Episode, spec: KeySpec, state: State, code: Callable[[str], int]) -> Iterator[NDArray[Any]]:
    """Yield what a key's column is to hold of an episode that follows what `state` counts: (n, *shape), in order."""
    if spec.is_camera:
        yield from episode.cameras[spec.name].blocks()
    elif spec.is_string:
        yield np.array([code(text) for text in episode.strings[spec.name]], spec.dtype)
    elif spec.name == INDEX_KEY:
        yield np.arange(state.next_index, state.next_index + episode.length, dtype=spec.dtype)
    elif spec.name == FRAME_INDEX_KEY:
        yield np.arange(episode.length, dtype=spec.dtype)
    elif spec.name == EPISODE_INDEX_KEY:
        yield np.full(episode.length, state.next_episode_index, spec.dtype)
    else:
        yield episode.columns[spec.name]


def at_size(frames: CameraFrames, spec: KeySpec) -> CameraFrames:
    """Bring frames to the size of a camera that resizes; those of that size already are taken as they are."""
    if spec.resized is None or frames.shape[:2] == spec.shape[:2]:
        return frames
    return ResizedFrames(frames, (spec.shape[0], spec.shape[1]), spec.resized)


def _check_keys(episode: Episode, keys: Mapping[str, KeySpec]) -> None:
    given = episode.data_keys - _ALWAYS
    wanted = set(keys) - _ALWAYS
    if missing := sorted(wanted - given):
        raise InvalidEpisodeError(f"the episode lacks the keys {missing}, which every episode of this dataset has")
    if unknown := sorted(given - wanted):
        raise InvalidEpisodeError(
            f"the episode has the keys {unknown}, which the dataset has not: it has {sorted(wanted)}; "
            "leave them out, or begin a new dataset"
        )
    for kind, role, words in (
        (episode.strings, "string", "strings"),
        (episode.cameras, "camera", "images"),
    ):
        if wrong := sorted(key for key in kind if keys[key].role != role):
            raise InvalidEpisodeError(f"the keys {wrong} came as {words}; the dataset holds numbers there")
    if wrong := sorted(key for key in episode.columns if keys[key].role in ("string", "camera")):
        raise InvalidEpisodeError(f"the keys {wrong} came as numbers; the dataset holds strings or images there")


def _check_length(key: str, length: int, wanted: int) -> None:
    if length != wanted:
        raise InvalidEpisodeError(f"{key!r} has {length} frames, other keys of the episode have {wanted}")


def _check_strings(key: str, strings: Sequence[str]) -> None:
    for text in set(strings):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidEpisodeError(
                f"{key!r}: {text!r} is no text that can be stored as UTF-8 ({error.reason})"
            ) from None


def _check_frame_index(episode: Episode) -> None:
    if FRAME_INDEX_KEY not in episode.columns:
        return
    given = episode.columns[FRAME_INDEX_KEY]
    if not np.array_equal(given, np.arange(episode.length)):
        raise InvalidEpisodeError(
            f"{FRAME_INDEX_KEY!r} must be 0, 1, 2, … {episode.length - 1} in each episode; it begins "
            f"{np.asarray(given).ravel()[:5].tolist()}; put the frames in order, or leave the key out"
        )


def _parse_column(array: NDArray[Any], spec: KeySpec, length: int) -> NDArray[Any]:
    if array.shape[:1] != (length,):
        _check_length(spec.name, len(array) if array.ndim else 0, length)
    if array.shape[1:] != spec.shape:
        raise InvalidEpisodeError(
            f"{spec.name!r}: frames of shape {array.shape[1:]}, where the dataset has {spec.shape}"
        )
    if array.dtype == spec.dtype:
        return array
    if array.dtype.kind not in "biuf" or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise InvalidEpisodeError(
            f"{spec.name!r}: {array.dtype} does not go into the dataset's {spec.dtype}; "
            f"type data[{spec.name!r}].astype({spec.dtype.name!r}) if that is what you mean"
        )
    with np.errstate(over="ignore"):
        cast = array.astype(spec.dtype)
    lossy = cast != array if spec.dtype.kind in "iu" else np.isinf(cast) & ~np.isinf(array)
    if np.any(lossy):
        raise InvalidEpisodeError(f"{spec.name!r}: {array[lossy].ravel()[0]} is beyond the dataset's {spec.dtype}")
    return cast


def _parse_timestamps(episode: Episode, fps: float) -> NDArray[np.float64]:
    given = episode.columns.get(TIMESTAMP_KEY)
    if given is None:
        return np.arange(episode.length) / fps
    if given.shape not in ((episode.length,), (episode.length, 1)) or given.dtype.kind not in "iuf":
        raise InvalidEpisodeError(
            f"{TIMESTAMP_KEY!r} must be {episode.length} numbers (s); it is {given.dtype} of shape {given.shape}"
        )
    times = given.reshape(-1).astype(np.float64)
    if not np.all(np.isfinite(times)):
        raise InvalidEpisodeError(f"{TIMESTAMP_KEY!r} of frame {int(np.argmin(np.isfinite(times)))} is not finite")
    if np.any(backwards := np.diff(times) < 0):
        at = int(np.argmax(backwards)) + 1
        raise InvalidEpisodeError(
            f"{TIMESTAMP_KEY!r} goes back at frame {at}, from {times[at - 1]:g} s to {times[at]:g} s; "
            "put the frames in order"
        )
    return times


def is_regular(timestamps: NDArray[np.float64], fps: float) -> bool:
    """Whether frame k lies less than half a step from k / fps, so that frame numbers say all about time.

    >>> is_regular(np.array([0.0, 0.1, 0.2]), 10), is_regular(np.array([0.0, 0.1, 0.3]), 10)
    (True, False)
    """
    return bool(np.all(np.abs(timestamps * fps - np.arange(len(timestamps))) < 0.5))
