"""ALOHA's HDF5 files, an episode each.

observations/qpos, qvel, effort, images/<camera>     images as arrays, or compressed and filled up with zeros
action                                               attributes of the file: sim, compress
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roboreel.convert.array_rows import image_layout, observation_key
from roboreel.convert.hdf5_episode import Hdf5Episode, judge_images
from roboreel.convert.hdf5_files import Hdf5Array, arrays_in, attribute, hdf5_files, opened
from roboreel.convert.lerobot_layout import Warnings
from roboreel.convert.source import Source
from roboreel.errors import NotADatasetError, SourceError

_DEFAULT_FPS = 50.0
"""ALOHA's DT is 0.02 s."""
_KEYS = {
    "action": "action",
    "observations/qpos": "observation.state",
    "observations/qvel": "observation.velocity",
    "observations/effort": "observation.effort",
}
_IMAGES = "observations/images/"
_LENGTHS_OF_FILES = "compress_len"
"""Bytes of each compressed image, by a camera's place in a list that is not in the file; the images' own ends do."""


class AlohaHdf5(Source):
    """Files whose arrays have been found to be the same, each as long as its actions."""

    def __init__(self, path: Path, fps: float | None, warnings: Warnings) -> None:
        paths = hdf5_files(path)
        if not paths:
            raise NotADatasetError(f"{path}: holds no HDF5 file (*.hdf5, *.h5)")
        self.path = path
        self.files = list(paths)
        self._warned = warnings
        self._simulated: Any = None
        self._episodes = [self._episode(file) for file in paths]
        self.lengths = [episode.length for episode in self._episodes]
        for episode in self._episodes:
            episode.check_sizes()
            episode.check_same(self._episodes[0])
        self._scales = judge_images(self._episodes, warnings)
        if fps is None:
            warnings.add(f"no rate is stored: taken as {_DEFAULT_FPS:g} Hz, as ALOHA's; else give fps (--fps)")
        self.fps = fps or _DEFAULT_FPS

    @property
    def format(self) -> str:
        return "ALOHA HDF5"

    @property
    def provenance(self) -> Mapping[str, Any]:  # type: ignore[override]
        found: dict[str, Any] = {"folder": self.path.resolve().name}
        return found if self._simulated is None else {**found, "simulated": bool(self._simulated)}

    @property
    def warnings(self) -> Sequence[str]:  # type: ignore[override]
        return tuple(self._warned)

    @property
    def episode_numbers(self) -> Sequence[int]:
        found = [re.search(r"(\d{1,9})$", Path(file).stem) for file in self.files]
        numbers = [int(one[1]) for one in found if one is not None]
        return numbers if len(set(numbers)) == len(found) else range(len(found))

    def read_episode(self, number: int) -> Mapping[str, Any]:
        return self._episodes[number].read(self._scales)

    def _episode(self, path: Path) -> Hdf5Episode:
        with opened(path) as file:
            arrays = arrays_in(path, file)
            self._simulated = attribute(file, "sim")
        actions = arrays.get("action")
        if actions is None or actions.flaw is not None or not actions.shape or "observations/qpos" not in arrays:
            raise SourceError(
                f"{path}: lacks 'action' or 'observations/qpos', so it is no episode of ALOHA's (it has "
                f"{', '.join(sorted(arrays)[:8]) or 'nothing'}); take it out of the folder"
            )
        columns: dict[str, Hdf5Array] = {}
        images: dict[str, Hdf5Array] = {}
        encoded: dict[str, Hdf5Array] = {}
        for place, array in arrays.items():
            if place == _LENGTHS_OF_FILES:
                continue
            if array.flaw is not None or not array.shape or 0 in array.shape[1:]:
                flaw = array.flaw or f"has shape {array.shape}"
                self._warned.leave_out(f"{place!r} {flaw}: left out", like=f"flaw {place}")
                continue
            is_camera = place.startswith(_IMAGES) and "depth" not in place  # depth is no colour, and has no unit here
            layout = image_layout("image", array.shape, array.dtype) if is_camera else None
            key = _data_key(place, {*columns, *images, *encoded}, image=is_camera)
            if layout is not None:
                images[key] = array
            elif is_camera and array.dtype == np.uint8 and len(array.shape) == 2:
                encoded[key] = array
            elif is_camera:
                raise SourceError(f"{array.where}: holds {array.dtype} {array.shape}, which are no images; take it out")
            else:
                columns[key] = array
        return Hdf5Episode(str(path), actions.shape[0], columns, images, encoded)


def _data_key(place: str, taken: set[str], *, image: bool) -> str:
    if place in _KEYS:
        return _KEYS[place]
    if image:
        return f"observation.images.{place.removeprefix(_IMAGES).replace('/', '.')}"
    if place.startswith("observations/"):
        return observation_key(place.removeprefix("observations/").replace("/", "."), image=False, taken=taken)
    return place.replace("/", ".")
