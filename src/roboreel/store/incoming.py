"""What `add_episodes` is given, taken apart into episodes for the store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.columns.frames import ArrayFrames, is_mapped_in
from roboreel.errors import InvalidEpisodeError
from roboreel.schema import (
    EPISODE_INDEX_KEY,
    FRAME_INDEX_KEY,
    IMAGE_KEY_PREFIX,
    INDEX_KEY,
    TIMESTAMP_KEY,
    LeRobotDatasetV2ImageMode,
    is_depth_dtype,
)
from roboreel.store.episode import Episode

_COLOURS = (3, 4)
_COUNTED = (INDEX_KEY, EPISODE_INDEX_KEY, FRAME_INDEX_KEY, TIMESTAMP_KEY)


def split_episodes(data: Any, root: Path | None = None) -> Iterator[Episode]:
    """Yield one `Episode` for each run of equal `episode_index`; a single one where that key is left out.

    `root` is where they go, if a dataset may be there already: what lies in a column of that dataset is copied, before
    the first of them overwrites it.

    Raises:
        InvalidEpisodeError: what was given is not arrays of equal length; nothing was stored.
    """
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise InvalidEpisodeError(
            f"add_episodes was given {type(data).__name__}; give a dict {{key: array of (frames, *shape)}}"
        )
    arrays = {key: _as_array(key, value) for key, value in data.items()}
    lengths = {key: len(array) for key, array in arrays.items() if array.ndim}
    if not lengths:
        raise InvalidEpisodeError("no data was given; give {key: array of (frames, *shape)}")
    if wrong := sorted(key for key, array in arrays.items() if not array.ndim and array.dtype.kind != "O"):
        raise InvalidEpisodeError(f"the keys {wrong} are single values; give one for each frame")
    if len(set(lengths.values())) > 1:
        raise InvalidEpisodeError(f"the keys have different numbers of frames: {lengths}")
    length = next(iter(lengths.values()))
    arrays = {key: array if array.ndim else np.full(length, array) for key, array in arrays.items()}
    for key, array in arrays.items():
        if key.startswith(IMAGE_KEY_PREFIX):
            arrays[key] = _parse_images(key, array)
        if root is not None and is_mapped_in(array, root):
            arrays[key] = arrays[key].copy()
    for start, stop in _runs(arrays.get(EPISODE_INDEX_KEY), length):
        yield _episode({key: array[start:stop] for key, array in arrays.items()}, stop - start)


def _as_array(key: str, value: Any) -> NDArray[Any]:
    try:
        array = _texts(value) if _is_text(value) else np.asarray(value)
    except Exception as error:  # tensors on a GPU, ragged lists, …
        raise InvalidEpisodeError(f"{key!r} cannot be made a numpy array: {error}{_stack(key)}") from error
    if array.dtype.kind == "U":
        array = array.astype(object)
    is_text = array.dtype.kind == "O" and all(isinstance(text, str) for text in array.reshape(-1))
    if array.dtype.kind not in "biuf" and not is_text:
        raise InvalidEpisodeError(
            f"{key!r} has dtype {array.dtype}, which cannot be stored; booleans, integers, floats and strings can"
            + _stack(key)
        )
    if is_text and (key in _COUNTED or array.ndim > 1):
        wanted = "must be numbers" if key in _COUNTED else "has more than one string a frame; give one"
        raise InvalidEpisodeError(f"{key!r} is strings of shape {array.shape}: it {wanted}")
    return array


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(text, str) for text in value)
    )


def _texts(value: str | list[str] | tuple[str, ...]) -> NDArray[Any]:
    """Return the strings as objects: numpy's own would be cut at zeros, and all be as long as the longest."""
    array = np.empty(() if isinstance(value, str) else len(value), object)
    array[...] = value
    return array


