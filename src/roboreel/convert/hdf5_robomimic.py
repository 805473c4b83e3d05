"""robomimic's HDF5 files, and those of its kin (robosuite, LIBERO, Isaac Lab), many episodes in one.

data/demo_0/actions, rewards, dones, states, obs/*, next_obs/*     attributes: num_samples
data                                                               attributes: env_args (JSON), total
mask/train, …                                                      names of episodes
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roboreel.convert.array_rows import image_layout, observation_key
from roboreel.convert.hdf5_episode import Hdf5Episode, judge_images
from roboreel.convert.hdf5_files import Hdf5Array, arrays_in, attribute, check_link, hdf5_files, natural, opened
from roboreel.convert.lerobot_layout import Warnings
from roboreel.convert.source import Source
from roboreel.errors import SourceError
from roboreel.schema import EPISODE_INDEX_KEY, FRAME_INDEX_KEY, INDEX_KEY, TASK_KEY, TIMESTAMP_KEY

_DEFAULT_FPS = 20.0
"""robosuite's control_freq, where nothing else is said."""
_KEYS = {"actions": "action", "rewards": "next.reward", "dones": "next.done"}
_TAKEN = (INDEX_KEY, EPISODE_INDEX_KEY, FRAME_INDEX_KEY, TIMESTAMP_KEY, TASK_KEY)
_MAX_TEXT = 1 << 20