def _parse_images(key: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return images or depth in the byte order of the format; `InvalidEpisodeError` for everything else."""
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    channels = (1,) if is_depth_dtype(array.dtype) else (1, 3, 4) if array.dtype == np.uint8 else ()
    if array.ndim == 4 and array.shape[-1] in channels and min(array.shape[1:3]) >= array.shape[-1]:
        return array
    raise InvalidEpisodeError(
        f"{key!r} begins with {IMAGE_KEY_PREFIX!r} and must hold images: uint8 of shape (frames, height, width, "
        "channels), channels last; or depth: uint16 in millimetres or float32 in metres, (frames, height, width, 1); "
        f"it is {array.dtype} of shape {array.shape}{_what_to_type(key, array)}"
    )


def _what_to_type(key: str, array: NDArray[Any]) -> str:
    """What would make images of the array, where that can be guessed.

    >>> _what_to_type("observation.image", np.zeros((2, 4, 5), np.uint16))
    "; type data['observation.image'][..., None] for one channel"
    """
    if array.ndim == 3 and array.shape[-1] in _COLOURS and array.shape[1] > array.shape[-1]:
        return f"; type data[{key!r}][None] for one frame"
    one_channel = array.ndim == 3 or (array.ndim == 4 and array.shape[-1] == 1)
    channel = "[..., None]" if array.ndim == 3 else ""
    name = f"data[{key!r}]"
    if one_channel and array.dtype in (np.uint8, np.uint16, np.float32):
        return f"; type {name}[..., None] for one channel" if channel else ""
    if one_channel and array.dtype.kind == "f":
        return f"; type {name}{channel}.astype('float32') for depth in metres"
    if one_channel and array.dtype.kind in "iu":
        return f"; type {name}{channel}.astype('uint16') for depth in millimetres, or 'uint8' for grey images"
    return _colour(name, array)


def _colour(typed: str, array: NDArray[Any]) -> str:
    """As `_what_to_type`, for colours that are no uint8, or whose channels come first.

    >>> _colour("x", np.zeros((5, 3, 48, 64), np.float32))
    "; type (np.moveaxis(x, 1, -1) * 255).round().astype('uint8') for colours in [0, 1]"
    """
    if array.ndim != 4 or array.dtype.kind not in "iuf":
        return ""
    if array.shape[1] in (1, *_COLOURS) and array.shape[1] < min(array.shape[2:]):
        typed = f"np.moveaxis({typed}, 1, -1)"
    elif array.shape[-1] not in _COLOURS:
        return ""
    if array.dtype.kind == "f":
        if array.size and array.max() > 1:
            return f"; type {typed}.round().astype('uint8') for colours from 0 to 255"
        return f"; type ({typed} * 255).round().astype('uint8') for colours in [0, 1]"
    if array.dtype == np.uint8:
        return f"; type {typed}"
    return f"; type {typed}.astype('uint8') for colours from 0 to 255"


def _stack(key: str) -> str:
    if not key.startswith(IMAGE_KEY_PREFIX):
        return ""
    return "; give frames of one size, as np.stack(images), in the memory of the CPU"


def _runs(episode_index: NDArray[Any] | None, length: int) -> list[tuple[int, int]]:
    if episode_index is None:
        return [(0, length)]
    if episode_index.ndim != 1 or episode_index.dtype.kind not in "iu":
        raise InvalidEpisodeError(
            f"{EPISODE_INDEX_KEY!r} is {episode_index.dtype} of shape {episode_index.shape}; give one integer a frame"
        )
    cuts = np.flatnonzero(np.diff(episode_index)) + 1
    edges = [0, *cuts.tolist(), length]
    runs = list(itertools.pairwise(edges))
    numbers, counts = np.unique(episode_index[edges[:-1]] if length else episode_index, return_counts=True)
    if len(again := numbers[counts > 1]):
        shown = again[:5].tolist()
        raise InvalidEpisodeError(f"the frames of the episodes {shown} do not stand together; sort by episode")
    return runs


def _episode(arrays: Mapping[str, NDArray[Any]], length: int) -> Episode:
    return Episode(
        length=length,
        columns={
            key: array
            for key, array in arrays.items()
            if array.dtype.kind != "O" and not key.startswith(IMAGE_KEY_PREFIX)
        },
        strings={key: array.tolist() for key, array in arrays.items() if array.dtype.kind == "O"},
        cameras={key: ArrayFrames(array) for key, array in arrays.items() if key.startswith(IMAGE_KEY_PREFIX)},
    )


def check_cameras(episode: Episode, asked: LeRobotDatasetV2ImageMode | None) -> None:
    """Refuse an episode without images where `png` or `video` was asked for by name."""
    if asked is not None and LeRobotDatasetV2ImageMode.needs_decoding(asked) and not episode.cameras:
        raise InvalidEpisodeError(
            f"image_mode={asked.value!r} was asked for and the episode has no key that begins with "
            f"{IMAGE_KEY_PREFIX!r}; add images, or leave image_mode out"
        )