class RobomimicHdf5(Source):
    """A file whose episodes have been found to have the same arrays, each as long as its actions."""

    def __init__(self, path: Path, fps: float | None, warnings: Warnings) -> None:
        files = hdf5_files(path)
        if len(files) != 1:
            raise SourceError(
                f"{path}: holds {len(files)} HDF5 files, and robomimic keeps a recording in one; give one of them"
            )
        self.path = files[0]
        self.files = [self.path]
        self._left_out: set[str] = set()
        self._is_first = True
        self._warned = warnings
        with opened(self.path) as file:
            data = _group(self.path, file, "data")
            self._env = _json_object(attribute(data, "env_args"))
            task = _json_object(attribute(data, "problem_info")).get("language_instruction")
            names = sorted(data, key=natural)
            self._episodes = [self._episode(data, name, task if isinstance(task, str) else None) for name in names]
            self._splits = _splits(self.path, file, warnings)
            self._compare_total(data)
        if not self._episodes:
            raise SourceError(f"{self.path}: its group 'data' is empty; copy it again")
        self._names = names
        self.lengths = [episode.length for episode in self._episodes]
        for episode in self._episodes:
            episode.check_sizes()
            episode.check_same(self._episodes[0])
        self._scales = judge_images(self._episodes, warnings)
        self.fps = fps or self._found_fps()

    @property
    def format(self) -> str:
        return "robomimic HDF5"

    @property
    def provenance(self) -> Mapping[str, Any]:  # type: ignore[override]
        found = {"folder": self.path.name, "env_name": self._env.get("env_name"), "splits": self._splits or None}
        return {key: value for key, value in found.items() if value is not None}

    @property
    def warnings(self) -> Sequence[str]:  # type: ignore[override]
        return tuple(self._warned)

    @property
    def episode_numbers(self) -> Sequence[int]:
        numbers = [int(found[0]) if (found := re.search(r"\d{1,9}$", name)) else -1 for name in self._names]
        return numbers if len({*numbers, -1}) == len(numbers) + 1 else range(len(numbers))

    def read_episode(self, number: int) -> Mapping[str, Any]:
        return self._episodes[number].read(self._scales)

    def _episode(self, data: Any, name: str, task: str | None) -> Hdf5Episode:
        check_link(self.path, data, name)
        group, where = data[name], f"{self.path}, data/{name}"
        arrays = arrays_in(self.path, group) if hasattr(group, "keys") else {}
        actions = arrays.get("actions")
        if actions is None or actions.flaw is not None or not actions.shape:
            raise SourceError(f"{where}: has no 'actions'{'' if actions is None else ', which are an array'}; mend it")
        length = actions.shape[0]
        said = attribute(group, "num_samples")
        if said is not None and said != length:
            self._warned.add(f"{name}: num_samples is {said}, and it has {length} actions", like="num_samples")
        lang = _json_object(attribute(group, "ep_meta")).get("lang", task)
        strings = {TASK_KEY: lang} if isinstance(lang, str) else {}
        columns: dict[str, Hdf5Array] = {}
        images: dict[str, Hdf5Array] = {}
        for place, array in arrays.items():
            if self._is_kept(place, array, length):
                layout = image_layout(place.rpartition("/")[2], array.shape, array.dtype)
                is_image = layout is not None and place.startswith("obs/")
                key = _data_key(place, {*columns, *images}, image=is_image)
                (images if is_image else columns)[key] = array
        self._is_first = False
        return Hdf5Episode(where, length, columns, images, strings=strings)

    def _is_kept(self, place: str, array: Hdf5Array, length: int) -> bool:
        """Whether an array comes along; said where not. Observations of another length are refused later."""
        if place.startswith("next_obs/"):
            self._warned.add("'next_obs' is 'obs' a step later: left out")
            return False
        if array.flaw is not None or not array.shape or 0 in array.shape[1:]:
            flaw = array.flaw or f"has shape {array.shape}"
            self._warned.leave_out(f"{place!r} {flaw}: left out", like=f"flaw {place}")
            return False
        top = place.partition("/")[0]
        if top == "initial_state":
            self._warned.add("'initial_state' has no value for each frame: left out")
            return False
        if place in self._left_out:
            return False
        if array.shape[0] != length and top != "obs" and place not in _KEYS and self._is_first:
            self._left_out.add(place)
            said = f"{place!r} has {array.shape[0]} rows in an episode of {length} frames: left out"
            self._warned.leave_out(said, like=f"length {place}")
            return False
        return True

    def _found_fps(self) -> float:
        kwargs, sim = (self._env.get(name) for name in ("env_kwargs", "sim_args"))
        said = kwargs.get("control_freq") if isinstance(kwargs, dict) else None
        if isinstance(sim, dict) and said is None:
            step, every = sim.get("dt"), sim.get("decimation", 1)
            said = 1 / (step * every) if _is_positive(step) and _is_positive(every) else None
        if _is_positive(said):
            return float(f"{said:.6g}")
        self._warned.add(f"env_args say no rate: taken as {_DEFAULT_FPS:g} Hz, as robosuite's; else give fps (--fps)")
        return _DEFAULT_FPS

    def _compare_total(self, data: Any) -> None:
        said, there = attribute(data, "total"), sum(episode.length for episode in self._episodes)
        if said is not None and said != there:
            self._warned.add(f"the attribute 'total' of 'data' is {said}, and there are {there} frames")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def _data_key(place: str, taken: set[str], *, image: bool) -> str:
    if place in _KEYS:
        return _KEYS[place]
    if place.startswith("obs/"):
        return observation_key(place.removeprefix("obs/").replace("/", "."), image=image, taken=taken)
    key = place.replace("/", ".")
    return f"values.{key}" if key in _TAKEN or key in taken else key


def _group(path: Path, file: Any, name: str) -> Any:
    if name not in file:
        raise SourceError(f"{path}: has no group {name!r} (it has {', '.join(sorted(file)[:8]) or 'nothing'})")
    check_link(path, file, name)
    if not hasattr(file[name], "keys"):
        raise SourceError(f"{path}: {name!r} is no group; copy the file again")
    return file[name]


def _json_object(text: Any) -> dict[str, Any]:
    """What an attribute of JSON holds; nothing where it is none."""
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _splits(path: Path, file: Any, warnings: Warnings) -> dict[str, list[str]]:
    """Which episodes `mask/` names for what, e.g. {"train": ["demo_0", …]}."""
    if "mask" not in file:
        return {}
    mask, found = _group(path, file, "mask"), {}
    for name in mask:
        check_link(path, mask, name)
        try:
            listed = mask[name].asstr()[:] if mask[name].dtype.kind == "O" else mask[name][:].astype(str)
            found[name] = [str(demo) for demo in listed.reshape(-1)]
        except Exception as error:  # noqa: BLE001 - it may be anything, and nothing depends on it
            warnings.add(f"mask {name!r} cannot be read ({error!r:.80}): left out")
    return found
